"""The enclave's half, without I/O: open a request, decide whether it may start, seal its response."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.canonical import canonical
from sealwright.errors import (
    AppraisalError,
    FormatError,
    MessageFormatError,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)
from sealwright.transport.bhttp import BinaryRequest, MessageParser, finish_request
from sealwright.transport.fields import Fields, http_date, one_value, parse_http_date
from sealwright.transport.keys import GatewayKey
from sealwright.transport.ohttp import RequestOpener, ResponseSealer
from sealwright.transport.replay import EncCache

MAX_REQUEST = 16 << 20  # bytes of a request body
MAX_ARRIVING = 256 << 20  # bytes of all requests that are not whole yet; nobody in them is authenticated

_PROBLEM_TYPES = {
    "ohttp-key": "https://iana.org/assignments/http-problem-types#ohttp-key",
    "date": "https://iana.org/assignments/http-problem-types#date",
}
_CODE_STATUS = {
    "barred": 409,
    "bhttp-too-large": 413,
    "body-timeout": 408,
    "chunk-open-failed": 400,
    "date": 400,
    "hpke-weak-point": 400,
    "inner-failed": 500,
    "ohttp-key": 400,
    "replayed": 409,
    "stream-truncated": 400,
}
_TYPE_STATUS: tuple[tuple[type[SealwrightError], int], ...] = (
    (FormatError, 400),
    (VerificationError, 401),
    (RevokedError, 401),
    (AppraisalError, 403),
    (UnavailableError, 503),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a credential stands for. `tenant` has a share of the replay cache."""

    tenant: str
    name: str = ""


Authenticate = Callable[[Fields], Caller]
"""Takes the sealed header fields; raises a `SealwrightError` to refuse (VerificationError gives 401)."""


class NotServing(UnavailableError):
    """The request was barred; `statement` is the signature that says so."""

    def __init__(self, statement: bytes) -> None:
        """Args: statement: 64 bytes."""
        super().__init__("this enclave takes no requests", code="not-serving", stage="replay")
        self.statement = statement


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingKeyset:
    """A keyset that is served: private keys by key id, receipt key, and its replay cache."""

    keyset_digest: bytes  # 32 bytes
    keys: Mapping[int, GatewayKey]
    receipt_key: Ed25519PrivateKey
    cache: EncCache


class Gateway:
    """The live keysets. `accepting` is set to False by an enclave that takes no more requests."""

    def __init__(
        self,
        keysets: Iterable[ServingKeyset],
        *,
        max_request: int = MAX_REQUEST,
        max_arriving: int = MAX_ARRIVING,
    ) -> None:
        """Args: keysets: with distinct key ids; max_request: largest inner body; max_arriving: of all; bytes."""
        self.accepting = True
        self.max_request = max_request
        self._room = max(max_arriving, max_request)
        self._sessions: set[RequestSession] = set()
        self.replace(keysets)

    def replace(self, keysets: Iterable[ServingKeyset]) -> None:
        """Serve these keysets from now on. Requests that are still arriving under another one end."""
        pairs = [(key_id, keyset) for keyset in keysets for key_id in keyset.keys]
        by_id = dict(pairs)
        if len(by_id) != len(pairs):
            raise ValueError("two live keysets share a key id")
        self._by_id = by_id
        self.keys = {key_id: keyset.keys[key_id] for key_id, keyset in by_id.items()}
        for session in tuple(self._sessions):
            session.replaced(self.keys, by_id)

    def hold(self, count: int) -> None:
        """Count bytes of requests that arrive; negative ones are let go.

        Raises:
            UnavailableError: `gateway-full`.
        """
        if count > self._room:
            raise UnavailableError("too much is arriving at once", code="gateway-full", stage="open")
        self._room -= count

    def session(self) -> RequestSession:
        """Return what takes one request."""
        session = RequestSession(self, self._by_id)
        self._sessions.add(session)
        return session

    def forget(self, session: RequestSession) -> None:
        """Take no more notice of a session that has closed."""
        self._sessions.discard(session)


