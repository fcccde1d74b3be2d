"""Openings of what the log commits to: fields with their salts, by commitment. Spec: docs/spec/broker-state.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sqlalchemy import delete, select

from sealwright.broker.database import Database, upsert
from sealwright.broker.files import check_room, read_file, write_file
from sealwright.broker.sealed import Sealer
from sealwright.broker.tables import OPENINGS

_PLACE = "openings"
MAX_OPENINGS = 4 << 20  # bytes; a keyset's hold its evidence


class OpeningStore(Protocol):
    """Keeps openings where only the broker reads them."""

    def write(self, commitment: bytes, raw: bytes) -> None:
        """Keep openings: durable when this returns."""
        ...

    def read(self, commitment: bytes) -> bytes | None:
        """Return openings as they were kept, or None; the caller checks them against the commitment."""
        ...

    def erase(self, commitment: bytes) -> None:
        """Forget openings: nobody can say again what the entry meant."""
        ...

    def names(self) -> Iterator[bytes]:
        """Yield the commitments that can be opened."""
        ...

    def check_writable(self) -> None:
        """Raise UnavailableError where nothing could be kept, as far as a look can tell."""
        ...


class OpeningFiles:
    """One file for each commitment, closed to other users."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, commitment: bytes, raw: bytes) -> None:
        """As the protocol says. Raises UnavailableError: `file-unwritable`."""
        write_file(self._path(commitment), raw)

    def read(self, commitment: bytes) -> bytes | None:
        """As the protocol says. Raises UnavailableError: `file-unreadable`. FormatError: `too-large`."""
        return read_file(self._path(commitment), MAX_OPENINGS)

    def erase(self, commitment: bytes) -> None:
        """As the protocol says. The blocks on the disk are the disk's matter."""
        self._path(commitment).unlink(missing_ok=True)

    def names(self) -> Iterator[bytes]:
        """As the protocol says."""
        for path in self._directory.glob("[0-9a-f]*.json"):
            if len(path.stem) == 64:
                yield bytes.fromhex(path.stem)

    def check_writable(self) -> None:
        """Look at the disk."""
        check_room(self._directory)

    def _path(self, commitment: bytes) -> Path:
        return self._directory / f"{commitment.hex()}.json"


class SealedOpenings:
    """Openings in a database that others run, encrypted one by one."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database, self._sealer = database, sealer

    def write(self, commitment: bytes, raw: bytes) -> None:
        """As the protocol says. Raises UnavailableError: `store-unavailable`, `writer-fenced`."""
        body = self._sealer.seal(_PLACE, commitment, raw)
        with self._database.begin() as db:
            statement = upsert(db, OPENINGS).on_conflict_do_nothing()
            db.execute(statement, [{"commitment": commitment, "body": body}])

    def read(self, commitment: bytes) -> bytes | None:
        """As the protocol says. Raises VerificationError: `sealed-value-foreign`."""
        with self._database.begin() as db:
            body = db.execute(select(OPENINGS.c.body).where(OPENINGS.c.commitment == commitment)).scalar()
        return None if body is None else self._sealer.open(_PLACE, commitment, bytes(body))

    def erase(self, commitment: bytes) -> None:
        """As the protocol says. The server's old pages, WAL and replicas are its matter."""
        with self._database.begin() as db:
            db.execute(delete(OPENINGS).where(OPENINGS.c.commitment == commitment))

    def names(self) -> Iterator[bytes]:
        """As the protocol says."""
        with self._database.begin() as db:
            yield from [bytes(name) for name in db.execute(select(OPENINGS.c.commitment)).scalars()]

    def check_writable(self) -> None:
        """Prove that this replica still writes."""
        with self._database.begin():
            pass
