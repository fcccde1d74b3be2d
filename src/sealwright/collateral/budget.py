"""What peers may have fetched. Whoever sends evidence is a stranger until vendors' certificates have proved it genuine,
and those have to be fetched before: so each address has a budget, and what it wastes is its own.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sealwright.collateral.need import Need
from sealwright.errors import UnavailableError

PIECES = 64  # that one address may have fetched at once; and in an hour, beyond those
MAX_PEERS = 4096  # addresses remembered
MAX_PAID = 16 * 1024  # pieces of which it is remembered who paid
_HOUR_S = 3600.0


def account(peer: str) -> str:
    """Return whose budget an address spends: an IPv6 network of 64 bits is one peer, since it has one owner."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer[:64]
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Budget:
    """A token bucket for each peer. For several threads."""

    def __init__(
        self, clock: Callable[[], float], *, pieces: int = PIECES, max_peers: int = MAX_PEERS
    ) -> None:
        """Args: clock: monotonic seconds; pieces: that one peer may have fetched at once, and again each hour."""
        self._clock, self._pieces, self._max_peers = clock, float(pieces), max_peers
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (pieces left, at)
        self._paid: OrderedDict[Need, str] = OrderedDict()
        self._lock = threading.Lock()

    def payer(self, peer: str) -> Payer:
        """Return who pays for what `peer`, an IP address, has fetched."""
        return Payer(self, account(peer))

    def pay(self, name: str, need: Need) -> None:
        """Take one piece from an account, for an upstream call.

        Raises:
            UnavailableError: `collateral-over-budget`.
        """
        with self._lock:
            if not self._add(name, -1.0):
                raise UnavailableError(
                    f"{name} had as much collateral fetched as one address may: bring it with the evidence, or "
                    "try again later",
                    code="collateral-over-budget",
                    stage="fetch",
                )
            self._paid[need] = name
            if len(self._paid) > MAX_PAID:
                self._paid.popitem(last=False)

    def forgive(self, needs: Iterable[Need]) -> None:
        """Give back what was paid for these: evidence that needs them turned out to be genuine."""
        with self._lock:
            for need in needs:
                name = self._paid.pop(need, None)
                if name is not None:
                    self._add(name, 1.0)

    def _add(self, name: str, pieces: float) -> bool:
        now = self._clock()
        left, at = self._left.pop(name, (self._pieces, now))
        left = min(self._pieces, left + (now - at) * self._pieces / _HOUR_S)
        enough = left + pieces >= 0
        if len(self._left) >= self._max_peers:
            self._left.popitem(last=False)  # the one that was quiet for longest
        self._left[name] = (min(self._pieces, left + pieces) if enough else left, now)
        return enough


@dataclass(frozen=True, slots=True)
class Payer:
    """A peer that has something fetched."""

    budget: Budget
    name: str

    def pay(self, need: Need) -> None:
        """Pay for one upstream call. Raises UnavailableError `collateral-over-budget`."""
        self.budget.pay(self.name, need)
