"""One request through the sealed channel, as steps that any HTTP library can perform. No I/O here.

`Exchanges.start` is a generator: it yields `Post`, `Read` and `Close`, is sent what they gave, and returns an
`Exchange`, whose pieces the library's response stream then feeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealwright.appraisal.policy import TrustFile
from sealwright.client.receipts import RECEIPT_TRAILER, AnswerReceipt, answer_receipt, missing
from sealwright.client.refusal import translated
from sealwright.client.session import Session
from sealwright.client.trust_source import TrustSource
from sealwright.client.verifier import VerifiedEnclave
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.hpke import HpkePublicKey, Kem
from sealwright.errors import FormatError, SealwrightError, UnavailableError
from sealwright.protocol.attestation import ATTESTATION_PATH, GATEWAY_PATH, MAX_BUNDLE
from sealwright.transport.bhttp import BinaryRequest, ResponseHead
from sealwright.transport.client import (
    NotStarted,
    OutcomeUnknown,
    ResponseReader,
    SealTarget,
    seal_request,
)
from sealwright.transport.fields import Fields
from sealwright.transport.keys import KeyConfig

LEASE_FIELD = b"sealwright-lease"
_MAX_WHOLE = 8 << 20  # bytes of a JSON answer that are read before it is handed on
_CODE = re.compile(r"[a-z0-9-]{1,64}")
_DONE = b"data: [DONE]"
_JSON = (b"application/json", b"application/problem+json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Send this to the untrusted server; gives a `Pipe`."""

    path: str
    headers: Fields
    body: bytes


@dataclass(slots=True)
class Pipe:
    """An outer response whose body is still to be read; `raw` and `chunks` belong to the performer."""

    status: int
    headers: Fields
    raw: Any
    chunks: Any


@dataclass(frozen=True, slots=True)
class Read:
    """Read on; gives bytes, or None at the end."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Close:
    """Close the outer response; gives nothing."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Acquire:
    """Wait for the lock of these exchanges, so that one verification serves all who wait; gives nothing."""

    lock: Any


@dataclass(frozen=True, slots=True)
class Release:
    """Let the next one go on; gives nothing."""

    lock: Any


class ConnectionLost(Exception):
    """The performer's connection failed after it may have sent bytes."""


Step = Post | Read | Close | Acquire | Release
Steps = Generator[Step, Any, "Exchange"]


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A sealed answer whose head has come. `feed` and `finish` open the rest."""

    pipe: Pipe
    head: ResponseHead
    ready: list[bytes]  # pieces of the body that came with the head
    _reader: ResponseReader
    enclave: VerifiedEnclave  # whom the request was sealed to, under its latest lease
    _request_digest: bytes
    _hash: Any = field(default_factory=hashlib.sha256)
    _held: list[bytes] = field(default_factory=list)
    ended: bool = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body that `data` completes. Raises as `ResponseReader.feed`."""
        return self.opened(self._reader.feed(data))

    def finish(self) -> list[bytes]:
        """Return the last pieces; the answer is whole. Raises as `ResponseReader.finish`."""
        pieces = self.opened(self._reader.finish())
        self.ended = True
        return [*pieces, *self._last()]

    def lost(self) -> OutcomeUnknown:
        """Return the error for a connection that failed within the answer."""
        return self._reader.lost()

    def receipt(self) -> AnswerReceipt:
        """Return the answer's receipt, verified. Raises as `sealwright.client.receipts.receipt_of`."""
        trailers = [value for name, value in self._reader.trailers if name == RECEIPT_TRAILER]
        if not self.ended or len(trailers) != 1:
            raise missing(self.ended)
        return answer_receipt(
            trailers[0],
            self.enclave,
            request_digest=self._request_digest,
            response_digest=self._hash.digest(),
        )

    def opened(self, pieces: list[bytes]) -> list[bytes]:
        """Return what of `pieces` may be handed on: an end of events waits for the end of the answer.

        SDKs stop reading at `[DONE]`, and would miss a cut stream and the receipt behind it.
        """
        out: list[bytes] = []
        for piece in pieces:
            self._hash.update(piece)
            out += self._last()
            (self._held if piece.rstrip().endswith(_DONE) else out).append(piece)
        return out

    def _last(self) -> list[bytes]:
        held, self._held = self._held, []
        return held


