"""What the bare wheel is tried on: made by the full source tree, verified by the wheel alone."""

from __future__ import annotations

import json
import secrets
import shutil
import warnings
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.client.receipts import ReceiptFile
from sealwright.crypto.canonical import canonical
from sealwright.protocol.attestation import AttestationRequest
from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.software import FakePlatformWarning
from sealwright.tlog.keys import Signer
from sealwright.tlog.posix import PosixLog

ENTRIES = 300  # one full tile, and a partial one


def make(folder: Path) -> dict[str, str]:
    """Write the fixtures into `folder`, an empty one; return the values that cases name in braces."""
    return {"fixtures": str(folder)} | _log(folder) | _attested(folder)


def _attested(folder: Path) -> dict[str, str]:
    """Evidence, an attestation bundle and a receipt with its proof, and the trust file for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        enclave = FakeEnclave()
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant=enclave.tenant)
    bundle = enclave.bundle(request)
    fields = {"kid": "echo", "model": "echo", "request": "00" * 32, "response": "11" * 32}
    receipt = enclave.receipt(fields, record_id=secrets.token_bytes(16))
    file = ReceiptFile(receipt=receipt, attestation=bundle, nonce=request.nonce)
    proof = enclave.proof(file.entry_digest()) or b""
    (folder / "bare.trust").write_bytes(enclave.trust_yaml())
    (folder / "bundle.json").write_bytes(bundle.encode())
    (folder / "evidence.json").write_bytes(canonical(bundle.evidence))
    (folder / "receipt.json").write_bytes(file.with_proof(proof.decode()).encode())
    forged = json.loads((folder / "receipt.json").read_bytes())
    forged["receipt"]["fields"]["kid"] = forged["receipt"]["fields"]["model"]
    (folder / "forged.json").write_text(json.dumps(forged))
    return {"nonce": request.nonce.hex()}


def _log(folder: Path) -> dict[str, str]:
    signer = Signer(name="log.example/bare", key=Ed25519PrivateKey.generate())
    with PosixLog.open(folder / "log", signer, create=True) as log:
        log.append([b"entry %d" % index for index in range(ENTRIES)])
    shutil.copytree(folder / "log", folder / "edited-log")
    (entries,) = (folder / "edited-log" / "tile" / "entries").glob("000")
    raw = bytearray(entries.read_bytes())
    raw[-1] ^= 1
    entries.write_bytes(raw)
    (folder / "weights").write_bytes(b"planted" * 1000)
    dek = folder / "dek"
    dek.touch(mode=0o600)
    dek.write_bytes(bytes(range(32)))
    return {"log_key": signer.vkey.encode()}
