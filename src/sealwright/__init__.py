"""Sealwright: confidential computing for AI as one composable stack."""

__version__ = "0.1.0"
