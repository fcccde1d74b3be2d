"""Is this evidence of an NVIDIA GPU or NVSwitch genuine? Steps and codes as in docs/spec/nvidia.md, "Verification"."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtensionOID

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia import (
    Chip,
    DiceInfo,
    chip,
    device_certificates,
    dice_info,
    matching_rims,
    public_key_der,
)
from sealwright.endorsement.nvidia_rim import Rim
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import VerificationError
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.evidence.nvopaque import OpaqueData
from sealwright.evidence.spdm import SpdmReport
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import Context
from sealwright.verify.nvgpu_findings import NOT_PROVED, conditions, facts, proofs
from sealwright.verify.nvidia_rim import Mismatch, Part, VerifiedRim, compare, first_good
from sealwright.verify.ocsp import Standing, check_standing
from sealwright.verify.p384 import p384_key, verify_p384
from sealwright.verify.verified import MADE_BY_VERIFY, CollateralUse, Verified

NONCE_SIZE = 32  # bytes
CHAIN_LENGTH = 5  # device, boot ROM, provisioner, chip identity, root


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGpu(Verified):
    """Evidence of one device whose nonce, chain, firmware digest and signature hold. Made by `verify_nvgpu` alone."""

    evidence: GpuEvidence
    chip: Chip
    opaque: OpaqueData
    dice: DiceInfo
    key_digest: bytes  # SHA-256 of the device's attestation key, 32 bytes
    device_digest: (
        bytes  # SHA-256 of the key of the device's boot ROM, which stays when firmware changes, 32 bytes
    )
    pdi: bytes  # the device's identity, 8 bytes, as its certificate says
    compared: bool  # whether measurements were compared with RIMs
    rims: tuple[VerifiedRim, ...]
    mismatches: tuple[Mismatch, ...]
    bound_by: Literal["spdm-nonce"] = "spdm-nonce"  # all that ties this device to the CPU's evidence
    relay_excluded: Literal[False] = False

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch."""
        return self.platform == "nvswitch"


def verify_nvgpu(
    evidence: GpuEvidence, endorsements: Endorsements, *, expected_nonce: bytes, context: Context
) -> VerifiedGpu:
    """Check nonce, chain, firmware digest, signature, revocation and reference values of one device.

    Args:
        expected_nonce: 32 bytes; compared whole with what the device was asked.

    Raises:
        VerificationError: not genuine. CollateralError: OCSP or RIM missing or stale. RevokedError: revoked.
        EvidenceFormatError: a certificate, or what the report says, is malformed.
    """
    report = evidence.report
    # 1. Freshness. A different length is a mismatch, never padded or cut.
    if len(expected_nonce) != NONCE_SIZE:
        raise ValueError(f"an SPDM nonce has {NONCE_SIZE} bytes")
    if not hmac.compare_digest(report.request_nonce, expected_nonce):
        _refuse(
            "the device was asked with another nonce than the expected one", "report-data-mismatch", "nonce"
        )
    # 2. The chain to the pinned device root, and what the device's certificate is for.
    leaf, others = device_certificates(evidence, endorsements)
    chain = build_chain(leaf, others, anchors("nvidia"), context=context, stage="chain", longest=CHAIN_LENGTH)
    device = _check_device(chain, evidence)
    # 3. The signature over request and answer, as received.
    _check_signature(report, leaf)
    # 4. The firmware that the certificate was made for is the one that runs.
    switch = device.architecture == "LS10"
    opaque = OpaqueData.parse(report.opaque, switch=switch)
    dice = dice_info(leaf)
    pdi = _check_firmware(chain, dice, opaque, switch=switch)
    # 5. Revocation, of all but the device's own certificate, about which nobody answers.
    standing = check_standing(
        chain.certificates[1:],
        endorsements.ocsp,
        kind="nvidia-ocsp",
        context=context,
        stage="revocation",
        fix="fetch the device's OCSP responses",
    )
    # 6. Reference values for exactly these versions, and the measurements.
    rims, uses, mismatches = _reference_values(report, device, opaque, endorsements, context)
    compared = len(rims) == len(_parts(opaque, switch=switch))
    found = _Found(chain, device, opaque, dice, pdi, standing, rims, mismatches, compared)
    return _verified(evidence, found, uses)


@dataclass(frozen=True, slots=True)
class _Found:
    chain: Chain
    chip: Chip
    opaque: OpaqueData
    dice: DiceInfo
    pdi: bytes
    standing: Standing
    rims: tuple[VerifiedRim, ...]
    mismatches: tuple[Mismatch, ...]
    compared: bool


