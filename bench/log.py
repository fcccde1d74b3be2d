"""The log: append with fsync, inclusion proofs, full re-verify; peers in the same run.

    python bench/log.py [--size ENTRIES] [--dir DIR]

Peers: SQLite (one insert and commit a batch, synchronous=FULL) for appending, and the bare hashing that nobody
can avoid (a leaf hash an entry; leaf and node hash an entry for the re-verify).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.tlog.keys import Signer
from sealwright.tlog.merkle import leaf_hash, node_hash
from sealwright.tlog.monitor import verify_log
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.posix import PosixLog, directory_fetch
from sealwright.tlog.writer import LogWriter

BATCH = 1024
PROOFS = 20_000
SINGLES = 200  # entries that are waited for one by one


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1 << 20, help="entries")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to write; default: a temporary directory"
    )
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        for row in measure(root, options.size):
            print(json.dumps(row), flush=True)
    finally:
        shutil.rmtree(root)


def measure(root: Path, size: int) -> list[dict[str, object]]:
    """Return the rows, measured at `size` entries under `root`."""
    entries = [
        b'{"commitment":"%s","type":"receipt"}' % hashlib.sha256(b"%d" % i).hexdigest().encode()
        for i in range(size)
    ]
    signer = Signer(name="bench.example/log", key=Ed25519PrivateKey.generate())
    policy = LogPolicy.of_key(signer.vkey.encode())
    leaves_s = size / _seconds(lambda: [leaf_hash(entry) for entry in entries])
    sqlite_s = size / _seconds(lambda: _sqlite(root / "peer.db", entries))
    log = PosixLog.open(root / "log", signer, create=True)
    append_s = size / _seconds(lambda: _append(log, entries))
    picks = random.Random(1).choices(range(size), k=PROOFS)
    _prove(log, range(0, size, 256))  # warm: every tile once
    prove_s = PROOFS / _seconds(lambda: _prove(log, picks))
    verify = _seconds(lambda: verify_log(directory_fetch(root / "log"), policy, previous=log.checkpoint))
    hashing = _seconds(lambda: [node_hash(leaf_hash(entry), b"") for entry in entries])
    single = _median_single(log)
    at = f"at {size:,}"
    return [
        _row(f"log append, batch {BATCH}, fsync", append_s, sqlite_s, append_s / sqlite_s, "entries/s; peer: SQLite", "ours >= 50,000/s"),
        _row("log append against bare leaf hashing", append_s, leaves_s, append_s / leaves_s, "entries/s; peer: SHA-256", "none"),
        _row(f"inclusion proofs, warm, {at}", prove_s, None, None, "proofs/s", "ours >= 10,000/s at 1M"),
        _row(f"full re-verify, {at}", verify, hashing, verify / hashing, "s; peer: bare hashing", "ours <= 10 s at 1M"),
        _row("one entry, durable, through LogWriter", single * 1e3, None, None, "ms, median", "none"),
    ]  # fmt: skip


def _append(log: PosixLog, entries: list[bytes]) -> None:
    for start in range(0, len(entries), BATCH):
        log.append(entries[start : start + BATCH])


def _prove(log: PosixLog, indexes: list[int] | range) -> None:
    for index in indexes:
        log.prove(index)


def _median_single(log: PosixLog) -> float:
    with LogWriter(log) as writer:
        return statistics.median(_seconds(lambda: writer.add_and_wait(b"single")) for _ in range(SINGLES))


def _sqlite(path: Path, entries: list[bytes]) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, entry BLOB, leaf BLOB)")
    for start in range(0, len(entries), BATCH):
        rows = [(entry, leaf_hash(entry)) for entry in entries[start : start + BATCH]]
        database.executemany("INSERT INTO log (entry, leaf) VALUES (?, ?)", rows)
        database.commit()
    database.close()


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _row(
    work: str, ours: float, peer: float | None, ratio: float | None, unit: str, limit: str
) -> dict[str, object]:
    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    return {
        "work": work,
        "ours": short(ours),
        "peer": short(peer),
        "ratio": short(ratio),
        "unit": unit,
        "limit": limit,
    }


if __name__ == "__main__":
    main()
