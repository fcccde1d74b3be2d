"""Policies, trust files, appraisal of platform `software`, and results (EAR)."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from tests.nvidia.support import NONCE, nvidia
from tests.protocol.support import ec_key

from sealwright.appraisal.ear import LIFE, PROFILE, ear_digest, issue_ear, verify_ear
from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.appraisal.vector import status, tier
from sealwright.errors import (
    AppraisalError,
    CollateralError,
    FormatError,
    SealwrightError,
    SettingsError,
    VerificationError,
)
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform

NOW = datetime.now(UTC).replace(microsecond=0)
BOUND = b"b" * 64
CODE, CONFIG = b"\x01" * 32, b"\x02" * 32
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FakePlatformWarning)
    PLATFORM = SoftwareTestPlatform(NOW)


def policy(**changes: Any) -> dict[str, Any]:
    software = {
        "vector": {"hardware": 97, "runtime-opaque": 96},
        "roots": [PLATFORM.root_fingerprint.hex()],
        "code": [CODE.hex()],
    }
    return {
        "format": "sealwright-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires": (NOW + timedelta(hours=24)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "platforms": {"software": {**software, **changes.pop("software", {})}},
        "config": {"digests": [CONFIG.hex()]},
    } | changes


def loaded(**changes: Any) -> KeyPolicy:
    return KeyPolicy.load(yaml.safe_dump(policy(**changes)).encode())


def appraise(claims: dict[str, str] | None = None, **changes: Any) -> Appraisal:
    envelope = PLATFORM.quote(BOUND, (CODE, CONFIG), claims)
    return appraise_evidence(envelope, loaded(**changes), expected_report_data=BOUND, at=NOW)


def codes(appraisal: Appraisal) -> list[str]:
    return [failure.code for failure in appraisal.failures]


def test_software_is_admitted_only_as_what_it_is() -> None:
    found = appraise()
    found.require()
    assert found.confidential is False
    assert found.status == "contraindicated"
    assert (found.vector["hardware"], found.vector["runtime-opaque"]) == (97, 96)
    assert (found.code, found.config.digest) == (CODE, CONFIG)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"platforms": {}}, "platform-not-allowed"),
        ({"require_hardware": True}, "hardware-required"),
        ({"software": {"vector": {"hardware": 97}}}, "vector-not-allowed"),
        ({"software": {"vector": {"hardware": 2, "runtime-opaque": 2}}}, "vector-not-allowed"),
        ({"software": {"roots": ["00" * 32]}}, "quoting-root-not-allowed"),
        ({"software": {"code": ["00" * 32]}}, "code-not-allowed"),
    ],
)
def test_each_rule_refuses(changes: dict[str, Any], code: str) -> None:
    found = appraise(**changes)
    assert codes(found) == [code]
    with pytest.raises(AppraisalError):
        found.require()


def test_every_failure_is_listed() -> None:
    found = appraise(
        {"user": "shared", "network": "open"},
        software={"vector": {}, "roots": ["00" * 32], "code": ["00" * 32]},
        require_hardware=True,
    )
    assert codes(found) == [
        "hardware-required",
        "vector-not-allowed",
        "quoting-root-not-allowed",
        "code-not-allowed",
        "claim-not-allowed",
        "claim-not-allowed",
    ]


WEAKER = [
    ("user", "shared"),
    ("sealed_root", "directory"),
    ("dumpable", "late"),
    ("filesystem", "open"),
    ("seccomp", "none"),
    ("network", "seccomp"),
    ("network", "open"),
    ("swap", "reachable"),
]


@pytest.mark.parametrize(("name", "value"), WEAKER)
def test_a_weaker_claim_has_to_be_named(name: str, value: str) -> None:
    assert codes(appraise({name: value})) == ["claim-not-allowed"]
    assert codes(appraise({name: value}, software={"claims": {name: [value]}})) == []


@pytest.mark.parametrize("value", ["none", "cgroup", "mlock"])
def test_each_way_to_keep_out_of_swap_will_do(value: str) -> None:
    assert codes(appraise({"swap": value})) == []


def test_nobody_else_is_admitted_by_a_policy_of_another_machine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        other = SoftwareTestPlatform(NOW)
    envelope = other.quote(BOUND, (CODE, CONFIG))
    found = appraise_evidence(envelope, loaded(), expected_report_data=BOUND, at=NOW)
    assert codes(found) == ["quoting-root-not-allowed"]


def test_devices_are_refused_where_nobody_says_which_nonce_they_answer() -> None:
    device = nvidia().evidence(nvidia().device(), NONCE)
    envelope = PLATFORM.quote(BOUND, (CODE, CONFIG)).model_copy(update={"devices": (device,)})
    with pytest.raises(VerificationError) as caught:
        appraise_evidence(envelope, loaded(), expected_report_data=BOUND, at=NOW)
    assert (caught.value.code, caught.value.stage) == ("report-data-mismatch", "nonce")


@pytest.mark.parametrize(
    ("moved", "code"),
    [(timedelta(minutes=-6), "policy-not-yet"), (timedelta(hours=24), "policy-expired")],
)
def test_a_policy_decides_nothing_outside_its_dates(moved: timedelta, code: str) -> None:
    with pytest.raises(CollateralError) as caught:
        loaded().check_time(NOW + moved)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"format": "sealwright-policy/v2"},
        {"version": 0},
        {"version": "1"},
        {"require_hardware": "no"},
        {"profile": "lax"},
        {"profile": "production"},
        {"expires": policy()["created"]},
        {"expires": (NOW + timedelta(hours=24, seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")},
        {"config": {}},
        {"config": {"digests": [CONFIG.hex()], "brokers": ["A" * 43]}},
        {"config": {"brokers": ["A" * 43]}},
        {"config": {"digests": ["AB" * 32]}},
        {"platforms": {"snp": {}}},
        {"software": {"roots": []}},
        {"software": {"code": []}},
        {"lease_s": 1},
        {"lease_s": 86401},
    ],
)
def test_a_policy_that_is_not_exactly_one_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(**changes)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\na: 2\n", "duplicate-key"),
        ("a: &x 1\nb: *x\n", "yaml-alias"),
        ("a: !!python/object/apply:os.system ['true']\n", "yaml-tag"),
        ("- 1\n", "malformed-yaml"),
        ("1: 2\n", "yaml-key"),
        ("a: [\n", "malformed-yaml"),
        ("", "malformed-yaml"),
        ("a: " + "x" * 300_000, "too-large"),
    ],
)
def test_yaml_without_its_surprises(text: str, code: str) -> None:
    for load in (KeyPolicy.load, TrustFile.load):
        with pytest.raises(SettingsError) as caught:
            load(text.encode())
        assert caught.value.code == code


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_a_settings_parser_raises_only_settings_errors(raw: bytes) -> None:
    for load in (KeyPolicy.load, TrustFile.load):
        with contextlib.suppress(SettingsError):
            load(raw)


def test_a_policy_has_one_digest_whatever_its_spelling() -> None:
    document = policy()
    shuffled = yaml.safe_dump(dict(reversed(document.items()))).encode()
    assert KeyPolicy.load(shuffled).digest() == loaded().digest()
    assert KeyPolicy.load(json.dumps(document).encode()).digest() == loaded().digest()
    assert loaded(lease_s=601).digest() != loaded().digest()


def test_tiers() -> None:
    assert [tier(value) for value in (-1, 0, 1, 2, 31, 32, 95, 96, 127, -2, -32, -33, -96, -97)] == [
        *["none"] * 3,
        *["affirming"] * 2,
        *["warning"] * 2,
        *["contraindicated"] * 2,
        *["affirming"] * 2,
        *["warning"] * 2,
        "contraindicated",
    ]
    assert status({}) == "none"
    with pytest.raises(ValueError, match="int8"):
        tier(128)


@given(st.dictionaries(st.text(), st.integers(-128, 127), min_size=1))
def test_a_result_is_never_better_than_its_worst_claim(vector: dict[str, int]) -> None:
    order = ["none", "affirming", "warning", "contraindicated"]
    assert order.index(status(vector)) == max(order.index(tier(value)) for value in vector.values())


def ear(**said: Any) -> str:
    settings = {
        "nonce": b"n" * 32,
        "config_digest": CONFIG,
        "keyset_digest": b"k" * 32,
        "evidence_digest": b"e" * 32,
        "policies": [loaded().digest()],
        "at": NOW,
        "build": "test",
    }
    return issue_ear(appraise(), ec_key(), **(settings | said))


def test_a_result_is_read_back_under_its_key() -> None:
    token = ear()
    found = verify_ear(token, ec_key(), at=NOW)
    assert found.digest == ear_digest(token)
    said = found.claims["submods"]["cpu0"]
    assert said["ear_status"] == found.claims["ear_status"] == "contraindicated"
    assert said["sealwright"]["allowed"] is True
    assert said["sealwright"]["confidential"] is False


def _encoded(claims: dict[str, Any], **header: Any) -> str:
    return jwt.encode({"alg": "ES256", **header}, claims, ec_key())


@pytest.mark.parametrize(
    ("make", "kind", "code"),
    [
        (lambda: ear()[:-4] + "AAAA", VerificationError, "ear-signature"),
        (lambda: "a.b.c", VerificationError, "ear-signature"),
        (lambda: "é" * 10, FormatError, "malformed-ear"),
        (lambda: "a" * 70_000, FormatError, "malformed-ear"),
        (lambda: _encoded({"eat_profile": "other", "exp": 1}), FormatError, "malformed-ear"),
        (lambda: _encoded({"eat_profile": PROFILE}), FormatError, "malformed-ear"),
        (lambda: _encoded({"eat_profile": PROFILE, "exp": "x"}), FormatError, "malformed-ear"),
        (lambda: ear(at=NOW - LIFE), CollateralError, "ear-expired"),
        (
            lambda: "eyJhbGciOiJub25lIn0." + ear().split(".")[1] + ".",
            VerificationError,
            "ear-signature",
        ),
    ],
)
def test_what_is_no_result_of_ours_is_refused(
    make: Callable[[], str], kind: type[SealwrightError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        verify_ear(make(), ec_key(), at=NOW)
    assert caught.value.code == code


def test_a_result_under_another_key_is_refused() -> None:
    with pytest.raises(VerificationError):
        verify_ear(ear(), ec_key(8), at=NOW)


TOKEN = ear()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 8 * len(TOKEN) - 1))
def test_any_flipped_bit_of_a_result_is_refused(bit: int) -> None:
    changed = bytearray(TOKEN.encode())
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealwrightError):
        verify_ear(changed.decode("latin-1"), ec_key(), at=None)


@given(st.text(max_size=200))
def test_reading_a_result_raises_only_our_errors(text: str) -> None:
    with pytest.raises(SealwrightError):
        verify_ear(text, ec_key(), at=None)
