"""A key on its way to its owner, to seal artefacts with. Spec: docs/spec/broker-state.md, Sealing key."""

from __future__ import annotations

from typing import ClassVar, Literal

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Bytes, Count, Digest, Name, Time
from sealwright.crypto.encoding import joined
from sealwright.crypto.statement import Statement


class SealingKey(Statement):
    """One key, sealed to the owner's ephemeral X-Wing key, signed by the broker's release key."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.sealing-key.v1+json"

    format: Literal["sealwright-sealing-key/v1"] = "sealwright-sealing-key/v1"
    tenant: Name
    kid: Name
    epoch: Count
    recipient: Digest  # SHA-256 of the public key it is sealed to
    issued: Time
    enc: Bytes
    ciphertext: Bytes

    def hpke_info(self) -> bytes:
        """Return the HPKE info: everything in the statement but the ciphertext is bound to the key."""
        bound = {name: value for name, value in self.to_json().items() if name not in ("enc", "ciphertext")}
        return joined("sealwright/sealing-key/v1", canonical(bound))
