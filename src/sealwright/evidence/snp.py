"""AMD SEV-SNP attestation reports: bytes in, frozen record out.

Layout: AMD 56860 (SEV-SNP Firmware ABI), ATTESTATION_REPORT. No signature check, clock or network here; see
`sealwright.verify.snp`. Spec: docs/spec/snp.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.snp_fields import (
    FirmwareVersion,
    GuestPolicy,
    PlatformInfo,
    Product,
    SigningKey,
    TcbVersion,
    product_of,
)

REPORT_SIZE = 0x4A0  # bytes
SIGNED_SIZE = 0x2A0  # bytes
NUMBER_SIZE = 72  # bytes: r or s, little-endian
ECDSA_P384_SHA384 = 1
VERSIONS = (2, 3, 4, 5)
HOST_VMPL = 0xFFFFFFFF  # the host asked for the report, not the guest

LAYOUT = Struct(
    "<II Q 16s 16s II 8s Q II"  # version … key_info, reserved
    "64s 48s 32s 48s 48s 32s 32s 8s"  # report_data … reported_tcb
    "3s 21s 64s 8s 3s B 3s B 8s QQ 152s"  # cpuid … reserved
    "72s 72s 368s"
)
_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)  # of P-384's base point
_GAPS = bytes(21 + 152 + 368)
_SIGNING_KEYS: dict[int, SigningKey] = {0: "vcek", 1: "vlek", 7: "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """Which key signed the report, and whether an author key certified the ID key."""

    author_key_en: bool
    mask_chip_key: bool  # the signature is all zero
    signing_key: SigningKey

    @classmethod
    def decode(cls, value: int) -> Self:
        """Return it. Raises EvidenceFormatError `reserved-not-zero`."""
        signing_key = _SIGNING_KEYS.get(value >> 2)
        if signing_key is None:
            raise _reserved("KEY_INFO")
        return cls(author_key_en=bool(value & 1), mask_chip_key=bool(value & 2), signing_key=signing_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """One report; nothing in it is believed before `verify_snp` has returned. Byte fields are as sent."""

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes  # 16 bytes
    image_id: bytes  # 16 bytes
    vmpl: int  # 0-3; HOST_VMPL: asked for by the host
    current_tcb: TcbVersion
    platform_info: PlatformInfo
    key_info: KeyInfo
    report_data: bytes  # 64 bytes, chosen by the guest
    measurement: bytes  # 48 bytes, SHA-384 launch digest
    host_data: bytes  # 32 bytes, chosen by the host at launch
    id_key_digest: bytes  # 48 bytes
    author_key_digest: bytes  # 48 bytes
    report_id: bytes  # 32 bytes
    report_id_ma: bytes  # 32 bytes; all ones: no migration agent
    reported_tcb: TcbVersion  # the signing key is derived from it
    product: Product | None  # from CPUID; None in version 2
    cpuid_fms: tuple[int, int, int] | None  # family, model, stepping; None in version 2
    chip_id: bytes  # 64 bytes; all zero: masked
    committed_tcb: TcbVersion  # the platform cannot go back behind it
    current: FirmwareVersion
    committed: FirmwareVersion
    launch_tcb: TcbVersion  # when the guest was launched or imported
    launch_mit_vector: int | None  # 64 bits; None before version 5
    current_mit_vector: int | None
    signature_r: int
    signature_s: int
    signed: bytes  # the 0x2A0 bytes that the signature covers, as received

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a report of version 2 to 5. What follows a report in a file: see `ExtendedReport`.

        Raises:
            EvidenceFormatError: `wrong-length`, `unsupported-report`, `unknown-processor`, `reserved-not-zero`,
                `malformed-signature`.
        """
        if len(raw) != REPORT_SIZE:
            raise EvidenceFormatError(
                f"an SEV-SNP report has {REPORT_SIZE} bytes, not {len(raw)}", code="wrong-length"
            )
        return cls._decode(raw)

    @classmethod
    def _decode(cls, raw: bytes) -> Self:
        # fmt: off
        (
            version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, key_info, gap1,
            report_data, measurement, host_data, id_key_digest, author_key_digest, report_id, report_id_ma, reported_tcb,
            fms, gap2, chip_id, committed_tcb, current, gap3, committed, gap4, launch_tcb, launch_mit, current_mit, gap5,
            r, s, gap6,
        ) = LAYOUT.unpack(raw)
        # fmt: on
        _check_head(version, algorithm, policy, vmpl)
        if gap1 or gap3 or gap4 or gap2 + gap5 + gap6 != _GAPS:
            raise _reserved("a field between others")
        product = _product(version, fms, chip_id)
        keys = KeyInfo.decode(key_info)
        has_vectors = version >= 5
        if not has_vectors and (launch_mit or current_mit):
            raise _reserved("the place of the mitigation vectors")
        tcbs = {
            raw_tcb: TcbVersion.decode(raw_tcb, product)
            for raw_tcb in {current_tcb, reported_tcb, committed_tcb, launch_tcb}
        }
        signature_r, signature_s = _numbers(
            r, s, signed=keys.signing_key != "none" and not keys.mask_chip_key
        )
        return cls(
            version=version,
            guest_svn=guest_svn,
            policy=GuestPolicy(policy),
            family_id=family_id,
            image_id=image_id,
            vmpl=vmpl,
            current_tcb=tcbs[current_tcb],
            platform_info=PlatformInfo(platform_info),
            key_info=keys,
            report_data=report_data,
            measurement=measurement,
            host_data=host_data,
            id_key_digest=id_key_digest,
            author_key_digest=author_key_digest,
            report_id=report_id,
            report_id_ma=report_id_ma,
            reported_tcb=tcbs[reported_tcb],
            product=product,
            cpuid_fms=None if version == 2 else tuple(fms),
            chip_id=chip_id,
            committed_tcb=tcbs[committed_tcb],
            current=FirmwareVersion(current[2], current[1], current[0]),
            committed=FirmwareVersion(committed[2], committed[1], committed[0]),
            launch_tcb=tcbs[launch_tcb],
            launch_mit_vector=launch_mit if has_vectors else None,
            current_mit_vector=current_mit if has_vectors else None,
            signature_r=signature_r,
            signature_s=signature_s,
            signed=raw[:SIGNED_SIZE],
        )

    @property
    def is_signed(self) -> bool:
        """Whether the firmware claims to have signed it at all."""
        return self.key_info.signing_key != "none" and not self.key_info.mask_chip_key

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        numbers = (number.to_bytes(NUMBER_SIZE, "little") for number in (self.signature_r, self.signature_s))
        return (self.signed + b"".join(numbers)).ljust(REPORT_SIZE, b"\0")


