"""A PKCS#11 token: the root key never leaves it. Needs the extra `pkcs11`.

Spec: docs/spec/key-backends.md, Backends.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from sealwright.broker.backend.base import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Facts,
    WrapContext,
    Wrapped,
    denied,
    destroyed,
    extra_missing,
    key_missing,
    rewrap_in_broker,
    taken,
    unavailable,
    unfit,
    unwrap_failed,
    wiped,
)
from sealwright.broker.backend.settings import Pkcs11Settings, secret_of

try:
    import pkcs11
    from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
    from pkcs11 import exceptions as p11
except ImportError as exc:  # the extra
    raise extra_missing("pkcs11", "pkcs11") from exc

TAG_BITS = 8 * TAG_BYTES
_PROBE = bytes(KEY_BYTES)
# The session or the login is gone, and a new one may work.
_LOST = (
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.UserNotLoggedIn,
    p11.DeviceRemoved,
    p11.TokenNotPresent,
    p11.KeyHandleInvalid,
    p11.ObjectHandleInvalid,
)
_PIN = (
    p11.PinIncorrect,
    p11.PinInvalid,
    p11.PinLenRange,
    p11.PinLocked,
    p11.PinExpired,
    p11.UserPinNotInitialized,
)
# What tokens say of a wrong tag; a general failure may also be one of the device.
_WRONG_TAG = (
    p11.EncryptedDataInvalid,
    p11.EncryptedDataLenRange,
    p11.DataInvalid,
    p11.GeneralError,
    p11.FunctionFailed,
)
_FIT: dict[Any, bool] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.MODIFIABLE: False,
}
T = TypeVar("T")


class Pkcs11Backend:
    """AES-256 keys labelled KEY-v1, KEY-v2, … in one token."""

    def __init__(self, name: str, settings: Pkcs11Settings) -> None:
        """Open nothing yet: a token that is away now is asked again later."""
        self._name, self._settings = name, settings
        self._label = re.compile(re.escape(settings.key) + r"-v([1-9][0-9]{0,8})")
        self._login = _Login(name, settings)

    @property
    def facts(self) -> Facts:
        """Say which key; that it cannot be extracted is checked when it is used first."""
        key = f"{self._settings.token}/{self._settings.key}"
        return Facts(kind="pkcs11", key=key, release="in-broker", exportable=False)

    def current(self) -> str:
        """Return the highest version, proved to be of a key that never leaves the token."""

        def look(session: Any) -> str:
            version = self._highest(session)
            if version is None:
                raise key_missing(self._name, self._settings.key)
            key = self._key(session, version)
            for attribute, wanted in _FIT.items():
                if key[attribute] is not wanted:
                    raise unfit(self._name, f"has {attribute.name} {key[attribute]!r}")
            self._check_mechanism(session)
            return str(version)

        return self._do(look)

    def create(self, context: WrapContext) -> Wrapped:
        """Return 32 bytes of the token's generator, wrapped."""
        drawn: bytes = self._do(lambda session: session.generate_random(8 * KEY_BYTES))
        with wiped(bytearray(drawn)) as key:
            return self.wrap(key, context)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return nonce and ciphertext, made in the token under its highest version."""
        secret = bytes(key)

        def encrypt(session: Any) -> Wrapped:
            version = self._highest(session)
            if version is None:
                raise key_missing(self._name, self._settings.key)
            payload = _encrypt(session, self._key(session, version), secret, context.aad())
            return Wrapped(version=str(version), payload=payload)

        return self._do(encrypt)

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        if not re.fullmatch(r"[1-9][0-9]{0,8}", wrapped.version):
            raise unwrap_failed()
        if len(wrapped.payload) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            raise unwrap_failed()
        secret = self._do(lambda session: self._decrypt(session, wrapped, context.aad()))
        return taken(secret, self._name)

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context; it passes through the broker."""
        return rewrap_in_broker(self, wrapped, old, new)

    def rotate(self) -> str:
        """Make a key of the next version in the token."""

        def generate(session: Any) -> str:
            self._check_mechanism(session)
            version = (self._highest(session) or 0) + 1
            session.generate_key(
                KeyType.AES,
                8 * KEY_BYTES,
                label=f"{self._settings.key}-v{version}",
                id=version.to_bytes(4, "big"),
                store=True,
                template=_TEMPLATE,
            )
            return str(version)

        self._do(generate, again=False)
        return self.current()

    def close(self) -> None:
        """Close the session."""
        self._login.close()

    def _decrypt(self, session: Any, wrapped: Wrapped, aad: bytes) -> bytes:
        key = self._key(session, int(wrapped.version))
        nonce, sealed = wrapped.payload[:NONCE_BYTES], wrapped.payload[NONCE_BYTES:]
        try:
            return _decrypted(key, nonce, sealed, aad)
        except _WRONG_TAG as exc:
            failure = type(exc).__name__
        try:
            probe = _encrypt(session, key, _PROBE, b"probe")
            works = _decrypted(key, probe[:NONCE_BYTES], probe[NONCE_BYTES:], b"probe") == _PROBE
        except _WRONG_TAG:
            works = False
        raise unwrap_failed() if works else unavailable(self._name, failure)

    def _key(self, session: Any, version: int) -> Any:
        wanted = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.LABEL: f"{self._settings.key}-v{version}",
        }
        found = list(session.get_objects(wanted))
        if not found:
            # A token that shows no version at all has lost more than one, or its storage is away.
            none = self._highest(session) is None
            raise key_missing(self._name, self._settings.key) if none else destroyed(self._name, str(version))
        if len(found) > 1:
            raise unfit(self._name, f"version {version} is there {len(found)} times")
        return found[0]

    def _highest(self, session: Any) -> int | None:
        wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
        labels = [self._label.fullmatch(key.label or "") for key in session.get_objects(wanted)]
        return max((int(match[1]) for match in labels if match is not None), default=None)

    def _check_mechanism(self, session: Any) -> None:
        if Mechanism.AES_GCM not in session.token.slot.get_mechanisms():
            raise unfit(self._name, "cannot be used with CKM_AES_GCM, which the token lacks")

    def _do(self, work: Callable[[Any], T], *, again: bool = True) -> T:
        for tries_left in (1, 0) if again else (0,):
            try:
                with self._login.session() as session:
                    return work(session)
            except _LOST as exc:
                if not tries_left:
                    raise unavailable(self._name, type(exc).__name__) from None
            except p11.PKCS11Error as exc:
                raise unavailable(self._name, type(exc).__name__) from None
        raise unavailable(self._name, "no session")


