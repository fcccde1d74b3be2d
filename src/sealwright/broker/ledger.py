"""Records into the log, openings beside it, and proof that both happened before anything is answered.

Spec: docs/spec/broker-state.md, Decisions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sealwright.broker.files import check_room, read_file, write_file
from sealwright.errors import CollateralError, FormatError, UnavailableError, VerificationError
from sealwright.protocol.commitment import (
    Commitment,
    Leaf,
    LogEntry,
    Openings,
    commitment_root,
    field_leaf,
)
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.merkle import leaf_hash, verify_inclusion
from sealwright.tlog.monitor import check_continues, check_not_before
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import TILE_WIDTH, Fetch, read_bundle, width_at

MAX_OPENINGS = 4 << 20  # bytes; a keyset's hold its evidence
LOG_TIMEOUT_S = 30.0


class Log(Protocol):
    """What the broker needs of a log: see `sealwright.tlog.writer.LogWriter`."""

    def append(self, entry: bytes) -> Future[int]:
        """Queue an entry; the future holds its index once a durable checkpoint covers it."""
        ...

    @property
    def signed_checkpoint(self) -> bytes:
        """The latest published checkpoint as a signed note."""
        ...

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint."""
        ...

    def check_writable(self) -> None:
        """Raise UnavailableError where no entry could be written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """An entry on its way into the log."""

    entry: bytes
    index: Future[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record read back: its place in the log and its opened fields, which lead to its entry."""

    index: int
    commitment: bytes
    fields: Mapping[str, bytes]
    openings: Openings