class RequestSession:
    """One outer request body, in pieces. Every error here is answered outside the seal."""

    def __init__(self, gateway: Gateway, keysets: Mapping[int, ServingKeyset]) -> None:
        """Made by `Gateway.session`."""
        self._gateway = gateway
        self._keysets = keysets
        self._opener: RequestOpener | None = RequestOpener(gateway.keys)
        # Padding and fields come on top of the body.
        self._left = gateway.max_request + (1 << 20)
        self._plain = bytearray()
        self._held = 0

    def feed(self, data: bytes) -> None:
        """Take a piece.

        Raises:
            VerificationError, MessageFormatError: unknown key, altered, or too large.
            UnavailableError: `gateway-full`.
        """
        for chunk in self._live().feed(data):
            self._gateway.hold(len(chunk))
            self._held += len(chunk)
            self._left -= len(chunk)
            if self._left < 0:
                raise MessageFormatError("a request over its limit", code="bhttp-too-large")
            self._plain += chunk

    def close(self) -> None:
        """Let go of what has arrived and of all keys: it is an exchange now, or was refused."""
        self._gateway.hold(-self._held)
        self._held = 0
        self._opener, self._keysets = None, {}
        self._gateway.forget(self)

    def replaced(self, keys: Mapping[int, GatewayKey], keysets: Mapping[int, ServingKeyset]) -> None:
        """Go on under the keysets that are served now, if this request's is one of them."""
        opener = self._opener
        if opener is None or not opener.enc or opener.key not in keys.values():
            self._opener, self._keysets = None, {}
        else:
            self._keysets = keysets

    def finish(self) -> Exchange:
        """Return the exchange: the request is whole. It is not parsed, authenticated or fresh yet.

        Raises:
            VerificationError: it ends early, or its end does not open.
        """
        opener = self._live()
        self._plain += opener.finish()
        key = opener.key
        if key is None:
            raise VerificationError("the request has no header", code="stream-truncated", stage="open")
        return Exchange(self._gateway, self._keysets[key.config.key_id], opener, bytes(self._plain))

    def _live(self) -> RequestOpener:
        if self._opener is None:
            raise VerificationError("the keys it was sealed to are gone", code="ohttp-key", stage="key")
        return self._opener


class Exchange:
    """A whole request under one keyset. Every error from here on is answered inside the seal."""

    def __init__(self, gateway: Gateway, keyset: ServingKeyset, opener: RequestOpener, plain: bytes) -> None:
        """Made by `RequestSession.finish`."""
        self.keyset_digest = keyset.keyset_digest
        self.enc_digest = hashlib.sha256(opener.enc).digest()
        self._gateway, self._keyset, self._opener, self._plain = gateway, keyset, opener, plain

    def admit(self, authenticate: Authenticate, *, now: datetime) -> tuple[BinaryRequest, Caller]:
        """Return the request, which may start now, once, and the caller it is for.

        Args:
            now: enclave time.

        Raises:
            MessageFormatError: not Binary HTTP, or without a date.
            NotServing: barred; the statement is signed.
            SealwrightError: what `authenticate` raised, or the replay cache.
        """
        parser = MessageParser(request=True, max_content=self._gateway.max_request)
        request = finish_request(parser, parser.feed(self._plain))
        caller = authenticate(request.headers)
        date = one_value(request.headers, b"date")
        if date is None:
            raise MessageFormatError("a request without a date", code="date-format", stage="date")
        self._enter(caller, parse_http_date(date), now)
        return request, caller

    def sealer(self) -> ResponseSealer:
        """Return what seals the response, under a nonce of its own."""
        return self._opener.response_sealer()

    def _enter(self, caller: Caller, date: datetime, now: datetime) -> None:
        cache, enc = self._keyset.cache, self._opener.enc
        if self._gateway.accepting:
            cache.admit(enc, tenant=caller.tenant, date=date, now=now)
        else:
            message = cache.bar(enc, tenant=caller.tenant, date=date, now=now)
            raise NotServing(self._keyset.receipt_key.sign(message))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as an answer (RFC 9457), with a stable `code` and no detail."""

    status: int
    headers: Fields
    body: bytes


def problem(error: SealwrightError, *, now: datetime | None = None) -> Problem:
    """Return the answer to an error. Its message stays here: it is for the audit log.

    Args:
        now: enclave time, told to a client whose date was refused.
    """
    status = _CODE_STATUS.get(error.code) or next(
        (status for kind, status in _TYPE_STATUS if isinstance(error, kind)), 500
    )
    kind = _PROBLEM_TYPES.get(error.code, "about:blank")
    body = canonical({"code": error.code, "status": status, "type": kind})
    headers: Fields = (
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        # Retrying the same bytes cannot help; the SDKs read this field.
        (b"x-should-retry", b"true" if error.code == "replay-cache-full" else b"false"),
    )
    if error.code == "date" and now is not None:
        headers += ((b"date", http_date(now)),)
    if error.code == "body-timeout":
        headers += ((b"connection", b"close"),)  # the rest of the body is not read
    return Problem(status=status, headers=headers, body=body)
