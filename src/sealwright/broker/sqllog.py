"""The log in the broker's database, for several replicas: the same files as in a directory, in one table.

As in `sealwright.tlog.posix`, tiles and the signed state are durable before a checkpoint is signed, and the
checkpoint before anything is answered. Each transaction is fenced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from sqlalchemy import delete, select
from sqlalchemy.engine import Connection

from sealwright.broker.database import Database, upsert
from sealwright.broker.tables import LOG_FILES
from sealwright.errors import UnavailableError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealwright.tlog.edge import RightEdge
from sealwright.tlog.keys import Signer
from sealwright.tlog.monitor import check_continues, check_not_before
from sealwright.tlog.policy import NO_QUORUM, LogPolicy
from sealwright.tlog.posix import STATE, decode_state, encode_state
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import CHECKPOINT, Fetch, TilePath


def table_fetch(database: Database) -> Fetch:
    """Return a Fetch over the public files of a log in a database."""

    def fetch(path: str) -> bytes:
        if path != CHECKPOINT:
            TilePath.parse(path)  # nothing else is public
        with database.begin() as db:
            raw = _read(db, path)
        if raw is None:
            raise FileNotFoundError(path)
        return raw

    return fetch


class SqlLog:
    """The one writer of a log in a database. Not thread-safe: see `sealwright.tlog.writer.LogWriter`."""

    def __init__(self, database: Database, signer: Signer) -> None:
        """Use `open`."""
        self._database, self._signer = database, signer
        self._policy = LogPolicy(logs=(signer.vkey,), quorum=NO_QUORUM)
        self._edge = RightEdge()
        self._stored = table_fetch(database)
        self._recent: Mapping[str, bytes] = {}  # what the last batch wrote: the proofs asked for next need it
        self._signed: tuple[Checkpoint, bytes, TileReader]

    @classmethod
    def open(cls, database: Database, signer: Signer, *, create: bool = False) -> Self:
        """Finish what a crash left, and return the log's writer.

        Args:
            create: start an empty log where there is none.

        Raises:
            UnavailableError: `store-unavailable`, `writer-fenced`. LogFormatError: a file is malformed.
            VerificationError: the files are not what the log's key signed; `log-missing`.
        """
        log = cls(database, signer)
        raw = log._read(STATE)
        if raw is None:
            if not create or log._read(CHECKPOINT) is not None:
                raise VerificationError("the database holds no log", code="log-missing", stage="open")
            log._write({STATE: encode_state(log._edge, signer)}, expected=None)
            raw = encode_state(log._edge, signer)
        log._recover(*decode_state(raw, signer.vkey))
        return log

    @property
    def checkpoint(self) -> Checkpoint:
        """The latest published checkpoint."""
        return self._signed[0]

    @property
    def signed_checkpoint(self) -> bytes:
        """The latest published checkpoint as a signed note."""
        return self._signed[1]

    def fetch(self, path: str) -> bytes:
        """Return a public file of the log. Any thread.

        Raises:
            FileNotFoundError: there is none. LogFormatError: not a path of the log.
        """
        return self._recent.get(path) or self._stored(path)

    def append(self, entries: Sequence[bytes]) -> int:
        """Append a batch durably, publish its checkpoint, and return the index of its first entry.

        Raises:
            LogFormatError: `entry-too-large`; nothing was written.
            UnavailableError: `store-unavailable`, `writer-fenced`: open the log again.
        """
        first = self._edge.size
        if not entries:
            return first
        edge, bundles, tiles = self._edge.extended(entries)
        before = encode_state(self._edge, self._signer)
        self._write({**bundles, **tiles, STATE: encode_state(edge, self._signer)}, expected=before)
        self._edge, self._recent = edge, {**bundles, **tiles}
        self._publish()
        return first

    def prove(self, index: int) -> LogProof:
        """Return the proof of entry `index` under the latest checkpoint. ValueError: no such entry. Any thread."""
        _, raw, reader = self._signed
        return LogProof(index=index, hashes=reader.inclusion_proof(index), unverified_checkpoint=raw)

    def close(self) -> None:
        """Nothing is held."""

    def _recover(self, size: int, root: bytes) -> None:
        self._edge = RightEdge.read(self.fetch, size)
        if self._edge.root() != root:
            raise VerificationError(
                "the tiles do not lead to the root in the state", code="log-root-mismatch", stage="root"
            )
        raw = self._read(CHECKPOINT)
        if raw is None:
            if size:
                raise VerificationError(
                    "the log has no checkpoint", code="log-checkpoint-missing", stage="checkpoint"
                )
            self._publish()
            return
        signed = self._policy.verify(raw).checkpoint
        current = Checkpoint(origin=self._signer.name, size=size, root=root)
        check_not_before(current, signed)
        reader = TileReader(self.fetch, size)
        if signed.size:
            check_continues(reader, current, signed)
        if signed.size < size:
            self._publish()
        else:
            self._signed = (signed, raw, reader)

    def _publish(self) -> None:
        """Sign and publish a checkpoint of the durable state; before that, a crash could make us sign a fork."""
        checkpoint = Checkpoint(origin=self._signer.name, size=self._edge.size, root=self._edge.root())
        raw = sign_checkpoint(checkpoint, self._signer)
        self._write({CHECKPOINT: raw}, expected=encode_state(self._edge, self._signer))
        self._signed = (checkpoint, raw, TileReader(self.fetch, checkpoint.size))

    def _write(self, files: Mapping[str, bytes], *, expected: bytes | None) -> None:
        """Write files in one transaction, in which the state is still the `expected` one."""
        with self._database.begin() as db:
            if _read(db, STATE, update=True) != expected:
                raise UnavailableError(
                    "the log's state in the database is not the one this replica left: it opens it again",
                    code="writer-fenced",
                    stage="writer",
                )
            statement = upsert(db, LOG_FILES)
            db.execute(
                statement.on_conflict_do_update(
                    index_elements=["path"], set_={"body": statement.excluded.body}
                ),
                [{"path": path, "body": body} for path, body in files.items()],
            )
            for path in files:
                if path.startswith("tile/") and ".p/" not in path:  # now full: its partial forms can go
                    db.execute(delete(LOG_FILES).where(LOG_FILES.c.path.startswith(f"{path}.p/")))

    def _read(self, path: str) -> bytes | None:
        with self._database.begin() as db:
            return _read(db, path)


def _read(db: Connection, path: str, *, update: bool = False) -> bytes | None:
    query = select(LOG_FILES.c.body).where(LOG_FILES.c.path == path)
    found = db.execute(query.with_for_update() if update else query).scalar()
    return found if isinstance(found, bytes) else None
