"""Enclave time: a lease's time of issue plus CLOCK_BOOTTIME since it was asked for. Spec: docs/spec/key-release.md.

The host's wall clock decides nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from sealwright.errors import UnavailableError


def boottime() -> float:
    """Return seconds since the machine started, suspended ones included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class EnclaveClock:
    """Knows no time before the first lease, and never runs back."""

    def __init__(self, elapsed: Callable[[], float] = boottime) -> None:
        """Args: elapsed: seconds from any fixed point, monotonic."""
        self.elapsed = elapsed
        self._offset: float | None = None  # seconds since the epoch at elapsed() == 0

    def anchor(self, issued: datetime, sent: float) -> None:
        """Take a verified lease's time of issue; an earlier one than is known changes nothing.

        Args:
            issued: `not_before` of the lease.
            sent: `elapsed()` before its request was sent, so that delay makes time late, never early.
        """
        offset = issued.timestamp() - sent
        if self._offset is None or offset > self._offset:
            self._offset = offset

    def now(self) -> datetime:
        """Return enclave time.

        Raises:
            UnavailableError: there was no lease yet (`no-enclave-time`).
        """
        if self._offset is None:
            raise UnavailableError(
                "there is no enclave time before a lease", code="no-enclave-time", stage="lease"
            )
        return datetime.fromtimestamp(self._offset + self.elapsed(), UTC)
