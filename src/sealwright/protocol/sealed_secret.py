"""What Confidential Containers' guests open with a resource: sealed secrets, and wrapped keys of image layers.

Spec: docs/spec/kbs-guest.md, Sealed secrets and image layers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jws
from joserfc.jwk import ECKey
from pydantic import ConfigDict, Field

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Record, validated
from sealwright.errors import MessageFormatError, SettingsError
from sealwright.protocol.kbs_guest import RESOURCE

SCHEME = "kbs:///"
PROVIDER = "attestation-agent"  # the name of the key provider in image annotations
MAX_OPTIONS = 64 * 1024  # bytes of a layer's private options
MAX_PROVIDER_INPUT = 256 * 1024  # bytes
_IV_BYTES = 12


def resource_path(uri: str) -> str:
    """Return the path in `kbs:///REPOSITORY/TYPE/TAG`. Raises MessageFormatError: `malformed-name`."""
    path = uri.removeprefix(SCHEME)
    if path == uri or not RESOURCE.fullmatch(path):
        raise MessageFormatError(f"a resource is {SCHEME}REPOSITORY/TYPE/TAG", code="malformed-name")
    return path


def load_signing_key(pem: bytes) -> ECKey:
    """Return a P-256 key from PEM. Raises SettingsError: `malformed-signing-key`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise SettingsError("sealed secrets are signed with a P-256 key in PEM", code="malformed-signing-key")
    return ECKey.import_key(pem)


def public_jwk(key: ECKey) -> bytes:
    """Return the public half as JSON: what guests fetch as the resource that `kid` names."""
    return canonical(key.as_dict(private=False))


def seal_vault_secret(name: str, key: ECKey, *, kid: str) -> str:
    """Return a sealed secret that names a resource: what a pod's Secret holds in its place.

    Args:
        name: of the resource, `kbs:///…`.
        kid: of the resource with the public half of `key`, `kbs:///…`.

    Raises:
        MessageFormatError: `malformed-name`.
    """
    for uri in (name, kid):
        resource_path(uri)
    payload = canonical(
        {
            "version": "0.1.0",
            "type": "vault",
            "name": name,
            "provider": "kbs",
            "provider_settings": {},
            "annotations": {},
        }
    )
    return "sealed." + jws.serialize_compact({"alg": "ES256", "kid": kid}, payload, key)


class _Said(Record):
    """What ocicrypt writes; members that do not concern a wrap are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Config(_Said):
    parameters: Annotated[dict[str, list[str]], Field(alias="Parameters")]


class _WrapParameters(_Said):
    ec: _Config
    optsdata: Annotated[str, Field(max_length=2 * MAX_OPTIONS)]


class WrapRequest(_Said):
    """Input of a key provider of ocicrypt."""

    op: str
    keywrapparams: _WrapParameters

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return the request in `raw`.

        Raises:
            MessageFormatError: malformed. SettingsError: `keyprovider-operation`: asked to unwrap.
        """
        said = parse_json(raw, limit=MAX_PROVIDER_INPUT)
        if isinstance(said, dict) and said.get("op") != "keywrap":
            raise SettingsError("only guests unwrap; this key provider wraps", code="keyprovider-operation")
        return validated(cls, said)

    def options(self) -> bytes:
        """Return the layer's private options."""
        return _standard_base64(self.keywrapparams.optsdata)

    def prefix(self) -> str:
        """Return REPOSITORY/TYPE/NAME out of the parameter `keyid=kbs:///REPOSITORY/TYPE/NAME`.

        Raises:
            MessageFormatError: `malformed-name`.
        """
        given = self.keywrapparams.ec.parameters.get(PROVIDER, [])
        texts = [_standard_base64(one).decode("utf-8", "replace") for one in given]
        fields = dict(part.partition("=")[::2] for text in texts for part in text.split("::"))
        return resource_path(fields.get("keyid", ""))


def wrap_options(options: bytes, path: str, random: Callable[[int], bytes]) -> tuple[bytes, dict[str, Any]]:
    """Return a fresh key, which becomes the resource `path`, and the answer of a key provider.

    Returns:
        The key (32 bytes), and `{"keywrapresults": {"annotation": …}}`.
    """
    key, iv = random(32), random(_IV_BYTES)
    packet = {
        "kid": SCHEME + path,
        "wrapped_data": base64.b64encode(AESGCM(key).encrypt(iv, options, b"")).decode(),
        "iv": base64.b64encode(iv).decode(),
        "wrap_type": "A256GCM",
    }
    annotation = base64.b64encode(canonical(packet)).decode()
    return key, {"keywrapresults": {"annotation": annotation}}


def _standard_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise MessageFormatError("not base64", code="malformed-base64") from None