class Ledger:
    """The broker's hand on its log. `settle` may be called from any thread."""

    def __init__(
        self,
        log: Log,
        fetch: Fetch,
        *,
        policy: LogPolicy,
        openings: Path,
        random: Callable[[int], bytes],
        holder: Path | None = None,
        new_holder: bool = False,
        seen: bytes = b"",
    ) -> None:
        """Check the log against every checkpoint held of it.

        Args:
            fetch: reads the log's files.
            openings: directory of the openings.
            holder: file kept elsewhere with the highest checkpoint.
            new_holder: begin that file; without it, it must be there unless the log is empty.
            seen: the signed checkpoint that the database holds; empty: none.

        Raises:
            VerificationError: `log-rolled-back`, `log-forked`. CollateralError: `holder-missing`.
        """
        self._log, self._fetch, self._policy = log, fetch, policy
        self._openings, self._random, self._holder = openings, random, holder
        self._lock = threading.Lock()
        self._seen = policy.verify(log.signed_checkpoint).checkpoint
        held = self._held(new=new_holder)
        for raw in (seen, held):
            if raw:
                self._check(policy.verify(raw).checkpoint, self._seen)
        if holder is not None and held != log.signed_checkpoint:
            write_file(holder, log.signed_checkpoint)

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self._policy.verify(self._log.signed_checkpoint).checkpoint.size

    @property
    def checkpoint(self) -> bytes:
        """The latest signed checkpoint."""
        return self._log.signed_checkpoint

    @property
    def has_holder(self) -> bool:
        """Whether the highest checkpoint is also kept elsewhere."""
        return self._holder is not None

    def commit_to(self, kind: Literal["decision", "keyset"], fields: Mapping[str, bytes]) -> bytes:
        """Make the openings of a record durable, and return the entry to log."""
        record = Commitment.make(fields, record_id=self._random(16), random=self._random)
        openings = Openings(record_id=record.record_id, fields=dict(record.openings))
        write_file(self._openings / f"{record.root.hex()}.json", openings.encode())
        return LogEntry(type=kind, commitment=record.root).encode()

    def submit(self, entry: bytes) -> Ticket:
        """Queue an entry; entries are logged in the order of these calls."""
        return Ticket(entry=entry, index=self._log.append(entry))

    def settle(self, ticket: Ticket) -> int:
        """Return the entry's index, proved to be in the log under a durable checkpoint that continues the last.

        Raises:
            UnavailableError: the log did not answer. VerificationError: `log-rolled-back`,
                `log-forked`, `bad-inclusion-proof`.
        """
        try:
            index = ticket.index.result(LOG_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError("the log does not answer", code="log-timeout", stage="log") from None
        proof = self._log.prove(index)
        with self._lock:
            checkpoint = proof.verify(ticket.entry, self._policy).checkpoint.checkpoint
            if checkpoint.size > self._seen.size:
                self._check(self._seen, checkpoint)
                self._seen = checkpoint
                if self._holder is not None:
                    write_file(self._holder, proof.unverified_checkpoint)
            else:  # another thread settled under a later checkpoint meanwhile
                self._check(checkpoint, self._seen)
        return index

    def check_writable(self) -> None:
        """Prove that log, openings and holder file could take one more decision, as far as a look can tell.

        Raises:
            UnavailableError: `log-closed`, `file-unwritable`.
        """
        self._log.check_writable()
        check_room(self._openings)
        if self._holder is not None:
            check_room(self._holder.parent)

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint."""
        return self._log.prove(index)

    def entries(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (index, entry) from `start` on, as the files say."""
        size = self.size
        for bundle in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
            first = bundle * TILE_WIDTH
            entries = read_bundle(self._fetch, bundle, width_at(0, bundle, size))
            yield from ((first + at, entry) for at, entry in enumerate(entries) if first + at >= start)

    def entries_backwards(self, *, stop: int = 0, before: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (index, entry) from the newest (below `before`) down to `stop`, each proved to be in the log.

        Raises:
            VerificationError: `bad-inclusion-proof`: the files were edited.
        """
        now = self._policy.verify(self._log.signed_checkpoint).checkpoint
        reader = TileReader(self._fetch, now.size)
        end = now.size if before is None else min(before, now.size)
        for bundle in range(-(-end // TILE_WIDTH) - 1, stop // TILE_WIDTH - 1, -1):
            entries = read_bundle(self._fetch, bundle, width_at(0, bundle, now.size))
            last = min(end, bundle * TILE_WIDTH + len(entries)) - 1
            for index in range(last, bundle * TILE_WIDTH - 1, -1):
                if index < stop:
                    return
                entry = entries[index - bundle * TILE_WIDTH]
                hashes = reader.inclusion_proof(index)
                verify_inclusion(index, now.size, leaf_hash(entry), now.root, hashes)
                yield index, entry

    def decisions_backwards(self, *, before: int | None = None) -> Iterator[Record]:
        """Yield decisions with their opened fields, newest first; Args: before: only those of a lower index.

        Raises:
            CollateralError: `opening-missing`. VerificationError: `opening-mismatch`.
        """
        for index, raw in self.entries_backwards(before=before):
            entry = LogEntry.parse(raw)
            if entry.type == "decision":
                yield self._open(index, entry.commitment)

    def _open(self, index: int, commitment: bytes) -> Record:
        path = self._openings / f"{commitment.hex()}.json"
        raw = read_file(path, MAX_OPENINGS)
        if raw is None:
            raise CollateralError(
                f"the openings of log entry {index} are not there: {path}",
                code="opening-missing",
                stage="openings",
            )
        try:
            openings = Openings.parse(raw, limit=MAX_OPENINGS)
        except FormatError:
            openings = None
        if openings is None or _commitment(openings) != commitment:
            raise VerificationError(
                f"the openings of log entry {index} are not the committed ones",
                code="opening-mismatch",
                stage="openings",
            )
        fields = {name: opening.value for name, opening in openings.fields.items()}
        return Record(index=index, commitment=commitment, fields=fields, openings=openings)

    def _held(self, *, new: bool) -> bytes:
        if self._holder is None:
            return b""
        raw = read_file(self._holder, 1 << 16)
        if raw is None and self._seen.size and not new:
            raise CollateralError(
                f"the holder file {self._holder} is not there; without it a rollback cannot be excluded",
                code="holder-missing",
                stage="holder",
            )
        return raw or b""

    def _check(self, before: Checkpoint, now: Checkpoint) -> None:
        check_not_before(now, before)
        if before.size:
            check_continues(TileReader(self._fetch, now.size), now, before)


def _commitment(openings: Openings) -> bytes:
    leaves = tuple(
        Leaf(name=name, leaf=field_leaf(openings.record_id, name, openings.fields[name]))
        for name in sorted(openings.fields)
    )
    return commitment_root(leaves)
