"""Secure aggregation: state machines over bytes, without I/O. Spec: docs/spec/secure-aggregation.md."""
