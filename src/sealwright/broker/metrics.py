"""Counts of what a broker did, as Prometheus reads them: no secret, no name of a tenant, no label without an end.

Spec: docs/reference/metrics.md.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERIES = 512  # of one metric; what comes after is counted as `other`
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 /{}:._-]{0,95}", re.ASCII)

Labels = tuple[str, ...]


def word(value: object) -> str:
    """Return a label's value: text of a fixed alphabet, or `other`."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else OTHER


@dataclass(slots=True)
class Counter:
    """How often something happened, by labels; a bounded number of them."""

    name: str
    text: str
    labels: Labels
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _counts: dict[Labels, int] = field(default_factory=dict, repr=False)

    def add(self, *values: object, count: int = 1) -> None:
        """Count once more, under the values of the labels."""
        key = tuple(word(value) for value in values)
        with self._lock:
            if key not in self._counts and len(self._counts) >= MAX_SERIES - 1:
                key = (OTHER,) * len(self.labels)
            self._counts[key] = self._counts.get(key, 0) + count

    def lines(self) -> Iterable[str]:
        """Yield the metric in the text format."""
        with self._lock:
            counts = sorted(self._counts.items())
        yield from _head(self.name, self.text, "counter")
        if not self.labels:
            counts = counts or [((), 0)]
        for key, count in counts:
            yield f"{self.name}{_braces(zip(self.labels, key, strict=True))} {count}"


@dataclass(slots=True)
class Histogram:
    """How long something took, by one label."""

    name: str
    text: str
    label: str
    bounds: Sequence[float] = SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _found: dict[str, tuple[list[int], float]] = field(default_factory=dict, repr=False)

    def add(self, value: object, seconds: float) -> None:
        """Enter one duration."""
        key = word(value)
        with self._lock:
            if key not in self._found and len(self._found) >= MAX_SERIES - 1:
                key = OTHER
            counts, total = self._found.get(key, ([0] * (len(self.bounds) + 1), 0.0))
            counts[next((at for at, bound in enumerate(self.bounds) if seconds <= bound), -1)] += 1
            self._found[key] = (counts, total + seconds)

    def lines(self) -> Iterable[str]:
        """Yield the metric in the text format."""
        with self._lock:
            found = [(key, list(counts), total) for key, (counts, total) in sorted(self._found.items())]
        yield from _head(self.name, self.text, "histogram")
        for key, counts, total in found:
            below = 0
            for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
                below += count
                edge = "+Inf" if bound == math.inf else repr(bound)
                yield f"{self.name}_bucket{_braces([(self.label, key), ('le', edge)])} {below}"
            yield f"{self.name}_sum{_braces([(self.label, key)])} {total!r}"
            yield f"{self.name}_count{_braces([(self.label, key)])} {below}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """What something is when it is looked at."""

    name: str
    text: str
    value: float


class Metrics:
    """All counts of one process. May be used by several threads."""

    def __init__(self) -> None:
        self._decisions = Counter(
            "sealwright_broker_decisions_total",
            "Decisions that were logged, granted and refused.",
            ("action", "verdict", "stage", "code"),
        )
        self._requests = Counter(
            "sealwright_broker_requests_total",
            "Requests that were answered; code is that of a refusal.",
            ("route", "status", "code"),
        )
        self._seconds = Histogram(
            "sealwright_broker_request_seconds", "Time from a request to the end of its answer.", "route"
        )
        self.events = Counter(
            "sealwright_broker_events_total", "Events: queued, sent, failed and dropped.", ("outcome",)
        )
        self._look: Callable[[], Sequence[Gauge]] = lambda: ()

    def decided(self, fields: Mapping[str, object]) -> None:
        """Count a decision."""
        said = (fields.get(name, "") or "none" for name in ("action", "verdict", "stage", "code"))
        self._decisions.add(*said)

    def answered(self, route: str, status: int, code: str | None, seconds: float) -> None:
        """Count an answer. Args: route: method and template of the path, never the path itself."""
        self._requests.add(route, str(status), code or "none")
        self._seconds.add(route, seconds)

    def look_with(self, look: Callable[[], Sequence[Gauge]]) -> None:
        """Take what gauges are read with from now on."""
        self._look = look

    def text(self) -> str:
        """Return everything in Prometheus' text format."""
        lines = [
            line
            for metric in (self._decisions, self._requests, self._seconds, self.events)
            for line in metric.lines()
        ]
        for gauge in self._look():
            lines += [*_head(gauge.name, gauge.text, "gauge"), f"{gauge.name} {gauge.value!r}"]
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _braces(pairs: Iterable[tuple[str, str]]) -> str:
    # `word` admits nothing that would have to be escaped.
    inside = ",".join(f'{name}="{value}"' for name, value in pairs)
    return "{" + inside + "}" if inside else ""
