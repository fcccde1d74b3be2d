"""Trustee's and Veraison's results: a test for each rule, with tokens of our own."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from sealwright.appraisal.ear import Ear, ear_digest
from sealwright.appraisal.ear_trustee import PROFILES, verify_trustee_ear
from sealwright.crypto.encoding import b64url
from sealwright.errors import CollateralError, FormatError, SealwrightError, VerificationError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONCE = "bm9uY2U"
KEY, OTHER = ECKey.generate_key("P-256"), ECKey.generate_key("P-256")
VECTOR = {"executables": 3, "hardware": 2, "configuration": 2, "file-system": 0}
Json = dict[str, Any]


def submodule(status: Any = "affirming", vector: Any = None, **members: Any) -> Json:
    return {
        "ear.status": status,
        "ear.trustworthiness-vector": VECTOR if vector is None else vector,
        "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": {"runtime_data_claims": {"nonce": NONCE, "tee-pubkey": {}}},
        **members,
    }


def claims(**changes: Any) -> Json:
    at = int(NOW.timestamp())
    found = {
        "eat_profile": PROFILES[0],
        "iat": at,
        "exp": at + 300,
        "ear.verifier-id": {"developer": "x", "build": "y"},
        "submods": {"cpu0": submodule(), "gpu0": submodule()},
        **changes,
    }
    return {name: value for name, value in found.items() if value is not ...}


def token(said: Any, key: ECKey = KEY, **header: Any) -> str:
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    protected = {"typ": "JWT", "alg": "ES256", **header}
    return jws.serialize_compact(protected, json.dumps(said), key, registry=registry)


def verify(said: str, *, nonce: str = NONCE, at: datetime = NOW, key: ECKey = KEY) -> Ear:
    return verify_trustee_ear(said, key, expected_nonce=nonce, at=at)


def refused(kind: type[SealwrightError], code: str, said: str, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        verify(said, **options)
    assert caught.value.code == code


def malformed(**changes: Any) -> None:
    refused(FormatError, "malformed-ear", token(claims(**changes)))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_good_one_in_our_spelling(profile: str) -> None:
    said = token(claims(eat_profile=profile))
    ear = verify(said)
    assert ear.digest == ear_digest(said)
    assert ear.claims["ear_status"] == "affirming"
    assert ear.claims["submods"].keys() == {"cpu0", "gpu0"}
    assert ear.claims["submods"]["cpu0"] == {
        "ear_status": "affirming",
        "ear_trustworthiness_vector": VECTOR,
        "ear_appraisal_policy_ids": ["default"],
        "annotated_evidence": {"runtime_data_claims": {"nonce": NONCE, "tee-pubkey": {}}},
    }


def test_keys_in_the_header_count_for_nothing() -> None:
    own = OTHER.as_dict(private=False)
    assert verify(token(claims(), jwk=own, x5c=["AAAA"])).claims
    refused(VerificationError, "ear-signature", token(claims(), OTHER, jwk=own))
    refused(VerificationError, "ear-signature", token(claims(), OTHER))


def test_every_bit_is_signed() -> None:
    said = token(claims())
    for place, character in enumerate(said):
        if character != ".":
            other = "B" if character == "A" else "A"
            with pytest.raises(SealwrightError):
                verify(said[:place] + other + said[place + 1 :])


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS256"}, {"alg": "ES384"}, {"crit": ["exp"]}, {"b64": False}]
)
def test_header(header: Json) -> None:
    start = b64url(json.dumps({"alg": "ES256", **header}).encode())
    refused(
        FormatError, "malformed-ear", f"{start}.{b64url(json.dumps(claims()).encode())}.{b64url(bytes(64))}"
    )


def test_a_symmetric_key_made_of_the_public_one_is_no_signature() -> None:
    parts = token(claims()).split(".")
    refused(VerificationError, "ear-signature", f"{parts[0]}.{parts[1]}.{b64url(bytes(64))}")


@pytest.mark.parametrize(
    "said", ["", "a.b", "a.b.c.d", "..", "é.é.é", "e30.e30.AA", "bnVsbA.bnVsbA.AA", "x" * 600_000]
)
def test_form(said: str) -> None:
    with pytest.raises(FormatError):
        verify(said)


@given(st.text(max_size=60))
def test_only_its_own_errors(said: str) -> None:
    with pytest.raises(SealwrightError):
        verify(said)


@pytest.mark.parametrize(
    "profile", [..., None, "tag:ietf.org,2026:rats/ear#03", [PROFILES[0]], PROFILES[0] + "x"]
)
def test_profile(profile: Any) -> None:
    malformed(eat_profile=profile)


@pytest.mark.parametrize("name", ["iat", "exp"])
@pytest.mark.parametrize("value", [..., None, "1", 1.5, True, -1, 253_402_300_800])
def test_times_are_whole_numbers(name: str, value: Any) -> None:
    malformed(**{name: value})


def test_times() -> None:
    said, later = token(claims()), NOW + timedelta(seconds=300)
    assert verify(said, at=later - timedelta(seconds=1)).claims
    refused(CollateralError, "ear-expired", said, at=later)
    assert verify(said, at=NOW - timedelta(seconds=60)).claims
    refused(CollateralError, "ear-not-yet", said, at=NOW - timedelta(seconds=61))
    refused(CollateralError, "ear-not-yet", token(claims(nbf=int(NOW.timestamp()) + 61)))


@pytest.mark.parametrize(
    "submods",
    [
        ...,
        None,
        [],
        {},
        {"gpu0": submodule()},
        {"cpu0": None},
        {"cpu0": submodule(), "": submodule()},
        {"cpu0": submodule(), "a b": submodule()},
        {"cpu0": submodule()} | {f"gpu{n}": submodule() for n in range(64)},
    ],
)
def test_submodules(submods: Any) -> None:
    malformed(submods=submods)


def test_veraison_names_submodules_as_it_likes() -> None:
    said = token(claims(eat_profile=PROFILES[1], eat_nonce=NONCE, submods={"PARSEC_TPM": submodule()}))
    assert verify(said).claims["submods"].keys() == {"PARSEC_TPM"}


@pytest.mark.parametrize("status", [None, "good", 1, 2.0, True, [], "Affirming", ...])
def test_status_is_known(status: Any) -> None:
    malformed(submods={"cpu0": submodule() | {"ear.status": None if status is ... else status}})


@pytest.mark.parametrize(
    "vector",
    [[], "x", {"hardware": 128}, {"hardware": -129}, {"hardware": True}, {"hardware": 2.0}, {"hard": 2}],
)
def test_vector_is_of_ar4si(vector: Any) -> None:
    malformed(submods={"cpu0": submodule(vector=vector)})


@pytest.mark.parametrize(
    ("status", "worst"),
    [
        ("affirming", 33),
        ("affirming", 97),
        ("warning", 97),
        ("none", 2),
        ("none", 97),
        (2, 96),
        ("affirming", 1),
    ],
)
def test_a_status_is_never_better_than_its_worst_claim(status: Any, worst: int) -> None:
    vector = {"hardware": worst} if worst == 1 else {"hardware": worst, "executables": 2}
    for label in ("cpu0", "gpu0"):
        submods = {"cpu0": submodule(), label: submodule(status, vector)}
        refused(VerificationError, "ear-contradiction", token(claims(submods=submods)))


def test_affirming_needs_a_claim() -> None:
    refused(VerificationError, "ear-contradiction", token(claims(submods={"cpu0": submodule(vector={})})))


@pytest.mark.parametrize(
    ("status", "spelled"),
    [("warning", "warning"), (32, "warning"), (96, "contraindicated"), ("contraindicated",) * 2],
)
def test_a_status_may_be_worse(status: Any, spelled: str) -> None:
    ear = verify(token(claims(submods={"cpu0": submodule(), "gpu0": submodule(status)})))
    assert ear.claims["submods"]["gpu0"]["ear_status"] == spelled
    assert ear.claims["ear_status"] == spelled


def test_a_submodule_that_says_nothing_does_not_affirm() -> None:
    said = claims(submods={"cpu0": submodule(), "ppcie0": submodule("none", {})})
    assert verify(token(said)).claims["ear_status"] == "none"


def test_policy_id_is_text() -> None:
    malformed(submods={"cpu0": submodule(**{"ear.appraisal-policy-id": ["default"]})})


def test_nonce() -> None:
    refused(VerificationError, "report-data-mismatch", token(claims()), nonce="other")
    bare = {"cpu0": submodule(**{"ear.veraison.annotated-evidence": {"runtime_data_claims": None}})}
    refused(VerificationError, "report-data-mismatch", token(claims(submods=bare)))
    assert verify(token(claims(submods=bare, eat_nonce=NONCE))).claims
    assert verify(token(claims(submods=bare, eat_nonce=["x", NONCE]))).claims
    # `eat_nonce`, where there is one, is the one that counts.
    for other in ("x", "", None, 3, [], [None]):
        refused(VerificationError, "report-data-mismatch", token(claims(eat_nonce=other)))
    with pytest.raises(ValueError, match="nonce"):
        verify(token(claims()), nonce="")


def test_a_gpu_does_not_speak_for_the_cpu() -> None:
    bare = submodule(**{"ear.veraison.annotated-evidence": {}})
    refused(
        VerificationError, "report-data-mismatch", token(claims(submods={"cpu0": bare, "gpu0": submodule()}))
    )


def test_duplicate_members_are_refused() -> None:
    text = json.dumps(claims())[:-1] + ', "exp": 9999999999}'
    registry = jws.JWSRegistry(algorithms=["ES256"])
    said = jws.serialize_compact({"alg": "ES256"}, text, KEY, registry=registry)
    refused(FormatError, "duplicate-key", said)


def test_the_key_is_of_p256() -> None:
    with pytest.raises(ValueError, match="P-256"):
        verify(token(claims()), key=ECKey.generate_key("P-384"))
