"""Which files did this kernel measure? Replays IMA's list to a signed PCR 10. Spec: docs/spec/measured-boot.md."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sealwright.errors import VerificationError
from sealwright.evidence.eventlog import Bank
from sealwright.evidence.ima import ImaRecord
from sealwright.verify.measured import extended, hashed
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Fact, Verified

_STAGE = "ima"
_BANKS: Mapping[int, Bank] = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
AGGREGATE = "boot_aggregate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedIma:
    """The records that PCR 10 holds, in order. Made by `verify_ima` alone."""

    records: tuple[ImaRecord, ...]
    registers: Mapping[str, bytes]  # PCR 10, as signed
    unproved: int  # records at the end of the list that came after the quote
    padded: bool  # the kernel extended SHA-1, zero-padded, as before Linux 5.8
    boot_aggregate: bool  # the first record is the hash of the PCRs as they are now
    conditions: tuple[Condition, ...]
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError("a ReplayedIma is made by verify_ima alone")

    @property
    def facts(self) -> Mapping[str, Fact]:
        """Counts, as JSON values; the records themselves can be many."""
        return {
            "records": len(self.records),
            "unproved": self.unproved,
            "padded": self.padded,
            "boot_aggregate": self.boot_aggregate,
            "files": len({record.file_name for record in self.records}),
        }


def verify_ima(records: Sequence[ImaRecord], verified: Verified) -> ReplayedIma:
    """Prove that the list, or a beginning of it, is what was extended into PCR 10, which `verified` signs.

    Conditions: `ima-violation`.

    Raises:
        VerificationError: `bad-register`, `ima-mismatch`, `ima-template-mismatch`.
    """
    signed = verified.registers.get("pcr10", b"")
    bank = _BANKS.get(len(signed))
    if bank is None:
        raise VerificationError("the evidence does not sign PCR 10", code="bad-register", stage=_STAGE)
    # 1. Each record's own hash, over the data that its fields were read from.
    for number, record in enumerate(records):
        _check_record(number, record)
    # 2. The shortest beginning of the list that replays; the kernel may have gone on measuring.
    count, padded = _proved(records, signed, bank)
    proved = tuple(records[:count])
    return ReplayedIma(
        records=proved,
        registers={"pcr10": signed},
        unproved=len(records) - count,
        padded=padded,
        boot_aggregate=_aggregate_holds(proved, verified.registers, bank),
        conditions=tuple(_conditions(proved)),
        _made_by=MADE_BY_VERIFY,
    )


def _check_record(number: int, record: ImaRecord) -> None:
    if record.pcr != 10:
        raise VerificationError(
            f"record {number} is of PCR {record.pcr}", code="ima-template-mismatch", stage=_STAGE
        )
    wanted = hashed(_BANKS[len(record.template_hash)], record.template_data)
    if not _violation(record) and not hmac.compare_digest(record.template_hash, wanted):
        raise VerificationError(
            f"record {number} ({record.file_name[:64]}) does not have the hash of its fields",
            code="ima-template-mismatch",
            stage=_STAGE,
        )


def _proved(records: Sequence[ImaRecord], signed: bytes, bank: Bank) -> tuple[int, bool]:
    for padded in (False, True):
        value = bytes(len(signed))
        for count, record in enumerate(records, start=1):
            value = extended(bank, value, _extend(record, bank, padded))
            if hmac.compare_digest(value, signed):
                return count, padded
    raise VerificationError("the IMA list does not replay to PCR 10", code="ima-mismatch", stage=_STAGE)


def _extend(record: ImaRecord, bank: Bank, padded: bool) -> bytes:
    size = len(hashed(bank, b""))
    if _violation(record):
        return b"\xff" * size  # the kernel spoils the PCR on purpose
    if padded:
        return hashed("sha1", record.template_data).ljust(size, b"\0")
    return hashed(bank, record.template_data)


def _violation(record: ImaRecord) -> bool:
    return not any(record.template_hash)


def _aggregate_holds(records: Sequence[ImaRecord], registers: Mapping[str, bytes], bank: Bank) -> bool:
    """Say whether the first record is the hash of PCRs 0 to 9, or 0 to 7 before Linux 5.8, as they were quoted."""
    if not records or records[0].file_name != AGGREGATE:
        return False
    for last in (9, 7):
        values = [registers.get(f"pcr{number}", b"") for number in range(last + 1)]
        if all(values) and records[0].file_digest == f"{bank}:{hashed(bank, b''.join(values)).hex()}":
            return True
    return False


def _conditions(records: Sequence[ImaRecord]) -> Iterator[Condition]:
    violations = [record.file_name for record in records if _violation(record)]
    if violations:
        yield Condition(
            code="ima-violation",
            text=f"{len(violations)} files were written while they were measured, first {violations[0][:64]!r}",
            claim="file-system",
        )
