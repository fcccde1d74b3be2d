"""A broker's state in one file: rows, log, openings with their salts. Its keys are kept apart.

Whatever is not public is encrypted under a key that follows from the log's: a backup without the broker's keys shows
nothing, and a changed one does not open. Spec: docs/spec/broker-state.md, Backup and restore.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import IO, ClassVar, Literal

from sqlalchemy import select

from sealwright.broker.database import Database
from sealwright.broker.ledger import Ledger
from sealwright.broker.openings import OpeningStore
from sealwright.broker.rows import RowKey, state_root
from sealwright.broker.sealed import Sealer
from sealwright.broker.settings import BrokerSecrets
from sealwright.broker.state import Anchor, anchor_of
from sealwright.broker.store import Store
from sealwright.broker.tables import CONTENTS, RECEIPTS
from sealwright.crypto.document import Bytes, Count, Digest, Document, Id16, Record, Time
from sealwright.crypto.statement import Statement
from sealwright.errors import UnavailableError
from sealwright.protocol.commitment import LogEntry
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import (
    CHECKPOINT,
    TILE_HEIGHT,
    TILE_WIDTH,
    Fetch,
    entries_path,
    parse_bundle,
    tile_path,
    width_at,
)

MANIFEST, ROWS_PART, RECEIPTS_PART, CONTENTS_PART, OPENINGS_PART, LOG_PART = (
    "manifest",
    "rows",
    "receipts",
    "contents",
    "openings",
    "log",
)
BATCH = 1000  # receipts in one part
_TRIES = 40  # to read rows and log of one moment while the broker works
_WAIT_S = 0.1


class Manifest(Statement):
    """What a backup holds, signed by the broker's root."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.backup.v1+json"

    format: Literal["sealwright-backup/v1"] = "sealwright-backup/v1"
    backup_id: Id16
    created: Time
    log_key: str
    checkpoint: Bytes  # signed note
    epoch: Count
    state_root: Digest


class BackupRow(Record):
    """One security row."""

    kind: str
    id: str
    body: Bytes


class BackupRows(Document):
    """All security rows."""

    rows: list[BackupRow]


class BackupReceipt(Record):
    """Which receipt named which lease."""

    entry: Bytes
    lease_id: Bytes


