"""Messages as frozen records: enclave config, keyset, report data, KBS, release, lease, receipts. No I/O."""
