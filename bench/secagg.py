"""Secure aggregation against flwr's SecAgg+, in one run: `python bench/secagg.py [--small]`.

Prints one JSON object a line: {work, ours, peer, ratio, unit, limit}. The peer is what flwr's mod and workflow call
for the same steps (quantize, its mask generator, its arithmetic), without its messages; without flwr its figures are
null. Ours includes signing, sealing of shares, commitments and their checks. "Server, all" is every update received
one after the other and the sum; "server, after the last answer" is what a round waits for: updates are added as they
come. Memory is the highest resident size over that before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.secagg.support import Run

Row = dict[str, object]
MOD_RANGE, TARGET_RANGE, CLIP = 1 << 32, 1 << 22, 4.0  # flwr's defaults but for the clip, which is ours


class Peak:
    """The highest resident memory over that at the beginning, bytes."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = _status("VmHWM") - self._before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name}")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` took, and what it gave."""
    start = time.perf_counter()
    out = work()
    return time.perf_counter() - start, out


def ours(run: Run, update: NDArray[Any], dropped: int, threads: int) -> dict[str, float]:
    """Run one round; return seconds, bytes and memory of a client and the server."""
    roster = run.roster()
    opening, coordinator = run.opened(roster), run.coordinator(roster)
    client, receive, size = [], [], 0
    with Peak() as client_peak:
        run.by_place(
            roster, 1
        )  # the first client's memory is looked at, with nothing else of the round there
        seconds, message = timed(partial(run.by_place(roster, 1).mask, opening, update, 1, threads=threads))
    client.append(seconds)
    with Peak() as server_peak:
        for place in range(1, len(run.workers) + 1 - dropped):
            if place > 1:
                worker = run.by_place(roster, place)
                seconds, message = timed(partial(worker.mask, opening, update, 1, threads=threads))
                client.append(seconds)
            size = len(message)
            receive.append(timed(partial(coordinator.receive, message, threads=threads))[0])
    signed = run.countersigner.sign(coordinator.survivors())
    answers, opened = [], 0.0
    for place in coordinator.received:
        unmask = run.by_place(roster, place).unmask
        seconds, answer = timed(partial(_answered, unmask, signed, coordinator, place))
        answers.append(seconds)
        taken, run.nonces[roster.members[place - 1].worker] = timed(partial(coordinator.open, answer))
        opened += taken
        size += len(answer) if place == 1 else 0
    finished, _ = timed(lambda: coordinator.sum(threads=threads))
    for place in range(len(run.workers) + 1 - dropped, len(run.workers) + 1):
        run.greet(run.by_place(roster, place))
    return {
        "client": statistics.median(client) + statistics.median(answers),
        "server": sum(receive) + opened + finished,
        "after": opened / len(answers) + finished,
        "bytes": size,
        "client_peak": client_peak.bytes,
        "server_peak": server_peak.bytes,
    }


def _answered(unmask: Any, signed: bytes, coordinator: Any, place: int) -> Any:
    return unmask(signed, coordinator.shares_for(place))


class Flwr:
    """flwr's own functions for the steps of a round, as its mod and its workflow put them together."""

    def __init__(self) -> None:
        from flwr.common.secure_aggregation import ndarrays_arithmetic, quantization
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

        self._math, self._quantization, self._stream = ndarrays_arithmetic, quantization, pseudo_rand_gen

    def client(self, update: NDArray[Any], clients: int) -> tuple[float, int, list[NDArray[Any]]]:
        """Return the seconds and bytes of a masked update, and the vector."""
        seconds, vector = timed(lambda: self._masked(update, clients))
        return seconds, sum(part.nbytes for part in vector), vector

    def _masked(self, update: NDArray[Any], clients: int) -> list[NDArray[Any]]:
        math = self._math
        scaled = math.parameters_multiply([update], 1.0)
        vector = math.factor_combine(TARGET_RANGE, self._quantization.quantize(scaled, CLIP, TARGET_RANGE))
        shapes = [part.shape for part in vector]
        vector = math.parameters_addition(vector, self._stream(seed(0), MOD_RANGE, shapes))
        for other in range(1, clients):
            mask = self._stream(seed(other), MOD_RANGE, shapes)
            combine = math.parameters_addition if other % 2 else math.parameters_subtraction
            vector = combine(vector, mask)
        done: list[NDArray[Any]] = math.parameters_mod(vector, MOD_RANGE)
        return done

    def server(self, vector: list[NDArray[Any]], clients: int, dropped: int) -> tuple[float, float]:
        """Return the seconds of adding all vectors, and those of taking the masks off."""
        adding, total = timed(lambda: self._added(vector, clients - dropped))
        opening, _ = timed(lambda: self._opened(total, clients, dropped))
        return adding, opening

    def _added(self, vector: list[NDArray[Any]], count: int) -> list[NDArray[Any]]:
        total = vector
        for _ in range(count - 1):
            total = self._math.parameters_addition(total, vector)
        done: list[NDArray[Any]] = self._math.parameters_mod(total, MOD_RANGE)
        return done

    def _opened(self, total: list[NDArray[Any]], clients: int, dropped: int) -> list[NDArray[Any]]:
        shapes = self._math.get_parameters_shape(total)
        masks = clients - dropped + dropped * (clients - 1)
        for at in range(masks):
            total = self._math.parameters_subtraction(total, self._stream(seed(at), MOD_RANGE, shapes))
        _, total = self._math.factor_extract(self._math.parameters_mod(total, MOD_RANGE))
        done: list[NDArray[Any]] = self._quantization.dequantize(total, CLIP, TARGET_RANGE)
        return done


def seed(number: int) -> bytes:
    """Return a seed of 32 bytes."""
    return number.to_bytes(32, "big")


def peer() -> Flwr | None:
    """Return flwr's functions, or None without flwr."""
    try:
        return Flwr()
    except ImportError:
        print("secagg: flwr is not installed: no peer", file=sys.stderr)
        return None


def row(work: str, mine: float, other: float | None, unit: str, limit: str | None) -> Row:
    """Return a row; ratio: how many times the peer's ours is."""
    return {
        "work": work,
        "ours": round(mine, 4),
        "peer": None if other is None else round(other, 3),
        "ratio": None if other is None else round(mine / other, 4),
        "unit": unit,
        "limit": limit or "shown, no target",
    }


def rows(elements: int, clients: int, flwr: Flwr | None) -> Iterator[Row]:
    """Measure one size: none and one dropped, on one and two threads."""
    run = Run.make(clients, elements=elements)
    update = np.random.default_rng(1).uniform(-CLIP, CLIP, elements).astype(np.float32)
    name, target = f"{elements // 10**6}M numbers, {clients} clients", (elements, clients) == (10**7, 50)
    other_client = other_bytes = None
    vector: list[NDArray[Any]] = []
    if flwr is not None:
        other_client, other_bytes, vector = flwr.client(update, clients)
    for dropped in (0, 1):
        adding = opening = None
        if flwr is not None:
            adding, opening = flwr.server(vector, clients, dropped)
        both = None if adding is None or opening is None else adding + opening
        for threads in (1, 2):
            found = ours(run, update, dropped, threads)
            case = f"{name}, {dropped or 'none'} dropped, {threads} thread{'s' * (threads > 1)}"
            goal = "ours <= 0.7" if target else None
            yield row(f"client: {case}", found["client"], other_client, "s", goal)
            goal = "ours <= 0.9" if target else None
            yield row(f"server, all: {case}", found["server"], both, "s", goal)
            yield row(f"server, after the last answer: {case}", found["after"], opening, "s", None)
            if threads == 1 and not dropped:
                per = None if other_bytes is None else other_bytes / elements
                yield row(
                    f"sent by a client: {name}", found["bytes"] / elements, per, "B a number", "ours <= 4.2"
                )
                for who in ("client", "server"):
                    used = found[f"{who}_peak"] / elements
                    yield row(f"memory of a {who}: {name}", used, None, "B a number", None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one million numbers and ten clients only")
    args = parser.parse_args()
    flwr = peer()
    for elements in (10**6,) if args.small else (10**6, 10**7):
        for clients in (10,) if args.small else (10, 25, 50):
            for found in rows(elements, clients, flwr):
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
