"""An Azure Managed HSM, over its REST interface (7.4).

Spec: docs/spec/key-backends.md, Backends and In-backend release.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import httpx2

from sealwright.broker.backend.base import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Facts,
    WrapContext,
    Wrapped,
    destroyed,
    key_missing,
    malformed,
    rewrap_in_broker,
    taken,
    unfit,
    unwrap_failed,
    wiped,
)
from sealwright.broker.backend.metadata import azure_url, token_source
from sealwright.broker.backend.rest import Answer, CachedToken, Rest, refused, text
from sealwright.broker.backend.settings import AzureSettings
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.errors import AppraisalError, AppraisalFailure, FormatError

API = "api-version=7.4"
RESOURCE = "https://managedhsm.azure.net"
_VERSION = re.compile(r"[0-9a-f]{32}")


class AzureBackend:
    """One oct-HSM key of a Managed HSM."""

    def __init__(
        self,
        name: str,
        settings: AzureSettings,
        *,
        transport: httpx2.BaseTransport | None = None,
        token: CachedToken | None = None,
    ) -> None:
        """Open nothing yet. Args: transport, token: in place of the network, for tests."""
        self._name, self._settings = name, settings
        ca_file = None if settings.ca_file is None else Path(settings.ca_file)
        self._rest = Rest(
            name, settings.url, timeout_s=settings.timeout_s, ca_file=ca_file, transport=transport
        )
        url = azure_url(RESOURCE, settings.client_id)
        self._token = token or token_source(name, url, ("metadata", "true"), settings.token_file)

    @property
    def facts(self) -> Facts:
        """Say which key; that it is not exportable is checked when it is used first."""
        return Facts(kind="azure-hsm", key=self._settings.key, release="in-broker", exportable=False)

    def current(self) -> str:
        """Return the current version, proved to be of a fit key."""
        answer = self._ask("GET", "")
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        key, attributes = answer.body.get("key"), answer.body.get("attributes")
        if not isinstance(key, Mapping) or not isinstance(attributes, Mapping):
            raise malformed(self._name, "it has no key")
        if key.get("kty") != "oct-HSM":
            raise unfit(self._name, "is not an oct-HSM key")
        if attributes.get("exportable"):
            raise unfit(self._name, "is exportable")
        version = self._version(text(answer, self._name, "key", "kid"))
        if not attributes.get("enabled"):
            raise destroyed(self._name, version)
        return version

    def create(self, context: WrapContext) -> Wrapped:
        """Return 32 random bytes, wrapped."""
        with wiped(bytearray(os.urandom(KEY_BYTES))) as key:
            return self.wrap(key, context)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return `key` encrypted under the current version."""
        body = {"alg": "A256GCM", "value": b64url(bytes(key)), "aad": b64url(context.aad())}
        answer = self._ask("POST", "/encrypt", body)
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        version = self._version(text(answer, self._name, "kid"))
        nonce = self._binary(answer, "iv", NONCE_BYTES)
        tag = self._binary(answer, "tag", TAG_BYTES)
        sealed = self._binary(answer, "value", KEY_BYTES)
        return Wrapped(version=version, payload=nonce + tag + sealed)

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        raw = wrapped.payload
        if not _VERSION.fullmatch(wrapped.version) or len(raw) != NONCE_BYTES + TAG_BYTES + KEY_BYTES:
            raise unwrap_failed()
        body = {
            "alg": "A256GCM",
            "value": b64url(raw[NONCE_BYTES + TAG_BYTES :]),
            "iv": b64url(raw[:NONCE_BYTES]),
            "tag": b64url(raw[NONCE_BYTES : NONCE_BYTES + TAG_BYTES]),
            "aad": b64url(context.aad()),
        }
        answer = self._ask("POST", f"/{wrapped.version}/decrypt", body)
        if answer.status == 400:
            raise unwrap_failed()
        if answer.status == 404 or (answer.status == 403 and _inner(answer) == "KeyDisabled"):
            raise destroyed(self._name, wrapped.version)
        self._done(answer)
        return taken(self._binary(answer, "value", KEY_BYTES), self._name)

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context; it passes through the broker."""
        return rewrap_in_broker(self, wrapped, old, new)

    def rotate(self) -> str:
        """Make a new version, or the key."""
        answer = self._ask("GET", "")
        if answer.status == 404:
            made = {
                "kty": "oct-HSM",
                "key_size": 8 * KEY_BYTES,
                "key_ops": ["encrypt", "decrypt"],
                "attributes": {"enabled": True, "exportable": False},
            }
            self._done(self._ask("POST", "/create", made, again=False))
        else:
            self._done(answer)
            self._done(self._ask("POST", "/rotate", {}, again=False))
        return self.current()

    def secure_release(self, key: str, version: str, maa_token: str) -> str:
        """Return the HSM's JWS with an *exportable* key, sealed by the HSM to the enclave in `maa_token`.

        Args:
            key, version: of a key made for release under a policy; never the root key.
            maa_token: a Microsoft Azure Attestation token whose runtime claims hold the enclave's RSA key.

        Raises:
            AppraisalError: `recipient-refused`.
        """
        if key == self._settings.key:
            raise unfit(self._name, "wraps other keys, and is not one to release")
        body = {"target": maa_token, "enc": "RSA_AES_KEY_WRAP_256"}
        answer = self._send("POST", f"/keys/{key}/{version}/release?{API}", body)
        if answer.status in (400, 403):
            text_ = f"the HSM does not release {key} to this token (HTTP {answer.status})"
            raise AppraisalError([AppraisalFailure(text_, code="recipient-refused")], stage="backend")
        if answer.status == 404:
            raise key_missing(self._name, key)
        self._done(answer)
        return text(answer, self._name, "value")

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _ask(
        self, method: str, after: str, body: Mapping[str, object] | None = None, *, again: bool = True
    ) -> Answer:
        return self._send(method, f"/keys/{self._settings.key}{after}?{API}", body, again=again)

    def _send(
        self, method: str, path: str, body: Mapping[str, object] | None, *, again: bool = True
    ) -> Answer:
        headers = {"authorization": f"Bearer {self._token()}"}
        answer = self._rest.ask(method, path, body, headers=headers, again=again)
        if answer.status == 401:
            self._token.forget()
            headers = {"authorization": f"Bearer {self._token()}"}
            answer = self._rest.ask(method, path, body, headers=headers, again=again)
        return answer

    def _done(self, answer: Answer) -> None:
        if not answer.ok:
            raise refused(answer, self._name)

    def _version(self, kid: str) -> str:
        # kid: https://NAME.managedhsm.azure.net/keys/KEY/VERSION
        base, _, version = kid.rpartition("/")
        if not base.endswith(f"/keys/{self._settings.key}") or not _VERSION.fullmatch(version):
            raise malformed(self._name, "it names another key")
        return version

    def _binary(self, answer: Answer, member: str, length: int) -> bytes:
        try:
            return b64url_decode(text(answer, self._name, member), length=length)
        except FormatError:
            raise malformed(self._name, f"its {member} does not have {length} bytes") from None


def _inner(answer: Answer) -> str:
    error = answer.body.get("error")
    inner = error.get("innererror") if isinstance(error, Mapping) else None
    return str(inner.get("code", ""))[:64] if isinstance(inner, Mapping) else ""
