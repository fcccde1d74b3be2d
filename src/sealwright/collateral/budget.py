"""What peers may have fetched. Whoever sends evidence is a stranger until vendors' certificates have proved it genuine,
and those have to be fetched before: so each address has a budget, and what it wastes is its own.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sealwright.errors import UnavailableError

PIECES = 64  # that one address may have fetched at once; and in an hour, beyond those
MAX_PEERS = 4096  # addresses remembered
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
        self._lock = threading.Lock()

    def payer(self, peer: str) -> Payer:
        """Return who pays for what one request of `peer`, an IP address, has fetched."""
        return Payer(self, account(peer))

    def take(self, name: str) -> bool:
        """Take one piece from an account; say whether there was one."""
        return self._add(name, -1.0)

    def give_back(self, name: str, pieces: int) -> None:
        """Put pieces back into an account."""
        self._add(name, float(pieces))

    def _add(self, name: str, pieces: float) -> bool:
        with self._lock:
            now = self._clock()
            left, at = self._left.pop(name, (self._pieces, now))
            left = min(self._pieces, left + (now - at) * self._pieces / _HOUR_S)
            enough = left + pieces >= 0
            if len(self._left) >= self._max_peers:
                self._left.popitem(last=False)  # the one that was quiet for longest
            self._left[name] = (min(self._pieces, left + pieces) if enough else left, now)
            return enough


@dataclass(slots=True)
class Payer:
    """One request of a peer, and what it has spent."""

    budget: Budget
    name: str
    spent: int = 0

    def pay(self) -> None:
        """Pay for one upstream call.

        Raises:
            UnavailableError: `collateral-over-budget`.
        """
        if not self.budget.take(self.name):
            raise UnavailableError(
                f"{self.name} had as much collateral fetched as one address may: bring it with the evidence, "
                "or try again later",
                code="collateral-over-budget",
                stage="fetch",
            )
        self.spent += 1

    def forgive(self) -> None:
        """Give back what was spent: what it was spent for turned out to be genuine."""
        spent, self.spent = self.spent, 0
        if spent:
            self.budget.give_back(self.name, spent)
