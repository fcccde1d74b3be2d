"""What a tenant used in a month, signed by the broker, with every counted decision provable from its log.

Spec: docs/spec/life-cycle.md, Usage.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Count, Digest, Id16, Name, Record, Time
from sealwright.crypto.encoding import rfc3339_decode
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.protocol.commitment import (
    MAX_FIELDS,
    Leaf,
    LogEntry,
    Opening,
    commitment_root,
    verify_openings,
)
from sealwright.protocol.lease import verify_broker_keys
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof

STAGE = "usage"
LONGEST_LEASE = timedelta(hours=24)
# What is opened of a counted decision; of its other fields the commitments are shown.
SHOWN = ("action", "verdict", "at", "tenant", "kid", "kids", "keyset_digest", "lease_id", "not_after", "use")
Month = Annotated[str, Field(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]


class UsageStatement(Statement):
    """What was counted, signed by the broker's release key."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.usage.v1+json"

    format: Literal["sealwright-usage/v1"] = "sealwright-usage/v1"
    tenant: Name
    kid: Name | None = None  # absent: all of the tenant's keys
    month: Month
    made: Time
    log_key: Annotated[str, Field(max_length=512)]
    log_size: Count  # entries looked through
    releases: Count
    rows: Count  # that releases named
    leases: Count
    lease_seconds: Count  # of enclaves: where leases of one overlap, once
    answers: Count  # receipts logged under those leases
    counted: Digest  # SHA-256 of JCS of [[index, commitment], ...], newest first


class UsageItem(Record):
    """One counted decision, as far as it concerns whoever is shown the usage."""

    record_id: Id16
    leaves: Annotated[list[Leaf], Field(min_length=1, max_length=MAX_FIELDS)]
    fields: dict[Name, Opening]
    answers: Count = 0  # receipts logged under this lease: the broker's word alone
    proof: Annotated[str, Field(max_length=64 * 1024)] = ""  # `.tlog-proof` text

    @property
    def commitment(self) -> bytes:
        """The Merkle root of its fields (32 bytes). Raises VerificationError: `field-order`."""
        return commitment_root(tuple(self.leaves))

    def opened(self) -> Mapping[str, Any]:
        """Return the opened fields, proved to be committed to. Raises VerificationError."""
        verify_openings(self.record_id, tuple(self.leaves), self.fields)
        return {name: parse_json(opening.value) for name, opening in self.fields.items()}

    def place(self, log: LogPolicy) -> int:
        """Return its index, proved to be in the log. Raises VerificationError, LogFormatError."""
        entry = LogEntry(type="decision", commitment=self.commitment).encode()
        return LogProof.parse(self.proof.encode()).verify(entry, log).index


def month_of(month: str) -> tuple[datetime, datetime]:
    """Return a month's first moment and the next one's (UTC). Raises MessageFormatError: `malformed-month`."""
    try:
        start = datetime.strptime(f"{month}-01", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise MessageFormatError("a month is YYYY-MM", code="malformed-month") from None
    if start.strftime("%Y-%m") != month:
        raise MessageFormatError("a month is YYYY-MM", code="malformed-month")
    return start, (start + timedelta(days=32)).replace(day=1)


@dataclass(slots=True)
class Tally:
    """Counts decisions of one tenant, and key, in one month: the same for who makes a statement and who checks it."""

    tenant: str
    kid: str | None
    month: str
    releases: int = 0
    rows: int = 0
    leases: int = 0
    answers: int = 0
    _held: dict[str, list[tuple[datetime, datetime]]] = field(default_factory=dict)  # by keyset
    _counted: list[list[object]] = field(default_factory=list)

    def concerns(self, said: Mapping[str, Any]) -> bool:
        """Say whether an opened decision counts."""
        if said.get("verdict") != "grant" or said.get("tenant") != self.tenant:
            return False
        start, end = month_of(self.month)
        at = rfc3339_decode(str(said.get("at")))
        if said.get("action") == "release":
            return start <= at < end and self.kid in (None, said.get("kid"))
        if said.get("action") != "lease" or not (self.kid is None or self.kid in (said.get("kids") or ())):
            return False
        return at < end and rfc3339_decode(str(said.get("not_after"))) > start

    def add(self, index: int, commitment: bytes, said: Mapping[str, Any], answers: int) -> None:
        """Count a decision that concerns this."""
        self._counted.append([index, commitment.hex()])
        self.answers += answers
        if said["action"] == "release":
            self.releases += 1
            self.rows += int((said.get("use") or {}).get("rows", 0))
            return
        start, end = month_of(self.month)
        at, until = rfc3339_decode(str(said["at"])), rfc3339_decode(str(said["not_after"]))
        self.leases += start <= at
        self._held.setdefault(str(said.get("keyset_digest")), []).append((max(at, start), min(until, end)))

    @property
    def lease_seconds(self) -> int:
        """How long enclaves held leases: where leases of one overlap, once."""
        return sum(_length(spans) for spans in self._held.values())

    @property
    def counted(self) -> bytes:
        """What the statement binds (32 bytes)."""
        return hashlib.sha256(canonical(self._counted)).digest()


def verify_usage(
    statement: bytes, broker_keys: bytes, items: Iterable[UsageItem], *, root: bytes, log: LogPolicy
) -> UsageStatement:
    """Return a statement proved to be the broker's, and to count exactly `items`, each proved to be in its log.

    What it cannot show is that nothing was left out, and how many answers there were: that is the broker's word.

    Args:
        statement, broker_keys: DSSE.
        root: the broker's, 32 bytes.
        log: whose log.

    Raises:
        VerificationError: `usage-mismatch`, or a signature, opening or proof does not hold.
    """
    unverified = UsageStatement.unverified(statement)
    keys = verify_broker_keys(broker_keys, [root], at=unverified.made)
    said = UsageStatement.verify(statement, [ed25519(keys.release_key)], stage=STAGE)
    if said.log_key != keys.log_key:
        raise _mismatch("the statement names another log than the broker's keys")
    tally = Tally(said.tenant, said.kid, said.month)
    last = said.log_size
    for item in items:
        index, opened = item.place(log), item.opened()
        if not index < last or not _concerns(tally, opened):
            raise _mismatch(f"entry {index} does not count here, or stands twice")
        last = index
        tally.add(index, item.commitment, opened, item.answers)
    if not hmac.compare_digest(said.counted, tally.counted):
        raise _mismatch("the entries are not those that were counted")
    for name in ("releases", "rows", "leases", "lease_seconds", "answers"):
        if getattr(said, name) != getattr(tally, name):
            raise _mismatch(f"{name}: {getattr(said, name)} are stated, {getattr(tally, name)} follow")
    return said


def _concerns(tally: Tally, said: Mapping[str, Any]) -> bool:
    try:
        return tally.concerns(said)
    except SealwrightError:
        return False


def _length(spans: list[tuple[datetime, datetime]]) -> int:
    total, reached = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(spans):
        total += max(0.0, (end - max(start, reached)).total_seconds())
        reached = max(reached, end)
    return int(total)


def _mismatch(text: str) -> VerificationError:
    return VerificationError(text, code="usage-mismatch", stage=STAGE)
