"""One tenant's lease as a state machine, without I/O: when to renew, when to stop, and why.

    waiting ── granted ──> serving ── refused, ended ──> stopped
                             │  ^
                             └──┘ granted again at half-life, or when a notice asks for it

Times are seconds of the enclave's clock (CLOCK_BOOTTIME), except the lease's own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sealwright.errors import RevokedError

if TYPE_CHECKING:
    from sealwright.enclave.broker_client import Grant

JITTER = 0.1  # of half-life, either side
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
HURRY_S = 1.0  # over which a fleet that was told at once spreads
HURRY_AGAIN_S = 5.0  # no sooner after a notice is another one heeded


class TenantLease:
    """Whether one tenant may be served now. Once stopped it stays so: a new boot has new keys."""

    def __init__(self, tenant: str, *, random: Callable[[], float]) -> None:
        """Args: random: uniform in [0, 1), spreads renewals of many enclaves."""
        self.tenant = tenant
        self.stopped = ""  # the code that stopped it
        self._random = random
        self._grant: Grant | None = None
        self._attempt_at = 0.0
        self._failures = 0
        self._last_failure = ""
        self._hurried = float("-inf")

    @property
    def grant(self) -> Grant:
        """The lease in force.

        Raises:
            RevokedError: with the code that stopped it; `no-lease` before the first.
        """
        if self._grant is None:
            raise RevokedError(
                "this enclave has no lease for the tenant", code=self.stopped or "no-lease", stage="lease"
            )
        return self._grant

    def granted(self, grant: Grant) -> None:
        """Take a verified lease; renew it at its half-life, give or take some."""
        if self.stopped:
            return
        # The grace is for when no broker answers: it moves the end, not the time to ask.
        length = (grant.lease.not_after - grant.lease.not_before).total_seconds()
        half = max(0.0, length - (grant.lease.grace_s or 0)) / 2
        self._grant = grant
        self._attempt_at = grant.sent + half * (1 + JITTER * (2 * self._random() - 1))
        self._failures = 0

    def refused(self, code: str) -> None:
        """The broker says no: stop."""
        self._stop(code)

    def unreachable(self, code: str, elapsed: float) -> None:
        """Nobody gave a usable answer: try again, ever more slowly, while the lease lasts."""
        pause = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, 16)
        self._last_failure = code
        self._attempt_at = elapsed + pause * (0.5 + self._random())

    def hurry(self, elapsed: float) -> None:
        """A notice says that the lease rests on what no longer stands: ask again soon. It may be forged: not too often."""
        at = max(elapsed + HURRY_S * self._random(), self._hurried + HURRY_AGAIN_S)
        if at < self._attempt_at:
            self._attempt_at = self._hurried = at

    def in_grace(self, now: datetime) -> bool:
        """Whether only the grace of the lease is left at `now` (enclave time)."""
        if self._grant is None or not self._grant.lease.grace_s:
            return False
        return now >= self._grant.lease.not_after - timedelta(seconds=self._grant.lease.grace_s)

    def due(self, elapsed: float) -> bool:
        """Whether to ask for a new lease now."""
        return not self.stopped and elapsed >= self._attempt_at

    def check(self, now: datetime) -> Grant:
        """Return the lease, in force at `now` (enclave time); an ended one stops the tenant.

        Raises:
            RevokedError: as `grant`.
        """
        if self._grant is not None and now >= self._grant.lease.not_after:
            self._stop("lease-ended")
        return self.grant

    def _stop(self, code: str) -> None:
        self.stopped = self.stopped or code
        self._grant = None
