"""Chat through us against llama.cpp's own plain HTTP server: same engine, same client, interleaved pairs.

    python bench/chat.py [--pairs N] [--crowds N] [--contacts N] [--tokens N]

Ours: broker, enclave started by the quoter, and the `openai` client over `sealwright.http_client`. Peer:
llama.cpp's HTTP server and the `openai` client over plain httpx2. Each pair asks both the same question, in
alternating order; ratios and differences are taken pair by pair, and shown as their median with a 95 % bootstrap
interval. Both answers must be the same text. All processes share this machine's cores, the client's included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx2
import openai

import sealwright
from _chat_servers import Endpoint, ours, plain
from _stats import Estimate, estimate, quantile
from sealwright.cli._stand import MODEL
from sealwright.inference.parameters import EngineParameters

STREAMS = 8
FEWEST = 3  # pairs, however long they take
ENOUGH = 20  # pairs to hold against a limit
CONTEXT_TOKENS = 512
TIMEOUT_S = 120.0
TOPICS = ("rivers", "bread", "the moon", "bicycles", "forests", "music", "trade", "bridges")
PROMPT = "Write a long story about {}, with many details."
Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer: its text, and when each piece arrived, seconds since the request."""

    text: str
    arrived: Sequence[float]

    @property
    def first_ms(self) -> float:
        """Time to the first piece of text."""
        return self.arrived[0] * 1e3

    @property
    def gaps_ms(self) -> list[float]:
        """Times between pieces."""
        return [(b - a) * 1e3 for a, b in zip(self.arrived, self.arrived[1:], strict=False)]

    @property
    def rate(self) -> float:
        """Tokens a second, from the request to the last piece."""
        return len(self.arrived) / self.arrived[-1]


class Pair(NamedTuple):
    """What both answered to the same questions."""

    ours: list[Answer]
    peer: list[Answer]


Ask = Callable[[], list[Answer]]


def client(at: Endpoint) -> openai.OpenAI:
    """Return the stock client, with the transport that belongs to `at`."""
    http = (
        httpx2.Client(timeout=TIMEOUT_S)
        if at.trust is None
        else sealwright.http_client(trust=at.trust, timeout=TIMEOUT_S)
    )
    return openai.OpenAI(base_url=f"{at.url}/v1", api_key=at.key, http_client=http, max_retries=0)


def ask(using: openai.OpenAI, topic: str, tokens: int) -> Answer:
    """Hold one streamed chat."""
    text, arrived, started = [], [], time.perf_counter()
    stream = using.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT.format(topic)}],
        temperature=0,
        seed=1,
        max_tokens=tokens,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            arrived.append(time.perf_counter() - started)
            text.append(piece)
    return Answer(text="".join(text), arrived=arrived)


def crowd(using: openai.OpenAI, tokens: int) -> list[Answer]:
    """Hold one chat for each topic, all at once."""
    answers: dict[str, Answer] = {}
    together = threading.Barrier(len(TOPICS))

    def one(topic: str) -> None:
        together.wait()
        answers[topic] = ask(using, topic, tokens)

    threads = [threading.Thread(target=one, args=(topic,)) for topic in TOPICS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[topic] for topic in TOPICS]


def interleaved(count: int, from_us: Ask, from_peer: Ask, *, seconds: float, warm: int = 1) -> list[Pair]:
    """Return `count` pairs, the order alternating; `warm` pairs before them are thrown away.

    Fewer than `count` come back when the machine is too busy for all of them in `seconds`, but at least `FEWEST`.
    """
    pairs: list[Pair] = []
    ends = time.monotonic() + seconds
    while len(pairs) < count + warm and (time.monotonic() < ends or len(pairs) < FEWEST + warm):
        if len(pairs) % 2:
            theirs, mine = from_peer(), from_us()
        else:
            mine, theirs = from_us(), from_peer()
        pairs.append(Pair(mine, theirs))
        if [one.text for one in mine] != [one.text for one in theirs]:
            raise RuntimeError("the two servers did not give the same answers")
    return pairs[warm:]


def compared(
    pairs: Sequence[Pair],
    figure: Callable[[list[Answer]], float],
    relate: Callable[[float, float], float],
) -> tuple[float, float, Estimate]:
    """Return the medians of `figure` for ours and the peer, and the estimate of what relates them in a pair."""
    both = [(figure(pair.ours), figure(pair.peer)) for pair in pairs]
    return (
        statistics.median(a for a, _ in both),
        statistics.median(b for _, b in both),
        estimate([relate(a, b) for a, b in both]),
    )