class BackupReceipts(Document):
    """Some of them."""

    receipts: list[BackupReceipt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is backed up; it may be at work."""

    secrets: BrokerSecrets
    database: Database
    fetch: Fetch
    openings: OpeningStore
    random: Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """Rows and log of one moment."""

    rows: dict[RowKey, bytes]
    note: bytes
    size: int
    anchor: Anchor
    edge: dict[str, bytes]  # the partial tiles and bundle, which the log's writer replaces


class FrozenLog:
    """A log as one checkpoint has it: nothing can be added."""

    def __init__(self, note: bytes, size: int, fetch: Fetch) -> None:
        self._note, self._reader = note, TileReader(fetch, size)

    @property
    def signed_checkpoint(self) -> bytes:
        """The checkpoint."""
        return self._note

    def prove(self, index: int) -> LogProof:
        """Return the proof of an entry."""
        hashes = self._reader.inclusion_proof(index)
        return LogProof(index=index, hashes=hashes, unverified_checkpoint=self._note)

    def append(self, entry: bytes) -> Future[int]:
        """Refuse."""
        raise UnavailableError("this log is only read", code="log-closed", stage="log")

    def check_writable(self) -> None:
        """Refuse."""
        self.append(b"")


def back_up(source: Source, out: IO[bytes], *, at: datetime) -> Manifest:
    """Write a backup of one moment; return what it says of itself.

    Raises:
        UnavailableError: `backup-busy`: rows changed at each try. VerificationError: the state does not hold.
    """
    moment = _moment(source)
    manifest = Manifest(
        backup_id=source.random(16),
        created=at,
        log_key=source.secrets.log_key,
        checkpoint=moment.note,
        epoch=moment.anchor.epoch,
        state_root=moment.anchor.state_root,
    )
    sealer = Sealer(source.secrets.log.key, source.random)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, MANIFEST, manifest.sign(source.secrets.root))
        for name, plain in _secret_parts(source, moment):
            _add(tar, name, sealer.seal(name, manifest.backup_id, plain))
        for path in log_paths(moment.size):
            _add(tar, f"{LOG_PART}/{path}", moment.edge.get(path) or source.fetch(path))
    return manifest


def log_paths(size: int) -> Iterator[str]:
    """Yield the paths of a log's bundles and tiles under a checkpoint of `size`."""
    for index in range(-(-size // TILE_WIDTH)):
        yield entries_path(index, width_at(0, index, size))
    level = 0
    while size >> (TILE_HEIGHT * level):
        count = size >> (TILE_HEIGHT * level)
        for index in range(-(-count // TILE_WIDTH)):
            yield tile_path(level, index, width_at(level, index, size))
        level += 1


def overlay(first: Mapping[str, bytes], then: Fetch) -> Fetch:
    """Return what reads from `first`, and what is not there from `then`."""
    return lambda path: first[path] if path in first else then(path)


def last_decision(ledger: Ledger) -> Anchor:
    """Return what the last decision of a log says of the rows."""
    for record in ledger.decisions_backwards():
        return anchor_of(record)
    return Anchor(epoch=0, state_root=state_root({}), at=None)


def _moment(source: Source) -> _Moment:
    """Return rows and log that belong together. The broker may work on: then it is tried again."""
    policy, store = LogPolicy.of_key(source.secrets.log_key), Store(source.database)
    for _ in range(_TRIES):
        try:
            rows = store.rows()
            note = source.fetch(CHECKPOINT)
            size = policy.verify(note).checkpoint.size
            edge = {path: source.fetch(path) for path in log_paths(size) if ".p/" in path}
            fetch = overlay(edge, source.fetch)
            ledger = Ledger(
                FrozenLog(note, size, fetch),
                fetch,
                policy=policy,
                openings=source.openings,
                random=source.random,
                seen=store.head().checkpoint,
            )
            anchor = last_decision(ledger)
            if anchor.state_root == state_root(rows):
                return _Moment(rows=rows, note=note, size=size, anchor=anchor, edge=edge)
        except FileNotFoundError:
            pass  # a partial tile that has become full meanwhile
        time.sleep(_WAIT_S)
    raise UnavailableError(
        "rows and log were of no one moment: stop the broker and try again; if that fails too, the state is tampered with",
        code="backup-busy",
        stage="backup",
    )


def _secret_parts(source: Source, moment: _Moment) -> Iterator[tuple[str, bytes]]:
    rows = [BackupRow(kind=kind, id=name, body=body) for (kind, name), body in sorted(moment.rows.items())]
    yield ROWS_PART, BackupRows(rows=rows).encode()
    for number, part in enumerate(_receipts(source.database)):
        yield f"{RECEIPTS_PART}/{number:08}", BackupReceipts(receipts=part).encode()
    for name, body in _contents(source.database):
        yield f"{CONTENTS_PART}/{name.hex()}", body
    for commitment in _commitments(source, moment):
        raw = source.openings.read(commitment)
        if raw is not None:  # erased
            yield f"{OPENINGS_PART}/{commitment.hex()}", raw


def _commitments(source: Source, moment: _Moment) -> Iterator[bytes]:
    """Yield what the log commits to, once each; receipts' openings are their enclaves'."""
    for index in range(-(-moment.size // TILE_WIDTH)):
        path = entries_path(index, width_at(0, index, moment.size))
        for entry in parse_bundle(moment.edge.get(path) or source.fetch(path)):
            parsed = LogEntry.parse(entry)
            if parsed.type != "receipt":
                yield parsed.commitment


def _receipts(database: Database) -> Iterator[list[BackupReceipt]]:
    last = b""
    while True:
        query = select(RECEIPTS.c.entry, RECEIPTS.c.lease_id).where(RECEIPTS.c.entry > last)
        with database.begin() as db:
            found = db.execute(query.order_by(RECEIPTS.c.entry).limit(BATCH)).all()
        if not found:
            return
        yield [BackupReceipt(entry=entry, lease_id=lease_id) for entry, lease_id in found]
        last = bytes(found[-1][0])


def _contents(database: Database) -> Iterator[tuple[bytes, bytes]]:
    with database.begin() as db:
        names = [bytes(name) for name in db.execute(select(CONTENTS.c.sha256)).scalars()]
    for name in names:
        with database.begin() as db:
            body = db.execute(select(CONTENTS.c.body).where(CONTENTS.c.sha256 == name)).scalar()
        if body is not None:
            yield name, bytes(body)


def _add(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(raw), 0o600
    tar.addfile(member, io.BytesIO(raw))
