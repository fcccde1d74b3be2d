"""The root key in files of the broker's own: what a broker has where there is no HSM or KMS.

Spec: docs/spec/key-backends.md, Backends.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealwright.broker.backend.base import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Facts,
    WrapContext,
    Wrapped,
    destroyed,
    key_missing,
    rewrap_in_broker,
    unwrap_failed,
    wiped,
)
from sealwright.broker.files import read_secret, write_file
from sealwright.errors import SettingsError

NAME = "embedded"
FIRST = "1"
_LATER = re.compile(r"kek-([1-9][0-9]{0,5})")


class EmbeddedBackend:
    """AES-256-GCM under key-encryption keys that lie in files; the highest number is current."""

    def __init__(
        self,
        kek: bytes | None,
        random: Callable[[int], bytes],
        *,
        later: Mapping[int, bytes] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Args: kek: version 1, 32 bytes; None: destroyed. later: the others. folder: where new ones are written."""
        keys = ({} if kek is None else {1: kek}) | dict(later or {})
        self._aeads = {number: AESGCM(key) for number, key in keys.items()}
        self._random = random
        self._folder = folder
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, random: Callable[[int], bytes]) -> Self:
        """Return the backend of a broker's folder of keys.

        Raises:
            SettingsError: `broker-file-missing`, `broker-files-exposed`, `broker-key-malformed`.
        """
        named = {path: _LATER.fullmatch(path.name) for path in sorted(folder.iterdir())}
        later = {int(match[1]): _key(path) for path, match in named.items() if match is not None}
        first = folder / "kek"
        # Once every key was moved on, the oldest file may be destroyed.
        kek = None if later and not first.exists() else _key(first)
        return cls(kek, random, later=later, folder=folder)

    @property
    def facts(self) -> Facts:
        """Say that whoever reads the broker's files has the root key."""
        return Facts(kind=NAME, key="keys/kek", release="in-broker", exportable=True)

    def current(self) -> str:
        """Return the highest version."""
        return str(max(self._aeads))

    def create(self, context: WrapContext) -> Wrapped:
        """Return 32 random bytes, wrapped."""
        with wiped(bytearray(self._random(KEY_BYTES))) as key:
            return self.wrap(key, context)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return nonce and ciphertext under the current version."""
        version = max(self._aeads)
        nonce = self._random(NONCE_BYTES)
        sealed = self._aeads[version].encrypt(nonce, key, context.aad())
        return Wrapped(version=str(version), payload=nonce + sealed)

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        if not (wrapped.version.isascii() and wrapped.version.isdecimal()):
            raise unwrap_failed()
        aead = self._aeads.get(int(wrapped.version))
        if aead is None:
            raise destroyed(NAME, wrapped.version)
        payload = wrapped.payload
        if len(payload) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            raise unwrap_failed()
        key = bytearray(KEY_BYTES)
        try:
            aead.decrypt_into(payload[:NONCE_BYTES], payload[NONCE_BYTES:], context.aad(), key)
        except InvalidTag:
            key[:] = bytes(KEY_BYTES)
            raise unwrap_failed() from None
        return key

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context and the current version."""
        return rewrap_in_broker(self, wrapped, old, new)

    def rotate(self) -> str:
        """Write one more key file; copy it to the offline backup before keys are moved to it."""
        if self._folder is None:
            raise key_missing(NAME, "folder")
        with self._lock:
            version = max(self._aeads) + 1
            key = os.urandom(KEY_BYTES)
            write_file(self._folder / f"kek-{version}", key)
            self._aeads = self._aeads | {version: AESGCM(key)}
        return str(version)

    def close(self) -> None:
        """Do nothing: the files are read once."""


def _key(path: Path) -> bytes:
    key = read_secret(path)
    if len(key) != KEY_BYTES:
        raise SettingsError(f"{path} does not have {KEY_BYTES} bytes", code="broker-key-malformed")
    return key
