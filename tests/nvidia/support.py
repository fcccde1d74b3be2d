"""What the tests of NVIDIA devices share: real evidence with its times, and one fake NVIDIA."""

from __future__ import annotations

import base64
import functools
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.testing.nvgpu import FakeDevice, FakeNvidia
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, Tolerance, WorkCache
from sealwright.verify.nvgpu import VerifiedGpu, verify_nvgpu

NONCE = bytes(range(32))
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RIM_TIME = datetime(2025, 10, 24, 12, tzinfo=UTC)  # when the RIMs' OCSP responses were fresh
DEVICE_TIME = datetime(2025, 8, 21, 7, tzinfo=UTC)  # when the device's OCSP responses were fresh
OUTAGE = {"nvidia-ocsp": Tolerance(missing=True), "nvidia-rim": Tolerance(missing=True)}
STALE = {"nvidia-ocsp": Tolerance(stale=timedelta(days=65))}

OCSP = tuple(
    f"nvidia/go-nvattest/testdata__ocsp__test_gpu_{name}_base64encoded_ocsp_response.dat"
    for name in (
        "certificate_l2",
        "certificate_l3",
        "certificate_l4",
        "driver_rim_l3",
        "driver_rim_l4",
        "rim_l2",
        "vbios_l4",
    )
)
DRIVER_RIM = "nvidia/go-nvattest/testdata__rim__NV_GPU_DRIVER_GH100_550.90.07.xml"
VBIOS_RIM = "nvidia/go-nvattest/testdata__rim__NV_GPU_VBIOS_1010_0200_882_96009F0001.xml"
HOPPER_REPORT = "nvidia/nvtrust/hopperAttestationReport.txt"
HOPPER_CHAIN = "nvidia/nvtrust/hopperCertChain.txt"
SWITCH = "nvidia/nv-attestation-sdk/switch_evidence_ls10.json"
_BLACKWELL = "nvidia/nv-attestation-sdk-ut/sample_attestation_data__gpu__blackwell"
BLACKWELL_REPORT, BLACKWELL_CHAIN = f"{_BLACKWELL}AttestationReport.txt", f"{_BLACKWELL}CertChain.txt"


def ocsp() -> list[bytes]:
    """Return the real OCSP responses as DER."""
    return [base64.b64decode(vector(name)) for name in OCSP]


def bare(report: str, chain: str) -> tuple[GpuEvidence, Endorsements]:
    """Return a report without a container, and its chain."""
    return GpuEvidence.parse(vector(report)), Endorsements.detect([vector(chain)])


def check(evidence: GpuEvidence, endorsements: Endorsements, context: Context) -> VerifiedGpu:
    """Verify evidence whose nonce is whatever it was made for."""
    return verify_nvgpu(evidence, endorsements, expected_nonce=evidence.report.request_nonce, context=context)


@functools.cache
def nvidia() -> FakeNvidia:
    """Return a fake NVIDIA that no test changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return FakeNvidia(NOW)


@functools.cache
def work() -> WorkCache:
    """Return a cache for what all tests check again and again."""
    return WorkCache()


def context(**changes: object) -> Context:
    """Return a context that trusts the fake NVIDIA at its time."""
    return replace(Context(at=NOW, roots=nvidia().roots, work=work()), **changes)


def fake(
    device: FakeDevice, *, endorsements: tuple[bytes, ...] | None = None, **changes: object
) -> VerifiedGpu:
    """Verify what a fake device says now."""
    return verify_nvgpu(
        GpuEvidence.parse(device.document(NONCE)),
        Endorsements.detect(nvidia().endorsements(device) if endorsements is None else endorsements),
        expected_nonce=NONCE,
        context=context(**changes),
    )
