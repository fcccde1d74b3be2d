"""What stands behind an SEV-SNP report in an extended one: a table of certificates, or zero padding.

Layout: AMD 56421 (GHCB), SNP Extended Guest Request; entries of GUID, offset and length, ended by one of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.snp import REPORT_SIZE, SnpReport

MAX_TABLE = 1024 * 1024  # bytes
MAX_ENTRIES = 32
GUIDS = {
    "VCEK": bytes.fromhex("63da758de6644564adc5f4b93be8accd"),
    "VLEK": bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"),
    "ASK": bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"),  # of the ASVK too, which has none of its own
    "ARK": bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"),
    "CRL": bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea"),
}
_ENTRY = Struct("<16sII")
_END = bytes(_ENTRY.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateTable:
    """The blobs of a table in its order, by GUID. GUIDs that AMD did not define belong to the cloud."""

    entries: tuple[tuple[bytes, bytes], ...]  # (GUID in the order of its text, blob)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a table. Bytes that belong to no entry are zero, blobs do not overlap, no GUID comes twice.

        Raises:
            EvidenceFormatError: `malformed-certificate-table`, `too-large`.
        """
        if len(raw) > MAX_TABLE:
            raise EvidenceFormatError(f"a certificate table of {len(raw)} bytes", code="too-large")
        heads = _heads(raw)
        end = (len(heads) + 1) * _ENTRY.size
        for _, offset, length in sorted(heads, key=lambda head: head[1]):
            if not length or offset < end or offset + length > len(raw) or any(raw[end:offset]):
                raise _malformed("an entry that is empty, overlaps, lies outside or leaves bytes unclaimed")
            end = offset + length
        if any(raw[end:]):
            raise _malformed("bytes after its last entry")
        if len({guid for guid, _, _ in heads}) != len(heads):
            raise _malformed("a GUID twice")
        return cls(entries=tuple((guid, raw[offset : offset + length]) for guid, offset, length in heads))

    def encode(self) -> bytes:
        """Return the table with its blobs packed in order, without padding."""
        offset = (len(self.entries) + 1) * _ENTRY.size
        heads = []
        for guid, blob in self.entries:
            heads.append(_ENTRY.pack(guid, offset, len(blob)))
            offset += len(blob)
        return b"".join(heads) + _END + b"".join(blob for _, blob in self.entries)

    def endorsements(self) -> list[bytes]:
        """Return the blobs that AMD's GUIDs name: certificates and CRLs, DER or PEM."""
        return [blob for guid, blob in self.entries if guid in GUIDS.values()]


def is_table(raw: bytes) -> bool:
    """Say whether `raw` begins with one of AMD's GUIDs, which nothing but a table does."""
    return raw[:16] in GUIDS.values()


def may_be_table(raw: bytes) -> bool:
    """Say whether one of AMD's GUIDs stands where a table has them, be it behind those of a cloud."""
    return any(
        is_table(raw[start : start + 16]) for start in range(0, MAX_ENTRIES * _ENTRY.size, _ENTRY.size)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedReport:
    """A report with what follows it in the same file."""

    report: SnpReport
    table: CertificateTable | None
    padding: int  # zero bytes behind the report

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Split a file into report and certificate table; or report and zero padding, of which the length is told.

        Raises:
            EvidenceFormatError: as `SnpReport.parse` and `CertificateTable.parse`.
        """
        if len(raw) > REPORT_SIZE + MAX_TABLE:
            raise EvidenceFormatError(f"an extended report of {len(raw)} bytes", code="too-large")
        report, rest = SnpReport.parse(raw[:REPORT_SIZE]), raw[REPORT_SIZE:]
        if not any(rest):
            return cls(report=report, table=None, padding=len(rest))
        return cls(report=report, table=CertificateTable.parse(rest), padding=0)


def _heads(raw: bytes) -> list[tuple[bytes, int, int]]:
    heads: list[tuple[bytes, int, int]] = []
    for start in range(0, (MAX_ENTRIES + 1) * _ENTRY.size, _ENTRY.size):
        head = raw[start : start + _ENTRY.size]
        if head == _END:
            return heads
        if len(head) < _ENTRY.size:
            break
        heads.append(_ENTRY.unpack(head))
    raise _malformed(f"no end within {MAX_ENTRIES} entries")


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(f"a certificate table with {what}", code="malformed-certificate-table")
