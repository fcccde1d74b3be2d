"""What every key backend does, and the forms they share. Spec: docs/spec/key-backends.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from sealwright.crypto.canonical import canonical
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    RevokedError,
    UnavailableError,
    VerificationError,
)

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapContext:
    """What a wrapped key belongs to; it opens nowhere else."""

    kid: str
    tenant: str
    policy_digest: bytes  # 32 bytes
    epoch: int

    def aad(self) -> bytes:
        """Return the associated data of the wrap."""
        return canonical(
            {
                "epoch": self.epoch,
                "kid": self.kid,
                "policy_digest": self.policy_digest.hex(),
                "tenant": self.tenant,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """A wrapped key as one backend knows it."""

    version: str  # of the root key
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a key owner wants to know of a backend."""

    kind: str
    key: str  # the root key's name there
    release: Literal["in-backend", "in-broker"]  # who sees a key at its release, as it is done
    exportable: bool  # whether the root key can be read out


class KeyBackend(Protocol):
    """Wraps and unwraps keys. The caller wipes what `unwrap` returns.

    Every operation raises UnavailableError: `backend-unavailable`, `backend-denied`,
    `backend-key-missing`, `backend-answer-malformed`. AppraisalError: `backend-key-unfit`.
    """

    @property
    def facts(self) -> Facts:
        """Say what this backend is, without asking it."""
        ...

    def current(self) -> str:
        """Return the current version, after asking the backend whether its key is there and fit."""
        ...

    def create(self, context: WrapContext) -> Wrapped:
        """Return a new key, 32 random bytes, wrapped."""
        ...

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return `key` wrapped under the current version."""
        ...

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key (32 bytes), proved to be wrapped for exactly this context.

        Raises:
            VerificationError: `key-unwrap-failed`. RevokedError: `key-version-destroyed`.
        """
        ...

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context and the current version. Raises as `unwrap`."""
        ...

    def rotate(self) -> str:
        """Make a new version of the root key, the first if there is none; return it."""
        ...

    def close(self) -> None:
        """Let go of sessions and connections."""
        ...


class RecipientBackend(KeyBackend, Protocol):
    """A backend that can seal a key to evidence that it checks itself."""

    def release_to(self, wrapped: Wrapped, context: WrapContext, document: bytes) -> bytes:
        """Return the key sealed by the backend to the key in `document`; nobody between can open it."""
        ...


@contextmanager
def wiped(secret: bytearray) -> Iterator[bytearray]:
    """Hand out a secret and wipe it in the end."""
    try:
        yield secret
    finally:
        secret[:] = bytes(len(secret))


def rewrap_in_broker(backend: KeyBackend, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
    """Return the same key for another context, where the backend cannot do it by itself."""
    with wiped(backend.unwrap(wrapped, old)) as secret:
        return backend.wrap(secret, new)


def taken(secret: bytes, name: str) -> bytearray:
    """Return what a backend decrypted as a key. Raises UnavailableError: `backend-answer-malformed`."""
    if len(secret) != KEY_BYTES:
        raise malformed(name, f"a key of {KEY_BYTES} bytes was expected")
    return bytearray(secret)


def unwrap_failed() -> VerificationError:
    """Return the refusal of a wrapped key that does not open."""
    return VerificationError(
        "the wrapped key does not open as the key of this kid, tenant, policy and epoch",
        code="key-unwrap-failed",
        stage="unwrap",
    )


def destroyed(name: str, version: str) -> RevokedError:
    """Return the refusal of a key whose root version is gone."""
    return RevokedError(
        f"version {version[:128]} of the root key of {name} is destroyed or disabled: what it wrapped is lost "
        "unless that version comes back",
        code="key-version-destroyed",
        stage="unwrap",
    )


def unavailable(name: str, why: str) -> UnavailableError:
    """Return the refusal while a backend cannot be used. `why` holds nothing that was sent."""
    return UnavailableError(
        f"key backend {name} does not answer ({why})", code="backend-unavailable", stage="backend"
    )


def denied(name: str, why: str) -> UnavailableError:
    """Return the refusal of a backend that does not accept our credential."""
    return UnavailableError(
        f"key backend {name} refuses this broker ({why}): renew its credential, or widen its rights",
        code="backend-denied",
        stage="backend",
    )


def malformed(name: str, what: str) -> UnavailableError:
    """Return the refusal of an answer that is not in its form, or was altered on its way."""
    return UnavailableError(
        f"key backend {name} gave a wrong answer: {what}", code="backend-answer-malformed", stage="backend"
    )


def key_missing(name: str, key: str) -> UnavailableError:
    """Return the refusal of a backend that has no such root key."""
    return UnavailableError(
        f"key backend {name} has no root key {key}; make it: broker backend create-key",
        code="backend-key-missing",
        stage="backend",
    )


def unfit(name: str, why: str) -> AppraisalError:
    """Return the refusal of a root key that must not be one."""
    failure = AppraisalFailure(f"the root key of {name} {why}; make another for it", code="backend-key-unfit")
    return AppraisalError([failure], stage="backend")


def extra_missing(kind: str, extra: str) -> UnavailableError:
    """Return the refusal of a backend whose library is not installed."""
    return UnavailableError(
        f"backend {kind} needs the extra: pip install 'sealwright[{extra}]'",
        code="backend-extra-missing",
        stage="backend",
    )
