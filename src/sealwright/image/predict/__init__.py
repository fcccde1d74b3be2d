"""What a guest image measures to, from its files alone. Spec: docs/spec/predicted-measurements.md.

Pure functions: bytes in, registers and events out. Nothing is booted, and only `files` reads what it is given.
"""
