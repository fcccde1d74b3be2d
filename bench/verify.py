"""Evidence of every type verified: cold, with chains and collateral cached, and a hundred thousand times.

    python bench/verify.py [--turns N] [--memory COUNT]

Peers: the checks of the evidence's own signatures, which no verifier can save (the limit), and dcap-qvl (Rust) for
TDX and SGX, with the same collateral, which it is given parsed. All sides take turns; ratios are of one turn each.
*Cold*: endorsements are parsed and every signature of chains and collateral is checked. *Cached*: evidence is parsed
and verified, and a `WorkCache` remembers the rest, but for what depends on the time. Memory: evidence and
endorsements are parsed anew each time, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _stats import estimate
from _verify_works import Act, Work, works
from sealwright.verify.context import WorkCache

TURN_S = 0.02  # of each side, about
EARLY = 1000  # verifications after which memory is looked at first
MEMORY = ("SNP", "TDX v4")
SNP_LIMIT, PEER_LIMIT, MEMORY_LIMIT = "<= 1.15", "<= 1", "<= 1.05"
Row = dict[str, object]


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=200, help="of each comparison")
    parser.add_argument(
        "--memory", type=int, default=100_000, help="verifications; 0: memory is not measured"
    )
    parser.add_argument("--grow", metavar="NAME", help="print the memory of verifying NAME; for itself")
    options = parser.parse_args()
    if options.grow:
        print(json.dumps(grown(options.grow, options.memory)))
        return
    for work in works():
        for row in rows(work, options.turns):
            print(json.dumps(row), flush=True)
    for name in MEMORY if options.memory else ():
        print(json.dumps(memory_row(name, options.memory)), flush=True)


def rows(work: Work, turns: int) -> Iterator[Row]:
    """Measure one type."""
    cache, endorsements = WorkCache(), work.read()

    def cached() -> object:
        return work.verify(endorsements, cache)

    yield _against(f"{work.name}, cold", work.verify, work.bare, turns, "ms", work.signed_by, "none")
    limit = SNP_LIMIT if work.name == "SNP" else "none"
    seconds: list[float] = []
    yield _against(f"{work.name}, cached", cached, work.bare, turns, "ms", work.signed_by, limit, seconds)
    yield _row(f"{work.name}, cached, on one core", 1 / statistics.median(seconds), unit="verifications/s")
    if work.peer is not None:
        for name, ours, limit in (("cold", work.verify, "none"), ("cached", cached, PEER_LIMIT)):
            yield _against(
                f"{work.name}, {name}, against dcap-qvl", ours, work.peer, turns, "ms", "dcap-qvl", limit
            )


def _against(
    name: str,
    ours: Act,
    peer: Act,
    turns: int,
    unit: str,
    what: str,
    limit: str,
    kept: list[float] | None = None,
) -> Row:
    """Return a row of the ratio ours / peer, turn by turn. Args: kept: takes our seconds a call."""
    ours(), peer()  # warm
    calls = [max(1, round(TURN_S / _timed(side, 3))) for side in (ours, peer)]
    pairs = [(_timed(ours, calls[0]), _timed(peer, calls[1])) for _ in range(turns)]
    if kept is not None:
        kept += [mine for mine, _ in pairs]
    found = estimate([mine / theirs for mine, theirs in pairs])
    medians = [statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)]
    row = _row(
        name, medians[0], peer=medians[1], ratio=found.median, unit=f"{unit}; peer: {what}", limit=limit
    )
    return row | {"interval": [_short(found.low), _short(found.high)]}


def memory_row(name: str, count: int) -> Row:
    """Return a row of the memory after `count` verifications against that after the first thousand."""
    command = [sys.executable, __file__, "--grow", name, "--memory", str(count)]
    early, late = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return _row(
        f"{name}, memory after {count:,} verifications",
        late / 2**20,
        peer=early / 2**20,
        ratio=late / early,
        unit=f"MiB; peer: after {EARLY:,}",
        limit=MEMORY_LIMIT,
    )


def grown(name: str, count: int) -> tuple[int, int]:
    """Return the resident memory after EARLY verifications and after `count`, bytes."""
    work = next(work for work in works() if work.name == name)
    cache, early = WorkCache(), 0
    for number in range(1, max(count, EARLY) + 1):
        work.verify(None, cache)
        if number == EARLY:
            early = _resident()
    return early, _resident()


def _resident() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")
    )
    return int(line.split()[1]) * 1024


def _timed(run: Callable[[], object], calls: int) -> float:
    """Return the seconds of one call, the mean of several."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _row(
    work: str,
    ours: float,
    *,
    peer: float | None = None,
    ratio: float | None = None,
    unit: str,
    limit: str = "none",
) -> Row:
    return {
        "work": work,
        "ours": _short(ours),
        "peer": _short(peer),
        "ratio": _short(ratio),
        "unit": unit,
        "limit": limit,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


if __name__ == "__main__":
    main()
