"""Which requests may start: the `Date` window, and the `enc` cache of one keyset (RFC 9458, section 6.5)."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from datetime import UTC, datetime, timedelta

from sealwright.crypto.encoding import joined
from sealwright.errors import UnavailableError, VerificationError

NOT_STARTED_LABEL = "sealwright/not-started/v1"

_WINDOW_S = 60  # seconds, either side
_CAPACITY = 1 << 17  # requests alive in the window
_SHARE = 1 << 14  # of them, one tenant's


def not_started_message(keyset_digest: bytes, enc: bytes) -> bytes:
    """Return the bytes that the receipt key signs to say that the request of `enc` never starts."""
    return joined(NOT_STARTED_LABEL, keyset_digest, hashlib.sha256(enc).digest())


class EncCache:
    """The requests of one keyset that have started, or were barred, while their dates are in the window.

    After that the date alone keeps a request out, since enclave time never runs back here.
    """

    def __init__(
        self,
        keyset_digest: bytes,
        *,
        window_s: int = _WINDOW_S,
        capacity: int = _CAPACITY,
        share: int = _SHARE,
    ) -> None:
        """Set limits.

        Args:
            window_s: seconds that a request's date may lie before or after enclave time.
            capacity: requests remembered at once, all tenants.
            share: requests remembered at once for one tenant.
        """
        self.keyset_digest = keyset_digest
        self._window = timedelta(seconds=window_s)
        self._capacity, self._share = capacity, share
        self._latest = datetime.min.replace(tzinfo=UTC)
        self._entries: dict[bytes, tuple[str, bool]] = {}  # SHA-256(enc): tenant, barred
        self._ends: list[tuple[datetime, bytes]] = []  # a heap
        self._tenants: Counter[str] = Counter()

    def admit(self, enc: bytes, *, tenant: str, date: datetime, now: datetime) -> None:
        """Enter a request, whose credential was accepted for `tenant`: it may start, once.

        Args:
            date: of the sealed request.
            now: enclave time.

        Raises:
            VerificationError: `date`, `barred` or `replayed`.
            UnavailableError: `replay-cache-full`.
        """
        name = hashlib.sha256(enc).digest()
        self._check_date(date, now)
        if name in self._entries:
            _, barred = self._entries[name]
            text, code = ("was barred", "barred") if barred else ("has started already", "replayed")
            raise VerificationError(f"this request {text}", code=code, stage="replay")
        self._enter(name, tenant, date, barred=False)

    def bar(self, enc: bytes, *, tenant: str, date: datetime, now: datetime) -> bytes:
        """Bar a request that has not started; return the bytes for the receipt key to sign.

        The date must be in the window: outside it, an entry of a request that did start is gone.

        Raises:
            VerificationError: `date`, or `replayed`: it has started.
            UnavailableError: `replay-cache-full`.
        """
        name = hashlib.sha256(enc).digest()
        self._check_date(date, now)
        if name not in self._entries:
            self._enter(name, tenant, date, barred=True)
        elif not self._entries[name][1]:
            raise VerificationError("this request has started already", code="replayed", stage="replay")
        return not_started_message(self.keyset_digest, enc)

    def __len__(self) -> int:
        """Return how many requests are remembered."""
        return len(self._entries)

    def _check_date(self, date: datetime, now: datetime) -> None:
        self._latest = max(self._latest, now)
        if abs(self._latest - date) > self._window:
            raise VerificationError("the request's date is outside the window", code="date", stage="date")

    def _enter(self, name: bytes, tenant: str, date: datetime, *, barred: bool) -> None:
        self._evict()
        if len(self._entries) >= self._capacity or self._tenants[tenant] >= self._share:
            raise UnavailableError(
                "no room to remember this request", code="replay-cache-full", stage="replay"
            )
        self._entries[name] = (tenant, barred)
        self._tenants[tenant] += 1
        heapq.heappush(self._ends, (date + self._window, name))

    def _evict(self) -> None:
        while self._ends and self._ends[0][0] < self._latest:
            _, name = heapq.heappop(self._ends)
            tenant, _ = self._entries.pop(name)
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