def ratio(a: float, b: float) -> float:
    """Relate by quotient."""
    return a / b


def difference(a: float, b: float) -> float:
    """Relate by difference."""
    return a - b


def row(work: str, measured: tuple[float, float, Estimate], unit: str, limit: str) -> Row:
    """Return one row of the table."""
    mine, theirs, found = measured
    return {
        "work": work,
        "ours": round(mine, 2),
        "peer": round(theirs, 2),
        "ratio": round(found.median, 3),
        "interval": [round(found.low, 3), round(found.high, 3)],
        "unit": unit,
        "limit": limit,
    }


def rate(answers: list[Answer]) -> float:
    """Return the tokens a second of all answers together."""
    return sum(len(one.arrived) for one in answers) / max(one.arrived[-1] for one in answers)


def gap(share: float) -> Callable[[list[Answer]], float]:
    """Return the figure: that quantile of all times between pieces, ms."""
    return lambda answers: quantile([gap for one in answers for gap in one.gaps_ms], share)


def first(answers: list[Answer]) -> float:
    """Return the median time to the first piece, ms."""
    return statistics.median(one.first_ms for one in answers)


def rows_of(name: str, pairs: Sequence[Pair], limits: dict[str, str]) -> Iterator[Row]:
    """Yield the rows of one load."""
    work = f"chat, {name}, {len(pairs)} pairs"
    for what, figure, relate, unit in (
        ("tokens/s", rate, ratio, "tokens/s; ratio ours / peer"),
        ("first token", first, difference, "ms; ratio: difference in ms"),
        ("p50 between tokens", gap(0.50), ratio, "ms"),
        ("p99 between tokens", gap(0.99), ratio, "ms"),
    ):
        limit = limits.get(what, "shown, no target")
        yield row(
            f"{work}: {what}",
            compared(pairs, figure, relate),
            unit,
            limit if len(pairs) >= ENOUGH else "too few pairs",
        )


def measure(parameters: EngineParameters, options: argparse.Namespace) -> Iterator[Row]:
    """Set both up, and yield the rows."""
    engine = f"engine on {parameters.threads} of {len(os.sched_getaffinity(0))} cores"
    with (
        tempfile.TemporaryDirectory() as folder,
        ours(Path(folder), parameters) as mine,
        plain(parameters) as theirs,
        client(mine) as to_us,
        client(theirs) as to_peer,
    ):

        def single(using: openai.OpenAI) -> Ask:
            return lambda: [ask(using, TOPICS[0], options.tokens)]

        def many(using: openai.OpenAI) -> Ask:
            return lambda: crowd(using, options.tokens // 2)

        pairs = interleaved(options.pairs, single(to_us), single(to_peer), seconds=options.seconds, warm=2)
        yield from rows_of(f"1 stream, {engine}", pairs, {"tokens/s": ">= 0.98", "first token": "<= 5"})
        pairs = interleaved(options.crowds, many(to_us), many(to_peer), seconds=options.seconds)
        yield from rows_of(f"{STREAMS} streams, {engine}", pairs, {"p99 between tokens": "<= 1.1"})
        yield first_contact(mine, theirs, options)


def first_contact(mine: Endpoint, theirs: Endpoint, options: argparse.Namespace) -> Row:
    """Measure clients that have never met the server: connect, attest, ask for one token."""

    def fresh(at: Endpoint) -> Ask:
        def once() -> list[Answer]:
            with client(at) as using:
                return [ask(using, TOPICS[0], 1)]

        return once

    pairs = interleaved(options.contacts, fresh(mine), fresh(theirs), seconds=options.seconds)
    work = f"first contact: attestation and first token, {len(pairs)} pairs"
    return row(work, compared(pairs, first, difference), "ms; ratio: difference in ms", "shown, no target")


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40, help="of one stream each")
    parser.add_argument("--crowds", type=int, default=20, help=f"pairs of {STREAMS} streams each")
    parser.add_argument("--contacts", type=int, default=20, help="pairs of first contacts")
    parser.add_argument("--seconds", type=float, default=270, help="for each load, on a busy machine")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer; half of it in a crowd")
    parser.add_argument("--threads", type=int, nargs="*", help="of the engine; default: all cores")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with us
    for threads in options.threads or [len(os.sched_getaffinity(0))]:
        parameters = EngineParameters(context_tokens=CONTEXT_TOKENS, slots=STREAMS, threads=threads)
        for found in measure(parameters, options):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
