"""Did this service issue this token, for this nonce? Steps and codes as in docs/spec/token.md.

What is proved is that a service said something: a weaker thing than evidence, whatever the service found. So each
result carries condition `somebody-elses-verdict`, and no policy admits one unawares.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.token import PublicKey, TokenIssuer, key_digest
from sealwright.errors import VerificationError
from sealwright.evidence.token import CloudToken, Jwt, TokenKind
from sealwright.verify.context import Context
from sealwright.verify.token_claims import (
    CONDITION,
    NONCE_CLAIMS,
    NONCE_MATCHES,
    conditions,
    lookup,
    registers,
)
from sealwright.verify.verified import MADE_BY_VERIFY, Proof, Verified

SKEW = timedelta(minutes=1)  # how far the verifier's clock may be behind the issuer's
ALGORITHMS: Mapping[TokenKind, frozenset[str]] = {
    "maa": frozenset({"RS256"}),
    "google": frozenset({"RS256"}),
    "nras": frozenset({"ES384"}),
    "ita": frozenset({"PS384", "RS256"}),
}
_HEADER = frozenset(
    {"alg", "kid", "typ", "jku", "x5c", "x5t", "x5t#S256"}
)  # only the first three are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken(Verified):
    """A service's verdict on evidence that nobody here has seen."""

    kind: TokenKind
    issuer: str
    claims: Mapping[str, Any]
    devices: Mapping[str, Mapping[str, Any]]
    issued: datetime
    age_s: int  # at the time of verification, at least 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    issued: datetime
    expires: datetime


def verify_token(
    token: CloudToken, issuer: TokenIssuer, *, expected_nonce: str, context: Context
) -> VerifiedToken:
    """Check key and signature, issuer and audience, times, nonce and the tokens of devices, in this order.

    Args:
        issuer: who must have issued it, with the keys that count.
        expected_nonce: the text that its nonce claim must be, exactly.

    Raises:
        VerificationError: not a token of this issuer for this nonce at this time.
    """
    if not expected_nonce:
        raise ValueError("a token is verified for a nonce")
    key, times = _check(token.overall, issuer, expected_nonce, context, audience=issuer.audience)
    claims = token.overall.unverified_claims
    _check_devices(token, issuer, expected_nonce, context)
    devices = {name: device.unverified_claims for name, device in token.devices.items()}
    digest = key_digest(key)
    return VerifiedToken(
        platform=f"token:{issuer.issuer}",
        report_data=expected_nonce.encode(),
        registers=registers(claims),
        facts={
            "kind": issuer.kind,
            "issuer": issuer.issuer,
            "claims": dict(claims),
            "devices": _plain(devices),
        },
        conditions=(CONDITION, *conditions(issuer.kind, claims, devices)),
        proofs=(
            Proof(
                what=f"token of {rfc3339(times.issued)}",
                by=f"{issuer.issuer}, key {digest.hex()[:16]}…",
                until=times.expires,
            ),
        ),
        not_proved=(f"what {issuer.issuer} has seen and how well it looked: no evidence came along",),
        root=digest,
        vendor_root=False,
        until=times.expires,
        kind=issuer.kind,
        issuer=issuer.issuer,
        claims=claims,
        devices=devices,
        issued=times.issued,
        age_s=max(0, int((context.at - times.issued).total_seconds())),
        _made_by=MADE_BY_VERIFY,
    )


def _check(
    token: Jwt, issuer: TokenIssuer, nonce: str, context: Context, *, audience: str
) -> tuple[PublicKey, _Times]:
    # 1. The key is one that was pinned, and the algorithm one that this issuer uses.
    key = _key(token, issuer)
    # 2. The signature, over the text as received.
    _check_signature(token, key)
    claims = token.unverified_claims
    # 3. By this issuer, for this audience.
    if claims.get("iss") != issuer.issuer:
        _refuse(f"the token is not by {issuer.issuer}", "wrong-issuer", "issuer")
    _check_audience(claims.get("aud"), audience)
    # 4. Now.
    times = _check_times(claims, context)
    # 5. For this nonce.
    _check_nonce(claims, issuer.kind, nonce)
    return key, times


