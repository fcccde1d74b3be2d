"""An enclave's life: keys of one boot, leases, receipts, and the doors clients knock at.

What runs inside it (inference, later training) is handed in; nothing here knows an engine.
"""
