"""Intel TDX quotes, versions 4 and 5: bytes in, frozen record out.

Layout: Intel TDX DCAP Quoting Library API, appendix A.3; bits: Intel TDX Module ABI specification, ATTRIBUTES and
XFAM. No signature check, clock or network here; see `sealwright.verify.tdx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.dcap import (
    QuoteHeader,
    QuoteSignature,
    Reader,
    bit_names,
    end_quote,
    open_quote,
)
from sealwright.evidence.tdreport import SIZES, TD_REPORT_1_0, TdReport

TD_ATTRIBUTES = MappingProxyType(
    {
        0: "DEBUG",
        4: "HGS_PLUS_PROF",
        5: "PERF_PROF",
        6: "PMT_PROF",
        16: "ICSSD",
        17: "SERVTD_EXT",
        27: "LASS",
        28: "SEPT_VE_DISABLE",
        29: "MIGRATABLE",
        30: "PKS",
        31: "KL",
        62: "TPA",
        63: "PERFMON",
    }
)
XFAM = MappingProxyType(
    {
        0: "X87",
        1: "SSE",
        2: "AVX",
        5: "AVX512_K",
        6: "AVX512_ZMM_HI256",
        7: "AVX512_HI16_ZMM",
        8: "PT",
        9: "PKRU",
        11: "CET_U",
        12: "CET_S",
        14: "UINTR",
        15: "LBR",
        17: "AMX_TILECFG",
        18: "AMX_TILEDATA",
        19: "APX",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """A field of single bits: the names of those that are set, and the numbers of those without a name."""

    value: int
    names: tuple[str, ...]
    unknown: tuple[int, ...]

    @classmethod
    def of(cls, raw: bytes, names: MappingProxyType[int, str]) -> Self:
        """Return the bits of a little-endian field."""
        value = int.from_bytes(raw, "little")
        known, unknown = bit_names(value, names)
        return cls(value=value, names=known, unknown=unknown)

    def __contains__(self, name: str) -> bool:
        """Say whether a bit is set, by its name."""
        return name in self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """One quote. Nothing in it is believed before `verify_tdx` has returned."""

    header: QuoteHeader
    body_type: int
    report: TdReport
    attributes: Bits
    xfam: Bits
    signed: bytes  # header and body, as received
    signature: QuoteSignature
    padding: int  # zero bytes after the quote

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a quote.

        Raises:
            EvidenceFormatError: `unsupported-quote`, `truncated-quote`, `reserved-not-zero`, `wrong-length`,
                `trailing-data`, `unsupported-certification-data`, `too-large`.
        """
        reader, header = open_quote(raw)
        kind = _body_type(header, reader)
        report = TdReport.parse(reader.take(SIZES[kind]), kind=kind)
        signed = raw[: reader.at]
        signature, padding = end_quote(reader, nested=True)
        return cls(
            header=header,
            body_type=kind,
            report=report,
            attributes=Bits.of(report.td_attributes, TD_ATTRIBUTES),
            xfam=Bits.of(report.xfam, XFAM),
            signed=signed,
            signature=signature,
            padding=padding,
        )


def _body_type(header: QuoteHeader, reader: Reader) -> int:
    if header.version == 3:
        raise EvidenceFormatError("an SGX quote where one of TDX is wanted", code="unsupported-quote")
    if header.version == 4:
        return TD_REPORT_1_0
    kind, size = reader.number(2), reader.number(4)
    if kind not in SIZES:
        raise EvidenceFormatError(
            f"a body of type {kind}; known are 2 (TDX 1.0), 3 and 4 (TDX 1.5)", code="unsupported-quote"
        )
    if size != SIZES[kind]:
        raise EvidenceFormatError(
            f"a body of {size} bytes where type {kind} has {SIZES[kind]}", code="wrong-length"
        )
    return kind
