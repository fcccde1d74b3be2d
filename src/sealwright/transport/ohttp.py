"""Chunked OHTTP: the four incremental state machines (draft-ietf-ohai-chunked-ohttp, sections 4 to 6).

Once an opener has refused anything it refuses all that follows. Only `finish` proves a stream whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sealwright.crypto.hpke import (
    MAX_MESSAGES,
    NONCE_LENGTH,
    TAG_LENGTH,
    Aead,
    EphemeralSource,
    RecipientContext,
    SenderContext,
    setup_recipient,
    setup_sender,
)
from sealwright.errors import MessageFormatError, VerificationError
from sealwright.transport.keys import HEADER, GatewayKey, KeyConfig
from sealwright.transport.varint import decode_varint, encode_varint

REQUEST_TYPE = b"message/ohttp-chunked-req"
RESPONSE_TYPE = b"message/ohttp-chunked-res"
MAX_CHUNK = 16384  # bytes of plaintext

_MAX_SEALED = MAX_CHUNK + TAG_LENGTH
_REQUEST_INFO = b"message/bhttp chunked request\x00"
_RESPONSE_LABEL = b"message/bhttp chunked response"
_FINAL = b"final"


def _response_keys(
    context: SenderContext | RecipientContext, enc: bytes, nonce: bytes
) -> tuple[AESGCM | ChaCha20Poly1305, int]:
    """Return cipher and first AEAD nonce of the response, from the request's context."""
    aead = context.aead
    prk = HKDF.extract(hashes.SHA256(), enc + nonce, context.export(_RESPONSE_LABEL, nonce_length(aead)))
    cipher = aead.cipher(_expand(prk, b"key", aead.key_length))
    return cipher, int.from_bytes(_expand(prk, b"nonce", NONCE_LENGTH), "big")


def _used_up() -> VerificationError:
    return VerificationError(
        "this response has ended, or is used up", code="hpke-message-limit", stage="seal"
    )


def nonce_length(aead: Aead) -> int:
    """Return the length of a response nonce, bytes: max(Nn, Nk)."""
    return max(NONCE_LENGTH, aead.key_length)


def _expand(prk: bytes, label: bytes, length: int) -> bytes:
    return HKDFExpand(hashes.SHA256(), length, label).derive(prk)


