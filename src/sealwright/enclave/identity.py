"""What an enclave is to those who verify it: one config, one keyset, and what quotes for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sealwright.enclave.keyset import EnclaveKeys
from sealwright.evidence.envelope import DeviceEvidence, EvidenceEnvelope
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.report_data import Purpose, device_nonce, report_data


def _no_devices(_nonce: bytes) -> Sequence[DeviceEvidence]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the enclave attests: one config, one keyset, and the platform that quotes for them."""

    config: EnclaveConfig
    config_bytes: bytes
    config_digest: bytes
    keys: EnclaveKeys
    openings: Sequence[TenantList]
    quote: Callable[[bytes], bytes]
    platform: str  # what the quotes are of
    # Evidence of the devices beside the CPU, in slot order, over a nonce of 32 bytes.
    devices: Callable[[bytes], Sequence[DeviceEvidence]] = _no_devices
    nonces: set[bytes] = field(default_factory=set, repr=False)  # of brokers, that were quoted for

    def evidence(self, purpose: Purpose, nonce: bytes) -> dict[str, Any]:
        """Return an evidence envelope (JSON values) for `purpose` over a verifier's nonce.

        Raises:
            UnavailableError: as `quote` and `devices`. EvidenceFormatError: the platform gave no envelope.
        """
        # The devices answer first: what is quoted covers the digest of their evidence.
        found = tuple(self.devices(device_nonce(nonce, self.keys.digest)))
        bound = report_data(
            purpose,
            nonce=nonce,
            config_digest=self.config_digest,
            keyset_digest=self.keys.digest,
            devices=[(device.type, hashlib.sha256(device.evidence).digest()) for device in found],
        )
        envelope = EvidenceEnvelope.parse(self.quote(bound))
        return envelope.model_copy(update={"devices": found}).to_json()
