"""Are NVIDIA's reference values genuine, and does a report match them? Steps as in docs/spec/nvidia.md, "RIM"."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256, sha384
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtensionOID

from sealwright.endorsement.nvidia import public_key_der
from sealwright.endorsement.nvidia_rim import Golden, Rim
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import SealwrightError, VerificationError
from sealwright.evidence.spdm import Measurement
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import Context
from sealwright.verify.ocsp import check_standing
from sealwright.verify.p384 import p384_key, verify_p384
from sealwright.verify.verified import CollateralUse

Part = Literal["driver", "vbios"]
NVDEC0 = 35  # the measurement that means nothing while NVDEC0 is off
_STAGE = "rim"
_FIX = "fetch the RIM's OCSP responses"
_LONGEST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRim:
    """A manifest that NVIDIA, or whoever `root` is, signed."""

    part: Part
    rim: Rim
    digest: bytes  # SHA-256 of its canonical form: how policies name it, 32 bytes
    root: bytes  # SHA-256 of the root certificate, 32 bytes
    vendor_root: bool
    until: datetime
    held: tuple[str, ...]
    uses: tuple[CollateralUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A measurement that is none of the values that its manifest allows."""

    index: int  # 0 is the first, as in RIM files
    part: Part
    name: str


def verify_rim(rim: Rim, part: Part, ocsp: Iterable[bytes], context: Context) -> VerifiedRim:
    """Check digest, signature, chain to the pinned root, and revocation of a manifest.

    Raises:
        VerificationError, RevokedError, CollateralError: stage `rim`.
    """
    # 1. The signature covers this document.
    if not hmac.compare_digest(sha384(rim.canonical).digest(), rim.digest):
        _refuse("the RIM is not what its signature's digest is over", "rim-digest")
    # 2. The signer's chain.
    signer, *others = rim.certificates
    chain = build_chain(
        signer, others, anchors("nvidia-rim"), context=context, stage=_STAGE, longest=_LONGEST
    )
    _check_signer(chain)
    # 3. The signature.
    _check_signature(rim, signer, context)
    # 4. Revocation.
    standing = check_standing(
        chain.certificates, ocsp, kind="nvidia-ocsp", context=context, stage=_STAGE, fix=_FIX
    )
    digest = sha256(rim.canonical).digest()
    use = context.use("nvidia-rim", digest, issued=None, next_update=None, fix="fetch the RIM")
    return VerifiedRim(
        part=part,
        rim=rim,
        digest=digest,
        root=fingerprint(chain.root),
        vendor_root=chain.vendor,
        until=chain.until,
        held=standing.held,
        uses=(use, *standing.uses),
    )


def first_good(
    candidates: Sequence[Rim], part: Part, ocsp: Sequence[bytes], context: Context
) -> list[VerifiedRim]:
    """Return the candidates that are genuine; a forged one beside them must not keep a good one from being used.

    Raises:
        VerificationError, RevokedError, CollateralError: of the first, if none is.
    """
    good: list[VerifiedRim] = []
    first: SealwrightError | None = None
    for rim in candidates:
        try:
            good.append(verify_rim(rim, part, ocsp, context))
        except SealwrightError as exc:
            first = first or exc
    if not good and first is not None:
        raise first
    return good


def compare(
    measurements: Sequence[Measurement], rims: Sequence[VerifiedRim], *, nvdec0_enabled: bool
) -> tuple[Mismatch, ...]:
    """Return the measurements that match none of the values that `rims` (one of each part) allow.

    Raises:
        VerificationError: `rim-conflict`: two manifests claim one measurement, or none claims any.
    """
    found = {one.index - 1: one.value for one in measurements}
    golden: dict[int, tuple[Part, Golden]] = {}
    for verified in rims:
        for index, one in _active(verified.rim.measurements).items():
            if index in golden:
                _refuse(f"both RIMs have an active measurement {index}", "rim-conflict")
            golden[index] = (verified.part, one)
        if not _active(verified.rim.measurements):
            _refuse(f"the {verified.part} RIM has no active measurement", "rim-conflict")
    return tuple(
        Mismatch(index=index, part=part, name=one.name)
        for index, (part, one) in sorted(golden.items())
        if not (index == NVDEC0 and not nvdec0_enabled) and found.get(index) not in one.values
    )


def _active(measurements: Mapping[int, Golden]) -> dict[int, Golden]:
    return {index: one for index, one in measurements.items() if one.active}


def _check_signer(chain: Chain) -> None:
    signer = chain.leaf
    usage = extension(signer, x509.KeyUsage, stage=_STAGE)
    other_purpose = any(one.oid == ExtensionOID.EXTENDED_KEY_USAGE for one in signer.extensions)
    if len(chain.certificates) < 3 or not usage.digital_signature or usage.key_cert_sign or other_purpose:
        _refuse("the RIM was signed with a certificate of another purpose", "bad-certificate")


def _check_signature(rim: Rim, signer: x509.Certificate, context: Context) -> None:
    key = p384_key(signer, stage=_STAGE)
    held_under = sha256(
        sha256(rim.signed_info).digest() + rim.signature + sha256(public_key_der(signer)).digest()
    ).digest()
    try:
        context.check_signature(held_under, lambda: verify_p384(key, rim.signature, rim.signed_info))
    except InvalidSignature:
        _refuse("the RIM's signature does not hold", "bad-signature")


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=_STAGE)
