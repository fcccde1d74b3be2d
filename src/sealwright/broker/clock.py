"""The broker's time: the machine's clock, believed only while no other source contradicts it.

Spec: docs/spec/broker-state.md, Clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sealwright.crypto.encoding import rfc3339
from sealwright.errors import UnavailableError

TOLERANCE = timedelta(seconds=10)  # a step of the clock, or a difference to an outside source
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return this machine's time."""
    return datetime.now(UTC)


def boot_seconds() -> float:
    """Return seconds since the machine started, those in suspension too; nobody can set this clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class TimeSource(Protocol):
    """One opinion of the time."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def now(self) -> datetime | None:
        """Return what it holds the time to be; None: it has not been heard yet."""
        ...


@dataclass(slots=True)
class Elapsed:
    """A time heard once, and the seconds that CLOCK_BOOTTIME has counted since."""

    name: str
    seconds: Callable[[], float] = boot_seconds
    _heard: tuple[datetime, float] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def hear(self, at: datetime, *, asked: float | None = None) -> None:
        """Take over a time. Args: asked: `seconds` when it was asked for, if that is known; default: now."""
        with self._lock:
            self._heard = (at, self.seconds() if asked is None else asked)

    def now(self) -> datetime | None:
        """Return the time that was heard, and what has passed since."""
        with self._lock:
            heard = self._heard
        return None if heard is None else heard[0] + timedelta(seconds=self.seconds() - heard[1])


class SteadyClock:
    """The machine's clock, refused while a source disagrees: turned back, set ahead, or frozen."""

    def __init__(
        self,
        sources: Sequence[TimeSource] = (),
        *,
        wall: Clock = utc_now,
        seconds: Callable[[], float] = boot_seconds,
        tolerance: timedelta = TOLERANCE,
    ) -> None:
        """Begin to count from what the machine's clock says now.

        Args:
            sources: of outside: witnesses.
            tolerance: the largest difference to any source.
        """
        self._wall, self._tolerance = wall, tolerance
        start = Elapsed("the time since this broker started (CLOCK_BOOTTIME)", seconds)
        start.hear(wall())
        self._sources: tuple[TimeSource, ...] = (start, *sources)

    def __call__(self) -> datetime:
        """Return the time. Raises UnavailableError: `clock-disagrees`, stage `clock`."""
        now = self._wall()
        for source in self._sources:
            other = source.now()
            if other is not None and abs(now - other) > self._tolerance:
                raise UnavailableError(
                    f"the machine's clock says {rfc3339(_second(now))}, and {source.name} says {rfc3339(_second(other))}: "
                    "mend the clock, then start the broker again",
                    code="clock-disagrees",
                    stage="clock",
                )
        return now


def _second(at: datetime) -> datetime:
    return at.replace(microsecond=0)
