"""Key backends: unwraps a second, beside the embedded one in the same run.

    python bench/backends.py [--seconds S] [--settings backends.json]

Without settings: the embedded backend alone. Those of `--settings` are measured as they are, with whatever
stands between; each must have its root key (`sealwright broker backend create-key`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from sealwright.broker.backend import EmbeddedBackend, KeyBackend, WrapContext, wiped
from sealwright.broker.backend.make import make_backend
from sealwright.broker.backend.settings import load

CONTEXT = WrapContext(kid="bench", tenant="bench", policy_digest=bytes(32), epoch=1)


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="for each backend")
    parser.add_argument("--settings", type=Path, default=None, help="backends.json")
    options = parser.parse_args()
    peer: float | None = None
    for name, backend in backends(options.settings):
        times = measure(backend, options.seconds)
        backend.close()
        rate = len(times) / sum(times)
        peer = peer or rate
        row = {
            "work": f"unwrap, {name} ({backend.facts.kind})",
            "unwraps_per_s": round(rate, 1),
            "p50_ms": round(statistics.median(times) * 1e3, 3),
            "p99_ms": round(sorted(times)[int(len(times) * 0.99)] * 1e3, 3),
            "ratio_to_embedded": round(rate / peer, 4),
            "measured": len(times),
        }
        print(json.dumps(row), flush=True)


def backends(settings: Path | None) -> Iterator[tuple[str, KeyBackend]]:
    """Yield the embedded backend, then those of the settings."""
    yield "embedded", EmbeddedBackend(os.urandom(32), os.urandom)
    for name, one in (load(settings) if settings is not None else {}).items():
        yield name, make_backend(name, one)


def measure(backend: KeyBackend, seconds: float) -> list[float]:
    """Return the time of each unwrap, one after the other, in seconds."""
    wrapped = backend.create(CONTEXT)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        with wiped(backend.unwrap(wrapped, CONTEXT)):
            times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
