"""The wire of TPM 2.0: big-endian integers, sized buffers, algorithm identifiers, PCR selections.

TPM 2.0 Library part 2 (structures). Reading is exact: what is left over, cut off or out of its range is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, Self, get_args

from sealwright.errors import EvidenceFormatError

Bank = Literal["sha1", "sha256", "sha384", "sha512"]
BANKS: tuple[Bank, ...] = get_args(Bank)
HASHES: Mapping[int, Bank] = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
HASH_IDS: Mapping[str, int] = {name: number for number, name in HASHES.items()}
DIGEST_SIZE: Mapping[str, int] = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}  # bytes

ALG_RSA = 0x0001
ALG_AES = 0x0006
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_OAEP = 0x0017
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
ALG_CFB = 0x0043

PCRS = 24  # of the PC client profile
SELECT_SIZE = 3  # bytes of a selection's bitmap: one bit a PCR
MAX_BANKS = 8


def malformed(message: str, *, code: str = "malformed-tpm") -> NoReturn:
    """Raise EvidenceFormatError."""
    raise EvidenceFormatError(message, code=code)


class Reader:
    """Reads one structure from the front; `end` proves that nothing is left."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        part = self._raw[self._at : self._at + count]
        if len(part) != count:
            malformed(f"{self._what} is cut off")
        self._at += count
        return part

    def integer(self, size: int) -> int:
        """Return the next unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self, limit: int) -> bytes:
        """Return the content of a TPM2B of at most `limit` bytes."""
        size = self.integer(2)
        if size > limit:
            malformed(f"{self._what} has a buffer of {size} bytes, over {limit}")
        return self.take(size)

    def hash_name(self) -> Bank:
        """Return the name of a hash algorithm that is known here."""
        number = self.integer(2)
        if number not in HASHES:
            malformed(f"{self._what} names hash algorithm {number:#06x}", code="unsupported-tpm-algorithm")
        return HASHES[number]

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(len(self._raw) - self._at)

    def end(self) -> None:
        """Prove that nothing is left."""
        if self._at != len(self._raw):
            malformed(f"{self._what} has {len(self._raw) - self._at} bytes too many")


def u16(value: int) -> bytes:
    """Return UINT16."""
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    """Return UINT32."""
    return value.to_bytes(4, "big")


def sized(raw: bytes) -> bytes:
    """Return a TPM2B."""
    return u16(len(raw)) + raw


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """TPMS_PCR_SELECTION: PCRs of one bank. A bank that a TPM does not have is echoed with no PCR."""

    bank: Bank
    pcrs: tuple[int, ...]  # ascending, the order in which a quote digests them

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read one. Raises EvidenceFormatError."""
        bank = reader.hash_name()
        size = reader.integer(1)
        if size != SELECT_SIZE:
            malformed(f"a PCR bitmap of {size} bytes, not {SELECT_SIZE}")
        bits = int.from_bytes(reader.take(size), "little")
        return cls(bank=bank, pcrs=tuple(pcr for pcr in range(PCRS) if bits >> pcr & 1))

    def encode(self) -> bytes:
        """Return the wire form."""
        bits = sum(1 << pcr for pcr in set(self.pcrs))
        return u16(HASH_IDS[self.bank]) + bytes([SELECT_SIZE]) + bits.to_bytes(SELECT_SIZE, "little")


def read_selections(reader: Reader) -> tuple[PcrSelection, ...]:
    """Read TPML_PCR_SELECTION; no bank stands in it twice. Raises EvidenceFormatError."""
    count = reader.integer(4)
    if count > MAX_BANKS:
        malformed(f"a PCR selection of {count} banks, over {MAX_BANKS}")
    found = tuple(PcrSelection.read(reader) for _ in range(count))
    if len({selection.bank for selection in found}) != count:
        malformed("a PCR selection names a bank twice")
    return found


def encode_selections(selections: tuple[PcrSelection, ...]) -> bytes:
    """Return TPML_PCR_SELECTION."""
    return u32(len(selections)) + b"".join(selection.encode() for selection in selections)
