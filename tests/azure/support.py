"""Azure evidence that others published, and how the tests verify it."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from typing import Any

from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.azure import AzureEvidence
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import Scheme, TpmtSignature
from sealwright.testing.azure import AzureTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.azure import VerifiedAzure, verify_azure
from sealwright.verify.context import Context, Tolerance

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
NO_AMD_CRL = {"amd-crl": Tolerance(missing=True)}
SNP = "tpm/trustee-az/test_data__az-snp-vtpm__{}"
TDX = "tpm/trustee-az/test_data__az-tdx-vtpm__{}"
TOOLS = "tpm/azure-cvm-tooling/{}"


def real(name: str) -> tuple[AzureEvidence, Endorsements]:
    evidence, blobs = parse_trustee(vector(name))
    return evidence, Endorsements.detect(blobs)


def raw_quote(name: str) -> TpmQuote:
    """Return a quote in the form that azure-cvm-tooling serialises: signature, message, 24 PCRs."""
    raw = vector(name)
    signature, size = raw[8:264], int.from_bytes(raw[264:272], "little")
    pcrs = raw[272 + size :]
    return TpmQuote(
        attest=TpmsAttest.parse(raw[272 : 272 + size]),
        signature=TpmtSignature(scheme=Scheme(name="rsassa", hash="sha256"), values=(signature,)),
        pcrs={"sha256": {number: pcrs[8 + 32 * number :][:32] for number in range(24)}},
    )


def verify(evidence: AzureEvidence, endorsements: Endorsements, **options: Any) -> VerifiedAzure:
    """Verify at NOW, without AMD's CRL, over the quote's own nonce, unless told otherwise."""
    nonce = options.pop("nonce", evidence.quote.attest.extraData)
    context = Context(**({"at": NOW, "outage": NO_AMD_CRL} | options))
    return verify_azure(evidence, endorsements, expected_report_data=nonce.ljust(64, b"\0"), context=context)


def fake() -> AzureTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return AzureTestPlatform(NOW)


def verify_fake(platform: AzureTestPlatform, evidence: AzureEvidence, **options: Any) -> VerifiedAzure:
    found = Endorsements.detect(platform.endorsements())
    return verify(
        evidence, found, **({"outage": {}, "roots": frozenset({platform.root_fingerprint})} | options)
    )
