"""Google Cloud KMS, over its REST interface (v1), with CRC32C in both directions.

Spec: docs/spec/key-backends.md, Backends.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from pathlib import Path

import httpx2

from sealwright.broker.backend.base import (
    KEY_BYTES,
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
from sealwright.broker.backend.metadata import GOOGLE, token_source
from sealwright.broker.backend.rest import Answer, CachedToken, Rest, refused, text
from sealwright.broker.backend.settings import GoogleSettings

_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_VERSIONS = "/cryptoKeyVersions/"


class GoogleBackend:
    """One symmetric key of Google Cloud KMS."""

    def __init__(
        self,
        name: str,
        settings: GoogleSettings,
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
        self._token = token or token_source(name, GOOGLE, ("metadata-flavor", "Google"), settings.token_file)

    @property
    def facts(self) -> Facts:
        """Say which key; Google lets none be read out."""
        return Facts(kind="google-kms", key=self._settings.key, release="in-broker", exportable=False)

    def current(self) -> str:
        """Return the primary version, proved to be enabled and of a key for encryption."""
        answer = self._ask("GET", "")
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        if answer.body.get("purpose") != "ENCRYPT_DECRYPT":
            raise unfit(self._name, "is not a symmetric key for encryption")
        version = self._version(text(answer, self._name, "primary", "name"))
        if text(answer, self._name, "primary", "state") != "ENABLED":
            raise destroyed(self._name, version)
        return version

    def create(self, context: WrapContext) -> Wrapped:
        """Return 32 random bytes, wrapped."""
        with wiped(bytearray(os.urandom(KEY_BYTES))) as key:
            return self.wrap(key, context)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return `key` encrypted under the primary version, proved to have arrived whole."""
        aad = context.aad()
        body = {
            "plaintext": b64encode(key).decode(),
            "plaintextCrc32c": str(crc32c(bytes(key))),
            "additionalAuthenticatedData": b64encode(aad).decode(),
            "additionalAuthenticatedDataCrc32c": str(crc32c(aad)),
        }
        answer = self._ask("POST", ":encrypt", body)
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        verified = ("verifiedPlaintextCrc32c", "verifiedAdditionalAuthenticatedDataCrc32c")
        if not all(answer.body.get(member) is True for member in verified):
            raise malformed(self._name, "it did not check what we sent")
        version = self._version(text(answer, self._name, "name"))
        return Wrapped(version=version, payload=self._checked(answer, "ciphertext"))

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        aad = context.aad()
        body = {
            "ciphertext": b64encode(wrapped.payload).decode(),
            "ciphertextCrc32c": str(crc32c(wrapped.payload)),
            "additionalAuthenticatedData": b64encode(aad).decode(),
            "additionalAuthenticatedDataCrc32c": str(crc32c(aad)),
        }
        answer = self._ask("POST", ":decrypt", body)
        if answer.status == 400:
            state = _status(answer)
            raise (
                destroyed(self._name, wrapped.version) if state == "FAILED_PRECONDITION" else unwrap_failed()
            )
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        return taken(self._checked(answer, "plaintext"), self._name)

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context; it passes through the broker."""
        return rewrap_in_broker(self, wrapped, old, new)

    def rotate(self) -> str:
        """Make a new version and make it primary. The key itself is made with Google's tools."""
        answer = self._ask("POST", "/cryptoKeyVersions", {}, again=False)
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        version = self._version(text(answer, self._name, "name"))
        self._done(self._ask("POST", ":updatePrimaryVersion", {"cryptoKeyVersionId": version}, again=False))
        return self.current()

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _ask(
        self, method: str, after: str, body: Mapping[str, object] | None = None, *, again: bool = True
    ) -> Answer:
        path = f"/v1/{self._settings.key}{after}"
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

    def _version(self, name: str) -> str:
        key, _, version = name.partition(_VERSIONS)
        if key != self._settings.key or not _NUMBER.fullmatch(version):
            raise malformed(self._name, "it names another key")
        return version

    def _checked(self, answer: Answer, member: str) -> bytes:
        try:
            raw = b64decode(text(answer, self._name, member), validate=True)
        except Base64Error:
            raise malformed(self._name, f"its {member} is not base64") from None
        if text(answer, self._name, f"{member}Crc32c") != str(crc32c(raw)):
            raise malformed(self._name, f"its {member} was altered on its way")
        return raw


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli; RFC 3720) of `data`: finds accidents, not attackers."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _status(answer: Answer) -> str:
    error = answer.body.get("error")
    return str(error.get("status", ""))[:64] if isinstance(error, Mapping) else ""
