"""What a verified device says, for policies and people: facts, conditions, proofs. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from sealwright.endorsement.nvidia import FLAG_DEBUG, FLAG_NOT_SECURE, FLAG_RECOVERY, Chip, DiceInfo
from sealwright.evidence.nvgpu import GpuEvidence, Stated
from sealwright.evidence.nvopaque import OpaqueData
from sealwright.verify.chain import Chain
from sealwright.verify.nvidia_rim import Mismatch, VerifiedRim
from sealwright.verify.verified import Condition, Fact, Proof

NOT_PROVED = (
    "that the device sits in this machine: evidence can be relayed, and only the nonce ties it to the CPU's evidence",
    "that its memory resists physical attacks: high-bandwidth memory is not encrypted",
    "that the reference values are of this board: RIM files name chip and version only",
)


def facts(
    evidence: GpuEvidence,
    chip: Chip,
    opaque: OpaqueData,
    dice: DiceInfo,
    *,
    pdi: bytes,
    rims: Sequence[VerifiedRim],
    mismatches: Sequence[Mismatch],
    compared: bool,
) -> dict[str, Fact]:
    """Return everything worth knowing as JSON values."""
    found: dict[str, Fact] = {
        "architecture": chip.architecture,
        "chip": chip.name,
        "pdi": pdi.hex(),
        "driver_version": opaque.driver_version,
        "vbios_version": opaque.vbios_version,
        "mode": opaque.mode,
        "protected_pcie": opaque.protected_pcie,
        "feature_flag": opaque.feature_flag,
        "nvdec0_enabled": opaque.nvdec0_enabled,
        "project": opaque.project,
        "project_sku": opaque.project_sku,
        "chip_sku": opaque.chip_sku,
        "board_id": opaque.board_id.hex(),
        "fwid": dice.fwid.hex(),
        "dice_flags": list(dice.flags),
        "measurements": "not-compared" if not compared else "mismatch" if mismatches else "match",
        "mismatches": [{"index": one.index, "rim": one.part, "name": one.name} for one in mismatches],
        "rims": {rim.part: rim.digest.hex() for rim in rims},
        "padding": evidence.report.padding,
        "stated": evidence.stated.to_json() if evidence.stated else None,
        "bound_by": "spdm-nonce",
        "relay_excluded": False,
    }
    return found | _links(opaque)


def _links(opaque: OpaqueData) -> dict[str, Fact]:
    return {
        "switch_pdis": sorted({pdi.hex() for pdi in opaque.switch_pdis if any(pdi)}),
        "gpu_pdis": sorted({pdi.hex() for pdi in opaque.gpu_pdis if any(pdi)}),
        "disabled_ports": opaque.disabled_ports.hex(),
        "position_id": opaque.position_id,
        "lock_status": opaque.lock_status,
    }


def conditions(
    evidence: GpuEvidence,
    chip: Chip,
    opaque: OpaqueData,
    dice: DiceInfo,
    *,
    held: Sequence[str],
    rims: Sequence[VerifiedRim],
    mismatches: Sequence[Mismatch],
) -> Iterator[Condition]:
    """Yield the states that a policy has to admit by name."""
    if mismatches:
        indexes = ", ".join(f"{one.index} ({one.part})" for one in mismatches)
        text = f"measurements are none of the reference values: {indexes}"
        yield Condition(code="measurement-mismatch", text=text, claim="executables", value=96)
    for name in held:
        text = f"{name} is held back by its issuer for the time being"
        yield Condition(code="certificate-hold", text=text, claim="instance-identity", value=96)
    for rim in rims:
        for name in rim.held:
            text = f"{name}, which signed the {rim.part} RIM, is held back by its issuer for the time being"
            yield Condition(code="certificate-hold", text=text, claim="executables", value=32)
    if chip.architecture != "LS10":
        yield from _gpu_conditions(opaque, evidence.stated)
    if wrong := set(dice.flags) & {FLAG_DEBUG, FLAG_NOT_SECURE, FLAG_RECOVERY}:
        yield Condition(code="debug", text=f"the device certificate has the flags {', '.join(sorted(wrong))}")
    if opaque.unknown:
        text = f"the report has opaque fields that are not known here: {', '.join(map(str, opaque.unknown))}"
        yield Condition(code="unknown-bits", text=text, claim="configuration", value=32)


def _gpu_conditions(opaque: OpaqueData, stated: Stated | None) -> Iterator[Condition]:
    if opaque.mode is None:
        text = f"feature flag {opaque.feature_flag} is unknown, or contradicts the protected-PCIe status"
        yield Condition(code="unknown-bits", text=text, claim="configuration", value=96)
    if stated is None:
        text = "nothing says whether the GPU's developer tools are off: its report does not, and no driver state came"
        yield Condition(code="debug-unstated", text=text, claim="hardware", value=32)
        return
    if stated.devtools == "on":
        yield Condition(code="debug", text="the driver says that developer tools (DEVTOOLS mode) are on")
    protected = stated.multi_gpu == "protected-pcie"
    if stated.environment != "production" or (stated.cc_feature == "off" and not protected):
        text = (
            f"the driver says: confidential computing {stated.cc_feature}, environment {stated.environment}"
        )
        yield Condition(code="confidential-mode-off", text=text)
    known = stated.multi_gpu != "unknown" and opaque.mode in ("spt", "mpt", "ppcie")
    if known and protected != (opaque.mode == "ppcie"):
        text = f"the driver says multi-GPU mode {stated.multi_gpu}, the report says mode {opaque.mode}"
        yield Condition(code="contradictory-mode", text=text, claim="configuration", value=96)


def proofs(
    chain: Chain, chip: Chip, opaque: OpaqueData, rims: Sequence[VerifiedRim], *, compared: bool
) -> Iterator[Proof]:
    """Yield the steps from the report up to the root, then the reference values."""
    names = [_name(one) for one in chain.certificates]
    what = f"{chip.name} with VBIOS {opaque.vbios_version}"
    if opaque.driver_version:
        what += f" and driver {opaque.driver_version}"
    yield Proof(what=what, by=names[0])
    for certificate, issuer in zip(chain.certificates[:-1], names[1:], strict=True):
        yield Proof(what=_name(certificate), by=issuer, until=certificate.not_valid_after_utc)
    for rim in rims if compared else ():
        what = f"reference values of {rim.part} {rim.rim.colloquial_version}"
        yield Proof(what=what, by=_name(rim.rim.certificates[0]), until=rim.until)


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else "a certificate without a name"
