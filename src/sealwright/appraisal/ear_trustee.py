"""Results of other verifiers: EAR as Trustee and Veraison write it. Spec: docs/spec/rego.md, "Trustee's EAR".

What is proved is that a verifier whose key the caller pinned said something: its verdict, not ours.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from joserfc import jws
from joserfc.jwk import ECKey

from sealwright.appraisal.ear import Ear, ear_digest
from sealwright.appraisal.vector import AFFIRMING, CLAIMS, CONTRAINDICATED, NONE, WARNING, status
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import CollateralError, MessageFormatError, VerificationError

PROFILES = ("tag:github.com,2024:confidential-containers/Trustee", "tag:github.com,2023:veraison/ear")
MAX_TOKEN = 512 * 1024  # characters; verbose tokens carry event logs
MAX_SUBMODULES = 64
SKEW = timedelta(minutes=1)  # how far this clock may be behind the verifier's
_HEADER = frozenset({"alg", "typ", "kid", "jwk", "x5c", "x5t", "x5t#S256", "x5u", "jku"})  # no `crit`
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}", re.ASCII)
_ORDER = (NONE, AFFIRMING, WARNING, CONTRAINDICATED)
_NUMBERS: Mapping[int, str] = {0: NONE, 2: AFFIRMING, 32: WARNING, 96: CONTRAINDICATED}


def verify_trustee_ear(token: str, key: ECKey, *, expected_nonce: str, at: datetime) -> Ear:
    """Return a result of a Trustee or Veraison verifier in our own spelling, proved to be its own, new and consistent.

    Args:
        key: the verifier's P-256 key, pinned by the caller; keys and certificates in the header count for nothing.
        expected_nonce: the challenge as text, as the verifier was given it.
        at: the caller's time.

    Returns:
        Claims by the names of draft-ietf-rats-ear: `ear_status` (the worst submodule's) and `submods`, each with its
        status, vector, policy ids and, if there is any, `annotated_evidence`.

    Raises:
        MessageFormatError: `malformed-ear`, or what strict base64url and JSON refuse.
        VerificationError: `ear-signature`, `ear-contradiction`, `report-data-mismatch`.
        CollateralError: `ear-not-yet`, `ear-expired`.
    """
    if not expected_nonce:
        raise ValueError("a result is verified for a nonce")
    # 1. Form, and a header that asks for nothing unknown.
    header, claims = _parsed(token)
    if not header.keys() <= _HEADER or header.get("alg") != "ES256":
        _malformed("its header has another algorithm, or members that are not known")
    # 2. The signature, over the text as received, by the pinned key.
    _check_signature(token, key)
    # 3. The profile.
    if claims.get("eat_profile") not in PROFILES:
        _malformed("it has another profile")
    # 4. Now.
    _check_times(claims, at)
    # 5. Each submodule, and that no status is better than its worst claim.
    submodules = _submodules(claims)
    # 6. For this nonce.
    _check_nonce(claims, submodules, expected_nonce)
    return Ear(claims=_spelled(claims, submodules), digest=ear_digest(token))


def _parsed(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != 3 or not all(parts):
        _malformed("it is no compact JWT of bounded size")
    header, claims = (parse_json(b64url_decode(part), limit=MAX_TOKEN) for part in parts[:2])
    if not isinstance(header, dict) or not isinstance(claims, dict):
        _malformed("header and claims are JSON objects")
    return header, claims


def _check_signature(token: str, key: ECKey) -> None:
    if key.curve_name != "P-256":
        raise ValueError("ES256 is of a P-256 key")
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    try:
        jws.deserialize_compact(token, key, registry=registry)
    except Exception as exc:  # noqa: BLE001 - the library meets a hostile header with TypeError and others
        text = f"the result does not verify under the pinned key ({type(exc).__name__})"
        raise VerificationError(text, code="ear-signature", stage="ear") from None


def _check_times(claims: Mapping[str, Any], at: datetime) -> None:
    issued, expires = (_time(claims.get(name)) for name in ("iat", "exp"))
    begins = _time(claims["nbf"]) if "nbf" in claims else issued
    if max(issued, begins) > at + SKEW:
        raise CollateralError(
            "the result is dated in the future; check the clock", code="ear-not-yet", stage="ear"
        )
    if at >= expires:
        raise CollateralError("the result has expired", code="ear-expired", stage="ear")


def _time(value: object) -> datetime:
    if type(value) is not int or not 0 <= value < 253_402_300_800:
        _malformed("it has no time of issue, or no expiry")
    return datetime.fromtimestamp(value, UTC)


def _submodules(claims: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = claims.get("submods")
    if not isinstance(found, dict) or not 0 < len(found) <= MAX_SUBMODULES:
        _malformed(f"it has no submodules, or more than {MAX_SUBMODULES}")
    if claims["eat_profile"] == PROFILES[0] and "cpu0" not in found:
        _malformed("it has no submodule cpu0")
    return {_label(label): _submodule(label, value) for label, value in found.items()}


def _label(label: str) -> str:
    if not _LABEL.fullmatch(label):
        _malformed("a submodule has no plain name")
    return label


def _submodule(label: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        _malformed(f"submodule {label} is no object")
    vector = _vector(label, value.get("ear.trustworthiness-vector", {}))
    said, worst = _status(label, value.get("ear.status")), status(vector)
    # A status may be worse than its claims, never better; and `affirming` needs a claim that affirms.
    if _ORDER.index(said) < _ORDER.index(worst) or (said == AFFIRMING and worst == NONE):
        text = f"submodule {label} has status {said}, its worst claim {worst}"
        raise VerificationError(text, code="ear-contradiction", stage="ear")
    policy = value.get("ear.appraisal-policy-id")
    if policy is not None and not isinstance(policy, str):
        _malformed(f"the policy id of submodule {label} is no text")
    found = {
        "ear_status": said,
        "ear_trustworthiness_vector": vector,
        "ear_appraisal_policy_ids": [] if policy is None else [policy],
    }
    evidence = value.get("ear.veraison.annotated-evidence")
    return found if evidence is None else found | {"annotated_evidence": evidence}


def _vector(label: str, value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        _malformed(f"the vector of submodule {label} is no object")
    for claim, number in value.items():
        if claim not in CLAIMS or type(number) is not int or not -128 <= number <= 127:
            _malformed(f"the vector of submodule {label} has a claim that is not AR4SI's, or no int8")
    return value


def _status(label: str, value: object) -> str:
    found = _NUMBERS.get(value) if type(value) is int else value
    if not isinstance(found, str) or found not in _ORDER:
        _malformed(f"submodule {label} has no status that is known")
    return found


def _check_nonce(claims: Mapping[str, Any], submodules: Mapping[str, Mapping[str, Any]], nonce: str) -> None:
    """Prove that the result was made for `nonce`: in `eat_nonce`, or as Trustee does, in the CPU's runtime data."""
    if "eat_nonce" in claims:
        found = claims["eat_nonce"]
        candidates = found if isinstance(found, list) else [found]
    else:
        candidates = [_runtime_nonce(submodules.get("cpu0", {}))]
    if not any(
        isinstance(one, str) and hmac.compare_digest(one.encode(), nonce.encode()) for one in candidates
    ):
        text = "the result was not made for this nonce"
        raise VerificationError(text, code="report-data-mismatch", stage="ear")


def _runtime_nonce(submodule: Mapping[str, Any]) -> object:
    value: object = submodule
    for name in ("annotated_evidence", "runtime_data_claims", "nonce"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _spelled(claims: Mapping[str, Any], submodules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    worst = max((str(one["ear_status"]) for one in submodules.values()), key=_ORDER.index)
    # `none` says nothing, so it is no better than anything else.
    if any(one["ear_status"] == NONE for one in submodules.values()) and worst == AFFIRMING:
        worst = NONE
    return {
        "eat_profile": claims["eat_profile"],
        "iat": claims["iat"],
        "exp": claims["exp"],
        "ear_status": worst,
        "ear_verifier_id": claims.get("ear.verifier-id"),
        "submods": dict(submodules),
    }


def _malformed(what: str) -> NoReturn:
    raise MessageFormatError(f"not a result of Trustee or Veraison: {what}", code="malformed-ear")
