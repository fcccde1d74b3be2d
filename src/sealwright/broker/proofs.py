"""Proofs of log entries by their SHA-256, through an index that can be rebuilt from the log at any time."""

from __future__ import annotations

import hashlib

from sealwright.broker.state import State


def prove(state: State, entry_sha256: bytes) -> bytes | None:
    """Return the `.tlog-proof` of the entry with this SHA-256, or None if the log has none."""
    with state.lock:
        start = state.store.indexed()
        state.store.add_index(
            [(hashlib.sha256(entry).digest(), index) for index, entry in state.ledger.entries(start)]
        )
        index = state.store.find(entry_sha256)
    # The index is only a hint: whoever asked verifies the proof against the entry.
    if index is None or index >= state.ledger.size:
        return None
    return state.ledger.prove(index).encode()
