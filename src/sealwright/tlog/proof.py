"""Offline proofs of logging (c2sp.org/tlog-proof), files named `.tlog-proof`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sealwright.errors import LogFormatError
from sealwright.tlog.merkle import HASH_SIZE, MAX_PROOF, leaf_hash, verify_inclusion
from sealwright.tlog.note import MAX_NOTE
from sealwright.tlog.policy import LogPolicy, VerifiedCheckpoint
from sealwright.tlog.text import b64, b64_decode, decimal_decode

MAX_EXTRA = 64 * 1024  # bytes
MAX_LOG_PROOF = MAX_NOTE + 2 * MAX_EXTRA  # bytes
_HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEntry:
    """An entry proved to be in a log. Made by `LogProof.verify` only."""

    origin: str
    index: int
    size: int  # leaves under the checkpoint that proves it
    checkpoint: VerifiedCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """An inclusion proof with its checkpoint. Nothing in it is believed before `verify` has returned."""

    index: int
    hashes: tuple[bytes, ...]
    unverified_checkpoint: bytes  # the signed note, verbatim
    unauthenticated_extra: bytes | None = None  # covered by nothing

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a proof; nothing is verified, and the checkpoint is not parsed.

        Raises:
            LogFormatError: not a proof, or over the limits of docs/spec/log.md.
        """
        if len(raw) > MAX_LOG_PROOF:
            raise LogFormatError(f"a log proof of {len(raw)} bytes is over the limit", code="too-large")
        head, blank, checkpoint = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise _malformed("a log proof is ASCII up to its checkpoint") from None
        if not blank or lines[0] != _HEADER:
            raise _malformed(f"a log proof begins with {_HEADER}, and an empty line parts off its checkpoint")
        extra, lines = _extra(lines[1:])
        if not lines or not lines[0].startswith("index "):
            raise _malformed("a log proof has an index line")
        if len(lines) - 1 > MAX_PROOF:
            raise _malformed(f"a log proof has at most {MAX_PROOF} hashes")
        return cls(
            index=decimal_decode(lines[0].removeprefix("index ")),
            hashes=tuple(b64_decode(line, length=HASH_SIZE) for line in lines[1:]),
            unverified_checkpoint=checkpoint,
            unauthenticated_extra=extra,
        )

    def encode(self) -> bytes:
        """Return the proof as bytes."""
        extra = self.unauthenticated_extra
        lines = [_HEADER, *([] if extra is None else [f"extra {b64(extra)}"]), f"index {self.index}"]
        text = "".join(f"{line}\n" for line in [*lines, *map(b64, self.hashes)])
        return text.encode() + b"\n" + self.unverified_checkpoint

    def verify(self, entry: bytes, policy: LogPolicy) -> LoggedEntry:
        """Prove that `entry` is number `index` of a log that `policy` trusts, witnessed as it asks.

        Raises:
            LogFormatError: the checkpoint is not one.
            VerificationError: as `LogPolicy.verify`, or `bad-inclusion-proof`.
        """
        # 1. The checkpoint: log signature and quorum.
        verified = policy.verify(self.unverified_checkpoint)
        checkpoint = verified.checkpoint
        # 2. Inclusion, which binds the entry to that checkpoint's root.
        verify_inclusion(self.index, checkpoint.size, leaf_hash(entry), checkpoint.root, self.hashes)
        return LoggedEntry(
            origin=checkpoint.origin, index=self.index, size=checkpoint.size, checkpoint=verified
        )


def _extra(lines: list[str]) -> tuple[bytes | None, list[str]]:
    if not lines or not lines[0].startswith("extra "):
        return None, lines
    extra = b64_decode(lines[0].removeprefix("extra "))
    if not 0 < len(extra) <= MAX_EXTRA:
        raise _malformed(f"extra data has 1 to {MAX_EXTRA} bytes")
    return extra, lines[1:]


def _malformed(text: str) -> LogFormatError:
    return LogFormatError(text, code="malformed-log-proof")
