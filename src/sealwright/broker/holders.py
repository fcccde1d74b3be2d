"""Where the highest checkpoint is kept outside the broker: what a rollback of log and database is noticed by.

Spec: docs/spec/broker-state.md, Holders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import httpx2

from sealwright.broker.clock import Elapsed
from sealwright.broker.files import check_room, read_file, write_file
from sealwright.errors import (
    CollateralError,
    LogFormatError,
    SealwrightError,
    SettingsError,
    UnavailableError,
    VerificationError,
)
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import COSIGNATURE_V1, VerifierKey
from sealwright.tlog.monitor import check_continues, check_not_before
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.reader import TileReader
from sealwright.tlog.text import decimal_decode
from sealwright.tlog.tiles import Fetch
from sealwright.tlog.witness import PATH, SIZE_TYPE, AddCheckpoint, cosigned_at

WITNESS_TIMEOUT_S = 5.0
MAX_HELD = 1 << 16  # bytes of a checkpoint, and of a witness's answer
_TRIES = 3  # of one submission, while another of this log is faster


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the log stands, and what proves that it continues what it was."""

    note: bytes  # signed checkpoint
    checkpoint: Checkpoint
    fetch: Fetch

    def continues(self, before: Checkpoint) -> None:
        """Prove that this head continues `before`. Raises VerificationError: `log-rolled-back`, `log-forked`."""
        check_not_before(self.checkpoint, before)
        if before.size:
            check_continues(TileReader(self.fetch, self.checkpoint.size), self.checkpoint, before)

    def proof_from(self, size: int) -> tuple[bytes, ...]:
        """Return the consistency proof from a smaller tree; empty from an empty one, or from this one."""
        if size in (0, self.checkpoint.size):
            return ()
        return TileReader(self.fetch, self.checkpoint.size).consistency_proof(size)


