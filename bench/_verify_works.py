"""What `bench/verify.py` measures: evidence of every type with its endorsements, and the signatures it cannot save.

Everything is made in the run by the fakes of `sealwright.testing`, whose chains and collateral have the shape and
size of the vendors'. Only SEV-SNP is real where the collection of real evidence is there: a Milan with AMD's CRL.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.azure import AzureEvidence
from sealwright.evidence.nitro import NitroDocument
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.snp import SnpReport
from sealwright.evidence.tdx import TdxQuote
from sealwright.evidence.tpm import TpmQuote
from sealwright.testing.azure import AzureTestPlatform
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.nitro import NitroTestPlatform
from sealwright.testing.nvgpu import FakeNvidia
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.tpm import TpmTestPlatform
from sealwright.verify.azure import verify_azure
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.nitro import verify_nitro
from sealwright.verify.nvgpu import verify_nvgpu
from sealwright.verify.sgx import verify_sgx
from sealwright.verify.snp import verify_snp
from sealwright.verify.tdx import verify_tdx
from sealwright.verify.tpm import verify_tpm

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DATA = bytes(range(64))
_VECTORS = Path(os.environ.get("SEALWRIGHT_VECTORS", "../shared/vectors")) / "evidence" / "sev-snp"
_REAL_AT = datetime(2026, 3, 1, tzinfo=UTC)
_REPORT = "ms-tee-av/tests__test_data__milan_attestation_report.bin"
_VCEK = "ms-tee-av/tests__test_data__milan_vcek.pem"
_CRL = "openpcc/sev_certificates.txt"
Act = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Evidence of one type, ready to be verified by us and, of Intel's, by dcap-qvl."""

    name: str
    raw: bytes
    blobs: Sequence[bytes]
    parse: Callable[[bytes], Any]
    check: Callable[..., object]
    expected: dict[str, bytes]
    bare: Act  # the checks of the evidence's own signatures, which no cache can save
    signed_by: str  # "one P-384 check"
    at: datetime = NOW
    roots: frozenset[bytes] = frozenset()
    peer: Act | None = None  # dcap-qvl, collateral read before

    def read(self) -> Endorsements:
        """Return the endorsements, parsed."""
        return Endorsements.detect(self.blobs)

    def verify(self, endorsements: Endorsements | None = None, work: WorkCache | None = None) -> object:
        """Verify once, from the evidence's bytes. Args: endorsements: None: they are parsed too."""
        found = self.read() if endorsements is None else endorsements
        context = Context(at=self.at, roots=self.roots, work=work)
        return self.check(self.parse(self.raw), found, **self.expected, context=context)


