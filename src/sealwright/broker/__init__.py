"""Appraises enclaves, holds keys, releases them under leases, and logs every decision before it is answered."""
