"""Key release to every platform through the real routes: made-up platforms with everything checked, and captured evidence.

Captured evidence was made long ago, for other nonces and configs: for it alone the appraiser is told to expect the
report data that the evidence has, and the config is not looked for. All else is checked, at the evidence's own time.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pytest
from tests.broker.support import AUTH, Clock, Enclave, Kbs, World, check_lease
from tests.vector_files import vector

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.platform import Appraisal
from sealwright.attester.azure import AzureAttester
from sealwright.audit.detect import detect
from sealwright.broker.rows import KeyRow
from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.kbs import decode_nonce
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.testing.azure import AzureTdxTestPlatform, AzureTestPlatform, AzureTestVtpm, Paravisor
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.nitro import NitroTestPlatform
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import TpmTestPlatform
from sealwright.verify.context import Context, Tolerance
from sealwright.verify.evidence import unverified_report_data, verify_evidence

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ONE, TWO = b"\x11", b"\x22"
TCB = {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}
Quote = Callable[
    [bytes, bytes, bytes], tuple[bytes, Sequence[bytes]]
]  # report data, config digest, a byte of code


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A made-up platform: how it quotes, and rules that admit code `ONE`."""

    type: PlatformType
    quote: Quote
    rules: Mapping[str, Any]


def _snp() -> Made:
    platform = SnpTestPlatform(NOW)
    return Made(
        type="snp",
        quote=lambda bound, config, code: platform.evidence(bound, measurement=code * 48, host_data=config),
        rules={
            "registers": {"measurement": [(ONE * 48).hex()]},
            "config_register": "host_data",
            "roots": [platform.root_fingerprint.hex()],
            "products": {"Genoa": {"minimum_tcb": TCB}},
        },
    )


def _tdx() -> Made:
    platform = TdxTestPlatform(NOW)
    return Made(
        type="tdx",
        quote=lambda bound, config, code: platform.evidence(
            bound, mrtd=code * 48, mrconfigid=config.ljust(48, b"\0")
        ),
        rules={
            "registers": {"mrtd": [(ONE * 48).hex()]},
            "unchecked": ["rtmr0", "rtmr1", "rtmr2"],
            "config_register": "mrconfigid",
            "roots": [platform.root_fingerprint.hex()],
            "minimum_tcb_evaluation": 0,
        },
    )


def _tdx_rtmr() -> Made:
    platform = TdxTestPlatform(NOW)

    def quote(bound: bytes, config: bytes, code: bytes) -> tuple[bytes, Sequence[bytes]]:
        rtmr3 = sha384(bytes(48) + config.ljust(48, b"\0")).digest()
        return platform.evidence(bound, mrtd=code * 48, rtmrs=(bytes(48),) * 3 + (rtmr3,), version=5)

    rules = {**_tdx().rules, "config_register": "rtmr3", "roots": [platform.root_fingerprint.hex()]}
    return Made(type="tdx", quote=quote, rules=rules)


def _sgx() -> Made:
    platform = SgxTestPlatform(NOW)

    def mrenclave(config: bytes, code: bytes) -> bytes:
        return sha256(b"a manifest that holds" + config + code).digest()

    return Made(
        type="sgx",
        quote=lambda bound, config, code: platform.evidence(bound, mrenclave=mrenclave(config, code)),
        rules={
            "config_register": "mrenclave",
            "roots": [platform.root_fingerprint.hex()],
            "minimum_tcb_evaluation": 0,
            "_mrenclave": mrenclave,
        },
    )


def _nitro() -> Made:
    platform = NitroTestPlatform(NOW)

    def quote(bound: bytes, config: bytes, code: bytes) -> tuple[bytes, Sequence[bytes]]:
        pcrs = {0: code * 48, 1: ONE * 48, 2: ONE * 48, 16: sha384(bytes(48) + config).digest()}
        return platform.document(bound, pcrs=pcrs), []

    return Made(
        type="nitro",
        quote=quote,
        rules={
            "registers": {"pcr0": [(ONE * 48).hex()]},
            "config_register": "pcr16",
            "roots": [platform.root_fingerprint.hex()],
        },
    )


def _pcrs(config: bytes, code: bytes) -> dict[int, bytes]:
    values = dict.fromkeys(range(24), bytes(32))
    values |= dict.fromkeys((0, 2, 4, 7, 9, 11), code * 32)
    return values | {8: sha256(bytes(32) + config).digest()}


