"""Tokens of clouds: keys of our own, the claims' real names; every refusal, every condition, appraisal."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sealwright.appraisal.token import TokenRules
from sealwright.crypto.encoding import b64url
from sealwright.endorsement.token import TokenIssuer, parse_jwks
from sealwright.errors import EvidenceFormatError, SettingsError, VerificationError
from sealwright.evidence.token import CloudToken, TokenKind
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.token import AUDIENCE, ISSUERS, TokenTestService, only_certificate, unsigned
from sealwright.verify.context import Context
from sealwright.verify.token import SKEW, VerifiedToken, verify_token
from sealwright.verify.token_claims import conditions as judged
from sealwright.verify.token_claims import registers

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
NONCE = "5d" * 32
KINDS: tuple[TokenKind, ...] = ("maa", "google", "nras", "ita")


NAMES = ["x-ms-isolation-tee", "tdx", "submods", "container", "image_digest", "tdx_mrtd", "tdx_is_debuggable"]
NAMES += ["dbgstat", "secboot", "measres", "attester_tcb_status", "policy_ids_unmatched", "nvgpu", "ueid"]


@functools.cache
def service(kind: TokenKind) -> TokenTestService:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return TokenTestService(kind, NOW)


def verify(
    raw: bytes,
    kind: TokenKind,
    *,
    issuer: TokenIssuer | None = None,
    nonce: str = NONCE,
    at: datetime = NOW,
) -> VerifiedToken:
    return verify_token(
        CloudToken.parse(raw), issuer or service(kind).issuer, expected_nonce=nonce, context=Context(at=at)
    )


def refused(raw: bytes, kind: TokenKind, stage: str, code: str, **options: Any) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(raw, kind, **options)
    assert (caught.value.stage, caught.value.code) == (stage, code)


def conditions(raw: bytes, kind: TokenKind) -> list[str]:
    codes = [condition.code for condition in verify(raw, kind).conditions]
    assert codes[0] == "somebody-elses-verdict"
    return codes[1:]


def test_the_service_warns() -> None:
    with pytest.warns(FakePlatformWarning):
        TokenTestService("nras", NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_genuine(kind: TokenKind) -> None:
    verified = verify(service(kind).token(NONCE), kind)
    assert verified.platform == f"token:{ISSUERS[kind]}"
    assert verified.report_data == NONCE.encode()
    assert [condition.code for condition in verified.conditions] == ["somebody-elses-verdict"]
    assert (verified.root, verified.vendor_root) == (service(kind).key_digest, False)
    assert (verified.age_s, verified.until) == (0, NOW + timedelta(hours=1))
    json.dumps(verified.facts)


def test_measurements_have_the_names_of_their_platform() -> None:
    assert verify(service("maa").token(NONCE), "maa").registers == {
        "measurement": b"\x0a" * 48,
        "host_data": b"\x0b" * 32,
    }
    assert verify(service("google").token(NONCE), "google").registers == {"image_digest": b"\x0c" * 32}
    assert verify(service("ita").token(NONCE), "ita").registers == {
        "mrtd": b"\x0d" * 48,
        "rtmr0": b"\x0e" * 48,
    }
    assert verify(service("nras").token(NONCE), "nras").registers == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"x-ms-isolation-tee": None, "tdx_mrtd": "not hex"},
        {"x-ms-isolation-tee": None, "tdx_mrtd": "0d" * 31},
        {"x-ms-isolation-tee": None, "tdx_mrtd": " " + "0d" * 48},
        {"x-ms-isolation-tee": None, "tdx_mrtd": 13},
        {"x-ms-isolation-tee": {"tdx_mrtd": "0d" * 48}, "tdx_mrtd": "0e" * 48},
    ],
)
def test_a_measurement_that_is_unclear_is_none(changes: dict[str, Any]) -> None:
    assert "mrtd" not in verify(service("maa").token(NONCE, **changes), "maa").registers


# --- the format ---


def test_a_detached_eat_is_read() -> None:
    token = CloudToken.parse(service("nras").token(NONCE))
    assert list(token.devices) == ["GPU-0"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a.b",
        b"a..b",
        b"e30.e30.",
        b"e30.e30.e30.e30",
        b"e30=.e30.AA",
        b"e30.e30.AA\n",
        b" e30.e30.AA",
        b"bnVsbA.e30.AA",
        b"e30.W10.AA",
        b"e30.eyJhIjoxLCJhIjoyfQ.AA",  # a claim twice
        b"\xc3\xbc.e30.AA",
        b"e30.e30." + b"A" * 65536,
        b"[]",
        b'[["JWT","e30.e30.AA"]]',
        b'[["JWT","e30.e30.AA"],{},{}]',
        b'[["CWT","e30.e30.AA"],{}]',
        b'[["JWT"],{}]',
        b'[["JWT",1],{}]',
        b'[["JWT","e30.e30.AA"],[]]',
        b'[["JWT","e30.e30.AA"],{"GPU-0":1}]',
        b'[["JWT","e30.e30.AA"],{"GPU-0":"\xc3\xbc"}]',
        b'[["JWT","e30.e30.AA"],{"GPU-0":"e30.e30.AA","GPU-0":"e30.e30.AA"}]',
        json.dumps([["JWT", "e30.e30.AA"], {f"GPU-{i}": "e30.e30.AA" for i in range(33)}]).encode(),
        b'[["JWT","e30.e30.AA"],{"REMOTE_GPU_CLAIMS":[["JWT","e30.e30.AA"],{}]}]',  # NVIDIA's SDK, not its service
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        CloudToken.parse(raw)


@given(st.binary(max_size=120))
def test_the_parser_raises_only_its_own_error(raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        CloudToken.parse(raw)


@given(
    st.lists(
        st.sampled_from([b"[", b"]", b'"JWT"', b",", b"{", b"}", b'"e30.e30.AA"', b":", b'"G"']), max_size=14
    )
)
def test_the_parser_raises_only_its_own_error_for_lists(parts: list[bytes]) -> None:
    with contextlib.suppress(EvidenceFormatError):
        CloudToken.parse(b"[" + b"".join(parts))


# --- keys ---


def certificate(key: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "token signing")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, SHA256())
    )


@pytest.mark.parametrize("kind", ["maa", "nras"])
def test_a_key_that_only_its_certificate_gives_is_read(kind: TokenKind) -> None:
    jwks = only_certificate(service(kind).jwks, certificate(service(kind).key))
    issuer = TokenIssuer(kind=kind, issuer=ISSUERS[kind], keys=parse_jwks(jwks))
    assert verify(service(kind).token(NONCE), kind, issuer=issuer)


def jwks_with(**changes: Any) -> bytes:
    (key,) = json.loads(service("maa").jwks)["keys"]
    return json.dumps({"keys": [{**key, **changes}]}).encode()


def bad_keys() -> dict[str, bytes]:
    rsa_key = json.loads(service("maa").jwks)["keys"][0]
    ec_key = json.loads(service("nras").jwks)["keys"][0]
    other = certificate(ec.generate_private_key(ec.SECP256R1()))
    x5c = json.loads(only_certificate(service("maa").jwks, other))["keys"][0]["x5c"]
    return {
        "not JSON": b"keys",
        "no keys": b"{}",
        "none": b'{"keys":[]}',
        "too many": json.dumps({"keys": [{**rsa_key, "kid": str(index)} for index in range(65)]}).encode(),
        "kid twice": json.dumps({"keys": [rsa_key, rsa_key]}).encode(),
        "kid empty": jwks_with(kid=""),
        "kid number": jwks_with(kid=1),
        "symmetric": b'{"keys":[{"kty":"oct","kid":"k","k":"AAAA"}]}',
        "Ed25519": b'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"AAAA"}]}',
        "no numbers": b'{"keys":[{"kty":"RSA","kid":"k"}]}',
        "short": jwks_with(n=b64url((1 << 1023 | 1).to_bytes(128, "big"))),
        "e even": jwks_with(e="Ag"),
        "padding": jwks_with(e="AQAB="),
        "certificate of another key": jwks_with(x5c=x5c),
        "certificates none": jwks_with(x5c=[]),
        "certificate not base64": jwks_with(x5c=["-"]),
        "certificate not DER": jwks_with(x5c=["AAAA"]),
        "other curve": json.dumps({"keys": [{**ec_key, "crv": "P-521"}]}).encode(),
        "not on the curve": json.dumps({"keys": [{**ec_key, "x": ec_key["y"]}]}).encode(),
        "key not an object": b'{"keys":["k"]}',
    }


@pytest.mark.parametrize("name", bad_keys())
def test_keys_that_are_not_pinned(name: str) -> None:
    with pytest.raises(SettingsError):
        parse_jwks(bad_keys()[name])


def test_a_short_key_in_a_certificate_is_refused() -> None:
    short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(SettingsError, match="2048"):
        parse_jwks(only_certificate(service("maa").jwks, certificate(short)))


def test_an_issuer_is_named_whole() -> None:
    keys = service("google").issuer.keys
    with pytest.raises(ValueError, match="audience"):
        TokenIssuer(kind="google", issuer=ISSUERS["google"], keys=keys)
    with pytest.raises(ValueError, match="name"):
        TokenIssuer(kind="maa", issuer="", keys=keys)


# --- verification ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_signature_is_refused(kind: TokenKind) -> None:
    header, claims, signature = service(kind).sign(service(kind).claims(NONCE)).decode().split(".")
    for index in (0, len(signature) // 2):
        other = "A" if signature[index] != "A" else "B"
        raw = f"{header}.{claims}.{signature[:index]}{other}{signature[index + 1 :]}"
        refused(raw.encode(), kind, "signature", "bad-signature")


def test_no_flipped_byte_is_accepted() -> None:
    raw = service("google").token(NONCE)
    for index in range(len(raw)):
        flipped = bytearray(raw)
        flipped[index] ^= 1
        with pytest.raises((VerificationError, EvidenceFormatError)):
            verify(bytes(flipped), "google")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 95, 96, 97, 255, 256, 257, 4096])
def test_a_signature_of_another_length_is_refused(kind: TokenKind, size: int) -> None:
    algorithm = {"nras": "ES384", "ita": "PS384"}.get(kind, "RS256")
    header = {"alg": algorithm, "kid": "test-key"}
    for signature in (bytes(size), b"\xff" * size):
        refused(unsigned(service(kind).claims(NONCE), header, signature), kind, "signature", "bad-signature")


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["disabled", "0d" * 48, "", "sha256:"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), st.sampled_from(KINDS))
def test_claims_of_any_shape_are_judged(claims: dict[str, Any], kind: TokenKind) -> None:
    assert all(len(value) >= 32 for value in registers(claims).values())
    codes = [one.code for one in judged(kind, claims, {"GPU-0": claims})]
    assert all(isinstance(code, str) for code in codes)
    if claims.get("dbgstat") not in ("disabled", None):
        assert "debug" in codes


def test_claims_of_another_token_are_refused() -> None:
    one, other = service("maa").token(NONCE).split(b"."), service("maa").token("other").split(b".")
    refused(b".".join([one[0], one[1], other[2]]), "maa", "signature", "bad-signature")


ALGORITHMS: list[tuple[TokenKind, str]] = [
    ("maa", "PS384"),
    ("maa", "RS384"),
    ("google", "PS384"),
    ("ita", "RS384"),
]


@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_another_algorithm_is_refused(kind: TokenKind, algorithm: str) -> None:
    raw = service(kind).sign(service(kind).claims(NONCE), alg=algorithm)
    refused(raw, kind, "key", "algorithm-not-allowed")


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "HS256", "HS384", "ES256", "EdDSA", "", None, 1, [], ["RS256"], {"RS256": 1}],
)
def test_an_algorithm_of_no_issuer_is_refused(algorithm: object) -> None:
    header = {"alg": algorithm, "kid": "test-key"}
    refused(unsigned(service("maa").claims(NONCE), header, b"s"), "maa", "key", "algorithm-not-allowed")


def test_an_algorithm_of_another_kind_of_key_is_refused() -> None:
    rsa_service, issuer = service("ita"), service("nras").issuer
    mixed = TokenIssuer(kind="ita", issuer=ISSUERS["ita"], keys=issuer.keys)  # an EC key for RS256 and PS384
    refused(rsa_service.token(NONCE), "ita", "signature", "bad-signature", issuer=mixed)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"kid": "other"}, "unknown-key"),
        ({"kid": ""}, "unknown-key"),
        ({"crit": ["exp"]}, "algorithm-not-allowed"),
        ({"b64": True}, "algorithm-not-allowed"),
        ({"jwk": {"kty": "RSA"}}, "algorithm-not-allowed"),
        ({"typ": "at+jwt"}, "algorithm-not-allowed"),
    ],
)
def test_another_header_is_refused(header: dict[str, Any], code: str) -> None:
    claims = service("maa").claims(NONCE)
    raw = unsigned(claims, {"alg": "RS256", "kid": "test-key", "typ": "JWT", **header}, b"s")
    refused(raw, "maa", "key", code)


def test_a_header_may_say_where_keys_are_but_nobody_asks_there() -> None:
    raw = service("maa").sign(service("maa").claims(NONCE), jku="https://attacker.example/certs")
    assert verify(raw, "maa")


def test_a_token_without_kid_is_refused() -> None:
    raw = unsigned(service("maa").claims(NONCE), {"alg": "RS256"}, b"s")
    refused(raw, "maa", "key", "unknown-key")


def test_a_token_by_another_key_of_the_same_name_is_refused() -> None:
    with pytest.warns(FakePlatformWarning):
        other = TokenTestService("maa", NOW)
    refused(other.token(NONCE), "maa", "signature", "bad-signature")


@pytest.mark.parametrize(
    "issuer", [None, "https://other.attest.azure.net", ISSUERS["maa"] + "/", 1, [ISSUERS["maa"]]]
)
def test_another_issuer_is_refused(issuer: object) -> None:
    refused(service("maa").token(NONCE, iss=issuer), "maa", "issuer", "wrong-issuer")


@pytest.mark.parametrize(
    "audience", [None, "https://other.example", [], ["https://other.example"], {AUDIENCE: 1}]
)
def test_another_audience_is_refused(audience: object) -> None:
    refused(service("google").token(NONCE, aud=audience), "google", "audience", "wrong-audience")


def test_an_audience_among_others_is_accepted() -> None:
    assert verify(service("google").token(NONCE, aud=["https://other.example", AUDIENCE]), "google")


def test_an_audience_that_nobody_asked_for_is_refused() -> None:
    refused(service("maa").token(NONCE, aud=AUDIENCE), "maa", "audience", "wrong-audience")


def test_time() -> None:
    raw = service("maa").token(NONCE)
    end = NOW + timedelta(hours=1)
    assert verify(raw, "maa", at=end - timedelta(seconds=1)).age_s == 3599
    refused(raw, "maa", "time", "token-expired", at=end)
    assert verify(raw, "maa", at=NOW - SKEW).age_s == 0
    refused(raw, "maa", "time", "token-not-yet", at=NOW - SKEW - timedelta(seconds=1))


@pytest.mark.parametrize("claim", ["iat", "exp", "nbf"])
@pytest.mark.parametrize("value", [True, "1770000000", -1, 1 << 52, 1770000000.5])
def test_times_that_are_none_are_refused(claim: str, value: object) -> None:
    refused(service("maa").token(NONCE, **{claim: value}), "maa", "time", "bad-claims")


def test_a_token_has_a_time_of_issue_and_an_end() -> None:
    refused(service("maa").token(NONCE, iat=None), "maa", "time", "bad-claims")
    refused(service("maa").token(NONCE, exp=None), "maa", "time", "bad-claims")
    assert verify(service("maa").token(NONCE, nbf=None), "maa")


@pytest.mark.parametrize("kind", KINDS)
def test_another_nonce_is_refused(kind: TokenKind) -> None:
    for nonce in ("5e" * 32, NONCE[:-1], NONCE + "0", NONCE.upper()):
        refused(service(kind).token(NONCE), kind, "nonce", "report-data-mismatch", nonce=nonce)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_nonce_is_our_bug(kind: TokenKind) -> None:
    with pytest.raises(ValueError, match="nonce"):
        verify(service(kind).token(""), kind, nonce="")


@pytest.mark.parametrize("value", [None, 1, {}, [], [1], [["x"]]])
def test_a_nonce_that_is_no_text_is_refused(value: object) -> None:
    refused(service("google").token(NONCE, eat_nonce=value), "google", "nonce", "report-data-mismatch")


def test_what_azure_was_handed_beside_the_evidence_is_no_nonce() -> None:
    # `nonce` of a request comes back as claim `nonce`: whoever holds an old report can ask for a new token over it.
    old = {"x-ms-runtime": {"client-payload": {"nonce": "5e" * 32}, "keys": []}}
    refused(service("maa").token("", nonce=NONCE, **old), "maa", "nonce", "report-data-mismatch")


@pytest.mark.parametrize("said", [False, None, "true", 1])
def test_nvidia_has_to_say_that_the_report_itself_answers_the_nonce(said: object) -> None:
    # `eat_nonce` is the request's: over an old report the token has it too, and the verdict is negative.
    nvidia = service("nras")
    claims = {"x-nvidia-gpu-attestation-report-nonce-match": said, "measres": "fail"}
    token = nvidia.sign(nvidia.device(NONCE, **claims))
    raw = nvidia.bundle(NONCE, {"GPU-0": token}, **{"x-nvidia-overall-att-result": False})
    refused(raw, "nras", "nonce", "report-data-mismatch")


# --- devices ---


def test_devices() -> None:
    nras = service("nras")
    devices = {f"GPU-{index}": nras.sign(nras.device(NONCE, ueid=f"{index}")) for index in range(8)}
    verified = verify(nras.bundle(NONCE, devices), "nras")
    assert verified.devices["GPU-7"]["ueid"] == "7"


def test_a_device_whose_digest_is_not_named_is_refused() -> None:
    nras = service("nras")
    bundle = json.loads(nras.token(NONCE))
    bundle[1]["GPU-0"] = nras.sign(nras.device(NONCE, ueid="other")).decode()
    refused(json.dumps(bundle).encode(), "nras", "devices", "device-mismatch")


@pytest.mark.parametrize("change", ["missing", "more", "renamed", "none"])
def test_other_devices_than_named_are_refused(change: str) -> None:
    overall, devices = json.loads(service("nras").token(NONCE))
    token = devices["GPU-0"]
    devices = {
        "missing": {},
        "more": {"GPU-0": token, "GPU-1": token},
        "renamed": {"GPU-1": token},
        "none": {},
    }[change]
    refused(json.dumps([overall, devices]).encode(), "nras", "devices", "device-mismatch")


@pytest.mark.parametrize(
    "submods", [None, {}, [], "GPU-0", {"GPU-0": "x"}, {"GPU-0": ["DIGEST", ["SHA-512", "00"]]}]
)
def test_other_names_of_devices_are_refused(submods: object) -> None:
    nras = service("nras")
    raw = nras.bundle(NONCE, {"GPU-0": nras.sign(nras.device(NONCE))}, submods=submods)
    refused(raw, "nras", "devices", "device-mismatch")


def test_a_token_of_no_device_is_refused() -> None:
    refused(service("nras").bundle(NONCE, {}), "nras", "devices", "device-mismatch")
    refused(service("nras").sign(service("nras").claims(NONCE)), "nras", "devices", "device-mismatch")


def test_devices_beside_another_issuers_token_are_refused() -> None:
    token = service("maa").token(NONCE).decode()
    refused(json.dumps([["JWT", token], {"GPU-0": token}]).encode(), "maa", "devices", "device-mismatch")


@pytest.mark.parametrize("second", ["same", None])
def test_a_device_that_stands_twice_is_refused(second: str | None) -> None:
    nras = service("nras")
    devices = {
        "GPU-0": nras.sign(nras.device(NONCE, ueid="same")),
        "GPU-1": nras.sign(nras.device(NONCE, ueid=second, hwmodel="other")),
    }
    refused(nras.bundle(NONCE, devices), "nras", "devices", "device-mismatch")


@pytest.mark.parametrize(
    ("changes", "stage", "code"),
    [
        ({"eat_nonce": "5e" * 32}, "nonce", "report-data-mismatch"),
        ({"eat_nonce": None}, "nonce", "report-data-mismatch"),
        ({"iss": "https://other.example"}, "issuer", "wrong-issuer"),
        ({"exp": int(NOW.timestamp())}, "time", "token-expired"),
    ],
)
def test_each_device_holds_by_itself(changes: dict[str, Any], stage: str, code: str) -> None:
    nras = service("nras")
    devices = {"GPU-0": nras.sign(nras.device(NONCE, **changes))}
    refused(nras.bundle(NONCE, devices), "nras", stage, code)


def test_a_device_signed_by_another_is_refused() -> None:
    with pytest.warns(FakePlatformWarning):
        other = TokenTestService("nras", NOW)
    nras = service("nras")
    refused(
        nras.bundle(NONCE, {"GPU-0": other.sign(other.device(NONCE))}), "nras", "signature", "bad-signature"
    )


# --- conditions ---


def tee(**changes: Any) -> dict[str, Any]:
    found = {**service("maa").claims(NONCE)["x-ms-isolation-tee"], **changes}
    return {"x-ms-isolation-tee": {name: value for name, value in found.items() if value is not None}}


def tdx(**changes: Any) -> dict[str, Any]:
    found = {**service("ita").claims(NONCE)["tdx"], **changes}
    return {"tdx": {name: value for name, value in found.items() if value is not None}}


@pytest.mark.parametrize(
    ("kind", "changes", "codes"),
    [
        ("maa", tee(**{"x-ms-sevsnpvm-is-debuggable": True}), ["debug"]),
        ("maa", tee(**{"x-ms-sevsnpvm-is-debuggable": "false"}), ["debug"]),
        ("maa", tee(**{"x-ms-sevsnpvm-is-debuggable": 0}), ["debug"]),
        ("maa", tee(**{"x-ms-sevsnpvm-is-debuggable": None}), ["debug"]),  # it does not say
        ("maa", {"x-ms-isolation-tee": None}, ["debug"]),  # a VM without a TEE has tokens too
        ("maa", tee(**{"x-ms-compliance-status": "other"}), ["verdict-negative"]),
        ("maa", tee(**{"x-ms-compliance-status": None}), ["verdict-negative"]),
        ("maa", {"secureboot": False}, ["secure-boot-off"]),
        ("maa", {"secureboot": None}, []),
        ("maa", {"attester_tcb_status": "OutOfDate"}, ["tcb-out-of-date"]),
        ("google", {"dbgstat": "enabled"}, ["debug"]),
        ("google", {"dbgstat": None}, ["debug"]),
        ("google", {"dbgstat": False}, ["debug"]),
        ("maa", tee(**{"x-ms-sevsnpvm-is-debuggable": "disabled"}), ["debug"]),
        ("google", {"secboot": False}, ["secure-boot-off"]),
        ("google", {"secboot": None}, ["secure-boot-off"]),
        ("ita", tdx(tdx_is_debuggable=True), ["debug"]),
        ("ita", tdx(attester_tcb_status="OutOfDate"), ["tcb-out-of-date"]),
        ("ita", tdx(attester_tcb_status="SWHardeningNeeded"), ["tcb-sw-hardening-needed"]),
        ("ita", tdx(attester_tcb_status="ConfigurationNeeded"), ["tcb-configuration-needed"]),
        ("ita", tdx(attester_tcb_status="Revoked"), ["tcb-revoked"]),
        ("ita", tdx(attester_tcb_status="uptodate"), ["tcb-not-recognised"]),
        ("ita", tdx(attester_tcb_status=None), ["tcb-not-recognised"]),
        ("ita", {"policy_ids_unmatched": [{"id": "1"}]}, ["verdict-negative"]),
        ("ita", {"policy_ids_unmatched": []}, []),
        ("ita", {"nvgpu": {"x-nvidia-overall-att-result": False}}, ["verdict-negative"]),
        ("ita", {"nvgpu": {}}, ["verdict-negative"]),
        ("ita", {"nvgpu": {"x-nvidia-overall-att-result": True}}, []),
        ("nras", {"x-nvidia-overall-att-result": False}, ["verdict-negative"]),
        ("nras", {"x-nvidia-overall-att-result": "true"}, ["verdict-negative"]),
        ("nras", {"x-nvidia-overall-att-result": None}, ["verdict-negative"]),
    ],
)
def test_condition(kind: TokenKind, changes: dict[str, Any], codes: list[str]) -> None:
    assert conditions(service(kind).token(NONCE, **changes), kind) == codes


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"measres": "fail"}, ["verdict-negative"]),
        ({"measres": None}, ["verdict-negative"]),
        ({"secboot": False}, ["secure-boot-off"]),
        ({"secboot": None}, ["secure-boot-off"]),
        ({"dbgstat": "enabled"}, ["debug"]),
        ({"dbgstat": None}, ["debug"]),
        (
            {"measres": None, "secboot": None, "dbgstat": None},
            ["verdict-negative", "secure-boot-off", "debug"],
        ),
    ],
)
def test_condition_of_a_device(changes: dict[str, Any], codes: list[str]) -> None:
    nras = service("nras")
    good, other = (
        nras.sign(nras.device(NONCE, ueid=ueid, **extra)) for ueid, extra in (("0", {}), ("1", changes))
    )
    assert conditions(nras.bundle(NONCE, {"GPU-0": good, "GPU-1": other}), "nras") == codes


# --- appraisal ---

GOOD: dict[str, Any] = {
    "issuers": [ISSUERS["google"]],
    "admit": ["somebody-elses-verdict"],
    "registers": {"image_digest": ["0c" * 32]},
    "claims": {
        "/hwmodel": ["GCP_INTEL_TDX"],
        "/submods/container/restart_policy": ["Never"],
        "/secboot": [True],
    },
}


def codes(rules: dict[str, Any], raw: bytes | None = None, at: datetime = NOW) -> list[str]:
    verified = verify(raw or service("google").token(NONCE), "google", at=at)
    read = TokenRules.model_validate(GOOD | rules)
    return [one.code for one in (*read.shared_refusals(verified), *read.refusals(verified))]


def test_allowed() -> None:
    assert codes({}) == []
    assert codes({"roots": [service("google").key_digest.hex()]}) == []
    assert codes({"registers": {}}) == []
    assert codes({"claims": {}}) == []


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"admit": []}, "somebody-elses-verdict"),
        ({"issuers": ["https://other.example"]}, "issuer-not-allowed"),
        ({"registers": {"image_digest": ["0d" * 32]}}, "measurement-not-allowed"),
        ({"registers": {"measurement": ["0c" * 48]}}, "register-missing"),
        ({"registers": {}, "claims": {}}, "no-code-named"),
        ({"registers": {"image_digest": []}, "claims": {}}, "no-code-named"),
        ({"claims": {"/hwmodel": ["GCP_AMD_SEV"]}}, "token-claim-not-allowed"),
        ({"claims": {"/hwmodel": []}}, "token-claim-not-allowed"),
        ({"claims": {"/missing": ["x"]}}, "token-claim-not-allowed"),
        ({"claims": {"hwmodel": ["GCP_INTEL_TDX"]}}, "token-claim-not-allowed"),
        ({"claims": {"/secboot": [1]}}, "token-claim-not-allowed"),
        ({"claims": {"/oemid/x": [11129]}}, "token-claim-not-allowed"),
        ({"roots": ["00" * 32]}, "root-not-allowed"),
    ],
)
def test_not_allowed(rules: dict[str, Any], code: str) -> None:
    assert code in codes(rules)


def test_an_old_token_is_not_allowed() -> None:
    assert codes({}, at=NOW + timedelta(seconds=300)) == []
    assert codes({}, at=NOW + timedelta(seconds=301)) == ["token-too-old"]


def test_a_default_policy_admits_no_token() -> None:
    rules = TokenRules.model_validate({"issuers": [ISSUERS["google"]]})
    verified = verify(service("google").token(NONCE), "google")
    found = {one.code for one in (*rules.shared_refusals(verified), *rules.refusals(verified))}
    assert {"somebody-elses-verdict", "no-code-named"} <= found


@pytest.mark.parametrize(
    "rules", [{"issuers": []}, {"oldest_token_s": 86401}, {"claims": {"/a": [1.5]}}, {"x": 1}]
)
def test_rules_are_strict(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenRules.model_validate(GOOD | rules)


def test_rules_of_tokens_appraise_nothing_else() -> None:
    with pytest.raises(TypeError):
        list(TokenRules.model_validate(GOOD).refusals(object()))
