"""Trust in logs (c2sp.org/tlog-policy): which logs, which witnesses, which quorum; a checkpoint checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from sealwright.errors import LogFormatError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import COSIGNATURE_V1, ED25519, VerifierKey
from sealwright.tlog.note import Note
from sealwright.tlog.text import decimal_decode

MAX_POLICY = 64 * 1024  # bytes
NO_QUORUM = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Witnesses or groups, of which at least `threshold` must have witnessed a checkpoint."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosignature:
    """A cosignature that holds: the witness's key name, and the time it states (s since 1970)."""

    witness: str
    time_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """A checkpoint that a policy admitted. Made by `LogPolicy.verify` only."""

    checkpoint: Checkpoint
    raw: bytes  # the signed note, as it was read
    log: VerifierKey
    cosignatures: tuple[Cosignature, ...]
    quorum: str  # as the policy names it; "none": no witness was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPolicy:
    """Logs by key, witnesses by the policy's own names, and the name that must have witnessed."""

    logs: tuple[VerifierKey, ...]
    quorum: str
    witnesses: Mapping[str, VerifierKey] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a policy file.

        Raises:
            LogFormatError: not a policy; the message names the line.
        """
        if len(raw) > MAX_POLICY:
            raise LogFormatError(f"a log policy of {len(raw)} bytes is over the limit", code="too-large")
        if any((byte < 0x20 and byte not in b"\t\n") or byte == 0x7F for byte in raw):
            raise LogFormatError("a log policy has no control characters", code="malformed-log-policy")
        builder = _Builder()
        # Octets above 0x7F are opaque to the format; escapes keep them apart from any other text.
        lines = raw.decode("utf-8", "surrogateescape").split("\n")
        if lines.pop():
            raise LogFormatError("a log policy ends with a newline", code="malformed-log-policy")
        for number, line in enumerate(lines, 1):
            words = line.replace("\t", " ").split(" ")
            builder.add(number, [word for word in words if word])
        return cls(
            logs=tuple(builder.logs),
            quorum=builder.finish(),
            witnesses=builder.witnesses,
            groups=builder.groups,
        )

    @classmethod
    def of_key(cls, vkey: str) -> Self:
        """Return the policy that trusts one log and asks for no witness.

        Raises:
            LogFormatError: not the vkey of a log.
        """
        return cls.parse(b"log %s\nquorum none\n" % vkey.encode("utf-8", "surrogateescape"))

    def verify(self, raw: bytes) -> VerifiedCheckpoint:
        """Prove that `raw` is a checkpoint of a log of this policy, witnessed as it asks.

        Raises:
            LogFormatError: not a signed checkpoint.
            VerificationError: `unknown-log`, `bad-signature`, `untrusted-signer`, `quorum-not-met`.
        """
        # 1. Format.
        note = Note.parse(raw)
        checkpoint = Checkpoint.parse(note.unverified_text)
        # 2. A log of the policy, by its origin, has signed; no known key's signature fails.
        logs = [key for key in self.logs if key.name == checkpoint.origin]
        if not logs:
            raise VerificationError(
                f"the policy does not know the log {checkpoint.origin!r}",
                code="unknown-log",
                stage="log-signature",
            )
        signed = note.verify([*logs, *self.witnesses.values()])
        log = next((key for key in logs if key in signed), None)
        if log is None:
            raise VerificationError(
                f"no signature by {checkpoint.origin}", code="untrusted-signer", stage="log-signature"
            )
        # 3. Quorum.
        present = {name for name, key in self.witnesses.items() if key in signed}
        if not self._has_quorum(present):
            raise VerificationError(
                f"{len(present)} of {len(self.witnesses)} witnesses cosigned, which is not the quorum {self.quorum!r}",
                code="quorum-not-met",
                stage="quorum",
            )
        times = [Cosignature(witness=key.name, time_s=at) for key, at in signed.items() if at is not None]
        return VerifiedCheckpoint(
            checkpoint=checkpoint, raw=raw, log=log, cosignatures=tuple(times), quorum=self.quorum
        )

    def _has_quorum(self, present: set[str]) -> bool:
        witnessed = set(present)
        for name, group in self.groups.items():  # in the order of the file: members come first
            if sum(member in witnessed for member in group.members) >= group.threshold:
                witnessed.add(name)
        return self.quorum == NO_QUORUM or self.quorum in witnessed


class _Builder:
    """Reads a policy line by line; a line may only name what stands before it."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, Group] = {}
        self._members: set[str] = set()
        self._quorum: str | None = None
        self._line = 0

    def add(self, number: int, words: list[str]) -> None:
        self._line = number
        match words:
            case []:
                pass
            case [first, *_] if first.startswith("#"):
                pass
            case ["log", vkey] | ["log", vkey, _]:
                self._add_log(self._key(vkey, ED25519))
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                self._add_witness(name, self._key(vkey, COSIGNATURE_V1))
            case ["group", name, threshold, _, *_]:
                self._add_group(name, threshold, words[3:])
            case ["quorum", name]:
                self._set_quorum(name)
            case _:
                raise self._error("not a line of a log policy")

    def finish(self) -> str:
        if self._quorum is None:
            raise self._error("a log policy has a quorum line")
        return self._quorum

    def _add_log(self, key: VerifierKey) -> None:
        if any(key.public == other.public for other in self.logs):
            raise self._error("the log's key stands twice")
        self.logs.append(key)

    def _add_witness(self, name: str, key: VerifierKey) -> None:
        self._new_name(name)
        if any(key.public == other.public for other in self.witnesses.values()):
            raise self._error("the witness's key stands twice")
        self.witnesses[name] = key

    def _add_group(self, name: str, threshold: str, members: list[str]) -> None:
        self._new_name(name)
        for member in members:
            self._known_name(member)
            if member in self._members:
                raise self._error("a name is a member of a group at most once")
            self._members.add(member)
        try:
            wanted = {"any": 1, "all": len(members)}.get(threshold) or decimal_decode(threshold)
        except LogFormatError as exc:
            raise self._error(str(exc)) from exc
        if not 1 <= wanted <= len(members):
            raise self._error("a threshold lies between 1 and the number of members")
        self.groups[name] = Group(threshold=wanted, members=tuple(members))

    def _set_quorum(self, name: str) -> None:
        if self._quorum is not None:
            raise self._error("a log policy has one quorum line")
        if name != NO_QUORUM:
            self._known_name(name)
        self._quorum = name

    def _key(self, vkey: str, kind: int) -> VerifierKey:
        try:
            key = VerifierKey.parse(vkey)
        except LogFormatError as exc:
            raise self._error(str(exc)) from exc
        if key.kind != kind:
            raise self._error("a log signs with Ed25519 (type 1), a witness with cosignature/v1 (type 4)")
        return key

    def _new_name(self, name: str) -> None:
        if name == NO_QUORUM or name in self.witnesses or name in self.groups:
            raise self._error("the name is taken")

    def _known_name(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise self._error("the name is not defined on a line above")

    def _error(self, text: str) -> LogFormatError:
        return LogFormatError(f"line {self._line}: {text}", code="malformed-log-policy")
