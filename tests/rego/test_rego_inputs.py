"""What policies are given for the other platforms, by Trustee's names and types."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from tests.nvidia.support import NONCE, check, context, nvidia
from tests.vector_files import vector

from sealwright.appraisal.rego_input import input_document
from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.snp import SnpReport
from sealwright.testing.intel import SgxTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, Tolerance
from sealwright.verify.nvgpu import VerifiedGpu
from sealwright.verify.sgx import verify_sgx
from sealwright.verify.snp import VerifiedSnp, verify_snp

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
SNP_NUMBERS = {
    "policy_abi_major": 0,
    "policy_abi_minor": 31,
    "policy_smt_allowed": True,
    "policy_migrate_ma": False,
    "policy_debug_allowed": False,
    "policy_single_socket": False,
    "reported_tcb_bootloader": 3,
    "reported_tcb_tee": 0,
    "reported_tcb_snp": 8,
    "reported_tcb_microcode": 115,
}


def snp() -> VerifiedSnp:
    """Return Trustee's own test report, verified without AMD's CRL."""
    report = SnpReport.parse(vector("sev-snp/trustee/test-report.bin"))
    endorsements = Endorsements.detect([vector("sev-snp/trustee/test-vcek.der")])
    without_crl = Context(at=NOW, outage={"amd-crl": Tolerance(missing=True)})
    return verify_snp(report, endorsements, expected_report_data=report.report_data, context=without_crl)


def test_snp() -> None:
    verified = snp()
    given = input_document(verified)
    assert given["snp"].items() >= SNP_NUMBERS.items()
    assert all(type(given["snp"][name]) is type(value) for name, value in SNP_NUMBERS.items())
    assert given["snp"]["measurement"] == verified.report.measurement.hex()
    assert given["report_data"] == verified.report.report_data.hex()
    assert given["init_data"] == verified.report.host_data.hex()


def azure(platform: str, hardware: Any) -> Any:
    pcrs = {f"pcr{number}": bytes([number]) * 32 for number in (4, 8, 11)}
    return SimpleNamespace(
        platform=platform,
        hardware=hardware,
        registers={**hardware.registers, **pcrs, "pcr9": bytes(48)},
        report_data=b"nonce",
        conditions=(),
        facts={},
        vendor_root=True,
        root=bytes(32),
    )


def test_azure_snp_is_all_text_as_trustee_has_it() -> None:
    given = input_document(azure("az-snp-vtpm", snp()))
    claims = given["az-snp-vtpm"]
    assert {name: claims[name] for name in SNP_NUMBERS} == {k: str(v).lower() for k, v in SNP_NUMBERS.items()}
    assert len(claims["measurement"]) == 64  # base64 of 48 bytes
    assert claims["tpm"] == {"pcr04": "04" * 32, "pcr08": "08" * 32, "pcr11": "0b" * 32}
    assert (given["report_data"], given["init_data"]) == (b"nonce".hex(), "08" * 32)


def test_azure_tdx() -> None:
    from tests.rego.support import tdx

    given = input_document(azure("az-tdx-vtpm", tdx()))
    assert given["az-tdx-vtpm"]["quote"]["body"]["mr_td"] == "11" * 48
    assert given["az-tdx-vtpm"]["tpm"]["pcr11"] == "0b" * 32
    assert "tdx" not in given


def test_sgx() -> None:
    with pytest.warns(FakePlatformWarning):
        platform = SgxTestPlatform(NOW)
    raw, blobs = platform.evidence(bytes(64))
    trusted = Context(at=NOW, roots=frozenset({platform.root_fingerprint}))
    verified = verify_sgx(
        SgxQuote.parse(raw), Endorsements.detect(blobs), expected_report_data=bytes(64), context=trusted
    )
    given = input_document(verified)["sgx"]
    assert given["header"]["version"] == "0300"
    assert given["body"]["mr_enclave"] == verified.registers["mrenclave"].hex()
    assert len(given["body"]["attributes.flags"]) == 16
    assert given["tcb_status"] == "UpToDate"


def test_tpm() -> None:
    tpm = azure("tpm", SimpleNamespace(registers={}))
    assert input_document(tpm)["tpm"] == {"pcr04": "04" * 32, "pcr08": "08" * 32, "pcr11": "0b" * 32}


def test_a_platform_that_trustee_does_not_have() -> None:
    found = input_document(azure("nitro", SimpleNamespace(registers={"pcr0": b"\1"})))
    assert found.keys() == {"sealwright"}
    assert found["sealwright"]["registers"]["pcr0"] == "01"


def gpu(**outage: Any) -> VerifiedGpu:
    device = nvidia().device()
    endorsements = Endorsements.detect([*nvidia().endorsements(device)])
    return check(GpuEvidence.parse(device.document(NONCE)), endorsements, context(**outage))


def test_gpu() -> None:
    given = input_document(gpu())["nvidia"]
    assert (given["measres"], given["secboot"], given["dbgstat"]) == ("success", True, "disabled")
    good = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
    assert given["x-nvidia-gpu-attestation-report-cert-chain"] == good
    assert given["x-nvidia-gpu-vbios-rim-cert-chain"] == good
    for part in ("driver", "vbios"):
        assert given[f"x-nvidia-gpu-{part}-version"]
        for said in (
            "fetched",
            "schema-validated",
            "signature-verified",
            "version-match",
            "measurements-available",
        ):
            assert given[f"x-nvidia-gpu-{part}-rim-{said}"] is True


def test_gpu_without_rims() -> None:
    verified = replace(gpu(), compared=False, rims=())
    given = input_document(verified)["nvidia"]
    assert given["measres"] == "fail"
    assert given["x-nvidia-gpu-driver-rim-fetched"] is False
    assert "x-nvidia-gpu-vbios-rim-cert-chain" not in given


def test_gpu_without_ocsp_is_not_good() -> None:
    verified = gpu()
    missing = [replace(use, digest=b"") if use.kind == "nvidia-ocsp" else use for use in verified.collateral]
    given = input_document(replace(verified, collateral=tuple(missing)))["nvidia"]
    assert given["x-nvidia-gpu-attestation-report-cert-chain"] == {"x-nvidia-cert-status": "valid"}


@pytest.mark.parametrize(
    ("code", "members"),
    [
        ("debug", {"dbgstat": "enabled", "secboot": False}),
        ("debug-unstated", {}),
        ("confidential-mode-off", {}),
    ],
)
def test_gpu_in_debug(code: str, members: dict[str, Any]) -> None:
    from sealwright.verify.verified import Condition

    given = input_document(replace(gpu(), conditions=(Condition(code=code, text=""),)))["nvidia"]
    assert {name: given[name] for name in ("dbgstat", "secboot") if name in given} == (
        {"secboot": True} | members
    )
