"""Checking afterwards, offline, what was done: receipts and their proofs."""
