"""Signed notes (c2sp.org/signed-note): text and signature lines, parsed, signed, verified."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sealwright.errors import LogFormatError
from sealwright.tlog.keys import NoteSignature, VerifierKey
from sealwright.tlog.text import b64, b64_decode, check_key_name

MAX_NOTE = 256 * 1024  # bytes; a post-quantum signature line runs to 7 kB
MAX_SIGNATURES = 64
_DASH = "\u2014 "


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A text and signatures over it. The text is not to be believed before a known key is found among them."""

    unverified_text: bytes  # UTF-8, ends with a newline
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a note; nothing is verified.

        Raises:
            LogFormatError: not a note, or over the limits of docs/spec/log.md.
        """
        if len(raw) > MAX_NOTE:
            raise LogFormatError(f"a note of {len(raw)} bytes is over the limit", code="too-large")
        try:
            whole = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed("a note is UTF-8") from None
        if any(char < " " and char != "\n" for char in whole):
            raise _malformed("a note has no control characters but newlines")
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise _malformed("a note is text, an empty line and signature lines")
        signatures = lines[:-1].split("\n")
        if len(signatures) > MAX_SIGNATURES:
            raise _malformed(f"a note has at most {MAX_SIGNATURES} signatures")
        return cls(
            unverified_text=text.encode() + b"\n",
            signatures=tuple(_signature(line) for line in signatures),
        )

    def encode(self) -> bytes:
        """Return the note as bytes."""
        lines = [
            f"{_DASH}{item.name} {b64(item.key_id + item.signature)}\n".encode() for item in self.signatures
        ]
        return self.unverified_text + b"\n" + b"".join(lines)

    def verify(self, keys: Iterable[VerifierKey]) -> dict[VerifierKey, int | None]:
        """Return those of `keys` that signed the text, each with the time of its cosignature, if it is one.

        Signatures by unknown keys are ignored. A key that cosigned several times counts with its latest.

        Raises:
            VerificationError: `bad-signature`: one of `keys` is named, and its signature does not hold.
        """
        known = {(key.name, key.key_id): key for key in keys}
        signed: dict[VerifierKey, int | None] = {}
        for item in self.signatures:
            key = known.get((item.name, item.key_id))
            if key is not None:
                time_s = key.verify(self.unverified_text, item.signature)
                signed[key] = time_s if time_s is None else max(time_s, signed.get(key) or 0)
        return signed


def _signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise _malformed("a signature line is a dash, a key name and base64")
    raw = b64_decode(encoded)
    if len(raw) < 5:
        raise _malformed("a signature has a key ID of 4 bytes, and more")
    return NoteSignature(name=check_key_name(name), key_id=raw[:4], signature=raw[4:])


def _malformed(text: str) -> LogFormatError:
    return LogFormatError(text, code="malformed-note")