class Exchanges:
    """Starts exchanges with one enclave (or the relay before it) at one origin."""

    def __init__(self, trust: TrustSource, *, now: Callable[[], datetime], lock: Any) -> None:
        """Args: now: this client's own clock, aware; lock: the performer's, for `Acquire` and `Release`."""
        self._trust, self._now, self._lock = trust, now, lock
        self._session = Session()

    def start(self, request: BinaryRequest) -> Steps:
        """Verify if need be, seal `request`, and return the exchange once the sealed head has come.

        Raises:
            SealwrightError: refused; `OutcomeUnknown` where the request may have run.
        """
        try:
            return (yield from self._attempt(request))
        except NotStarted:
            # Signed by the attested enclave: this one never ran, so it may be sealed again, once.
            self._session.forget("the enclave takes no more requests")
            return (yield from self._attempt(request))

    def _attempt(self, request: BinaryRequest) -> Steps:
        enclave = yield from self._enclave()
        sealed = seal_request(_target(enclave), request, now=self._now())
        try:
            pipe: Pipe = yield Post(path=GATEWAY_PATH, headers=sealed.headers, body=sealed.body)
        except ConnectionLost:
            raise sealed.response.lost() from None
        try:
            return (yield from self._answer(pipe, sealed.response, enclave, request))
        except BaseException:
            yield Close(pipe)
            raise

    def _enclave(self) -> Generator[Step, Any, VerifiedEnclave]:
        trust = self._trust.load()
        held = self._session.held(trust, at=self._now())
        if held is not None:
            return held
        yield Acquire(self._lock)
        try:
            held = self._session.held(trust, at=self._now())
            return held if held is not None else (yield from self._verify(trust))
        finally:
            yield Release(self._lock)

    def _verify(self, trust: TrustFile) -> Generator[Step, Any, VerifiedEnclave]:
        ask = self._session.attest(trust)
        headers = ((b"content-type", b"application/json"), (b"accept", b"application/json"))
        try:
            pipe: Pipe = yield Post(path=ATTESTATION_PATH, headers=headers, body=ask.encode())
            try:
                bundle = yield from _whole(pipe, MAX_BUNDLE)
            finally:
                yield Close(pipe)
        except ConnectionLost:
            raise _no_evidence("the connection was lost") from None
        if pipe.status != 200:
            raise _no_evidence(f"it answered {pipe.status}{_said(bundle)}")
        return self._session.verified(bundle, ask, trust, at=self._now())

    def _answer(
        self, pipe: Pipe, reader: ResponseReader, enclave: VerifiedEnclave, request: BinaryRequest
    ) -> Steps:
        reader.begin(pipe.status, pipe.headers)
        ready: list[bytes] = []
        data: bytes | None = b""
        try:
            while reader.head is None and data is not None:
                data = yield Read(pipe)
                ready += reader.finish() if data is None else reader.feed(data)
        except ConnectionLost:
            raise reader.lost() from None
        except OutcomeUnknown:
            # Perhaps it has other keys now: nothing unsigned decides that, a new verification does.
            self._session.forget("the last answer was not a sealed one")
            raise
        if reader.head is None:
            raise reader.lost()
        exchange = Exchange(
            pipe=pipe,
            head=reader.head,
            ready=[],
            _reader=reader,
            enclave=self._renewed(reader.head, enclave),
            _request_digest=hashlib.sha256(request.body).digest(),
            ended=data is None,
        )
        exchange.ready = exchange.opened(ready) + (exchange._last() if exchange.ended else [])
        return (yield from _buffered(exchange))

    def _renewed(self, head: ResponseHead, enclave: VerifiedEnclave) -> VerifiedEnclave:
        """Take the lease of a sealed head; return the enclave under the lease that the answer was given."""
        header = next((value for name, value in head.headers if name == LEASE_FIELD), None)
        if header is None:
            return enclave
        lease, now = header.decode("latin-1"), self._now()
        self._session.take_lease(lease, enclave, at=now)
        return self._session.under(lease, enclave, at=now)


def _buffered(exchange: Exchange) -> Steps:
    """Read a JSON answer to its end, so that a cut one is refused before the caller sees any of it.

    SDKs retry when a body fails to arrive; a refusal they do not. Streams are handed on at once.
    """
    kinds = [value.split(b";")[0].strip() for name, value in exchange.head.headers if name == b"content-type"]
    if not kinds or kinds[0] not in _JSON:
        return exchange
    try:
        while not exchange.ended and sum(map(len, exchange.ready)) <= _MAX_WHOLE:
            data = yield Read(exchange.pipe)
            exchange.ready += exchange.finish() if data is None else exchange.feed(data)
    except ConnectionLost:
        raise exchange.lost() from None
    if exchange.ended:
        headers, body = translated(exchange.head.headers, b"".join(exchange.ready))
        exchange.head, exchange.ready = ResponseHead(status=exchange.head.status, headers=headers), [body]
    return exchange


def _whole(pipe: Pipe, limit: int) -> Generator[Read, Any, bytes]:
    out = bytearray()
    while len(out) <= limit:
        data = yield Read(pipe)
        if data is None:
            return bytes(out)
        out += data
    raise _no_evidence(f"it answered more than {limit} bytes")


def _target(enclave: VerifiedEnclave) -> SealTarget:
    key = enclave.hpke_key
    public = HpkePublicKey(kem=Kem(key.kem), raw=key.public_key)
    return SealTarget(
        config=KeyConfig(key_id=key.key_id, public=public, algorithms=((key.kdf, key.aead),)),
        keyset_digest=enclave.keyset_digest,
        receipt_key=Ed25519PublicKey.from_public_bytes(enclave.keyset.receipt_key),
    )


def _said(body: bytes) -> str:
    """Return the code of an unsigned refusal, for people: nothing is decided by it."""
    with contextlib.suppress(FormatError):
        match parse_json(body, limit=4096):
            case {"code": str(code)} if _CODE.fullmatch(code):
                return f" ({code})"
    return ""


def _no_evidence(why: str) -> SealwrightError:
    return UnavailableError(
        f"no evidence from the enclave: {why}; nothing was sent to it",
        code="attestation-unavailable",
        stage="attestation",
    )