class Holder(Protocol):
    """Keeps the highest checkpoint. Used by one thread at a time."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def hold(self, head: Head, *, new: bool = False) -> None:
        """Prove that `head` continues what is held, and hold it: durable when this returns.

        Args:
            new: nothing need be held yet.

        Raises:
            VerificationError: `log-rolled-back`, `log-forked`.
            CollateralError: `holder-missing`: nothing is held, though the log has entries.
            UnavailableError: `holder-unreachable`, `file-unwritable`, `file-unreadable`.
        """
        ...

    def check_writable(self) -> None:
        """Raise UnavailableError where nothing could be held, as far as a look can tell."""
        ...


class FileHolder:
    """A file on another volume."""

    def __init__(self, path: Path, policy: LogPolicy) -> None:
        self._path, self._policy = path, policy
        self._last: bytes | None = None  # what this process wrote

    @property
    def name(self) -> str:
        """The file."""
        return str(self._path)

    def hold(self, head: Head, *, new: bool = False) -> None:
        """As the protocol says. The file is read each time: a broker started from a copy of ours shows in it."""
        held = read_file(self._path, MAX_HELD) or b""
        if not held and head.checkpoint.size and not new:
            raise _missing(f"the holder file {self._path} is not there")
        if held and held != self._last:
            head.continues(self._policy.verify(held).checkpoint)
        if held != head.note:
            write_file(self._path, head.note)
        self._last = head.note

    def check_writable(self) -> None:
        """Look at the disk."""
        check_room(self._path.parent)


class WitnessHolder:
    """A witness (c2sp.org/tlog-witness) over HTTP; its cosignatures tell the time too."""

    def __init__(
        self, url: str, key: VerifierKey, *, time: Elapsed, transport: httpx2.BaseTransport | None = None
    ) -> None:
        """Args: time: where the times of its cosignatures are kept; transport: for tests."""
        self._url, self._key, self.time = url, key, time
        self._http = httpx2.Client(
            timeout=WITNESS_TIMEOUT_S, trust_env=False, follow_redirects=False, transport=transport
        )
        self._size = -1  # where it stood when it last answered; -1: not asked yet

    @property
    def name(self) -> str:
        """The name of its key."""
        return self._key.name

    def hold(self, head: Head, *, new: bool = False) -> None:
        """As the protocol says: the witness itself judges the proof."""
        old = head.checkpoint.size if self._size < 0 else min(self._size, head.checkpoint.size)
        for _ in range(_TRIES):
            stands = self._submit(head, old)
            if stands is None:
                self._size = head.checkpoint.size
                return
            if stands > head.checkpoint.size:
                raise VerificationError(
                    f"the log has {head.checkpoint.size} entries, and {self.name} cosigned {stands}",
                    code="log-rolled-back",
                    stage="consistency",
                )
            if stands == 0 and head.checkpoint.size and not new:
                raise _missing(f"the witness {self.name} has seen nothing of this log")
            old = stands
        raise self._unreachable("it stood at another size each time")

    def check_writable(self) -> None:
        """Nothing to look at: each decision asks it."""

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _submit(self, head: Head, old: int) -> int | None:
        """Return None if it cosigned, else the size at which it stands."""
        request = AddCheckpoint(old_size=old, proof=head.proof_from(old), note=head.note)
        asked = self.time.seconds()
        status, kind, body = self._post(request.encode())
        if status == 200:
            self._take(head.checkpoint, body, asked)
            return None
        if status == 409 and kind.partition(";")[0].strip() == SIZE_TYPE:
            return self._number(body)
        if status in (409, 422):  # its proof, or the same size with another root
            raise VerificationError(
                f"the witness {self.name} has cosigned other entries of this log",
                code="log-forked",
                stage="consistency",
            )
        if status in (403, 404):
            raise CollateralError(
                f"the witness {self.name} does not know this log: give its operator the log key",
                code="holder-unknown-log",
                stage="holder",
            )
        raise self._unreachable(f"it answered with status {status}")

    def _take(self, checkpoint: Checkpoint, lines: bytes, asked: float) -> None:
        try:
            time_s = cosigned_at(checkpoint, lines, self._key)
            self.time.hear(datetime.fromtimestamp(time_s, UTC), asked=asked)
        except (LogFormatError, VerificationError, OverflowError, ValueError) as exc:
            raise VerificationError(
                f"what answers for the witness {self.name} does not sign with its key",
                code="cosignature-missing",
                stage="holder",
            ) from exc

    def _post(self, body: bytes) -> tuple[int, str, bytes]:
        try:
            with self._http.stream("POST", self._url.rstrip("/") + PATH, content=body) as answer:
                read = b""
                for part in answer.iter_bytes():
                    read += part
                    if len(read) > MAX_HELD:
                        raise self._unreachable("its answer is too long")
                return answer.status_code, answer.headers.get("content-type", ""), read
        except httpx2.HTTPError as exc:
            raise self._unreachable(type(exc).__name__) from None

    def _number(self, body: bytes) -> int:
        try:
            return decimal_decode(body.decode("ascii").removesuffix("\n"))
        except (LogFormatError, UnicodeDecodeError):
            raise self._unreachable("its answer is malformed") from None

    def _unreachable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"the witness {self.name} cannot be asked: {why}", code="holder-unreachable", stage="holder"
        )


class Holders:
    """All holders of one broker, of which `need` must hold a checkpoint before anything is answered under it."""

    def __init__(self, holders: Sequence[Holder] = (), *, need: int | None = None) -> None:
        """Args: need: default: all of them.

        Raises:
            SettingsError: `holder-quorum`: two sets of `need` might have no holder in common.
        """
        self._holders = tuple(holders)
        self._need = len(holders) if need is None else need
        if holders and not len(holders) < 2 * self._need <= 2 * len(holders):
            raise SettingsError(
                f"{self._need} of {len(holders)} holders: more than half, and not more than all, are wanted",
                code="holder-quorum",
            )
        self._pool = ThreadPoolExecutor(len(holders), "holder") if len(holders) > 1 else None

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return [holder.name for holder in self._holders]

    def hold(self, head: Head, *, new: bool = False) -> None:
        """Prove that `head` continues what each reachable holder holds, and that enough of them hold it now.

        One that holds another past refuses for all; see `Holder.hold`.
        """

        def one(holder: Holder) -> SealwrightError | None:
            try:
                holder.hold(head, new=new)
            except SealwrightError as error:
                return error
            return None

        found = list((map if self._pool is None else self._pool.map)(one, self._holders))
        errors = [error for error in found if error is not None]
        for error in errors:
            if isinstance(error, VerificationError):
                raise error
        if errors and len(found) - len(errors) < self._need:
            raise errors[0]

    def check_writable(self) -> None:
        """Raise UnavailableError where a holder could not hold, as far as a look can tell."""
        for holder in self._holders:
            holder.check_writable()

    def close(self) -> None:
        """Close connections."""
        if self._pool is not None:
            self._pool.shutdown()
        for holder in self._holders:
            if isinstance(holder, WitnessHolder):
                holder.close()


def parse_witness(text: str, *, time: Callable[[str], Elapsed] = Elapsed) -> WitnessHolder:
    """Return the holder of `VKEY@URL`.

    Raises:
        SettingsError: `malformed-witness`.
    """
    vkey, at, url = text.rpartition("@")
    try:
        key = VerifierKey.parse(vkey)
    except LogFormatError:
        key = None
    if not at or key is None or key.kind != COSIGNATURE_V1 or not url.startswith(("http://", "https://")):
        raise SettingsError("a witness is VKEY@URL, with a cosignature/v1 key", code="malformed-witness")
    return WitnessHolder(url, key, time=time(f"the witness {key.name}"))


def _missing(what: str) -> CollateralError:
    return CollateralError(
        f"{what}; without it a rollback cannot be excluded", code="holder-missing", stage="holder"
    )