def _check_head(version: int, algorithm: int, policy: int, vmpl: int) -> None:
    if version not in VERSIONS or algorithm != ECDSA_P384_SHA384:
        raise EvidenceFormatError(
            f"a report of version {version} and signature algorithm {algorithm}; versions {VERSIONS[0]} to "
            f"{VERSIONS[-1]} and algorithm {ECDSA_P384_SHA384} are read",
            code="unsupported-report",
        )
    if not policy >> 17 & 1:
        raise _reserved("bit 17 of the guest policy, which is always set,")
    if vmpl > 3 and vmpl != HOST_VMPL:
        raise _reserved("VMPL")


def _product(version: int, fms: bytes, chip_id: bytes) -> Product | None:
    if version == 2:
        if any(fms):
            raise _reserved("the place of CPUID in version 2")
        return None
    product = product_of(fms[0], fms[1])
    if product == "Turin" and any(chip_id[8:]):
        raise _reserved("CHIP_ID after its 8 bytes")
    return product


def _numbers(r: bytes, s: bytes, *, signed: bool) -> tuple[int, int]:
    found = int.from_bytes(r, "little"), int.from_bytes(s, "little")
    if signed and not all(0 < number < _ORDER for number in found):
        raise EvidenceFormatError("r or s of the signature is out of range", code="malformed-signature")
    if not signed and any(found):
        raise EvidenceFormatError(
            "a signature in a report that says that it has none", code="malformed-signature"
        )
    return found


def _reserved(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(f"{what} holds a reserved value", code="reserved-not-zero")
