"""Google's launch endorsements: which measurements the firmware of Compute Engine's confidential VMs has.

Format: google/gce-tcb-verifier, proto/endorsement.proto: VMLaunchEndorsement around a serialised VMGoldenMeasurement.
Parsing only; see `sealwright.verify.google_endorsement`. What a later version adds to the signed part is passed over;
around it nothing may stand but the two fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Self

from cryptography import x509

from sealwright.endorsement.protobuf import Message
from sealwright.endorsement.x509 import load_certificate, pem_blocks
from sealwright.errors import EvidenceFormatError

MAX_ENDORSEMENT = 256 * 1024  # bytes
DIGEST = 48  # bytes: SHA-384
_LATEST = 253_402_300_799  # seconds: the end of year 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxMeasurement:
    """One MRTD, and the shape of VM that has it."""

    mrtd: bytes  # 48 bytes
    ram_gib: int
    early_accept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenMeasurement:
    """What is signed. Names as in the format."""

    timestamp: datetime
    cl_spec: int
    commit: bytes
    digest: bytes  # SHA-384 of the UEFI binary, or empty
    sev_snp_svn: int
    sev_snp_policy: int
    sev_snp: Mapping[int, bytes]  # MEASUREMENT by number of VMSAs; 0: with an SVSM
    tdx_svn: int
    tdx: tuple[TdxMeasurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchEndorsement:
    """One endorsement, parsed; nothing in it is believed before it was verified."""

    unverified: GoldenMeasurement
    unverified_certificate: x509.Certificate  # of the key that signed
    unverified_bundle: tuple[x509.Certificate, ...]  # issuers that came along
    signed: bytes  # what the signature covers, as received
    signature: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a serialised VMLaunchEndorsement.

        Raises:
            EvidenceFormatError: `malformed-protobuf`, `too-large`, `wrong-length`, or a certificate is malformed.
        """
        if len(raw) > MAX_ENDORSEMENT:
            raise EvidenceFormatError(f"an endorsement of {len(raw)} bytes", code="too-large")
        outer = Message.parse(raw, known=(1, 2))
        signed, signature = outer.raw(1), outer.raw(2)
        if not signed or not signature:
            raise EvidenceFormatError(
                "an endorsement without content or signature", code="malformed-protobuf"
            )
        golden = Message.parse(signed)
        bundle = golden.raw(6)
        return cls(
            unverified=_golden(golden),
            unverified_certificate=load_certificate(golden.raw(4)),
            unverified_bundle=tuple(load_certificate(der) for _, der in pem_blocks(bundle)) if bundle else (),
            signed=signed,
            signature=signature,
        )


def _golden(golden: Message) -> GoldenMeasurement:
    snp, tdx = Message.parse(golden.raw(7)), Message.parse(golden.raw(8))
    digest = golden.raw(5)
    if digest:
        _check_length(digest)
    return GoldenMeasurement(
        timestamp=_timestamp(golden.raw(1)),
        cl_spec=golden.integer(2),
        commit=golden.raw(3),
        digest=digest,
        sev_snp_svn=snp.integer(1),
        sev_snp_policy=snp.integer(5),
        sev_snp=MappingProxyType(_snp_measurements(snp)),
        tdx_svn=tdx.integer(1),
        tdx=tuple(_tdx_measurement(Message.parse(one)) for one in tdx.many(2)),
    )


def _timestamp(raw: bytes) -> datetime:
    message = Message.parse(raw)
    seconds = message.integer(1)
    if not 0 < seconds <= _LATEST:
        raise EvidenceFormatError("an endorsement without a time", code="malformed-protobuf")
    return datetime.fromtimestamp(seconds, UTC)


def _snp_measurements(snp: Message) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for pair in snp.many(2):
        entry = Message.parse(pair, known=(1, 2))
        vmsas, measurement = entry.integer(1), _check_length(entry.raw(2))
        if vmsas in found or vmsas == 0:
            raise EvidenceFormatError("a number of VMSAs stands twice, or is 0", code="malformed-protobuf")
        found[vmsas] = measurement
    if svsm := snp.raw(7):
        found[0] = _check_length(svsm)
    return found


def _tdx_measurement(one: Message) -> TdxMeasurement:
    early = one.integer(2)
    if early not in (0, 1):
        raise EvidenceFormatError("a boolean that is neither", code="malformed-protobuf")
    return TdxMeasurement(mrtd=_check_length(one.raw(3)), ram_gib=one.integer(1), early_accept=early == 1)


def _check_length(digest: bytes) -> bytes:
    if len(digest) != DIGEST:
        raise EvidenceFormatError(f"a measurement of {len(digest)} bytes", code="wrong-length")
    return digest
