"""One piece of collateral as it is kept: what it is, when it was fetched, until when it holds, and its blobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sealwright.collateral.need import Need
from sealwright.crypto.document import Bytes, Digest, Document, Record, Time
from sealwright.errors import FormatError

MAX_BLOB = 2 * 1024 * 1024  # bytes; as `sealwright.endorsement.bag`
MAX_BLOBS = 4  # of one piece: a document and its issuers' certificates
MAX_ANSWER = 12 * 1024 * 1024  # bytes of a served piece, base64

State = Literal["fresh", "due", "stale"]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class _Named(Record):
    kind: Annotated[str, Field(max_length=32)]
    key: Annotated[str, Field(max_length=300)]
    fetched: Time
    issued: Time | None = None
    next_update: Time | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            Need.named(self.kind, self.key)
        except FormatError as exc:
            raise ValueError(str(exc)) from None
        return self

    def need(self) -> Need:
        """Return what it is."""
        return Need.named(self.kind, self.key)


class Entry(_Named):
    """What a cache or a manifest says of a piece: its blobs stand elsewhere, under their digests."""

    blobs: Annotated[tuple[Digest, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MAX_BLOBS)]


class Served(_Named, Document):
    """A piece as the service answers it."""

    format: Literal["sealwright-collateral/v1"] = "sealwright-collateral/v1"
    blobs: Annotated[tuple[Bytes, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=MAX_BLOBS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """What a piece says about itself; None: nothing."""

    issued: datetime | None = None
    next_update: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of collateral with its blobs. Nothing in it is verified."""

    need: Need
    blobs: tuple[bytes, ...]
    fetched: datetime
    issued: datetime | None = None
    next_update: datetime | None = None

    def age(self, now: datetime) -> timedelta:
        """Return how long ago it was issued, or fetched where it does not say."""
        return now - (self.issued or self.fetched)

    def stale(self, now: datetime) -> timedelta:
        """Return how far `now` is past its next update; zero where it is not, or has none."""
        return timedelta(0) if self.next_update is None else max(timedelta(0), now - self.next_update)

    def refresh_at(self) -> datetime | None:
        """Return when it should be asked for again, ahead of its next update; None: it never changes."""
        times = []
        if self.next_update is not None:
            life = self.next_update - (self.issued or self.fetched)
            times.append(self.next_update - max(life, timedelta(0)) / 4)
        if self.need.facts.max_age is not None:
            times.append(self.fetched + self.need.facts.max_age)
        return min(times, default=None)

    def state(self, now: datetime) -> State:
        """Return `stale` past its next update, `due` when it should be asked for again, else `fresh`."""
        if self.next_update is not None and now >= self.next_update:
            return "stale"
        refresh = self.refresh_at()
        return "due" if refresh is not None and now >= refresh else "fresh"

    def entry(self) -> Entry:
        """Return what a cache or a manifest says of it."""
        return Entry(
            kind=self.need.kind,
            key=self.need.key,
            fetched=self.fetched,
            issued=self.issued,
            next_update=self.next_update,
            blobs=tuple(sha256(blob).digest() for blob in self.blobs),
        )

    def served(self) -> Served:
        """Return it as the service answers it."""
        return Served(
            kind=self.need.kind,
            key=self.need.key,
            fetched=self.fetched,
            issued=self.issued,
            next_update=self.next_update,
            blobs=self.blobs,
        )
