"""Signed policies, trust files and reference values: signatures, succession, builds matched as a whole, config binding."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.rules import HardwareRules
from sealwright.appraisal.signed import POLICY, REFERENCE_VALUES, TRUST
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import CollateralError, SealwrightError, SettingsError, VerificationError
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Verified

NOW = datetime(2026, 3, 4, 5, tzinfo=UTC)
CONFIG = bytes(range(32))
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 6)]


def public(*keys: Ed25519PrivateKey) -> list[str]:
    return [b64url(key.public_key().public_bytes_raw()) for key in keys]


def policy(version: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "format": "sealwright-policy/v1",
        "version": version,
        "profile": "production",
        "require_hardware": True,
        "lease_s": 600,
        "created": rfc3339(NOW),
        "expires": rfc3339(NOW + timedelta(days=30)),
        "platforms": {},
        "config": {
            "digests": [CONFIG.hex()],
            "brokers": [],
            "policy_signers": [],
            "log_keys": [],
            "egress": [],
        },
    } | changes


def signed(document: dict[str, Any], *keys: Ed25519PrivateKey, kind: str = POLICY) -> bytes:
    return Envelope.sign(kind, canonical(document), *keys).encode()


def two_of(*keys: Ed25519PrivateKey) -> dict[str, Any]:
    return {"keys": public(*keys), "threshold": 2}


def refusal(act: Any) -> tuple[str, type[SealwrightError]]:
    with pytest.raises(SealwrightError) as caught:
        act()
    return caught.value.code, type(caught.value)


def test_a_signed_policy_is_the_policy_in_it() -> None:
    document = policy(signers=two_of(*KEYS[:3]))
    assert KeyPolicy.load(signed(document, *KEYS[:2])) == KeyPolicy.load(yaml.safe_dump(document).encode())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (signed(policy(signers=two_of(*KEYS[:3])), KEYS[0]), "untrusted-signer"),
        (signed(policy(signers=two_of(*KEYS[:3])), KEYS[0], KEYS[0]), "untrusted-signer"),
        (signed(policy(signers=two_of(*KEYS[:3])), KEYS[0], KEYS[4]), "untrusted-signer"),
        (signed(policy(signers=two_of(*KEYS[:3])), *KEYS[:2], kind=TRUST), "wrong-payload-type"),
        (signed(policy(), KEYS[0]), "signers-missing"),
        (signed(policy(signers={"keys": public(KEYS[0]), "threshold": 2}), KEYS[0]), "malformed-document"),
        (signed(policy(signers={"keys": public(KEYS[0], KEYS[0])}), KEYS[0]), "malformed-document"),
        (b'{"payload":1}', "malformed-envelope"),
    ],
)
def test_a_policy_signed_otherwise_is_refused(raw: bytes, code: str) -> None:
    assert refusal(lambda: KeyPolicy.load(raw))[0] == code


@given(st.integers(0, 8 * len(signed(policy(signers=two_of(*KEYS[:2])), *KEYS[:2])) - 1))
def test_any_flipped_bit_of_a_signed_policy_is_refused(bit: int) -> None:
    raw = bytearray(signed(policy(signers=two_of(*KEYS[:2])), *KEYS[:2]))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealwrightError):
        KeyPolicy.load(bytes(raw))


OLD = KeyPolicy.load(signed(policy(3, signers=two_of(*KEYS[:3])), *KEYS[:2]))


def test_the_next_version_is_signed_by_old_and_new() -> None:
    new = policy(4, signers=two_of(KEYS[3], KEYS[4]))
    assert OLD.succeeded_by(signed(new, *KEYS), at=NOW).version == 4


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (signed(policy(3, signers=two_of(*KEYS[:3])), *KEYS[:2]), "version-rollback"),
        (signed(policy(2, signers=two_of(*KEYS[:3])), *KEYS[:2]), "version-rollback"),
        (signed(policy(4, signers=two_of(*KEYS[3:])), *KEYS[3:]), "untrusted-signer"),
        (signed(policy(4, signers=two_of(*KEYS[3:])), *KEYS[:3]), "untrusted-signer"),
        (signed(policy(4, signers=two_of(*KEYS[3:])), KEYS[0], *KEYS[3:]), "untrusted-signer"),
        (yaml.safe_dump(policy(4)).encode(), "untrusted-signer"),
        (
            signed(
                policy(4, signers=two_of(*KEYS[:3]), expires=rfc3339(NOW + timedelta(seconds=1))), *KEYS[:2]
            ),
            "policy-expired",
        ),
    ],
)
def test_what_may_not_take_the_place_of_a_policy(raw: bytes, code: str) -> None:
    assert refusal(lambda: OLD.succeeded_by(raw, at=NOW + timedelta(seconds=1)))[0] == code


# Reference values


def values(version: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "format": "sealwright-reference-values/v1",
        "name": "guest",
        "version": version,
        "created": rfc3339(NOW),
        "expires": rfc3339(NOW + timedelta(days=30)),
        "platform": "tpm",
        "registers": {"pcr4": ["aa" * 32], "pcr9": ["bb" * 32]},
        "config_register": "pcr8",
    } | changes


def envelope(document: dict[str, Any], *keys: Ed25519PrivateKey, kind: str = REFERENCE_VALUES) -> Any:
    return parse_json(signed(document, *(keys or KEYS[:1]), kind=kind))


def rules(*documents: Any, **changes: Any) -> HardwareRules:
    reference = {"signers": {"keys": public(KEYS[0])}, "values": list(documents)} | changes
    return validated(HardwareRules, {"reference": reference}, SettingsError)


def evidence(**registers: bytes) -> Verified:
    return Verified(
        platform="tpm",
        report_data=b"",
        registers=registers,
        facts={},
        conditions=(),
        proofs=(),
        root=bytes(32),
        vendor_root=True,
        _made_by=MADE_BY_VERIFY,
    )


def test_evidence_matches_one_build_as_a_whole() -> None:
    newer = values(2, registers={"pcr4": ["cc" * 32], "pcr9": ["dd" * 32]})
    ready = rules(envelope(values()), envelope(newer)).prepared("tpm", NOW)
    assert ready.config_register == "pcr8"
    for pcr4, pcr9 in ((b"\xaa", b"\xbb"), (b"\xcc", b"\xdd")):
        assert list(ready.failures(evidence(pcr4=pcr4 * 32, pcr9=pcr9 * 32))) == []
        assert ready.names_code(evidence(pcr4=pcr4 * 32, pcr9=pcr9 * 32))
    (mixed,) = ready.failures(evidence(pcr4=b"\xaa" * 32, pcr9=b"\xdd" * 32))
    assert mixed.code == "measurement-not-allowed"
    assert not ready.names_code(evidence(pcr4=b"\xaa" * 32, pcr9=b"\xdd" * 32))
    (missing,) = ready.failures(evidence(pcr4=b"\xaa" * 32))
    assert "pcr9" in missing


@pytest.mark.parametrize(
    ("document", "changes", "code", "kind"),
    [
        (envelope(values(), KEYS[1]), {}, "untrusted-signer", VerificationError),
        (envelope(values(), kind=POLICY), {}, "wrong-payload-type", VerificationError),
        (envelope(values()), {"minimum_version": 2}, "version-rollback", VerificationError),
        (envelope(values(platform="snp")), {}, "reference-values-platform", SettingsError),
        (
            envelope(values(expires=rfc3339(NOW + timedelta(seconds=1)))),
            {},
            "reference-values-expired",
            CollateralError,
        ),
        (envelope(values(registers={"pcr4": []})), {}, "malformed-document", SettingsError),
        (envelope(values(registers={})), {}, "malformed-document", SettingsError),
    ],
)
def test_reference_values_that_do_not_count(
    document: Any, changes: dict[str, Any], code: str, kind: type[SealwrightError]
) -> None:
    found = rules(document, **changes)
    assert refusal(lambda: found.prepared("tpm", NOW + timedelta(seconds=1))) == (code, kind)


def test_reference_values_have_to_agree_on_the_register_of_the_config() -> None:
    found = rules(envelope(values()), envelope(values(2, config_register="pcr12")))
    assert refusal(lambda: found.prepared("tpm", NOW)) == ("config-register", SettingsError)


def test_reference_values_are_one_byte_string() -> None:
    raw = canonical(values())
    assert ReferenceValues.parse(raw, error=SettingsError).encode() == raw


def test_a_condition_is_refused_unless_its_code_is_admitted() -> None:
    found = Verified(
        platform="tpm",
        report_data=b"",
        registers={},
        facts={},
        conditions=(Condition(code="debug", text="debug is on"),),
        proofs=(),
        root=bytes(32),
        vendor_root=False,
        _made_by=MADE_BY_VERIFY,
    )
    assert [one.code for one in HardwareRules().failures(found)] == ["debug", "root-not-allowed"]
    assert list(HardwareRules(admit=["debug"], roots=[bytes(32)]).failures(found)) == []


# How a register holds the config


HELD = {
    "config": CONFIG,
    "host_data": CONFIG,
    "mrconfigid": CONFIG + bytes(16),
    "rtmr3": sha384(bytes(48) + CONFIG + bytes(16)).digest(),
    "pcr8": sha256(bytes(32) + CONFIG).digest(),
    "vtpm.pcr8": sha256(bytes(32) + CONFIG).digest(),
    "pcr16": sha384(bytes(48) + CONFIG).digest(),
}


@pytest.mark.parametrize("register", HELD)
def test_a_register_holds_exactly_one_config(register: str) -> None:
    ConfigBinding(register=register, held=HELD[register]).check(CONFIG, stage="config")
    twice = sha256(HELD[register] + CONFIG).digest()
    for held in (b"", bytes(len(HELD[register])), HELD[register][::-1], HELD[register] + b"\0", twice):
        binding = ConfigBinding(register=register, held=held)
        assert refusal(lambda binding=binding: binding.check(CONFIG, stage="config")) == (
            "config-digest-mismatch",
            VerificationError,
        )


@pytest.mark.parametrize("register", ["", "measurement", "pcr", "rtmr4", "pcr123", "mrtd"])
def test_no_other_register_holds_a_config(register: str) -> None:
    binding = ConfigBinding(register=register, held=CONFIG)
    assert refusal(lambda: binding.check(CONFIG, stage="config"))[0] == "config-register"


def test_a_config_digest_is_read_off_where_it_stands_as_it_is() -> None:
    assert {
        name for name, held in HELD.items() if ConfigBinding(register=name, held=held).digest == CONFIG
    } == {
        "config",
        "host_data",
        "mrconfigid",
    }