_BOOT = {f"pcr{number}": [(ONE * 32).hex()] for number in (0, 2, 4, 7, 9, 11)}


def _tpm() -> Made:
    platform = TpmTestPlatform(NOW)
    return Made(
        type="tpm",
        quote=lambda bound, config, code: platform.evidence(bound, pcrs=_pcrs(config, code)),
        rules={
            "registers": _BOOT,
            "config_register": "pcr8",
            "roots": [platform.root_fingerprint.hex()],
            "tpm": "provider",
            "minimum_firmware": "00" * 8,
            "admit": ["no-ak-crl"],
        },
    )


def _azure_snp() -> Made:
    rules = {"products": {"Milan": {"minimum_tcb": TCB}}}
    return _azure(AzureTestPlatform(NOW), "measurement", {"measurement": ONE * 48}, rules)


def _azure_tdx() -> Made:
    return _azure(AzureTdxTestPlatform(NOW), "mrtd", {"mr_td": ONE * 48}, {"minimum_tcb_evaluation": 0})


def _azure(platform: Paravisor, register: str, report: Mapping[str, bytes], rules: Mapping[str, Any]) -> Made:
    """Take the way of a real one: attester, vTPM and metadata service."""
    vtpm = AzureTestVtpm(platform)

    def quote(bound: bytes, config: bytes, code: bytes) -> tuple[bytes, Sequence[bytes]]:
        platform.pcrs = _pcrs(config, code)
        platform.report = dict(report)
        found = AzureAttester(vtpm, vtpm, vtpm.http).quote(bound)
        assert found.type == f"az-{platform.kind}-vtpm"
        return found.evidence, platform.endorsements()

    return Made(
        type=f"az-{platform.kind}-vtpm",
        quote=quote,
        rules={
            "registers": {**_BOOT, register: [(ONE * 48).hex()]},
            "config_register": "pcr8",
            "roots": [platform.root_fingerprint.hex()],
            **rules,
        },
    )


MAKERS = {
    "snp": _snp,
    "tdx": _tdx,
    "tdx-rtmr3": _tdx_rtmr,
    "sgx": _sgx,
    "nitro": _nitro,
    "tpm": _tpm,
    "az-snp-vtpm": _azure_snp,
    "az-tdx-vtpm": _azure_tdx,
}


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return MAKERS[request.param]()


def evidence(
    made: Made, enclave: Enclave, nonce: bytes, *, code: bytes = ONE, config: bytes | None = None
) -> Any:
    bound = report_data(
        Purpose.LEASE,
        nonce=nonce,
        config_digest=enclave.config.digest(),
        keyset_digest=enclave.keyset.digest(),
    )
    raw, endorsements = made.quote(bound, config or enclave.config.digest(), code)
    return EvidenceEnvelope(type=made.type, evidence=raw, endorsements=tuple(endorsements)).to_json()


async def _world(tmp_path: Path, made: Made) -> Any:
    """Yield everything; the policy of SGX can be written only once the config is known."""
    world = World(tmp_path / "broker")
    with world.open() as running:
        dek = world.add_key(running)
        enclave = Enclave.make(world, running)
        rules = dict(made.rules)
        if measure := rules.pop("_mrenclave", None):
            digest = enclave.config.digest()
            value = measure(digest, ONE).hex()
            rules |= {"registers": {"mrenclave": [value]}, "configs": {value: digest.hex()}}
        running.admin.set_policy("k1", world.policy(platforms={made.type: rules}))
        yield running, dek, enclave


async def attest(kbs: Kbs, made: Made, enclave: Enclave, **changes: Any) -> Any:
    nonce = await kbs.auth({**AUTH, "tee": made.type})
    said = evidence(made, enclave, changes.pop("nonce", None) or decode_nonce(nonce), **changes)
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=said))


async def test_a_key_is_released_to_each_platform(made: Made, tmp_path: Path) -> None:
    async for running, dek, enclave in _world(tmp_path, made):
        kbs = Kbs(running)
        answer = await attest(kbs, made, enclave)
        assert answer.status_code == 200, running.admin.decisions(2)
        answer = await kbs.lease()
        assert answer.status_code == 200
        assert await kbs.released(enclave, check_lease(enclave, answer.json(), "acme")) == dek


