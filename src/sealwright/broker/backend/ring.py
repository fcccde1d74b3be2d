"""All backends of one broker by name, and the bytes that say which one wrapped a key.

Spec: docs/spec/key-backends.md, Wrapped bytes and Outage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from sealwright.broker.backend import embedded
from sealwright.broker.backend.base import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    KeyBackend,
    WrapContext,
    Wrapped,
    unavailable,
    unwrap_failed,
    wiped,
)
from sealwright.errors import SettingsError, UnavailableError

REST_S = 2.0  # a backend that failed is left alone for so long
_FRAMED = 1
_OLD_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES
T = TypeVar("T")


@dataclass(slots=True)
class _Health:
    failed_at: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Backends:
    """Wraps with the active backend, unwraps with whichever wrapped. May be called from several threads."""

    def __init__(
        self,
        backends: Mapping[str, KeyBackend],
        *,
        active: str = embedded.NAME,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backends = dict(backends)
        self._health = {name: _Health() for name in backends}
        self._monotonic = monotonic
        self.activate(active)

    @property
    def active(self) -> str:
        """The name of the backend that wraps what is new."""
        return self._active

    def activate(self, name: str) -> None:
        """Wrap with `name` from now on. Raises SettingsError: `backend-unknown`."""
        self.get(name)
        self._active = name

    def names(self) -> list[str]:
        """Return all names, in order."""
        return sorted(self._backends)

    def get(self, name: str) -> KeyBackend:
        """Return one backend. Raises SettingsError: `backend-unknown`."""
        found = self._backends.get(name)
        if found is None:
            raise SettingsError(
                f"the broker's settings have no key backend {name}: put it back into backends.json",
                code="backend-unknown",
            )
        return found

    def ask(self, name: str, work: Callable[[KeyBackend], T]) -> T:
        """Do `work` with one backend, unless it has just failed.

        Raises:
            UnavailableError: `backend-unavailable`, and whatever `work` raises.
        """
        backend, health = self.get(name), self._health[name]
        with health.lock:
            failed_at = health.failed_at
        if failed_at is not None and self._monotonic() < failed_at + REST_S:
            raise unavailable(name, f"it failed less than {REST_S:g} s ago, and is asked again then")
        try:
            result = work(backend)
        except UnavailableError as error:
            if error.code == "backend-unavailable":
                with health.lock:
                    health.failed_at = self._monotonic()
            raise
        with health.lock:
            health.failed_at = None
        return result

    def create(self, context: WrapContext) -> bytes:
        """Return a new key, wrapped by the active backend."""
        name = self._active
        return encode(name, self.ask(name, lambda backend: backend.create(context)))

    def unwrap(self, wrapped: bytes, context: WrapContext) -> bytearray:
        """Return the key (32 bytes), which the caller wipes.

        Raises:
            VerificationError: `key-unwrap-failed`. RevokedError: `key-version-destroyed`.
            SettingsError: `backend-unknown`. UnavailableError: see `KeyBackend`.
        """
        name, inner = decode(wrapped)
        return self.ask(name, lambda backend: backend.unwrap(inner, context))

    def rewrap(self, wrapped: bytes, old: WrapContext, new: WrapContext) -> bytes:
        """Return the same key for another context, under the active backend's current version."""
        (name, inner), target = decode(wrapped), self._active
        if name == target:
            return encode(target, self.ask(target, lambda backend: backend.rewrap(inner, old, new)))
        with wiped(self.unwrap(wrapped, old)) as secret:
            return encode(target, self.ask(target, lambda backend: backend.wrap(secret, new)))

    def stands(self, wrapped: bytes) -> tuple[str, str]:
        """Return which backend and version wrapped a key, unverified."""
        name, inner = decode(wrapped)
        return name, inner.version

    def describe(self, wrapped: bytes) -> dict[str, object]:
        """Return what may be shown of how a key is kept, without asking the backend."""
        name, version = self.stands(wrapped)
        facts = self.get(name).facts
        return {
            "backend": name,
            "backend_kind": facts.kind,
            "backend_version": version,
            "release": facts.release,
            "root_key_exportable": facts.exportable,
        }

    def close(self) -> None:
        """Close them all."""
        for backend in self._backends.values():
            backend.close()


def encode(name: str, wrapped: Wrapped) -> bytes:
    """Return the bytes of a row: which backend and version, then the backend's own."""
    if name == embedded.NAME and wrapped.version == embedded.FIRST:
        return wrapped.payload
    parts = [name.encode("ascii"), wrapped.version.encode("ascii")]
    return bytes([_FRAMED]) + b"".join(bytes([len(part)]) + part for part in parts) + wrapped.payload


def decode(raw: bytes) -> tuple[str, Wrapped]:
    """Return name and wrapped key of `encode`. Raises VerificationError: `key-unwrap-failed`."""
    if len(raw) == _OLD_BYTES:
        return embedded.NAME, Wrapped(version=embedded.FIRST, payload=raw)
    if raw[:1] != bytes([_FRAMED]):
        raise unwrap_failed()
    name, rest = _part(raw[1:])
    version, payload = _part(rest)
    return name, Wrapped(version=version, payload=payload)


def _part(raw: bytes) -> tuple[str, bytes]:
    end = 1 + (raw[0] if raw else 0)
    if end == 1 or len(raw) < end or not raw[1:end].isascii():
        raise unwrap_failed()
    return raw[1:end].decode("ascii"), raw[end:]
