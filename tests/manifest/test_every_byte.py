"""Each byte of a whole envelope changed, one vector of each type: none is accepted but those that are named here.

Logs are left out: what of them is not measured is told in tests/boot. Endorsements stand beside: who signs them, and
that no byte of them can be changed, is told in the tests of each vendor. Slow: about 110 s.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.manifest.support import CASES, served
from tests.vector_files import vector

from sealwright.audit.detect import detect
from sealwright.audit.given import folder
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import SealwrightError
from sealwright.evidence.azure import AzureEvidence
from sealwright.evidence.envelope import EvidenceEnvelope, VtpmEvidence
from sealwright.evidence.tpm import TpmQuote
from sealwright.testing.nvgpu import FakeNvidia
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.testing.tpm import TpmTestPlatform
from sealwright.verify.context import Context, Tolerance, WorkCache
from sealwright.verify.evidence import (
    unverified_report_data,
    verify_envelope_devices,
    verify_evidence,
    verify_vtpm,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = bytes(range(32))
REAL = {
    "snp": "sev-snp/ms-tee-av/tests__test_data__milan_attestation_report.bin",
    "tdx": "tdx/dcap-qvl/tdx_quote",
    "sgx": "sgx/dcap-qvl/sgx_quote",
    "nitro": "nitro/anjuna/sample_prod_doc.bin",
    "az-snp-vtpm": "tpm/trustee-az/test_data__az-snp-vtpm__evidence-v1.json",
    "az-tdx-vtpm": "tpm/trustee-az/test_data__az-tdx-vtpm__evidence-v1.json",
}
# Bytes of an HCL report that nothing signs and nothing is decided by: its version, which says no more than how the
# paravisor numbers it; and of a TDREPORT what its MAC covers for the same machine alone (report type, hashes, MAC, the
# TDX module, RTMRs and reserved bytes). The TD quote beside it says the module and the RTMRs again, signed, and these
# are what is appraised.
HCL_VERSION = frozenset({4})
TD_REPORT = frozenset({*range(32, 160), *range(224, 544), *range(752, 1056)})
# Of a TPM's evidence the attributes of its attestation key that are not asked for (who may use it, say). None of them is
# in its certificate: the CA that issued that vouches for those that are asked for.


@dataclass(frozen=True, kw_only=True)
class Whole:
    """An envelope without endorsements, what it is verified with, and which bytes of an HCL report do not count."""

    envelope: EvidenceEnvelope
    collateral: Endorsements
    context: Context
    unchecked: frozenset[int] = frozenset()


def _real(name: str, work: Path) -> Whole:
    how = CASES[REAL[name]]
    envelope = detect(vector(REAL[name])).envelope
    assert envelope is not None
    found = Endorsements.detect(envelope.endorsements)
    for one in how.get("endorsements", ()):
        for path in served(one, work):
            found += folder(path)
    outage = {kind: Tolerance(missing=True, stale=timedelta(days=3650)) for kind in how.get("outage", ())}
    return Whole(
        envelope=envelope.model_copy(update={"endorsements": ()}),
        collateral=found,
        context=Context(at=datetime.fromisoformat(how["at"]), outage=outage, work=WorkCache()),
        unchecked=HCL_VERSION | (TD_REPORT if name == "az-tdx-vtpm" else frozenset()),
    )


def _software() -> Whole:
    platform = SoftwareTestPlatform(NOW)
    whole = platform.quote(bytes(range(64)), (bytes(32), bytes(32)))
    return replace(_made(whole, (), platform.root_fingerprint), envelope=whole)  # it takes no others


def _tpm() -> Whole:
    platform = TpmTestPlatform(NOW)
    whole = platform.envelope(bytes(range(64)))
    return _made(whole, whole.endorsements, platform.root_fingerprint)


def _snp_with_vtpm_and_gpu() -> Whole:
    snp, tpm, nvidia = SnpTestPlatform(NOW), TpmTestPlatform(NOW), FakeNvidia(NOW)
    raw, blobs = snp.evidence(bytes(range(64)))
    beside, more = tpm.evidence(bytes(range(64)))
    gpu = nvidia.evidence(nvidia.device(), NONCE)
    envelope = EvidenceEnvelope(
        type="snp",
        evidence=raw,
        endorsements=(),
        vtpm=VtpmEvidence(evidence=beside, endorsements=()),
        devices=(gpu.model_copy(update={"endorsements": ()}),),
    )
    roots = (snp.root_fingerprint, tpm.root_fingerprint, *nvidia.roots)
    return _made(envelope, [*blobs, *more, *gpu.endorsements], *roots)


def _made(envelope: EvidenceEnvelope, blobs: Sequence[bytes], *roots: bytes) -> Whole:
    return Whole(
        envelope=envelope.model_copy(update={"endorsements": ()}),
        collateral=Endorsements.detect(blobs),
        context=Context(at=NOW, roots=frozenset(roots), work=WorkCache()),
    )


MADE = {"software": _software, "tpm": _tpm, "snp with a vTPM and a GPU": _snp_with_vtpm_and_gpu}


@pytest.mark.parametrize("name", [*REAL, *MADE])
def test_every_byte(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        whole = _real(name, tmp_path) if name in REAL else MADE[name]()
    assert _holds(whole, whole.envelope)
    accepted = [one for one in _changed(whole.envelope.encode()) if _holds(whole, one)]
    assert all(_means_nothing(whole, one) for one in accepted)


def _changed(raw: bytes) -> Iterator[EvidenceEnvelope]:
    """Yield each envelope with one byte changed that is an envelope still."""
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 7  # an envelope is ASCII
        with contextlib.suppress(SealwrightError):
            yield EvidenceEnvelope.parse(bytes(changed))


def _holds(whole: Whole, envelope: EvidenceEnvelope) -> bool:
    """Say whether each part is genuine, over what the unchanged one is over."""
    how = {"context": whole.context, "collateral": whole.collateral}
    bound = unverified_report_data(whole.envelope)
    with contextlib.suppress(SealwrightError):
        verify_evidence(envelope, expected_report_data=bound, **how)
        if whole.envelope.vtpm is not None:
            assert envelope.vtpm is not None
            verify_vtpm(envelope.vtpm, expected_report_data=bound, **how)
        if whole.envelope.devices:
            verify_envelope_devices(envelope.devices, expected_nonce=NONCE, **how)
        return True
    return False


def _means_nothing(whole: Whole, envelope: EvidenceEnvelope) -> bool:
    """Say whether only bytes that are named above differ."""
    if envelope.type == "tpm":
        return _same_but_for_attributes(whole.envelope.evidence, envelope.evidence)
    if whole.envelope.vtpm is not None and envelope.vtpm is not None:
        unchanged = envelope.model_copy(update={"vtpm": whole.envelope.vtpm}) == whole.envelope
        return unchanged and _same_but_for_attributes(whole.envelope.vtpm.evidence, envelope.vtpm.evidence)
    if not envelope.type.startswith("az-"):
        return False
    before, after = AzureEvidence.parse(whole.envelope.evidence), AzureEvidence.parse(envelope.evidence)
    both = zip(before.hcl.encode(), after.hcl.encode(), strict=True)
    differing = {place for place, (one, other) in enumerate(both) if one != other}
    same = replace(after, hcl=before.hcl).encode() == whole.envelope.evidence
    return same and differing <= whole.unchecked


def _same_but_for_attributes(raw: bytes, changed: bytes) -> bool:
    """Say whether only attributes of the attestation key differ."""
    before, after = TpmQuote.parse(raw), TpmQuote.parse(changed)
    attributes = before.ak_public.objectAttributes
    return replace(after, ak_public=replace(after.ak_public, objectAttributes=attributes)) == before
