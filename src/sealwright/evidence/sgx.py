"""Intel SGX quotes, version 3: bytes in, frozen record out.

Layout: Intel SGX ECDSA QuoteLibReference, appendix A. No signature check, clock or network here; see
`sealwright.verify.sgx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.dcap import (
    ENCLAVE_REPORT_SIZE,
    EnclaveReport,
    QuoteHeader,
    QuoteSignature,
    bit_names,
    end_quote,
    open_quote,
)

SGX_ATTRIBUTES = MappingProxyType(
    {
        0: "INIT",
        1: "DEBUG",
        2: "MODE64BIT",
        4: "PROVISIONKEY",
        5: "EINITTOKENKEY",
        6: "CET",
        7: "KSS",
        10: "AEXNOTIFY",
    }
)
SGX_MISCSELECT = MappingProxyType({0: "EXINFO", 1: "CPINFO"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxAttributes:
    """ATTRIBUTES and MISCSELECT of an enclave, bit by bit (Intel SDM, volume 3D, 36.7)."""

    flags: tuple[str, ...]
    xfrm: int
    miscselect: tuple[str, ...]
    unknown_flags: tuple[int, ...]
    unknown_miscselect: tuple[int, ...]

    @classmethod
    def of(cls, report: EnclaveReport) -> Self:
        """Return those of `report`."""
        flags, unknown_flags = bit_names(int.from_bytes(report.attributes[:8], "little"), SGX_ATTRIBUTES)
        miscselect, unknown_miscselect = bit_names(report.misc_select, SGX_MISCSELECT)
        return cls(
            flags=flags,
            xfrm=int.from_bytes(report.attributes[8:], "little"),
            miscselect=miscselect,
            unknown_flags=unknown_flags,
            unknown_miscselect=unknown_miscselect,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxQuote:
    """One quote. Nothing in it is believed before `verify_sgx` has returned."""

    header: QuoteHeader
    report: EnclaveReport
    attributes: SgxAttributes
    signed: bytes  # header and report, as received
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
        if header.version != 3:
            raise EvidenceFormatError("a TDX quote where one of SGX is wanted", code="unsupported-quote")
        report = EnclaveReport.parse(reader.take(ENCLAVE_REPORT_SIZE))
        signed = raw[: reader.at]
        signature, padding = end_quote(reader, nested=False)
        return cls(
            header=header,
            report=report,
            attributes=SgxAttributes.of(report),
            signed=signed,
            signature=signature,
            padding=padding,
        )