class RequestSealer:
    """Seals one request, chunk by chunk."""

    def __init__(
        self, config: KeyConfig, *, testing_ephemeral: EphemeralSource = X25519PrivateKey.generate
    ) -> None:
        """Set up a sending context for `config`; see `setup_sender` for `testing_ephemeral`."""
        header = config.header()
        self.enc, self._context = setup_sender(
            config.public, _REQUEST_INFO + header, aead=config.aead, testing_ephemeral=testing_ephemeral
        )
        self.prefix = header + self.enc  # the bytes before the first chunk

    def seal(self, chunk: bytes) -> bytes:
        """Return the frame of a chunk, 1 to `MAX_CHUNK` bytes, that is not the last."""
        sealed = self._context.seal(chunk)
        return encode_varint(len(sealed)) + sealed

    def finish(self, chunk: bytes = b"") -> bytes:
        """Return the frame of the last chunk, which may be empty."""
        return b"\x00" + self._context.seal(chunk, _FINAL)

    def seal_all(self, message: bytes) -> bytes:
        """Return the whole encapsulated request for `message`."""
        cut = max(0, (len(message) - 1) // MAX_CHUNK * MAX_CHUNK)
        frames = [self.seal(message[at : at + MAX_CHUNK]) for at in range(0, cut, MAX_CHUNK)]
        return self.prefix + b"".join(frames) + self.finish(message[cut:])

    def response_opener(self) -> ResponseOpener:
        """Return what opens the response to this request, and no other."""
        return ResponseOpener(self._context, self.enc)


class _Frames:
    """Cuts a stream into sealed chunks; what follows the zero length is the last one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.final = False

    def feed(self, data: bytes) -> list[bytes]:
        buffer, at, out = self._buffer, 0, []
        buffer += data
        while not self.final and (found := decode_varint(buffer, at)):
            length, start = found
            if bytes(buffer[at:start]) != encode_varint(length):
                raise MessageFormatError("a chunk length not in its shortest form", code="chunk-length")
            if length == 0:
                self.final, at = True, start
            elif not TAG_LENGTH < length <= _MAX_SEALED:
                raise MessageFormatError(f"a chunk of {length} bytes", code="chunk-length")
            elif len(buffer) - start < length:
                break
            else:
                at = start + length
                out.append(bytes(buffer[start:at]))
        del buffer[:at]
        if self.final and len(buffer) > _MAX_SEALED:
            raise MessageFormatError("a final chunk over its limit", code="chunk-length")
        return out

    def last(self) -> bytes:
        if not self.final:
            raise VerificationError(
                "the stream ends before its final chunk", code="stream-truncated", stage="open"
            )
        return bytes(self._buffer)


class _Opener:
    """Cuts off the prefix, then opens chunks; dead after the first refusal or the end."""

    def __init__(self) -> None:
        self._prefix: bytearray | None = bytearray()
        self._frames = _Frames()
        self._dead = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the plaintexts of the chunks that `data` completes, authenticated and in order.

        Raises:
            VerificationError, MessageFormatError: refused; so is all that follows.
        """
        self._live()
        if self._prefix is not None:
            self._prefix += data
            rest = self._start(bytes(self._prefix))
            if rest is None:
                self._dead = False
                return []
            self._prefix, data = None, rest
        out = [self._plain(chunk, b"") for chunk in self._frames.feed(data)]
        self._dead = False
        return out

    def finish(self) -> bytes:
        """Return the plaintext of the final chunk: the stream is whole.

        Raises:
            VerificationError: it is cut short, or the final chunk does not open.
        """
        self._live()
        return self._plain(self._frames.last(), _FINAL)

    def _live(self) -> None:
        if self._dead:
            raise VerificationError("this stream was refused, or has ended", code="stream-dead", stage="open")
        self._dead = True

    def _plain(self, sealed: bytes, aad: bytes) -> bytes:
        try:
            return self._open(sealed, aad)
        except (InvalidTag, VerificationError):
            raise VerificationError(
                "a chunk does not open: altered, out of order, or of another exchange",
                code="chunk-open-failed",
                stage="open",
            ) from None

    def _start(self, prefix: bytes) -> bytes | None:
        """Set up keys and return what follows the prefix, or None while it is not all there."""
        raise NotImplementedError

    def _open(self, sealed: bytes, aad: bytes) -> bytes:
        raise NotImplementedError


class RequestOpener(_Opener):
    """Opens one request. `key` and `enc` are set once its prefix is there."""

    def __init__(self, keys: Mapping[int, GatewayKey]) -> None:
        """Args: keys: by key id."""
        super().__init__()
        self._keys = keys
        self.key: GatewayKey | None = None
        self.enc = b""

    def response_sealer(self, *, nonce: Callable[[int], bytes] = secrets.token_bytes) -> ResponseSealer:
        """Return what seals the response to this request, whose prefix must have come."""
        return ResponseSealer(self._context, self.enc, nonce=nonce)

    def _start(self, prefix: bytes) -> bytes | None:
        if len(prefix) < HEADER.size:
            return None
        header = prefix[: HEADER.size]
        self.key = key = self._lookup(header)
        end = HEADER.size + key.private.kem.enc_length
        if len(prefix) < end:
            return None
        self.enc = prefix[HEADER.size : end]
        aead = Aead(HEADER.unpack(header)[3])
        self._context = setup_recipient(key.private, self.enc, _REQUEST_INFO + header, aead=aead)
        self._keys = {}  # the others may be dropped while this request arrives
        return prefix[end:]

    def _open(self, sealed: bytes, aad: bytes) -> bytes:
        return self._context.open(sealed, aad)

    def _lookup(self, header: bytes) -> GatewayKey:
        key_id, kem, kdf, aead = HEADER.unpack(header)
        key = self._keys.get(key_id)
        if key is None or kem != key.private.kem or (kdf, aead) not in key.config.algorithms:
            raise VerificationError("the request names no key of ours", code="ohttp-key", stage="key")
        return key


class ResponseSealer:
    """Seals one response, chunk by chunk."""

    __slots__ = ("_base", "_counter", "_encrypt", "prefix")

    def __init__(
        self, context: RecipientContext, enc: bytes, *, nonce: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """Args: context, enc: of the request; nonce: random bytes of a length."""
        self.prefix = nonce(nonce_length(context.aead))  # the bytes before the first chunk
        cipher, self._base = _response_keys(context, enc, self.prefix)
        self._encrypt = cipher.encrypt
        self._counter = 0

    def seal(self, chunk: bytes) -> bytes:
        """Return the frame of a chunk, 1 to `MAX_CHUNK` bytes, that is not the last."""
        # Every token of every answer comes through here: one call fewer is worth having.
        counter = self._counter
        if counter >= MAX_MESSAGES:
            raise _used_up()
        self._counter = counter + 1
        sealed = self._encrypt((self._base ^ counter).to_bytes(NONCE_LENGTH, "big"), chunk, None)
        return encode_varint(len(sealed)) + sealed

    def finish(self, chunk: bytes = b"") -> bytes:
        """Return the frame of the last chunk, which may be empty."""
        if self._counter >= MAX_MESSAGES:
            raise _used_up()
        nonce = (self._base ^ self._counter).to_bytes(NONCE_LENGTH, "big")
        self._counter = MAX_MESSAGES  # nothing comes after the last
        return b"\x00" + self._encrypt(nonce, chunk, _FINAL)


class ResponseOpener(_Opener):
    """Opens the response to one request. Made by `RequestSealer.response_opener`."""

    def __init__(self, context: SenderContext, enc: bytes) -> None:
        """Args: context, enc: of the request."""
        super().__init__()
        self._context, self._enc = context, enc

    def _start(self, prefix: bytes) -> bytes | None:
        end = nonce_length(self._context.aead)
        if len(prefix) < end:
            return None
        cipher, self._base = _response_keys(self._context, self._enc, prefix[:end])
        self._decrypt = cipher.decrypt
        self._counter = 0
        return prefix[end:]

    def _open(self, sealed: bytes, aad: bytes) -> bytes:
        if self._counter >= MAX_MESSAGES:
            raise _used_up()
        nonce = (self._base ^ self._counter).to_bytes(NONCE_LENGTH, "big")
        self._counter += 1
        return self._decrypt(nonce, sealed, aad)
