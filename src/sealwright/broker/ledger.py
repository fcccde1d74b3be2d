"""Records into the log, openings beside it, and proof that both happened before anything is answered.

Spec: docs/spec/broker-state.md, Decisions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from sealwright.broker.holders import Head, Holders
from sealwright.broker.openings import MAX_OPENINGS, OpeningStore
from sealwright.errors import CollateralError, FormatError, UnavailableError, VerificationError
from sealwright.protocol.commitment import (
    Commitment,
    Leaf,
    LogEntry,
    Openings,
    commitment_root,
    field_leaf,
)
from sealwright.tlog.merkle import leaf_hash, verify_inclusion
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import TILE_WIDTH, Fetch, read_bundle, width_at

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
        openings: OpeningStore,
        random: Callable[[int], bytes],
        holders: Holders | None = None,
        new_holder: bool = False,
        seen: bytes = b"",
        check_time: Callable[[], object] = lambda: None,
    ) -> None:
        """Check the log against every checkpoint held of it.

        Args:
            fetch: reads the log's files.
            openings: where the openings are kept.
            holders: of the highest checkpoint, outside.
            new_holder: let them begin; without it, they must hold something unless the log is empty.
            seen: the signed checkpoint that the database holds; empty: none.
            check_time: raises where the clock is contradicted by what holders have just said.

        Raises:
            VerificationError: `log-rolled-back`, `log-forked`. CollateralError: `holder-missing`.
            UnavailableError: `holder-unreachable`.
        """
        self._log, self._fetch, self._policy = log, fetch, policy
        self._openings, self._random = openings, random
        self._holders = Holders() if holders is None else holders
        self._check_time = check_time
        self._lock = threading.Lock()
        head = self._head(log.signed_checkpoint)
        if seen:
            head.continues(policy.verify(seen).checkpoint)
        self._holders.hold(head, new=new_holder)
        self._check_time()
        self._seen = head.checkpoint
        self.held_at = time.monotonic()  # when holders last took a checkpoint; seconds

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self._policy.verify(self._log.signed_checkpoint).checkpoint.size

    @property
    def checkpoint(self) -> bytes:
        """The latest signed checkpoint."""
        return self._log.signed_checkpoint

    @property
    def head(self) -> Head:
        """The latest checkpoint, and what proves how it continues others."""
        return self._head(self._log.signed_checkpoint)

    @property
    def holders(self) -> list[str]:
        """Where the highest checkpoint is also kept."""
        return self._holders.names

    def commit_to(self, kind: Literal["decision", "keyset"], fields: Mapping[str, bytes]) -> bytes:
        """Make the openings of a record durable, and return the entry to log."""
        record = Commitment.make(fields, record_id=self._random(16), random=self._random)
        openings = Openings(record_id=record.record_id, fields=dict(record.openings))
        self._openings.write(record.root, openings.encode())
        return LogEntry(type=kind, commitment=record.root).encode()

    def opens(self, commitment: bytes) -> bool:
        """Say whether openings of this commitment are there."""
        return self._openings.read(commitment) is not None

    def opened(self, commitment: bytes) -> Mapping[str, bytes] | None:
        """Return the fields of a record, opened; None: its openings are not there. Raises VerificationError."""
        if not self.opens(commitment):
            return None
        return self._open(0, commitment).fields

    def erase(self, commitments: Iterable[bytes]) -> None:
        """Forget the openings of entries."""
        for commitment in commitments:
            self._openings.erase(commitment)

    def submit(self, entry: bytes) -> Ticket:
        """Queue an entry; entries are logged in the order of these calls."""
        return Ticket(entry=entry, index=self._log.append(entry))

    def settle(self, ticket: Ticket) -> int:
        """Return the entry's index, proved to be in the log under a durable checkpoint that continues the last.

        When this returns, the checkpoint is held outside too. It may be asked again of the same ticket.

        Raises:
            UnavailableError: the log did not answer, too few holders, `clock-disagrees`. VerificationError: `log-rolled-back`,
                `log-forked`, `bad-inclusion-proof`.
        """
        try:
            index = ticket.index.result(LOG_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError("the log does not answer", code="log-timeout", stage="log") from None
        proof = self._log.prove(index)
        proof.verify(ticket.entry, self._policy)
        with self._lock:
            head = self._head(proof.unverified_checkpoint)
            if head.checkpoint.size > self._seen.size:
                head.continues(self._seen)
                self._holders.hold(head)
                self._check_time()
                self._seen, self.held_at = head.checkpoint, time.monotonic()
            else:  # another thread settled under a later checkpoint meanwhile
                latest = Head(note=b"", checkpoint=self._seen, fetch=self._fetch)
                latest.continues(head.checkpoint)
        return index

    def check_log(self) -> None:
        """Raise UnavailableError, `log-closed`, where a write failed and the log has to be opened again."""
        self._log.check_writable()

    def check_writable(self) -> None:
        """Prove that log, openings and holders could take one more decision, as far as a look can tell.

        Raises:
            UnavailableError: `log-closed`, `file-unwritable`.
        """
        self._log.check_writable()
        self._openings.check_writable()
        self._holders.check_writable()

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

    def decisions_backwards(
        self, *, before: int | None = None, erased: Container[bytes] = ()
    ) -> Iterator[Record]:
        """Yield decisions with their opened fields, newest first.

        Args:
            before: only those of a lower index.
            erased: commitments that were erased on purpose; these are left out.

        Raises:
            CollateralError: `opening-missing`. VerificationError: `opening-mismatch`.
        """
        for index, raw in self.entries_backwards(before=before):
            entry = LogEntry.parse(raw)
            if entry.type == "decision" and entry.commitment not in erased:
                yield self._open(index, entry.commitment)

    def _open(self, index: int, commitment: bytes) -> Record:
        raw = self._openings.read(commitment)
        if raw is None:
            raise CollateralError(
                f"the openings of log entry {index} are not there: {commitment.hex()}",
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

    def _head(self, note: bytes) -> Head:
        return Head(note=note, checkpoint=self._policy.verify(note).checkpoint, fetch=self._fetch)


def _commitment(openings: Openings) -> bytes:
    leaves = tuple(
        Leaf(name=name, leaf=field_leaf(openings.record_id, name, openings.fields[name]))
        for name in sorted(openings.fields)
    )
    return commitment_root(leaves)