def _key(token: Jwt, issuer: TokenIssuer) -> PublicKey:
    header = token.header
    if not header.keys() <= _HEADER or str(header.get("typ", "JWT")).upper() != "JWT":
        _refuse("the token's header has members that are not known", "algorithm-not-allowed", "key")
    if str(header.get("alg")) not in ALGORITHMS[issuer.kind]:
        _refuse("the token's algorithm is not one of its issuer", "algorithm-not-allowed", "key")
    kid = header.get("kid")
    key = issuer.keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        _refuse("the token names a key that is not pinned; has the issuer new ones?", "unknown-key", "key")
    return key


def _check_signature(token: Jwt, key: PublicKey) -> None:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    kind = RSAKey if isinstance(key, rsa.RSAPublicKey) else ECKey
    registry = jws.JWSRegistry(algorithms=[token.header["alg"]], strict_check_header=False)
    try:
        jws.deserialize_compact(token.compact, kind.import_key(pem), registry=registry)
    except (JoseError, ValueError):
        _refuse("the token's signature does not hold", "bad-signature", "signature")


def _check_audience(found: object, audience: str) -> None:
    if found is None and not audience:
        return
    if audience and (found == audience or (isinstance(found, list) and audience in found)):
        return
    _refuse("the token was made for another audience", "wrong-audience", "audience")


def _check_times(claims: Mapping[str, Any], context: Context) -> _Times:
    issued, expires = (_time(claims.get(name)) for name in ("iat", "exp"))
    begins = _time(claims["nbf"]) if "nbf" in claims else issued
    if max(issued, begins) > context.at + SKEW:
        _refuse("the token is dated in the future; check the clock, or --at", "token-not-yet", "time")
    if context.at >= expires:
        _refuse(f"the token has expired on {rfc3339(expires)}", "token-expired", "time")
    return _Times(issued=issued, expires=expires)


def _time(value: object) -> datetime:
    # Years 1970 to 9999. NumericDate may have a fraction; no issuer here writes one.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 253_402_300_800:
        _refuse("the token has no time of issue, or no end", "bad-claims", "time")
    return datetime.fromtimestamp(value, UTC)


def _check_nonce(claims: Mapping[str, Any], kind: TokenKind, nonce: str) -> None:
    for path in NONCE_CLAIMS[kind]:
        value = lookup(claims, path)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and _equal(one, nonce) for one in values):
            return
    _refuse("the token was not made for this nonce", "report-data-mismatch", "nonce")


def _check_devices(token: CloudToken, issuer: TokenIssuer, nonce: str, context: Context) -> None:
    """Prove that each token of a device is the one whose digest the overall token has, and holds by itself."""
    named = token.overall.unverified_claims.get("submods") if issuer.kind == "nras" else {}
    if (
        not isinstance(named, dict)
        or named.keys() != token.devices.keys()
        or (issuer.kind == "nras") is not bool(named)
    ):
        _refuse(
            "the devices' tokens are not the ones that the overall token names", "device-mismatch", "devices"
        )
    for name, device in token.devices.items():
        digest = sha256(device.compact.encode()).hexdigest()
        if named[name] != ["DIGEST", ["SHA-256", digest]]:
            _refuse(
                f"the token of {name} is not the one that the overall token names",
                "device-mismatch",
                "devices",
            )
        _check(device, issuer, nonce, context, audience="")
        # NVIDIA's nonce claim repeats the request: whether the device was asked with it is another one.
        if not any(device.unverified_claims.get(claim) is True for claim in NONCE_MATCHES):
            _refuse(
                f"the report of {name} is not said to be over this nonce", "report-data-mismatch", "nonce"
            )
    ids = [device.unverified_claims.get("ueid") for device in token.devices.values()]
    if not all(isinstance(one, str) for one in ids) or len(set(ids)) != len(ids):
        _refuse("a device has no ueid, or two have the same", "device-mismatch", "devices")


def _plain(devices: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(claims) for name, claims in devices.items()}


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