@pytest.mark.parametrize("wrong", ["nonce", "code", "config", "platform"])
async def test_each_platform_is_refused_for_the_same_reasons(made: Made, tmp_path: Path, wrong: str) -> None:
    changes: dict[str, Any] = {
        "nonce": {"nonce": b"n" * 32},
        "code": {"code": TWO},
        "config": {"config": b"c" * 32},
        "platform": {},
    }[wrong]
    codes = {
        "nonce": {"report-data-mismatch"},
        # In SGX the config is part of the code.
        "code": {"config-digest-mismatch" if made.type == "sgx" else "measurement-not-allowed"},
        "config": {"config-digest-mismatch"},
        # Only the policy that is gone named the root of these made-up platforms.
        "platform": {"unknown-root"},
    }[wrong]
    async for running, _, enclave in _world(tmp_path, made):
        if wrong == "platform":
            running.admin.set_policy("k1", enclave.world.policy())
        kbs = Kbs(running)
        answer = await attest(kbs, made, enclave, **changes)
        assert answer.status_code == 401
        assert refused(running) in codes
        assert (await kbs.lease()).status_code == 401


async def test_production_admits_no_root_but_the_vendors(made: Made, tmp_path: Path) -> None:
    async for running, _, enclave in _world(tmp_path, made):
        policy = json.loads(enclave.world.policy()) | {"profile": "production", "require_hardware": True}
        policy["platforms"] = _platforms(running)
        running.admin.set_policy("k1", json.dumps(policy).encode())
        answer = await attest(Kbs(running), made, enclave)
        assert answer.status_code == 401
        assert refused(running) == "hardware-required"


def _platforms(running: Any) -> Any:
    row = running.core.state.view().get(KeyRow, "key", "k1")
    return row.policy.to_json()["platforms"]


def refused(running: Any) -> str:
    """Return the code of the newest refusal of an attestation, as the broker logged it."""
    said = [one for one in running.admin.decisions(10) if one.get("verdict") == "refuse"]
    code: str = next(one["code"] for one in said if one["action"] == "attest")
    return code


# Captured evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """Real evidence, its collateral, the time it is meant for, and a production policy for its platform."""

    file: str
    endorsements: Sequence[str] = ()
    at: datetime
    type: PlatformType
    rules: Mapping[str, Any]
    register: str  # that the policy lists, as the evidence has it


_OLD_CRL = {"outage": {"amd-crl": {"missing": True}}}
CAPTURED = {
    "snp-milan": Captured(
        file="sev-snp/ms-tee-av/tests__test_data__milan_attestation_report.bin",
        endorsements=["sev-snp/ms-tee-av/tests__test_data__milan_vcek.pem"],
        at=NOW,
        type="snp",
        rules={"products": {"Milan": {"minimum_tcb": TCB}}, **_OLD_CRL},
        register="measurement",
    ),
    "snp-genoa": Captured(
        file="sev-snp/ms-tee-av/tests__test_data__genoa_attestation_report.bin",
        endorsements=["sev-snp/ms-tee-av/tests__test_data__genoa_vcek.pem"],
        at=NOW,
        type="snp",
        rules={"products": {"Genoa": {"minimum_tcb": TCB}}, **_OLD_CRL},
        register="measurement",
    ),
    "tdx": Captured(
        file="tdx/dcap-qvl/tdx_quote",
        endorsements=["tdx/dcap-qvl/tdx_quote_collateral.json"],
        at=datetime(2025, 7, 1, tzinfo=UTC),
        type="tdx",
        rules={"minimum_tcb_evaluation": 17, "unchecked": ["rtmr0", "rtmr1", "rtmr2"]},
        register="mrtd",
    ),
    "sgx": Captured(
        file="sgx/dcap-qvl/sgx_quote",
        endorsements=["sgx/dcap-qvl/sgx_quote_collateral.json"],
        at=datetime(2025, 7, 1, tzinfo=UTC),
        type="sgx",
        rules={
            "minimum_tcb_evaluation": 17,
            "tcb_statuses": ["ConfigurationAndSWHardeningNeeded"],
            "advisories": "any",
        },
        register="mrenclave",
    ),
    "nitro": Captured(
        file="nitro/anjuna/sample_prod_doc.bin",
        at=datetime(2021, 3, 17, 22, 2, tzinfo=UTC),
        type="nitro",
        rules={"admit": ["no-report-data"]},
        register="pcr0",
    ),
    "azure": Captured(
        file="tpm/trustee-az/test_data__az-snp-vtpm__evidence-v0.json",
        at=NOW,
        type="az-snp-vtpm",
        rules={
            "products": {"Milan": {"minimum_tcb": TCB}},
            "unchecked": ["pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11", "pcr12", "pcr13"],
            **_OLD_CRL,
        },
        register="measurement",
    ),
}


