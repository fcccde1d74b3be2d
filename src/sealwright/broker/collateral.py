"""What vendors publish about the evidence at hand: which pieces, and what the cache has of them. Asks nobody."""

from __future__ import annotations

from collections.abc import Sequence

from sealwright.collateral.cache import Cache
from sealwright.collateral.need import Need
from sealwright.collateral.needs import gpu_needs
from sealwright.collateral.peek import needs_of
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia import chip, device_certificates
from sealwright.errors import SealwrightError
from sealwright.evidence.azure import AzureEvidence
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.evidence.nvopaque import OpaqueData


def _azure(evidence: bytes, endorsements: Sequence[bytes]) -> Sequence[Need]:
    azure = AzureEvidence.parse(evidence)
    hardware = azure.hcl.hardware_report if azure.td_quote is None else azure.td_quote
    return needs_of(
        EvidenceEnvelope(type=azure.hcl.kind, evidence=hardware, endorsements=tuple(endorsements))
    )


def _gpu(evidence: bytes, endorsements: Sequence[bytes]) -> Sequence[Need]:
    device = GpuEvidence.parse(evidence)
    own, others = device_certificates(device, Endorsements.detect(endorsements))
    known = chip(own)
    said = OpaqueData.parse(device.report.opaque, switch=False)
    if known is None or not said.driver_version:
        return ()
    version = said.vbios_version.replace(".", "")
    vbios = f"{said.project}_{said.project_sku}_{said.chip_sku}_{version}"
    return gpu_needs(known.name, said.driver_version, vbios, [own, *others])


_READERS = {"az-snp-vtpm": _azure, "az-tdx-vtpm": _azure, "nvgpu": _gpu}


def needs_in(envelope: EvidenceEnvelope) -> tuple[Need, ...]:
    """Return what evidence needs, as far as it can be told without believing it; nothing where it cannot."""
    try:
        return needs_of(envelope, readers=_READERS)
    except SealwrightError:
        return ()


def cached_collateral(cache: Cache, envelope: EvidenceEnvelope) -> Endorsements:
    """Return what the cache has for `envelope`; nothing of it is verified, and what is missing the verification names.

    A piece that cannot be read is left out, as if it were not there.
    """
    found = Endorsements()
    for need in needs_in(envelope):
        try:
            piece = cache.get(need) if need.facts.kept else None
            found += Endorsements() if piece is None else Endorsements.detect(piece.blobs)
        except SealwrightError:
            continue
    return found
