"""Releases: build, name, sign, log, build again, verify. Spec: docs/spec/release.md."""
