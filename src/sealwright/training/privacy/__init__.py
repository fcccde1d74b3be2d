"""Differential privacy of training: exact noise, accounting, a ledger. Spec: docs/spec/privacy.md."""
