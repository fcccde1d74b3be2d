"""How much, when and for what a key may be used: a policy's or a budget's `limits`. Spec: docs/spec/life-cycle.md."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes32, Count, Name, Record
from sealwright.errors import CollateralError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Clock = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Zone = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,32}){0,2}$")]
PurposeText = Annotated[str, Field(min_length=1, max_length=256)]
MAX_EPOCHS = 1 << 20


class Hours(Record):
    """A time of day in a zone; `end` before `start` is on the next day. A window belongs to the day it begins on."""

    zone: Zone
    start: Clock
    end: Clock
    days: Annotated[list[Day], Field(min_length=1, max_length=7)] | None = None  # absent: all

    @model_validator(mode="after")
    def _check(self) -> Hours:
        if self.start == self.end:
            raise ValueError("it begins when it ends")
        return self

    def window_end(self, at: datetime) -> datetime | None:
        """Return when the window that `at` is in ends (UTC), or None where it is in none.

        Raises:
            CollateralError: `zone-unknown`: this machine's time zone data does not know the zone.
        """
        zone = self._zone()
        local = at.astimezone(zone).date()
        for first in (local - timedelta(days=1), local):
            start, end = self._window(first, zone)
            if self._on(first) and start <= at < end:
                return end
        return None

    def _window(self, first: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
        last = first if self.start < self.end else first + timedelta(days=1)
        return _instant(first, self.start, zone), _instant(last, self.end, zone)

    def _on(self, first: date) -> bool:
        return self.days is None or DAYS[first.weekday()] in self.days

    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise CollateralError(
                f"time zone {self.zone} is not known here: write a name of the IANA database, and install tzdata",
                code="zone-unknown",
                stage="hours",
            ) from exc


class Regions(Record):
    """Where machines stand, by the word of operators: their signed list of machines counts, nothing else does."""

    names: Annotated[list[Name], Field(min_length=1, max_length=32)]
    operators: Annotated[list[Bytes32], Field(min_length=1, max_length=8)]  # Ed25519


class Limits(Record):
    """What bounds the use of a key, or of a tenant's keys together. A member that is absent bounds nothing."""

    releases: Count | None = None
    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] | None = None  # distinct (run, epoch)
    rows: Count | None = None
    purposes: Annotated[list[PurposeText], Field(min_length=1, max_length=32)] | None = None
    runs: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    hours: Hours | None = None
    regions: Regions | None = None

    @property
    def counts(self) -> bool:
        """Whether releases under these limits are counted."""
        return (self.releases, self.epochs, self.rows) != (None, None, None)


def _instant(day: date, clock: str, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time.fromisoformat(clock), tzinfo=zone).astimezone(UTC)
