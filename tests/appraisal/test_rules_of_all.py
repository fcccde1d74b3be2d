"""What the rules of several platforms have in common: who looks in, what is remembered, what is asked once."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.appraisal.test_signed import KEYS, NOW, envelope, policy, public, values
from tests.client.support import fake_enclave
from tests.rego.support import POLICY

from sealwright.appraisal.ear import submodule
from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.platform import Platforms, Rules, appraise, is_confidential, together
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.appraisal.rego import RegoRule
from sealwright.cli import main
from sealwright.client.trust_source import TrustSource
from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import SettingsError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.nvgpu import DRIVER, GPU_VBIOS, FakeNvidia
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Verified

NONCE = bytes(range(32))
FLOOR = {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}


def verified(*conditions: str, platform: str = "tdx", **registers: bytes) -> Verified:
    return Verified(
        platform=platform,
        report_data=bytes(64),
        registers=registers,
        facts={},
        conditions=tuple(Condition(code=code, text=code) for code in conditions),
        proofs=(),
        root=bytes(32),
        vendor_root=True,
        _made_by=MADE_BY_VERIFY,
    )


def test_a_level_that_was_revoked_is_not_confidential_whatever_a_policy_admits() -> None:
    assert is_confidential(verified("tcb-out-of-date"))
    for open_ in ("tcb-revoked", "debug", "profiling"):
        found = appraise(verified(open_), None, require_hardware=False)
        assert (found.confidential, found.vector["runtime-opaque"]) == (False, 96)


@pytest.mark.parametrize("name", ["tpm", "vtpm"])
def test_builds_of_a_tpm_are_not_those_of_a_vtpm(name: str) -> None:
    def ready(platform: str) -> Rules | None:
        rules: dict[str, Any] = {
            "minimum_firmware": "00" * 8,
            "vendor_roots": True,
            "reference": {
                "signers": {"keys": public(KEYS[0])},
                "values": [envelope(values(platform=platform))],
            },
        }
        return Platforms.model_validate({name: rules}).rules(name, NOW)

    found = ready(name)
    assert found is not None
    assert found.listed == {"pcr4", "pcr9"}
    assert found.names_code(verified(platform="tpm", pcr4=b"\xaa" * 32, pcr9=b"\xbb" * 32))
    with pytest.raises(SettingsError) as refused:
        ready({"tpm": "vtpm", "vtpm": "tpm"}[name])
    assert refused.value.code == "reference-values-platform"


def _gpu_policy(nvidia: FakeNvidia, snp: SnpTestPlatform, rego: dict[str, Any]) -> KeyPolicy:
    at = nvidia.now
    return KeyPolicy.from_json(
        {
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(at),
            "expires": rfc3339(at + timedelta(hours=1)),
            "config": {"digests": ["00" * 32]},
            "platforms": {
                "snp": {
                    "roots": [snp.root_fingerprint.hex()],
                    "registers": {"measurement": ["00" * 48]},
                    "products": {"Genoa": {"minimum_tcb": FLOOR}},
                },
                "nvgpu": {
                    "architectures": ["HOPPER"],
                    "driver": {"exact": [DRIVER]},
                    "vbios": {"exact": [GPU_VBIOS]},
                    "count": {"minimum": 2, "maximum": 2},
                    "roots": [fingerprint(nvidia.device_root.certificate).hex()],
                    "rim_roots": [fingerprint(nvidia.rim_root.certificate).hex()],
                    "rego": rego,
                },
            },
        }
    )


def test_rego_is_asked_once_a_device_and_named_in_the_result() -> None:
    pytest.importorskip("regopy", reason="the extra `rego` is not installed")
    now = datetime(2026, 6, 1, 12, tzinfo=UTC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        nvidia, snp = FakeNvidia(now), SnpTestPlatform(now)
    raw, blobs = snp.evidence(bytes(range(64)))
    devices = tuple(nvidia.evidence(nvidia.device(), NONCE) for _ in range(2))
    whole = EvidenceEnvelope(type="snp", evidence=raw, endorsements=tuple(blobs), devices=devices)
    asked: list[bytes] = []

    def engine(job: bytes) -> bytes:
        asked.append(job)
        return json.dumps({"trust_claims": {"executables": 2, "hardware": 2, "configuration": 2}}).encode()

    rego = {"name": "gpus", "policy": POLICY}
    found = appraise_evidence(
        whole,
        _gpu_policy(nvidia, snp, rego),
        expected_report_data=bytes(range(64)),
        expected_device_nonce=NONCE,
        at=now,
        rego=engine,
    )
    assert found.failures == ()
    assert len(asked) == len(devices)
    digest = RegoRule.model_validate(rego).digest
    assert submodule(found.parts["gpu1"])["ear_appraisal_policy_ids"] == [digest.hex()]
    own = b"p" * 32
    assert submodule(found, policies=[own])["ear_appraisal_policy_ids"] == [own.hex()]
    other = replace(found.parts["gpu0"], policies=(digest, b"o" * 32))
    assert together([found.parts["gpu0"], other]).policies == (digest, b"o" * 32)


def test_an_older_trust_file_is_not_taken_while_a_newer_one_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.trust"
    said = fake_enclave(lambda: datetime.now(UTC)).trust_file().to_json()

    def write(version: int, **changes: Any) -> None:
        path.write_bytes(TrustFile.from_json({**said, "version": version, **changes}).encode())

    source = TrustSource(path)
    write(2)
    assert source.load().version == 2
    write(1)
    for _ in range(2):
        with pytest.raises(VerificationError) as caught:
            source.load()
        assert (caught.value.stage, caught.value.code) == ("version", "version-rollback")
    write(2, longest_lease_s=7)
    assert source.load().longest_lease_s == 7
    write(3)
    assert source.load().version == 3
    write(2)
    assert TrustSource(path).load().version == 2  # another process knows nothing of it


def test_explain_names_what_is_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = policy(
        platforms={
            "tdx": {
                "minimum_tcb_evaluation": 17,
                "registers": {"mrtd": ["00" * 48]},
                "unchecked": ["rtmr0", "rtmr1", "rtmr2"],
            }
        }
    )
    (tmp_path / "p.yaml").write_text(json.dumps(said))
    assert main(["policy", "explain", str(tmp_path / "p.yaml")]) == 0
    told = capsys.readouterr().out
    assert "anything in rtmr0, rtmr1, rtmr2" in told
    assert "ADMITS" in told
