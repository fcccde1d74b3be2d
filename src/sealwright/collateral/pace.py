"""Rate limits of vendors: requests of one lane are spaced, one after another. A vendor that asks to wait is heeded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import anyio

from sealwright.errors import UnavailableError

# Seconds between the starts of two requests. AMD gives a VCEK to one address once in ten seconds.
SPACING_S: Mapping[str, float] = {
    "amd-vcek": 10.0,
    "amd-kds": 1.0,
    "intel-pcs": 0.1,
    "nvidia-rim": 0.1,
    "nvidia-ocsp": 0.1,
    "google": 0.1,
}


@dataclass(slots=True)
class _Lane:
    free: float = 0.0  # when the next request may start
    waiting: int = 0
    turn: anyio.Lock = field(default_factory=anyio.Lock)  # first come, first served


class Pacer:
    """Holds requests back, by lane. For one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        spacing_s: Mapping[str, float] = SPACING_S,
    ) -> None:
        """Args: clock: monotonic seconds."""
        self._clock, self._sleep, self._spacing_s = clock, sleep, spacing_s
        self._lanes: dict[str, _Lane] = {}

    def expected_s(self, lane: str) -> float:
        """Return how long a request that came now would wait, seconds."""
        state = self._lanes.get(lane, _Lane())
        return max(0.0, state.free - self._clock()) + state.waiting * self._spacing_s.get(lane, 0.0)

    async def turn(self, lane: str, *, longest_s: float) -> None:
        """Return when a request may start.

        Args:
            longest_s: how long to wait at most, seconds.

        Raises:
            UnavailableError: `collateral-rate-limited`: the queue is longer than that.
        """
        expected = self.expected_s(lane)
        if expected > longest_s:
            raise UnavailableError(
                f"{lane} is rate-limited, and the queue is {expected:.0f} s long: try again later, or bring "
                "the collateral with the evidence or in a collateral pack",
                code="collateral-rate-limited",
                stage="fetch",
            )
        state = self._lanes.setdefault(lane, _Lane())
        state.waiting += 1
        try:
            async with state.turn:
                while (wait := state.free - self._clock()) > 0:
                    await self._sleep(wait)
                state.free = self._clock() + self._spacing_s.get(lane, 0.0)
        finally:
            state.waiting -= 1

    def hold(self, lane: str, seconds: float) -> None:
        """Let no request of `lane` start for so long: the vendor asked for it."""
        state = self._lanes.setdefault(lane, _Lane())
        state.free = max(state.free, self._clock() + seconds)
