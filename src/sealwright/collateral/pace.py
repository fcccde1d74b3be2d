"""Rate limits of vendors: requests of one lane are spaced, and each owner gets its turn. A vendor that asks to wait is heeded.

The queue is fair (start-time fair queueing): a request is served as if every owner that waits had a queue of its own, so
that one owner with many requests delays another with one by one turn, not by all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
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
OURS = ("",)  # the owner of what nobody else asked for


@dataclass(slots=True, eq=False)
class _Place:
    """A request that waits. Owners may join while it does."""

    owners: Sequence[str]
    tag: int | None = None  # the earliest of its owners'
    tagged: int = 0  # owners whose tag was looked at
    granted: bool = False
    called: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class _Lane:
    free: float = 0.0  # when the next request may start
    now: int = 0  # tag of the last that had its turn
    next_tags: dict[str, int] = field(default_factory=dict)  # by owner
    waiting: list[_Place] = field(default_factory=list)  # in order of arrival
    watched: bool = False  # one of those who wait sleeps until `free`, for all

    def tag(self, owner: str) -> int:
        """Return the tag of the next request of `owner`."""
        return max(self.now, self.next_tags.get(owner, 0))

    def update(self, place: _Place) -> int:
        """Give a place the tags of owners that have joined; return its own."""
        for owner in place.owners[place.tagged :]:
            tag = self.tag(owner)
            self.next_tags[owner] = tag + 1
            place.tag = tag if place.tag is None else min(place.tag, tag)
        place.tagged = len(place.owners)
        return place.tag or 0

    def grant(self) -> None:
        """Give the first in turn its turn."""
        place = min(self.waiting, key=self.update)
        self.waiting.remove(place)
        self.now = max(self.now, place.tag or 0)
        self.next_tags = {owner: tag for owner, tag in self.next_tags.items() if tag > self.now}
        place.granted = True
        place.called.set()

    def call(self) -> None:
        """Wake somebody to watch the time, if nobody does."""
        if self.waiting and not self.watched:
            self.waiting[0].called.set()


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

    def expected_s(self, lane: str, owners: Sequence[str] = OURS) -> float:
        """Return how long a request of `owners` that came now would wait, if no other came after it, seconds."""
        state = self._lanes.get(lane, _Lane())
        tag = min(map(state.tag, owners))
        ahead = sum(state.update(place) <= tag for place in state.waiting)
        return max(0.0, state.free - self._clock()) + ahead * self._spacing_s.get(lane, 0.0)

    async def turn(self, lane: str, *, longest_s: float, owners: Sequence[str] = OURS) -> None:
        """Return when a request may start.

        Args:
            longest_s: how long to wait at most, seconds.
            owners: whose request it is, one at least; more may be appended while it waits.

        Raises:
            UnavailableError: `collateral-rate-limited`: the queue is longer than that.
        """
        expected = self.expected_s(lane, owners)
        if expected > longest_s:
            raise UnavailableError(
                f"{lane} is rate-limited, and the queue is {expected:.0f} s long: try again later, or bring "
                "the collateral with the evidence or in a collateral pack",
                code="collateral-rate-limited",
                stage="fetch",
            )
        state = self._lanes.setdefault(lane, _Lane())
        place = _Place(owners)
        state.update(place)
        state.waiting.append(place)
        try:
            await self._granted(lane, state, place)
        finally:
            if not place.granted:
                state.waiting.remove(place)
            state.call()

    def hold(self, lane: str, seconds: float) -> None:
        """Let no request of `lane` start for so long: the vendor asked for it."""
        state = self._lanes.setdefault(lane, _Lane())
        state.free = max(state.free, self._clock() + seconds)

    async def _granted(self, lane: str, state: _Lane, place: _Place) -> None:
        while not place.granted:
            if state.watched:
                await place.called.wait()
                place.called = anyio.Event()
            else:
                await self._watch(lane, state)

    async def _watch(self, lane: str, state: _Lane) -> None:
        """Sleep until the lane is free, and give the first in turn its turn."""
        state.watched = True
        try:
            while (wait := state.free - self._clock()) > 0:
                await self._sleep(wait)
        finally:
            state.watched = False
        state.free = self._clock() + self._spacing_s.get(lane, 0.0)
        state.grant()