def as_captured(envelope: EvidenceEnvelope, rules: Any, /, *, at: datetime, **_: Any) -> Appraisal:
    """Appraise all but freshness and config, which captured evidence cannot have been made for."""
    found = appraise_evidence(envelope, rules, expected_report_data=unverified_report_data(envelope), at=at)
    return replace(found, config=_AnyConfig(register="host_data", held=b""))


class _AnyConfig(ConfigBinding):
    def check(self, config_digest: bytes, *, code: str = "", stage: str) -> None:
        """Captured evidence knows no config of ours."""


@pytest.fixture(params=CAPTURED)
def captured(request: pytest.FixtureRequest) -> Captured:
    return CAPTURED[request.param]


def read(captured: Captured) -> EvidenceEnvelope:
    envelope = detect(vector(captured.file)).envelope
    assert envelope is not None
    blobs = tuple(vector(name) for name in captured.endorsements)
    return envelope.model_copy(update={"endorsements": (*envelope.endorsements, *blobs)})


async def release(tmp_path: Path, captured: Captured, envelope: EvidenceEnvelope, **changes: Any) -> str:
    """Return the code of the broker's refusal of `envelope` at its own time; empty: it released the key."""
    world = World(tmp_path / "broker", clock=Clock(captured.at))
    register = _registers(read(captured), captured.at)[captured.register]
    rules = {"registers": {captured.register: [register]}, **captured.rules, **changes}
    policy = {
        "profile": "production",
        "require_hardware": True,
        "created": rfc3339(captured.at - timedelta(days=1)),
        "expires": rfc3339(captured.at + timedelta(days=30)),
        "platforms": {captured.type: rules},
    }
    with world.open(appraise=as_captured) as running:
        dek = world.add_key(running, **policy)
        enclave, kbs = Enclave.make(world, running), Kbs(running)
        nonce = await kbs.auth({**AUTH, "tee": captured.type})
        body = enclave.attest_body(nonce, evidence=envelope.to_json())
        answer = await kbs.http.post("/kbs/v0/attest", json=body)
        if answer.status_code != 200:
            return refused(running)
        got = check_lease(enclave, (await kbs.lease()).json(), "acme")
        assert await kbs.released(enclave, got) == dek
        return ""


def _registers(envelope: EvidenceEnvelope, at: datetime) -> dict[str, str]:
    context = Context(at=at, outage={"amd-crl": Tolerance(missing=True)})
    verified = verify_evidence(
        envelope,
        expected_report_data=unverified_report_data(envelope),
        context=context,
        collateral=Endorsements(),
    )
    return {name: value.hex() for name, value in verified.registers.items()}


async def test_captured_evidence_gets_a_key_at_its_own_time(captured: Captured, tmp_path: Path) -> None:
    assert await release(tmp_path, captured, read(captured)) == ""


async def test_captured_evidence_with_one_bit_flipped_gets_none(captured: Captured, tmp_path: Path) -> None:
    envelope = read(captured)
    if captured.type.startswith("az-"):
        pytest.skip("a document of parts: tests/manifest/test_every_byte.py flips every byte of it")
    raw = bytearray(envelope.evidence)
    raw[200] ^= 1
    flipped = envelope.model_copy(update={"evidence": bytes(raw)})
    assert await release(tmp_path, captured, flipped) in {
        "bad-signature",
        "malformed-cbor",
        "malformed-document",
    }


async def test_captured_evidence_of_other_code_gets_none(captured: Captured, tmp_path: Path) -> None:
    envelope = read(captured)
    size = len(_registers(envelope, captured.at)[captured.register])
    other = {captured.register: ["00" * (size // 2)]}
    assert await release(tmp_path, captured, envelope, registers=other) == "measurement-not-allowed"