_TEMPLATE: dict[Any, bool] = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.MODIFIABLE: False,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: True,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
}


class _Login:
    """One session, logged in when it is needed; one call into the library at a time."""

    def __init__(self, name: str, settings: Pkcs11Settings) -> None:
        self._name, self._settings = name, settings
        self._session: Any = None

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        lock = _library_lock(self._settings.module)
        if not lock.acquire(timeout=self._settings.timeout_s):
            raise unavailable(self._name, "another call to its library does not end")
        try:
            if self._session is None:
                self._session = self._open()
            yield self._session
        except p11.PKCS11Error:
            # Whatever was under way in this session is ended with it.
            self._drop()
            raise
        finally:
            lock.release()

    def close(self) -> None:
        with _library_lock(self._settings.module):
            self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(p11.PKCS11Error):
                session.close()

    def _open(self) -> Any:
        pin = secret_of(self._settings.pin_file)
        try:
            token = pkcs11.lib(self._settings.module).get_token(token_label=self._settings.token)
        except (p11.NoSuchToken, p11.MultipleTokensReturned, p11.TokenNotPresent) as exc:
            raise unavailable(self._name, f"token {self._settings.token}: {type(exc).__name__}") from None
        except RuntimeError:  # the process has loaded another one
            raise unavailable(self._name, f"{self._settings.module} cannot be loaded") from None
        try:
            return _logged_in(token, pin)
        except _PIN as exc:
            raise denied(self._name, type(exc).__name__) from None


@cache
def _library_lock(_module: str) -> threading.Lock:
    """Return the lock of a library, which the process has loaded once.

    python-pkcs11 initialises libraries with C_Initialize(NULL), which promises calls from one thread at a time; SoftHSM
    crashes the process when that is broken.
    """
    return threading.Lock()


def _logged_in(token: Any, pin: str) -> Any:
    try:
        return token.open(rw=True, user_pin=pin)
    except p11.UserAlreadyLoggedIn:  # by another backend of this process
        return token.open(rw=True)


def _encrypt(session: Any, key: Any, secret: bytes, aad: bytes) -> bytes:
    nonce: bytes = session.generate_random(8 * NONCE_BYTES)
    params = GCMParams(nonce, aad, TAG_BITS)
    sealed: bytes = key.encrypt(secret, mechanism=Mechanism.AES_GCM, mechanism_param=params)
    return nonce + sealed


def _decrypted(key: Any, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
    params = GCMParams(nonce, aad, TAG_BITS)
    opened: bytes = key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=params)
    return opened