def _verified(evidence: GpuEvidence, found: _Found, uses: Sequence[CollateralUse]) -> VerifiedGpu:
    chain, rims = found.chain, found.rims
    collateral = (*found.standing.uses, *uses)
    ends = [chain.until, *(rim.until for rim in rims)]
    ends += [use.next_update for use in collateral if use.next_update is not None]
    arguments = (evidence, found.chip, found.opaque, found.dice)
    return VerifiedGpu(
        platform="nvswitch" if found.chip.architecture == "LS10" else "nvgpu",
        report_data=evidence.report.request_nonce,
        registers={f"msr{one.index - 1}": one.value for one in evidence.report.measurements},
        facts=facts(
            *arguments, pdi=found.pdi, rims=rims, mismatches=found.mismatches, compared=found.compared
        ),
        conditions=tuple(
            conditions(*arguments, held=found.standing.held, rims=rims, mismatches=found.mismatches)
        ),
        proofs=tuple(proofs(chain, found.chip, found.opaque, rims, compared=found.compared)),
        not_proved=NOT_PROVED if found.compared else (*NOT_PROVED, "measurements were not compared: no RIM"),
        collateral=collateral,
        root=fingerprint(chain.root),
        vendor_root=chain.vendor,
        until=min(ends),
        evidence=evidence,
        chip=found.chip,
        opaque=found.opaque,
        dice=found.dice,
        key_digest=sha256(public_key_der(chain.leaf)).digest(),
        device_digest=sha256(public_key_der(chain.certificates[1])).digest(),
        pdi=found.pdi,
        compared=found.compared,
        rims=rims,
        mismatches=found.mismatches,
        _made_by=MADE_BY_VERIFY,
    )


def _check_device(chain: Chain, evidence: GpuEvidence) -> Chip:
    """Check the length of the chain and the purpose of its leaf; return the chip that the leaf names."""
    leaf = chain.leaf
    if len(chain.certificates) != CHAIN_LENGTH:
        _refuse(f"a device chain of {len(chain.certificates)} certificates", "bad-certificate", "chain")
    usage = extension(leaf, x509.KeyUsage, stage="chain")
    other_purpose = any(one.oid == ExtensionOID.EXTENDED_KEY_USAGE for one in leaf.extensions)
    if not usage.digital_signature or usage.key_cert_sign or other_purpose:
        _refuse("the certificate is not one of a device's attestation key", "bad-certificate", "chain")
    found = chip(leaf)
    if found is None:
        _refuse("the certificate names no chip that is known here", "unknown-architecture", "chain")
    if evidence.unverified_arch not in (None, found.architecture):
        _refuse(
            f"the evidence says {evidence.unverified_arch}, its certificate {found.architecture}",
            "architecture-mismatch",
            "chain",
        )
    return found


def _check_signature(report: SpdmReport, leaf: x509.Certificate) -> None:
    try:
        verify_p384(p384_key(leaf, stage="signature"), report.signature, report.signed)
    except InvalidSignature:
        _refuse("the report was not signed by the device", "bad-signature", "signature")


def _check_firmware(chain: Chain, dice: DiceInfo, opaque: OpaqueData, *, switch: bool) -> bytes:
    """Check that report and certificate are of one firmware and one device; return the device's identity (PDI)."""
    issuer = chain.certificates[1]
    if dice.device_id and dice.device_id != public_key_der(issuer):
        _refuse("the certificate's DeviceID is not the key that made it", "fwid-mismatch", "firmware")
    # A switch's report has no FWID; a GPU's has one.
    if (opaque.fwid or not switch) and not hmac.compare_digest(opaque.fwid, dice.fwid):
        _refuse("the report's firmware digest (FWID) is not the certificate's", "fwid-mismatch", "firmware")
    pdi = (issuer.serial_number & ((1 << 64) - 1)).to_bytes(8, "big")
    if switch and opaque.device_pdi != pdi:
        _refuse("the switch's identity (PDI) is not its certificate's", "pdi-mismatch", "firmware")
    return pdi


def _parts(opaque: OpaqueData, *, switch: bool) -> dict[Part, str]:
    """Return what has reference values, and its version."""
    parts: dict[Part, str] = {} if switch else {"driver": opaque.driver_version}
    return parts | {"vbios": opaque.vbios_version}


def _reference_values(
    report: SpdmReport, device: Chip, opaque: OpaqueData, endorsements: Endorsements, context: Context
) -> tuple[tuple[VerifiedRim, ...], list[CollateralUse], tuple[Mismatch, ...]]:
    names = {device.name, opaque.chip_info or device.name}
    parts = _parts(opaque, switch=device.architecture == "LS10")
    good: list[list[VerifiedRim]] = []
    uses: list[CollateralUse] = []
    for part, version in parts.items():
        candidates, broken = matching_rims(
            endorsements.rims, names=names, version=version, parse=partial(context.parse, Rim.parse)
        )
        if not candidates and broken is not None:
            raise broken
        if candidates:
            good.append(first_good(candidates, part, endorsements.ocsp, context))
        else:
            uses.append(context.without("nvidia-rim", fix=f"fetch that of {device.name} {part} {version}"))
    if len(good) < len(parts):
        return (), uses, ()
    rims, mismatches = min(_comparisons(report, opaque, good), key=lambda one: len(one[1]))
    return rims, [use for rim in rims for use in rim.uses], mismatches


def _comparisons(
    report: SpdmReport, opaque: OpaqueData, good: Sequence[Sequence[VerifiedRim]]
) -> Iterator[tuple[tuple[VerifiedRim, ...], tuple[Mismatch, ...]]]:
    """Compare with each choice of manifests: several boards have manifests of one version, which do not name the board."""
    for rims in zip(*good, strict=False) if len(good) == 1 else ((a, b) for a in good[0] for b in good[1]):
        yield tuple(rims), compare(report.measurements, rims, nvdec0_enabled=opaque.nvdec0_enabled)


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
