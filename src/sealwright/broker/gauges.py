"""What a broker's gauges say: how its log, holders, leases and clock stand at the moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sealwright.broker.core import Core
from sealwright.broker.metrics import Gauge
from sealwright.broker.rows import KeyRow, LeaseRow
from sealwright.errors import SealwrightError

_PREFIX = "sealwright_broker_"
LOOK_S = 5.0  # between two looks at the rows, which cost a hash of them all


class Gauges:
    """Reads gauges; what costs a look at all rows, once in a while. Used by one thread at a time."""

    def __init__(self, core: Core, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._core, self._monotonic = core, monotonic
        self._until, self._rows = float("-inf"), (0, 0)

    def __call__(self) -> Sequence[Gauge]:
        """Return the gauges; `up` is 0, and the rest is missing, where the state cannot be read."""
        found = [_gauge("log_entries", "Entries in the log.", self._core.state.ledger.size)]
        held = self._core.state.ledger.held_at
        text = "Seconds since log and holders last took a checkpoint, or were opened."
        found.append(_gauge("holder_age_seconds", text, max(0.0, time.monotonic() - held)))
        try:
            now = self._core.state.now()
            found += self._of_state(now.timestamp())
        except SealwrightError:
            return [*found, _gauge("up", "1 while clock and rows can be believed.", 0)]
        return [*found, _gauge("up", "1 while clock and rows can be believed.", 1)]

    def _of_state(self, now: float) -> list[Gauge]:
        last = self._core.state.anchor.at
        if self._monotonic() >= self._until:
            with self._core.state.lock:
                view = self._core.state.view()
            leases = sum(row.not_after.timestamp() > now for row in view.all(LeaseRow, "lease"))
            keys = sum(row.status == "active" for row in view.all(KeyRow, "key"))
            self._rows, self._until = (leases, keys), self._monotonic() + LOOK_S
        leases, keys = self._rows
        return [
            _gauge("clock_seconds", "The broker's time, seconds since 1970.", now),
            _gauge("log_age_seconds", "Since the last decision.", 0.0 if last is None else now - last.timestamp()),
            _gauge("leases", "Leases that run.", leases),
            _gauge("keys_active", "Keys that are not revoked.", keys),
        ]  # fmt: skip


def _gauge(name: str, text: str, value: float) -> Gauge:
    return Gauge(name=_PREFIX + name, text=text, value=float(value))