def works() -> Iterator[Work]:
    """Yield the types, one after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all this is made up
        yield _snp()
        tdx = TdxTestPlatform(NOW)
        yield _dcap("TDX v4", tdx, *tdx.evidence(DATA), TdxQuote.parse, verify_tdx)
        yield _dcap("TDX v5", tdx, *tdx.evidence(DATA, version=5), TdxQuote.parse, verify_tdx)
        sgx = SgxTestPlatform(NOW)
        yield _dcap("SGX", sgx, *sgx.evidence(DATA), SgxQuote.parse, verify_sgx)
        yield _nitro()
        yield _tpm()
        yield _azure()
        yield _gpu()


def ecdsa(curve: ec.EllipticCurve, hashing: SHA256 | SHA384, size: int) -> Act:
    """Return a check of one ECDSA signature over `size` bytes."""
    key, message, algorithm = ec.generate_private_key(curve), bytes(size), ec.ECDSA(hashing)
    signature, public = key.sign(message, algorithm), key.public_key()
    return lambda: public.verify(signature, message, algorithm)


def _rsa(size: int) -> Act:
    key, message = rsa.generate_private_key(65537, 2048), bytes(size)
    signature, public = key.sign(message, PKCS1v15(), SHA256()), key.public_key()
    return lambda: public.verify(signature, message, PKCS1v15(), SHA256())


def _snp() -> Work:
    real = [_VECTORS / name for name in (_REPORT, _VCEK, _CRL)]
    common: dict[str, Any] = {
        "parse": SnpReport.parse,
        "check": verify_snp,
        "bare": ecdsa(ec.SECP384R1(), SHA384(), 0x2A0),
        "signed_by": "one P-384 check",
    }
    if all(path.is_file() for path in real):
        raw, vcek, with_crl = (path.read_bytes() for path in real)
        crls = [crl.public_bytes(Encoding.DER) for crl in Endorsements.detect([with_crl]).crls]
        expected = {"expected_report_data": SnpReport.parse(raw).report_data}
        return Work(name="SNP", raw=raw, blobs=(vcek, *crls), expected=expected, at=_REAL_AT, **common)
    fake = SnpTestPlatform(NOW)
    raw, blobs = fake.evidence(DATA)
    roots = frozenset({fake.root_fingerprint})
    return Work(name="SNP", raw=raw, blobs=blobs, expected=_over(DATA), roots=roots, **common)


def _dcap(
    name: str, fake: Any, raw: bytes, blobs: Sequence[bytes], parse: Any, check: Callable[..., object]
) -> Work:
    return Work(
        name=name,
        raw=raw,
        blobs=blobs,
        parse=parse,
        check=check,
        expected=_over(DATA),
        bare=ecdsa(ec.SECP256R1(), SHA256(), 632),
        signed_by="one P-256 check",
        roots=frozenset({fake.root_fingerprint}),
        peer=_dcap_qvl(fake.pki, raw, blobs),
    )


def _dcap_qvl(pki: Any, raw: bytes, blobs: Sequence[bytes]) -> Act | None:
    """Return one verification by dcap-qvl; None where it is not installed."""
    if find_spec("dcap_qvl") is None:
        return None
    module = import_module("dcap_qvl")
    info, identity = (json.loads(blob) for blob in blobs[:2])
    root, ca, signing = (one.public_bytes(Encoding.PEM).decode() for one in (pki.root, pki.ca, pki.signing))
    collateral = module.QuoteCollateralV3(
        pck_crl_issuer_chain=ca + root,
        root_ca_crl=blobs[3],
        pck_crl=blobs[4],
        tcb_info_issuer_chain=signing + root,
        tcb_info=json.dumps(info["tcbInfo"], separators=(",", ":")),
        tcb_info_signature=bytes.fromhex(info["signature"]),
        qe_identity_issuer_chain=signing + root,
        qe_identity=json.dumps(identity["enclaveIdentity"], separators=(",", ":")),
        qe_identity_signature=bytes.fromhex(identity["signature"]),
    )
    anchor, at = pki.root.public_bytes(Encoding.DER), int(NOW.timestamp())
    return lambda: module.verify_with_root_ca(raw, collateral, anchor, at)


def _nitro() -> Work:
    fake = NitroTestPlatform(NOW)
    raw = fake.document(DATA)
    return Work(
        name="Nitro",
        raw=raw,
        blobs=(),
        parse=NitroDocument.parse,
        check=verify_nitro,
        expected=_over(DATA),
        bare=ecdsa(ec.SECP384R1(), SHA384(), len(raw)),
        signed_by="one P-384 check",
        roots=frozenset({fake.root_fingerprint}),
    )


def _tpm() -> Work:
    fake = TpmTestPlatform(NOW)
    raw, blobs = fake.evidence(DATA)
    return Work(
        name="TPM quote",
        raw=raw,
        blobs=blobs,
        parse=TpmQuote.parse,
        check=verify_tpm,
        expected=_over(DATA),
        bare=ecdsa(ec.SECP256R1(), SHA256(), 145),
        signed_by="one P-256 check",
        roots=frozenset({fake.root_fingerprint}),
    )


def _azure() -> Work:
    fake = AzureTestPlatform(NOW)
    evidence, blobs = fake.evidence(DATA)
    hardware, quote = ecdsa(ec.SECP384R1(), SHA384(), 0x2A0), _rsa(145)
    return Work(
        name="Azure SNP",
        raw=evidence.encode(),
        blobs=blobs,
        parse=AzureEvidence.parse,
        check=verify_azure,
        expected=_over(DATA),
        bare=lambda: (hardware(), quote()),
        signed_by="one P-384 and one RSA-2048 check",
        roots=frozenset({fake.root_fingerprint}),
    )


def _gpu() -> Work:
    fake = FakeNvidia(NOW)
    device = fake.device()
    raw = device.document(DATA[:32])
    return Work(
        name="NVIDIA GPU",
        raw=raw,
        blobs=fake.endorsements(device),
        parse=GpuEvidence.parse,
        check=verify_nvgpu,
        expected={"expected_nonce": DATA[:32]},
        bare=ecdsa(ec.SECP384R1(), SHA384(), len(GpuEvidence.parse(raw).report.signed)),
        signed_by="one P-384 check",
        roots=fake.roots,
    )


def _over(data: bytes) -> dict[str, bytes]:
    return {"expected_report_data": data}
