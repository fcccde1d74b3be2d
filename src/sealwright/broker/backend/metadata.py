"""Access tokens of the machine a broker runs on: Azure's managed identity, Google's service account."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlencode

import httpx2

from sealwright.broker.backend.base import denied, malformed, unavailable
from sealwright.broker.backend.rest import CachedToken
from sealwright.broker.backend.settings import secret_of
from sealwright.crypto.canonical import parse_json
from sealwright.errors import FormatError
from sealwright.protocol.body import PLAIN, parts

AZURE = "http://169.254.169.254/metadata/identity/oauth2/token"
GOOGLE = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"
MAX_TOKEN = 64 << 10  # bytes
TIMEOUT_S = 5.0
FILE_LIFE_S = 60.0  # a token file is read again after half of this

Token = Callable[[], str]


def token_source(
    name: str,
    url: str,
    header: tuple[str, str],
    token_file: str | None,
    *,
    transport: httpx2.BaseTransport | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> CachedToken:
    """Return what gives the token: the file, if one is named, else the machine's metadata service."""
    if token_file is not None:
        return CachedToken(lambda: (secret_of(token_file), FILE_LIFE_S), monotonic)
    return CachedToken(lambda: _fetch(name, url, header, transport), monotonic)


def azure_url(resource: str, client_id: str | None) -> str:
    """Return where a managed identity's token for `resource` comes from."""
    query = {"api-version": "2018-02-01", "resource": resource}
    if client_id is not None:
        query["client_id"] = client_id
    return f"{AZURE}?{urlencode(query)}"


def _fetch(
    name: str, url: str, header: tuple[str, str], transport: httpx2.BaseTransport | None
) -> tuple[str, float]:
    raw = bytearray()
    try:
        with (
            httpx2.Client(timeout=TIMEOUT_S, trust_env=False, transport=transport) as http,
            http.stream("GET", url, headers={**dict([header]), **PLAIN}) as answer,
        ):
            for chunk in parts(answer):
                raw += chunk
                if len(raw) > MAX_TOKEN:
                    raise malformed(name, "the token is too large")
    except httpx2.HTTPError as exc:
        raise unavailable(name, f"metadata service: {type(exc).__name__}") from None
    if answer.status_code != 200:
        raise denied(name, f"the metadata service answered {answer.status_code}")
    return _parsed(name, bytes(raw))


def _parsed(name: str, raw: bytes) -> tuple[str, float]:
    try:
        body = parse_json(raw, limit=MAX_TOKEN)
        token, life = body["access_token"], float(body["expires_in"])  # Azure: a text, Google: a number
    except (FormatError, KeyError, TypeError, ValueError):
        token, life = "", 0.0
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not 0 < life < 1e7:
        raise malformed(name, "the metadata service gave no token")
    return token, life
