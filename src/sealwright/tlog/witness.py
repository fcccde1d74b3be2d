"""Witnessing a log (c2sp.org/tlog-witness): the `add-checkpoint` request, and what a witness does with it.

No I/O: where a witness keeps its heads, and how requests travel, is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from sealwright.errors import LogFormatError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import Cosigner, NoteSignature, VerifierKey
from sealwright.tlog.merkle import HASH_SIZE, MAX_PROOF, verify_consistency
from sealwright.tlog.note import MAX_NOTE, Note
from sealwright.tlog.policy import NO_QUORUM, LogPolicy
from sealwright.tlog.text import b64, b64_decode, decimal_decode

MAX_REQUEST = MAX_NOTE + MAX_PROOF * 64  # bytes
SIZE_TYPE = "text/x.tlog.size"
PATH = "/add-checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCheckpoint:
    """A request to cosign: the size the witness is thought to be at, the proof from there, the checkpoint."""

    old_size: int
    proof: tuple[bytes, ...]  # 32 bytes each
    note: bytes  # signed checkpoint, verbatim

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a request body; nothing is verified.

        Raises:
            LogFormatError: not a request.
        """
        if len(raw) > MAX_REQUEST:
            raise LogFormatError(f"a request of {len(raw)} bytes is over the limit", code="too-large")
        head, blank, note = raw.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise _malformed() from None
        if not blank or not first.startswith("old ") or len(lines) > MAX_PROOF:
            raise _malformed()
        return cls(
            old_size=decimal_decode(first.removeprefix("old ")),
            proof=tuple(b64_decode(line, length=HASH_SIZE) for line in lines),
            note=note,
        )

    def encode(self) -> bytes:
        """Return the request body."""
        lines = "".join(f"{line}\n" for line in (f"old {self.old_size}", *map(b64, self.proof)))
        return lines.encode() + b"\n" + self.note


class Conflict(Exception):
    """The witness stands at another size than the request says. Args: size: where it stands."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness stands at {size}")
        self.size = size


class Heads(Protocol):
    """Where a witness keeps the highest checkpoint of each log. `update` is durable when it returns."""

    def get(self, origin: str) -> Checkpoint | None:
        """Return the highest checkpoint that was cosigned, or None."""
        ...

    def note(self, origin: str) -> bytes | None:
        """Return that checkpoint as it was signed."""
        ...

    def update(self, origin: str, old_size: int, new: Checkpoint, note: bytes) -> None:
        """Replace the head that stands at `old_size`. Raises Conflict: another request was faster."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Cosigns what continues what it cosigned before, and nothing else."""

    cosigner: Cosigner
    logs: Mapping[str, VerifierKey]  # by origin
    heads: Heads
    time_s: Callable[[], int]  # seconds since 1970

    def add(self, request: AddCheckpoint) -> bytes:
        """Return the cosignature line of a checkpoint that continues the last one of its log.

        Raises:
            LogFormatError: not a checkpoint, or an old size beyond it.
            VerificationError: `unknown-log`, `untrusted-signer`, `bad-signature`, `log-forked` (the same size
                with another root, or a proof that does not hold).
            Conflict: the witness stands elsewhere.
        """
        checkpoint = self._signed(request.note)
        if request.old_size > checkpoint.size:
            raise LogFormatError("the old size is beyond the checkpoint", code="malformed-witness-request")
        head = self.heads.get(checkpoint.origin)
        at = 0 if head is None else head.size
        if request.old_size != at:
            raise Conflict(at)
        if head is not None and head.size:
            _continues(head, checkpoint, request.proof)
        elif request.proof:
            raise LogFormatError("nothing is proved from an empty tree", code="malformed-witness-request")
        self.heads.update(checkpoint.origin, at, checkpoint, request.note)
        signed = self.cosigner.sign(checkpoint.encode(), time_s=self.time_s())
        return signature_line(signed)

    def _signed(self, note: bytes) -> Checkpoint:
        origin = Checkpoint.parse(Note.parse(note).unverified_text).origin
        key = self.logs.get(origin)
        if key is None:
            raise VerificationError(
                f"the policy does not know the log {origin!r}", code="unknown-log", stage="log-signature"
            )
        return LogPolicy(logs=(key,), quorum=NO_QUORUM).verify(note).checkpoint


def signature_line(signed: NoteSignature) -> bytes:
    """Return one signature line of a note."""
    return f"\u2014 {signed.name} {b64(signed.key_id + signed.signature)}\n".encode()


def cosigned_at(checkpoint: Checkpoint, lines: bytes, key: VerifierKey) -> int:
    """Return the time (s since 1970) at which the witness `key` cosigned `checkpoint`, as its answer proves.

    Raises:
        LogFormatError: not signature lines. VerificationError: `bad-signature`, `cosignature-missing`.
    """
    note = Note.parse(checkpoint.encode() + b"\n" + lines)
    time_s = note.verify([key]).get(key)
    if time_s is None:
        raise VerificationError(
            f"the answer holds no cosignature by {key.name}", code="cosignature-missing", stage="holder"
        )
    return time_s


def _continues(head: Checkpoint, new: Checkpoint, proof: tuple[bytes, ...]) -> None:
    try:
        verify_consistency(head.size, new.size, head.root, new.root, proof)
    except VerificationError as exc:
        raise VerificationError(
            f"the first {head.size} entries are not those of the earlier checkpoint",
            code="log-forked",
            stage="consistency",
        ) from exc


def _malformed() -> LogFormatError:
    return LogFormatError(
        "a request is `old`, a size, and hashes, a line each, an empty line, and a checkpoint",
        code="malformed-witness-request",
    )
