"""The client's half, without I/O: seal a request, read its sealed response, tell what a failure means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealwright.errors import SealwrightError, UnavailableError
from sealwright.transport.bhttp import BinaryRequest, MessageParser, ResponseHead
from sealwright.transport.fields import Fields, http_date
from sealwright.transport.keys import KeyConfig
from sealwright.transport.ohttp import REQUEST_TYPE, RESPONSE_TYPE, RequestSealer
from sealwright.transport.padding import BUCKET, PADDING_FIELD, SSE, strip
from sealwright.transport.replay import not_started_message

KEYSET_FIELD = b"sealwright-keyset"
NOT_STARTED_TYPE = b"application/vnd.sealwright.not-started"
_MAX_OUTER_BODY = 64 * 1024  # bytes read of an answer that is not sealed


class NotStarted(UnavailableError):
    """The enclave has signed that this request has not started and never will: it may be sealed again."""


class OutcomeUnknown(UnavailableError):
    """The request may have run. Never retried by itself; `stage` says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealTarget:
    """An enclave's key, from a keyset that the caller has verified."""

    config: KeyConfig
    keyset_digest: bytes  # 32 bytes
    receipt_key: Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRequest:
    """What to POST to `GATEWAY_PATH`, and what reads the answer."""

    headers: Fields  # of the outer request; nothing of the inner one stands in them
    body: bytes
    response: ResponseReader


def seal_request(
    target: SealTarget, request: BinaryRequest, *, now: datetime, bucket: int = BUCKET
) -> SealedRequest:
    """Seal a request to an enclave. Seal again for each attempt: a sealed request starts at most once.

    Args:
        now: the client's time; sealed as the `date` field.
        bucket: the message is zero-padded to a multiple of this, bytes.

    Raises:
        MessageFormatError: the request is not valid HTTP, or the key configuration has no algorithm of ours.
    """
    kept = tuple((name, value) for name, value in request.headers if name != b"date")
    dated = replace(request, headers=((b"date", http_date(now)), *kept))
    sealer = RequestSealer(target.config)
    body = sealer.seal_all(dated.encode(bucket=bucket))
    headers = (
        (b"content-type", REQUEST_TYPE),
        (b"accept", RESPONSE_TYPE),
        (b"incremental", b"?1"),
        (KEYSET_FIELD, target.keyset_digest.hex().encode()),
    )
    return SealedRequest(headers=headers, body=body, response=ResponseReader(target, sealer))


class ResponseReader:
    """Reads one answer: `begin`, then `feed` for each piece, then `finish`.

    `head` is set once status and fields have come, `trailers` by `finish`. Until `finish` has
    returned, what came is genuine but may not be all.
    """

    def __init__(self, target: SealTarget, sealer: RequestSealer) -> None:
        """Made by `seal_request`."""
        self.head: ResponseHead | None = None
        self.trailers: Fields = ()
        self._target, self._enc = target, sealer.enc
        self._opener = sealer.response_opener()
        self._parser = MessageParser(request=False)
        self._strip = False
        self._outer: bytearray | None = None
        self._status = 0
        self._type = b""

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the outer status and header fields."""
        self._status = status
        self._type = next((value for name, value in headers if name.lower() == b"content-type"), b"")
        if status != 200 or self._type.lower() != RESPONSE_TYPE:
            self._outer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the inner body that `data` (outer body) completes.

        Raises:
            VerificationError, MessageFormatError: the stream was altered, or answers another request.
            OutcomeUnknown: an answer that is not sealed, and over 64 KiB.
        """
        if self._outer is not None:
            self._outer += data
            if len(self._outer) > _MAX_OUTER_BODY:
                raise _unknown(f"answered {self._status} outside the seal, without end", "outer-status")
            return []
        return self._content(self._opener.feed(data))

    def finish(self) -> list[bytes]:
        """Return the last pieces of the inner body; the response is whole and `trailers` are set.

        Raises:
            NotStarted: the enclave says, signed, that it has not begun.
            OutcomeUnknown: the answer is not a sealed one, or ends too early.
            VerificationError, MessageFormatError: as `feed`.
        """
        if self._outer is not None:
            raise self._refusal(bytes(self._outer))
        try:
            last = self._opener.finish()
        except SealwrightError as exc:
            if exc.code == "stream-truncated":
                raise _unknown("the sealed answer was cut short", "truncated") from exc
            raise
        pieces = self._content([last]) + self._pieces(self._parser.finish())
        self.trailers = self._parser.trailers or ()
        return pieces

    def lost(self) -> OutcomeUnknown:
        """Return the error for a connection that failed after bytes of the request were sent."""
        return _unknown("the connection was lost before the answer was whole", "connection")

    def _content(self, plaintexts: list[bytes]) -> list[bytes]:
        pieces = [piece for plain in plaintexts for piece in self._parser.feed(plain)]
        if self.head is None and self._parser.head is not None:
            self._take_head(self._parser.head)
        return self._pieces(pieces)

    def _take_head(self, head: ResponseHead) -> None:
        self._strip = (PADDING_FIELD, SSE) in head.headers
        kept = tuple((name, value) for name, value in head.headers if name != PADDING_FIELD)
        self.head = ResponseHead(status=head.status, headers=kept)

    def _pieces(self, pieces: list[bytes]) -> list[bytes]:
        return [piece for piece in map(strip, pieces) if piece] if self._strip else pieces

    def _refusal(self, body: bytes) -> UnavailableError:
        if self._status == 503 and self._type == NOT_STARTED_TYPE and len(body) == 64:
            message = not_started_message(self._target.keyset_digest, self._enc)
            try:
                self._target.receipt_key.verify(body, message)
            except InvalidSignature:
                return _unknown(
                    "a statement of 'not started' that its key did not sign", "not-started-signature"
                )
            return NotStarted("the enclave takes no requests; this one has not started", code="not-started")
        # Nobody signed this answer: it may steer a new attestation, never a retry.
        stage = "ohttp-key" if b"#ohttp-key" in body else "outer-status"
        return _unknown(f"answered {self._status} outside the seal", stage)


def _unknown(text: str, stage: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{text}; the request may have run", code="outcome-unknown", stage=stage)
