"""Fake AMDs and real files, shared by the tests of SEV-SNP."""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import SealwrightError
from sealwright.evidence.snp import REPORT_SIZE, SnpReport
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, Tolerance, WorkCache
from sealwright.verify.snp import VerifiedSnp, verify_snp

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AT = NOW + timedelta(hours=1)
DATA = bytes(range(64))
NO_CRL = {"amd-crl": Tolerance(missing=True)}
OLD_CRL = {"amd-crl": Tolerance(stale=timedelta(days=200))}


def platform(*args: Any, **options: Any) -> SnpTestPlatform:
    """Return a fake machine, without the warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return SnpTestPlatform(NOW, *args, **options)


def verify(
    raw: bytes,
    endorsements: Iterable[bytes],
    *,
    roots: Iterable[bytes] = (),
    at: datetime = AT,
    data: bytes | None = DATA,
    outage: Any = None,
    cache: WorkCache | None = None,
) -> VerifiedSnp:
    """Verify; `data` None: the report data that the report has."""
    report = SnpReport.parse(raw)
    return verify_snp(
        report,
        Endorsements.detect(endorsements),
        expected_report_data=report.report_data if data is None else data,
        context=Context(at=at, roots=frozenset(roots), outage=outage or {}, work=cache),
    )


def verify_fake(fake: SnpTestPlatform, raw: bytes | None = None, **options: Any) -> VerifiedSnp:
    """Verify a fake's report with its root admitted."""
    endorsements = options.pop("endorsements", None) or fake.endorsements()
    return verify(raw or fake.report(DATA), endorsements, roots=[fake.root_fingerprint], **options)


def refused(stage: str, code: str, error: type[SealwrightError] = SealwrightError) -> Any:
    """Expect a refusal by its stage and code."""
    return pytest.raises(error, check=lambda exc: (exc.stage, exc.code) == (stage, code))


def pem_named(name: str, label: str) -> list[bytes]:
    """Return the PEM blocks of one label in a vector, each as PEM."""
    found = re.findall(
        rb"-----BEGIN %b-----.*?-----END %b-----" % (label.encode(), label.encode()), vector(name), re.S
    )
    return [bytes(block) for block in found]


@cache
def amd_crls() -> tuple[bytes, ...]:
    """Return AMD's own CRLs: of Genoa (2024-10 to 2025-11) and of Milan (2025-05 to 2026-05)."""
    return tuple(pem_named("sev-snp/openpcc/sev_certificates.txt", "X509 CRL"))


def report_in(name: str) -> bytes:
    """Return the report in a vector: bare, as hex, in JSON, in text, or in Azure's HCL report."""
    raw = vector(name)
    if name.endswith(".hex"):
        return bytes.fromhex(raw.decode())
    if name.endswith(".json"):
        return base64.b64decode(json.loads(raw)["evidence"]["attestation_report"])
    if name.endswith(".txt"):
        (block,) = pem_named(name, "REPORT")
        raw = base64.b64decode(b"".join(block.splitlines()[1:-1]))
    return raw[32 : 32 + REPORT_SIZE] if raw.startswith(b"HCLA") else raw


def endorsements_in(name: str) -> list[bytes]:
    """Return the endorsements in a vector."""
    raw = vector(name)
    if name.endswith("live-evidence-genoa.json"):
        chain = json.loads(raw)["evidence"]["cert_chain"]
        return [base64.b64decode(chain["vcek"])]
    if name.endswith("uvm_host_amd_certificate.json"):
        said = json.loads(raw)
        return [said["vcekCert"].encode(), said["certificateChain"].encode()]
    return [raw]
