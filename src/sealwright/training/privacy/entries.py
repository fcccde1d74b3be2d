"""What a privacy ledger is made of. Spec: docs/spec/privacy.md, Ledger."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import ceil, isfinite
from typing import Annotated, Literal

from pydantic import Field

from sealwright.crypto.canonical import canonical_digest
from sealwright.crypto.document import Count, Digest, Document, Record
from sealwright.errors import MessageFormatError
from sealwright.training.privacy.accountant import Cost, gaussian, nothing, sampled
from sealwright.training.privacy.spec import Decimal

MAX_ENTRIES = 4096
_LABEL = b"sealwright/privacy/ledger/v1"
Sampling = Literal["none", "poisson"]


class Entry(Record):
    """Releases of one kind. `rho` or `noise_multiplier` says how much each costs, never under the truth."""

    mechanism: Literal["central", "distributed", "dp-sgd"]
    first_round: Count
    rounds: Annotated[int, Field(ge=1, le=1 << 24)]  # releases; for dp-sgd, steps
    sampling: Sampling
    sampling_rate: Decimal  # "1" where sampling is none
    rho: Annotated[str, Field(max_length=24, pattern=r"^[0-9]{1,9}(?:\.[0-9]{1,14})?$")] | None = None
    noise_multiplier: Decimal | None = None  # dp-sgd
    dropouts: Count

    def cost(self) -> Cost:
        """Return what the entry costs.

        Raises:
            MessageFormatError: `ledger-malformed`.
        """
        rate = float(Fraction(self.sampling_rate))
        if rate > 1 or (self.sampling == "none") != (rate == 1):
            raise malformed("a sampling rate over 1, or one that does not fit its sampling")
        if self.mechanism == "dp-sgd" and self.noise_multiplier and self.rho is None:
            if not float(self.noise_multiplier):
                raise malformed("no noise")
            return gaussian(float(self.noise_multiplier), rate).times(self.rounds)
        if self.mechanism != "dp-sgd" and self.rho and float(self.rho) and self.noise_multiplier is None:
            return sampled(float(self.rho), rate).times(self.rounds)
        raise malformed("rho over 0 is for sums, noise_multiplier for dp-sgd")


class Spent(Record):
    """What goes into receipts and checkpoint statements: (ε, δ) of all rounds so far, and how it came about."""

    budget: Digest
    ledger: Digest  # head of the ledger
    epsilon: Decimal  # rounded up
    delta: Decimal
    budget_epsilon: Decimal
    rounds: Count
    dropouts: Count
    mechanisms: list[str]
    sampling_rates: list[str]
    unit: Literal["worker", "sample"]


class Budget(Document):
    """What may be spent on the data of a run, ever. Its digest names the ledger."""

    format: Literal["sealwright-privacy-budget/v1"] = "sealwright-privacy-budget/v1"
    name: Annotated[str, Field(min_length=1, max_length=256)]
    unit: Literal["worker", "sample"]
    epsilon: Decimal
    delta: Decimal


class LedgerState(Document):
    """A ledger after `sequence` entries. `head` stands for all of them: it is what a caller pins."""

    format: Literal["sealwright-privacy-ledger/v1"] = "sealwright-privacy-ledger/v1"
    budget: Digest
    sequence: Annotated[int, Field(ge=0, le=MAX_ENTRIES)]
    head: Digest
    entries: Annotated[list[Entry], Field(max_length=MAX_ENTRIES)]

    def cost(self) -> Cost:
        """Return what all entries cost together.

        Raises:
            MessageFormatError: `ledger-malformed`.
        """
        total, counts = nothing(), dict[Entry, int]()
        for entry in self.entries:
            kind = entry.model_copy(update={"first_round": 0, "rounds": 1, "dropouts": 0})
            counts[kind] = counts.get(kind, 0) + entry.rounds
        for kind, count in counts.items():
            total = total + kind.cost().times(count)
        return total

    def with_entry(self, entry: Entry) -> LedgerState:
        """Return the state after one more."""
        entries = [*self.entries, entry]
        head = _next_head(self.head, entry)
        return LedgerState(budget=self.budget, sequence=len(entries), head=head, entries=entries)

    def heads(self) -> list[bytes]:
        """Return the heads of the empty ledger and of each state up to this one."""
        found = [_first_head(self.budget)]
        for entry in self.entries:
            found.append(_next_head(found[-1], entry))
        return found


def empty_ledger(budget: Budget) -> LedgerState:
    """Return the state in which nothing is spent."""
    digest = budget.digest()
    return LedgerState(budget=digest, sequence=0, head=_first_head(digest), entries=[])


def decimal_up(value: float, *, places: int) -> str:
    """Return a decimal text of at most `places` places that is never under `value`."""
    if not (isfinite(value) and 0 <= value < 10**9):
        raise ValueError("no finite number under 10^9")
    whole, rest = divmod(ceil(Fraction(value) * 10**places), 10**places)
    return f"{whole}.{rest:0{places}d}".rstrip("0").rstrip(".")


def malformed(what: str) -> MessageFormatError:
    """Return the error for a ledger that cannot be believed."""
    return MessageFormatError(what, code="ledger-malformed", stage="ledger")


def _first_head(budget: bytes) -> bytes:
    return hashlib.sha256(_LABEL + budget).digest()


def _next_head(head: bytes, entry: Entry) -> bytes:
    return hashlib.sha256(_LABEL + head + canonical_digest(entry.to_json())).digest()
