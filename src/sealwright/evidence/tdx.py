"""Intel TDX quotes, versions 4 and 5, with bodies of TDX 1.0 and 1.5: bytes in, frozen record out.

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
    check_size,
    padding,
)

TD_REPORT_1_0, TD_REPORT_1_5 = 2, 3  # body types of version 5
_SIZES = {TD_REPORT_1_0: 584, TD_REPORT_1_5: 648}  # bytes

TD_ATTRIBUTES = MappingProxyType(
    {
        0: "DEBUG",
        4: "HGS_PLUS_PROF",
        5: "PERF_PROF",
        6: "PMT_PROF",
        16: "ICSSD",
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
class TdReport:
    """The body of a TDX quote; byte fields as sent."""

    tee_tcb_svn: bytes  # 16 bytes: of the TDX module and SEAM loader when the TD was made
    mr_seam: bytes  # 48 bytes
    mr_signer_seam: bytes  # 48 bytes
    seam_attributes: bytes  # 8 bytes
    td_attributes: bytes  # 8 bytes
    xfam: bytes  # 8 bytes
    mr_td: bytes  # 48 bytes
    mr_config_id: bytes  # 48 bytes
    mr_owner: bytes  # 48 bytes
    mr_owner_config: bytes  # 48 bytes
    rt_mr: tuple[bytes, bytes, bytes, bytes]  # 48 bytes each
    report_data: bytes  # 64 bytes
    tee_tcb_svn_2: bytes | None  # TDX 1.5, 16 bytes: of the module that runs now
    mr_servicetd: bytes | None  # TDX 1.5, 48 bytes: service TDs bound, such as a migration TD

    @classmethod
    def parse(cls, raw: bytes, *, kind: int) -> Self:
        """Parse a body of type TD_REPORT_1_0 or TD_REPORT_1_5. Raises EvidenceFormatError."""
        reader = Reader(raw)
        tee_tcb_svn = reader.take(16)
        mr_seam, mr_signer_seam = reader.take(48), reader.take(48)
        seam_attributes, td_attributes, xfam = reader.take(8), reader.take(8), reader.take(8)
        mr_td, mr_config_id, mr_owner, mr_owner_config = (reader.take(48) for _ in range(4))
        rt_mr = (reader.take(48), reader.take(48), reader.take(48), reader.take(48))
        report_data = reader.take(64)
        later = kind == TD_REPORT_1_5
        tee_tcb_svn_2, mr_servicetd = (reader.take(16), reader.take(48)) if later else (None, None)
        reader.end("the TD report")
        return cls(
            tee_tcb_svn=tee_tcb_svn,
            mr_seam=mr_seam,
            mr_signer_seam=mr_signer_seam,
            seam_attributes=seam_attributes,
            td_attributes=td_attributes,
            xfam=xfam,
            mr_td=mr_td,
            mr_config_id=mr_config_id,
            mr_owner=mr_owner,
            mr_owner_config=mr_owner_config,
            rt_mr=rt_mr,
            report_data=report_data,
            tee_tcb_svn_2=tee_tcb_svn_2,
            mr_servicetd=mr_servicetd,
        )


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
        check_size(raw)
        reader = Reader(raw)
        header = QuoteHeader.read(reader)
        kind = _body_type(header, reader)
        report = TdReport.parse(reader.take(_SIZES[kind]), kind=kind)
        signed = raw[: reader.at]
        signature = QuoteSignature.parse(reader.take(reader.number(4)), nested=True)
        return cls(
            header=header,
            body_type=kind,
            report=report,
            attributes=Bits.of(report.td_attributes, TD_ATTRIBUTES),
            xfam=Bits.of(report.xfam, XFAM),
            signed=signed,
            signature=signature,
            padding=padding(reader.rest()),
        )


def _body_type(header: QuoteHeader, reader: Reader) -> int:
    if header.version == 3:
        raise EvidenceFormatError("an SGX quote where one of TDX is wanted", code="unsupported-quote")
    if header.version == 4:
        return TD_REPORT_1_0
    kind, size = reader.number(2), reader.number(4)
    if kind not in _SIZES:
        raise EvidenceFormatError(
            f"a body of type {kind}; known are 2 (TDX 1.0) and 3 (TDX 1.5)", code="unsupported-quote"
        )
    if size != _SIZES[kind]:
        raise EvidenceFormatError(
            f"a body of {size} bytes where type {kind} has {_SIZES[kind]}", code="wrong-length"
        )
    return kind
