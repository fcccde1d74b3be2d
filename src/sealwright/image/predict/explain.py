"""Where does a real event log leave the prediction? Spec: docs/spec/predicted-measurements.md, "Explaining a difference"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sealwright.evidence.eventlog import Event, EventLog
from sealwright.image.predict.events import Algorithm, PredictedEvent, Prediction
from sealwright.verify.eventlog import Layout
from sealwright.verify.measured import NAMES, is_extended


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event of a register that is another one. The log is whoever's word; only its digests were measured."""

    register: str
    position: int  # among the events of this register, from 1
    predicted: PredictedEvent | None  # None: the log has an event more
    unverified_logged: Event | None  # None: the log ends before
    logged_digest: bytes  # empty: the log ends before

    def line(self) -> str:
        """Return it for people."""
        want = "no further event" if self.predicted is None else _text(self.predicted)
        have = "no further event"
        if self.unverified_logged is not None:
            kind = self.unverified_logged.type
            have = f"{NAMES.get(kind, f'{kind:#010x}')} {self.logged_digest.hex()[:16]}…"
        return f"{self.register}, event {self.position}: predicted {want}; logged {have}"


def explain(
    prediction: Prediction, log: EventLog, *, layout: Layout, algorithm: Algorithm
) -> list[Difference]:
    """Return the first difference of each predicted register, those first that come first in the log; none: all agree.

    A register that is predicted to stay zero has no event in the log.

    A register is compared up to its first event that the files do not give.
    """
    found = []
    named = [*(event.register for event in prediction.events), *prediction.registers]
    for register in dict.fromkeys(name for name in named if name.startswith(layout)):
        wanted = [event for event in prediction.events if event.register == register]
        difference = _first(register, wanted, _logged(log, register, layout), algorithm)
        if difference is not None:
            found.append(difference)
    return [difference for _, difference in sorted(found, key=lambda one: one[0])]


def _logged(log: EventLog, register: str, layout: Layout) -> list[tuple[int, Event]]:
    index = int(register.removeprefix(layout)) + (layout == "rtmr")  # a CCEL counts MRTD as 0
    return [
        (number, event)
        for number, event in enumerate(log.events)
        if event.index == index and is_extended(event.type)
    ]


def _first(
    register: str, wanted: Sequence[PredictedEvent], logged: Sequence[tuple[int, Event]], algorithm: Algorithm
) -> tuple[int, Difference] | None:
    for position, (want, have) in enumerate(_pairs(wanted, logged), start=1):
        digest = b"" if have is None else have[1].digest(algorithm) or b""
        if want is not None and want.digest == digest:
            continue
        number, event = (len(logged) and logged[-1][0] + 1, None) if have is None else have
        return number, Difference(
            register=register,
            position=position,
            predicted=want,
            unverified_logged=event,
            logged_digest=digest,
        )
    return None


def _pairs(
    wanted: Sequence[PredictedEvent], logged: Sequence[tuple[int, Event]]
) -> Iterator[tuple[PredictedEvent | None, tuple[int, Event] | None]]:
    for want, have in zip_longest(wanted, logged):
        if want is not None and want.digest is None:
            return
        yield want, have


def _text(event: PredictedEvent) -> str:
    return f"{event.what} {(event.digest or b'').hex()[:16]}…"
