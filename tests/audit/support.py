"""Receipt files of a fake enclave under a clock that tests move."""

from __future__ import annotations

import json
import secrets
from typing import Any

from tests.client.support import Clock, fake_enclave

from sealwright.appraisal.policy import TrustFile
from sealwright.client.receipts import ReceiptFile
from sealwright.protocol.attestation import AttestationRequest
from sealwright.testing.enclave import FakeEnclave
from sealwright.tlog.policy import LogPolicy


class Audited:
    """An enclave, its trust file at boot, and a receipt of one answer."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.enclave: FakeEnclave = fake_enclave(self.clock)
        self.trust: TrustFile = self.enclave.trust_file()
        self.request = AttestationRequest(nonce=b"n" * 32, tenant=self.enclave.tenant)
        self.bundle = self.enclave.bundle(self.request)

    @property
    def policy(self) -> LogPolicy:
        return LogPolicy.parse(self.trust.log_policy.encode())

    def file(self, *, proof: bool = True, **changes: Any) -> ReceiptFile:
        fields = {"kid": "echo", "model": "echo", "request": "00" * 32, "response": "11" * 32}
        made = self.enclave.receipt(fields, record_id=secrets.token_bytes(16))
        file = ReceiptFile(receipt=made, attestation=self.bundle, nonce=self.request.nonce)
        if proof:
            found = self.enclave.proof(file.entry_digest())
            assert found is not None
            file = file.with_proof(found.decode())
        return file.model_copy(update=changes)

    def renewed(self) -> dict[str, Any]:
        self.enclave.renew()
        lease: dict[str, Any] = json.loads(self.enclave.lease_envelope)
        return lease
