"""Token services without a cloud: issuers with keys of their own that say whatever a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from sealwright.crypto.encoding import b64url
from sealwright.endorsement.token import TokenIssuer, key_digest, parse_jwks
from sealwright.evidence.token import TokenKind
from sealwright.testing.software import FakePlatformWarning

ISSUERS: Mapping[TokenKind, str] = {
    "maa": "https://sharedtest.test.attest.azure.net",
    "google": "https://confidentialcomputing.googleapis.com",
    "nras": "https://nras.attestation.nvidia.com",
    "ita": "https://portal.trustauthority.intel.com",
}
AUDIENCE = "https://broker.example"
_ALGORITHMS: Mapping[TokenKind, str] = {"maa": "RS256", "google": "RS256", "nras": "ES384", "ita": "PS384"}
_KID = "test-key"


class TokenTestService:
    """An issuer of one kind, with one key, at `now`. It has seen nothing: never pin its keys."""

    def __init__(self, kind: TokenKind, now: datetime) -> None:
        warnings.warn("TokenTestService says anything", FakePlatformWarning, stacklevel=2)
        self.kind = kind
        self.now = now
        self.key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            ec.generate_private_key(ec.SECP384R1())
            if kind == "nras"
            else rsa.generate_private_key(65537, 2048)
        )

    @property
    def jwks(self) -> bytes:
        """The JWKS, as a service publishes it."""
        public = self._jwk().as_dict(private=False)
        return json.dumps({"keys": [{**public, "kid": _KID}]}).encode()

    @property
    def issuer(self) -> TokenIssuer:
        """The service with its key pinned."""
        audience = AUDIENCE if self.kind == "google" else ""
        return TokenIssuer(
            kind=self.kind, issuer=ISSUERS[self.kind], audience=audience, keys=parse_jwks(self.jwks)
        )

    @property
    def key_digest(self) -> bytes:
        """SHA-256 of the key (32 bytes): how a policy names it."""
        return key_digest(self.key.public_key())

    def claims(self, nonce: str, /, **changes: Any) -> dict[str, Any]:
        """Return the claims of a good token for `nonce`, with changes; None leaves one out."""
        at = int(self.now.timestamp())
        claims = {
            "iss": ISSUERS[self.kind],
            "iat": at,
            "nbf": at,
            "exp": at + int(timedelta(hours=1).total_seconds()),
            **_CLAIMS[self.kind](nonce),
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign(self, claims: Mapping[str, Any], **header: Any) -> bytes:
        """Return a compact JWT of `claims`, with further members of the header, or others."""
        protected = {"alg": _ALGORITHMS[self.kind], "kid": _KID, "typ": "JWT", **header}
        registry = jws.JWSRegistry(
            algorithms=["RS256", "RS384", "PS384", "ES256", "ES384"], strict_check_header=False
        )
        payload = json.dumps(claims, separators=(",", ":"))
        return jws.serialize_compact(protected, payload, self._jwk(), registry=registry).encode()

    def token(self, nonce: str, /, **changes: Any) -> bytes:
        """Return a good token for `nonce`, with changes to its claims; NVIDIA's with one GPU."""
        if self.kind != "nras":
            return self.sign(self.claims(nonce, **changes))
        return self.bundle(nonce, {"GPU-0": self.sign(self.device(nonce))}, **changes)

    def device(self, nonce: str, **changes: Any) -> dict[str, Any]:
        """Return the claims of a GPU, with changes; None leaves one out."""
        claims = {
            **{name: value for name, value in self.claims(nonce).items() if not name.startswith("x-nvidia")},
            "ueid": "478176379286082186618948445787393647364802107249",
            "hwmodel": "GH100 A01 GSP BROM",
            "measres": "success",
            "secboot": True,
            "dbgstat": "disabled",
            "x-nvidia-gpu-driver-version": "550.90.07",
            "x-nvidia-gpu-attestation-report-nonce-match": True,
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def bundle(self, nonce: str, /, devices: Mapping[str, bytes], **changes: Any) -> bytes:
        """Return a detached EAT that names `devices` by their digests."""
        submods = {
            name: ["DIGEST", ["SHA-256", hashlib.sha256(token).hexdigest()]]
            for name, token in devices.items()
        }
        overall = self.sign(self.claims(nonce, **{"submods": submods, **changes})).decode()
        return json.dumps(
            [["JWT", overall], {name: token.decode() for name, token in devices.items()}]
        ).encode()

    def _jwk(self) -> RSAKey | ECKey:
        kind = ECKey if isinstance(self.key, ec.EllipticCurvePrivateKey) else RSAKey
        return kind.import_key(self.key)  # type: ignore[arg-type]


def _maa(nonce: str) -> dict[str, Any]:
    return {
        "x-ms-ver": "1.0",
        "x-ms-attestation-type": "azurevm",
        "x-ms-policy-hash": "wm9mHlvTU82e8UqoOy1Yj1FBRSNkfe99-69IYDq9eWs",
        "secureboot": True,
        "x-ms-runtime": {"client-payload": {"nonce": nonce}, "keys": []},
        "x-ms-isolation-tee": {
            "x-ms-attestation-type": "sevsnpvm",
            "x-ms-compliance-status": "azure-compliant-cvm",
            "x-ms-sevsnpvm-is-debuggable": False,
            "x-ms-sevsnpvm-launchmeasurement": "0a" * 48,
            "x-ms-sevsnpvm-hostdata": "0b" * 32,
            "x-ms-sevsnpvm-vmpl": 0,
        },
    }


def _google(nonce: str) -> dict[str, Any]:
    return {
        "aud": AUDIENCE,
        "sub": "https://www.googleapis.com/compute/v1/projects/p/zones/z/instances/i",
        "eat_nonce": ["another-nonce", nonce],
        "secboot": True,
        "oemid": 11129,
        "hwmodel": "GCP_INTEL_TDX",
        "swname": "CONFIDENTIAL_SPACE",
        "dbgstat": "disabled-since-boot",
        "submods": {
            "confidential_space": {"support_attributes": ["LATEST", "STABLE", "USABLE"]},
            "container": {"image_digest": "sha256:" + "0c" * 32, "restart_policy": "Never"},
        },
    }


def _nras(nonce: str) -> dict[str, Any]:
    return {
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "jti": "1f6b5c76",
        "x-nvidia-ver": "3.0",
        "x-nvidia-overall-att-result": True,
        "eat_nonce": nonce,
    }


def _ita(nonce: str) -> dict[str, Any]:
    return {
        "ver": "2.0.0",
        "eat_profile": "https://portal.trustauthority.intel.com/eat_profile.html",
        "tdx": {
            "attester_type": "TDX",
            "attester_tcb_status": "UpToDate",
            "attester_held_data": nonce,
            "tdx_is_debuggable": False,
            "tdx_mrtd": "0d" * 48,
            "tdx_rtmr0": "0e" * 48,
        },
    }


_CLAIMS = {"maa": _maa, "google": _google, "nras": _nras, "ita": _ita}


def only_certificate(jwks: bytes, certificate: x509.Certificate) -> bytes:
    """Return `jwks` with its first key given by `certificate` alone, as Azure does."""
    (key, *_) = json.loads(jwks)["keys"]
    x5c = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
    return json.dumps({"keys": [{"kty": key["kty"], "kid": key["kid"], "x5c": x5c}]}).encode()


def unsigned(claims: Mapping[str, Any], header: Mapping[str, Any], signature: bytes) -> bytes:
    """Return a compact JWT with any header and signature."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(map(b64url, parts)).encode()
