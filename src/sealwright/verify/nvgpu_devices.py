"""Are these devices genuine, each another one, and wired to each other? Spec: docs/spec/nvidia.md, "Devices"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import VerificationError
from sealwright.evidence.envelope import DeviceEvidence
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.verify.context import Context
from sealwright.verify.nvgpu import VerifiedGpu, verify_nvgpu

_STAGE = "devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How GPUs and switches see each other, as each of them signed it; identities are PDIs, 8 bytes."""

    gpus: frozenset[bytes]
    switches: frozenset[bytes]
    seen_by_gpus: tuple[frozenset[bytes], ...]  # the switches that each GPU sees
    seen_by_switches: tuple[frozenset[bytes], ...]  # the GPUs that each switch sees

    @property
    def closed(self) -> bool:
        """Whether every GPU sees exactly these switches, and every switch exactly these GPUs."""
        return all(one == self.switches for one in self.seen_by_gpus) and all(
            one == self.gpus for one in self.seen_by_switches
        )


def verify_devices(
    devices: Sequence[DeviceEvidence],
    endorsements: Endorsements,
    *,
    expected_nonce: bytes,
    context: Context,
) -> tuple[VerifiedGpu, ...]:
    """Verify the devices of an envelope, in slot order; no device may stand there twice.

    Args:
        endorsements: what is known beside what each device brings.
        expected_nonce: 32 bytes, `device_nonce` of the verifier's nonce and the keyset: the same for every device.

    Raises:
        VerificationError, CollateralError, RevokedError, EvidenceFormatError: as `verify_nvgpu`;
            `duplicate-device`, `device-type-mismatch` (stage `devices`).
    """
    found = []
    for device in devices:
        verified = verify_nvgpu(
            GpuEvidence.parse(device.evidence),
            Endorsements.detect(device.endorsements) + endorsements,
            expected_nonce=expected_nonce,
            context=context,
        )
        if verified.platform != device.type:
            _refuse(f"a {verified.platform} stands as {device.type}", "device-type-mismatch")
        found.append(verified)
    check_distinct(found)
    return tuple(found)


def check_distinct(devices: Sequence[VerifiedGpu]) -> None:
    """Prove that no two are the same device, by attestation key, boot ROM key or identity (PDI).

    Raises:
        VerificationError: `duplicate-device`.
    """
    for what in ("key_digest", "device_digest", "pdi"):
        counted = Counter(getattr(device, what) for device in devices)
        if any(number > 1 for number in counted.values()):
            _refuse("one device stands twice among the devices", "duplicate-device")


def topology(devices: Sequence[VerifiedGpu]) -> Topology:
    """Return how the devices see each other; nothing about it is judged here."""
    gpus = [device for device in devices if not device.is_switch]
    switches = [device for device in devices if device.is_switch]
    return Topology(
        gpus=frozenset(device.pdi for device in gpus),
        switches=frozenset(device.pdi for device in switches),
        seen_by_gpus=tuple(_present(device.opaque.switch_pdis) for device in gpus),
        seen_by_switches=tuple(_present(device.opaque.gpu_pdis) for device in switches),
    )


def _present(pdis: Sequence[bytes]) -> frozenset[bytes]:
    return frozenset(pdi for pdi in pdis if any(pdi))


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=_STAGE)
