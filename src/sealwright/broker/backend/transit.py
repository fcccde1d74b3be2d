"""The transit engine of Vault and OpenBao, over its HTTP interface.

Spec: docs/spec/key-backends.md, Backends.
"""

from __future__ import annotations

import os
import re
import threading
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2

from sealwright.broker.backend.base import (
    KEY_BYTES,
    Facts,
    WrapContext,
    Wrapped,
    denied,
    destroyed,
    key_missing,
    malformed,
    rewrap_in_broker,
    taken,
    unfit,
    unwrap_failed,
    wiped,
)
from sealwright.broker.backend.rest import Answer, Rest, refused, text
from sealwright.broker.backend.settings import TransitSettings, secret_of
from sealwright.errors import SettingsError

_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,9}):[A-Za-z0-9+/]+={0,2}")
_FIT = {
    "type": "aes256-gcm96",
    "derived": False,
    "exportable": False,
    "allow_plaintext_backup": False,
}


class TransitBackend:
    """One transit key."""

    def __init__(
        self,
        name: str,
        settings: TransitSettings,
        *,
        transport: httpx2.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet. Args: transport: in place of the network, for tests."""
        self._name, self._settings = name, settings
        ca_file = None if settings.ca_file is None else Path(settings.ca_file)
        self._rest = Rest(
            name, settings.url, timeout_s=settings.timeout_s, ca_file=ca_file, transport=transport
        )
        self._login = _Login(name, settings, self._rest, monotonic)

    @property
    def facts(self) -> Facts:
        """Say which key; that it is not exportable is checked when it is used first."""
        key = f"{self._settings.mount}/{self._settings.key}"
        return Facts(kind="transit", key=key, release="in-broker", exportable=False)

    def current(self) -> str:
        """Return the latest version, proved to be of a fit key."""
        key = self._key()
        for member, wanted in _FIT.items():
            if key.get(member) != wanted:
                raise unfit(self._name, f"has {member} {str(key.get(member))[:32]!r}, not {wanted!r}")
        return str(_number(key, "latest_version", self._name))

    def create(self, context: WrapContext) -> Wrapped:
        """Return 32 random bytes, wrapped: not every server binds its data keys to a context."""
        with wiped(bytearray(os.urandom(KEY_BYTES))) as key:
            return self.wrap(key, context)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return `key` encrypted under the latest version."""
        body = {"plaintext": b64encode(key).decode(), "associated_data": _data(context)}
        answer = self._ask("POST", "encrypt", body)
        if not answer.ok:
            raise refused(answer, self._name)
        sealed = text(answer, self._name, "data", "ciphertext")
        match = _CIPHERTEXT.fullmatch(sealed)
        if match is None:
            raise malformed(self._name, "the ciphertext is not in its form")
        return Wrapped(version=match[1], payload=sealed.encode())

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        sealed = wrapped.payload.decode("ascii", "replace")
        match = _CIPHERTEXT.fullmatch(sealed)
        if match is None or match[1] != wrapped.version:
            raise unwrap_failed()
        answer = self._ask("POST", "decrypt", {"ciphertext": sealed, "associated_data": _data(context)})
        if answer.status == 400:
            raise self._why(int(match[1]))
        if not answer.ok:
            raise refused(answer, self._name)
        try:
            secret = b64decode(text(answer, self._name, "data", "plaintext"), validate=True)
        except Base64Error:
            raise malformed(self._name, "the plaintext is not base64") from None
        return taken(secret, self._name)

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context; it passes through the broker."""
        return rewrap_in_broker(self, wrapped, old, new)

    def rotate(self) -> str:
        """Make a new version, or the key."""
        answer = self._ask("GET", "keys")
        if answer.status == 404:
            self._done(self._ask("POST", "keys", {"type": _FIT["type"]}, again=False))
        else:
            self._done(answer)
            self._done(self._ask("POST", "keys", {}, after="rotate", again=False))
        return self.current()

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _why(self, version: int) -> Exception:
        # The engine answers 400 to a wrong tag and to a forbidden version alike, and tells them apart in
        # words only: the key's own record decides.
        key = self._key()
        oldest = max(
            _number(key, name, self._name) for name in ("min_decryption_version", "min_available_version")
        )
        return destroyed(self._name, str(version)) if version < oldest else unwrap_failed()

    def _key(self) -> Mapping[str, object]:
        answer = self._ask("GET", "keys")
        if answer.status == 404:
            raise key_missing(self._name, self._settings.key)
        self._done(answer)
        data = answer.body.get("data")
        if not isinstance(data, Mapping):
            raise malformed(self._name, "it has no data")
        return data

    def _done(self, answer: Answer) -> None:
        if not answer.ok:
            raise refused(answer, self._name)

    def _ask(
        self,
        method: str,
        what: str,
        body: Mapping[str, object] | None = None,
        *,
        after: str = "",
        again: bool = True,
    ) -> Answer:
        path = f"/v1/{self._settings.mount}/{what}/{self._settings.key}" + (f"/{after}" if after else "")
        token = self._login.token()
        answer = self._rest.ask(method, path, body, headers=self._login.headers(token), again=again)
        if answer.status == 403 and self._login.lost(token):
            headers = self._login.headers(self._login.token())
            answer = self._rest.ask(method, path, body, headers=headers, again=again)
        return answer


class _Login:
    """The token: from a file, or by AppRole; renewed at half of its life, when it is used."""

    def __init__(
        self, name: str, settings: TransitSettings, rest: Rest, monotonic: Callable[[], float]
    ) -> None:
        by_role = settings.role_id is not None and settings.secret_id_file is not None
        if by_role == (settings.token_file is not None):
            raise SettingsError(
                f"backend {name} needs token_file, or role_id and secret_id_file",
                code="backend-credential-missing",
            )
        self._name, self._settings, self._rest, self._monotonic = name, settings, rest, monotonic
        self._lock = threading.Lock()
        self._token, self._renew_at = "", 0.0

    def headers(self, token: str) -> dict[str, str]:
        headers = (
            {"x-vault-token": token, "x-vault-request": "true"} if token else {"x-vault-request": "true"}
        )
        if self._settings.namespace is not None:
            headers["x-vault-namespace"] = self._settings.namespace
        return headers

    def token(self) -> str:
        with self._lock:
            if not self._token:
                self._begin()
            elif self._monotonic() >= self._renew_at:
                self._renew()
            return self._token

    def lost(self, token: str) -> bool:
        """Forget a token that was refused; say whether there may be another."""
        with self._lock:
            if self._token == token:
                self._token = ""
            return self._settings.role_id is not None or secret_of(self._settings.token_file or "") != token

    def _begin(self) -> None:
        settings = self._settings
        if settings.token_file is not None:
            self._token = secret_of(settings.token_file)
            self._renew()
            return
        body = {"role_id": settings.role_id, "secret_id": secret_of(settings.secret_id_file or "")}
        path = f"/v1/auth/{settings.auth_mount}/login"
        answer = self._rest.ask("POST", path, body, headers=self.headers(""), again=False)
        if not answer.ok:
            raise denied(self._name, f"the login was answered {answer.status}")
        self._token = text(answer, self._name, "auth", "client_token")
        self._renew_at = self._monotonic() + _life(answer) / 2

    def _renew(self) -> None:
        # A token that cannot be renewed (root, batch, at its end) is used until it is refused.
        path, headers = "/v1/auth/token/renew-self", self.headers(self._token)
        answer = self._rest.ask("POST", path, {}, headers=headers)
        self._renew_at = self._monotonic() + (_life(answer) / 2 if answer.ok else 60.0)


def _life(answer: Answer) -> float:
    auth = answer.body.get("auth")
    life = auth.get("lease_duration") if isinstance(auth, Mapping) else None
    return float(life) if isinstance(life, int) and life > 0 else 3600.0


def _data(context: WrapContext) -> str:
    return b64encode(context.aad()).decode()


def _number(key: Mapping[str, object], member: str, name: str) -> int:
    value = key.get(member)
    if not isinstance(value, int) or isinstance(value, bool):
        raise malformed(name, f"the key has no {member}")
    return value
