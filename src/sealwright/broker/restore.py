"""A backup put back: exactly, where nothing was decided since; else into a new log, which everyone sees.

Spec: docs/spec/broker-state.md, Backup and restore.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import insert, select

from sealwright.broker.backup import (
    CONTENTS_PART,
    LOG_PART,
    MANIFEST,
    OPENINGS_PART,
    RECEIPTS_PART,
    ROWS_PART,
    BackupReceipts,
    BackupRows,
    Manifest,
    Source,
)
from sealwright.broker.database import Database, open_sqlite
from sealwright.broker.files import write_file
from sealwright.broker.openings import MAX_OPENINGS, OpeningFiles, OpeningStore, SealedOpenings
from sealwright.broker.resources import MAX_RESOURCE
from sealwright.broker.rows import BrokerRow, RowKey, state_root
from sealwright.broker.sealed import Sealer
from sealwright.broker.service import Running, open_broker
from sealwright.broker.settings import SEED_BYTES, BrokerSecrets, Layout, SettingsFile
from sealwright.broker.sqllog import table_fetch
from sealwright.broker.storage import Shared, open_postgres, open_reader
from sealwright.broker.store import Pending, Store
from sealwright.broker.tables import HEAD, LOG_FILES, ROWS
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import hex_decode, rfc3339
from sealwright.crypto.statement import ed25519
from sealwright.errors import FormatError, SettingsError, VerificationError
from sealwright.tlog.edge import RightEdge
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.posix import STATE, directory_fetch, encode_state
from sealwright.tlog.tiles import CHECKPOINT, MAX_BUNDLE, Fetch, TilePath

MAX_PART = 1 << 30  # bytes of all rows
MAX_MANIFEST = 64 << 10  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a backup goes: a folder with the broker's keys and settings, and nothing else of it."""

    layout: Layout
    secrets: BrokerSecrets
    database: Database
    openings: OpeningStore
    write_log: Callable[[str, bytes], None]
    fetch: Fetch


@contextmanager
def open_source(layout: Layout, url_file: Path | None) -> Iterator[Source]:
    """Open what is backed up, without becoming its writer. Raises SealwrightError."""
    secrets = BrokerSecrets.load(layout)
    shared = url_file is not None
    database = open_sqlite(layout.database) if url_file is None else open_reader(url_file)
    openings = (
        SealedOpenings(database, Sealer(secrets.log.key, os.urandom))
        if shared
        else OpeningFiles(layout.openings)
    )
    try:
        yield Source(
            secrets=secrets,
            database=database,
            fetch=table_fetch(database) if shared else directory_fetch(layout.log),
            openings=openings,
            random=os.urandom,
        )
    finally:
        database.close()


@contextmanager
def restore_target(layout: Layout, shared: Shared | None, random: Callable[[int], bytes]) -> Iterator[Target]:
    """Open where a backup goes, proved to be empty. Raises SettingsError: `restore-not-empty`."""
    secrets = BrokerSecrets.load(layout)
    for folder in (layout.openings, layout.log):
        folder.mkdir(mode=0o700, exist_ok=True)
    if shared is None and (
        layout.database.exists() or any(layout.log.iterdir()) or any(layout.openings.iterdir())
    ):
        raise _not_empty(str(layout.root))
    database = open_sqlite(layout.database) if shared is None else open_postgres(shared)
    try:
        with database.begin() as db:
            if any(db.execute(select(table).limit(1)).first() for table in (ROWS, HEAD, LOG_FILES)):
                raise _not_empty("the database")
        if shared is None:
            openings: OpeningStore = OpeningFiles(layout.openings)
            yield Target(
                layout=layout,
                secrets=secrets,
                database=database,
                openings=openings,
                write_log=_into(layout.log),
                fetch=directory_fetch(layout.log),
            )
        else:
            openings = SealedOpenings(database, Sealer(secrets.log.key, random))
            yield Target(
                layout=layout,
                secrets=secrets,
                database=database,
                openings=openings,
                write_log=_into_table(database),
                fetch=table_fetch(database),
            )
    finally:
        database.close()


def restore_exactly(source: IO[bytes], layout: Layout, shared: Shared | None, **opened: Any) -> Manifest:
    """Put a backup back as it was, and open the broker; return what the backup says of itself.

    Args:
        source: the backup.
        opened: holders and all else that `open_broker` takes.

    Raises:
        VerificationError: `log-rolled-back`: more was decided after the backup than is in it. SealwrightError: as
            `put_back`, and what `open_broker` says.
    """
    with restore_target(layout, shared, os.urandom) as target:
        manifest = put_back(source, target)
    with open_broker(layout.root, shared=shared, **opened) as running:
        _decide(running, manifest)
    return manifest


def restore_into_new_log(
    source: IO[bytes], layout: Layout, shared: Shared | None, *, origin: str, **opened: Any
) -> Manifest:
    """Begin a new log with the rows of a backup: what was decided since is lost, and everyone sees it.

    Every policy and config names the old log's key, so no key is released before its owner has set a new policy.

    Args:
        source, opened: as `restore_exactly`.
        origin: name of the new log.

    Raises:
        SealwrightError: as `restore_exactly`; SettingsError: `restore-origin`.
    """
    with restore_target(layout, shared, os.urandom) as target:
        manifest, rows, rest = _rows_of(source, target)
        new_log(layout, target.secrets, origin=origin, at=manifest.created)
    opened = {**opened, "create": True, "begin": manifest.epoch}
    with open_broker(layout.root, shared=shared, **opened) as running:
        core = running.core
        made = BrokerRow.parse(rows["broker", "self"]).model_copy(update={"log_key": core.secrets.log_key})
        rows["broker", "self"] = made.encode()
        with core.state.lock:
            for name, plain in rest:
                _put_rest(core.state.store, name, plain)
            core.state.change(core.state.view(), dict(rows), _about(manifest, action="restore-into-new-log"))
    return manifest


def _decide(running: Running, manifest: Manifest) -> None:
    state = running.core.state
    with state.lock:
        state.view()
        ticket = state.decide(_about(manifest, action="restore"))
    state.ledger.settle(ticket)


def _about(manifest: Manifest, *, action: str) -> dict[str, object]:
    return {
        "action": action,
        "verdict": "grant",
        "backup": manifest.backup_id.hex(),
        "created": rfc3339(manifest.created),
        "checkpoint": manifest.checkpoint.decode(),
    }


def _rows_of(
    source: IO[bytes], target: Target
) -> tuple[Manifest, dict[RowKey, bytes], list[tuple[str, bytes]]]:
    """Return rows, and receipts and contents, of a backup."""
    reader = _Reader(source, target)
    manifest = reader.manifest()
    rows: dict[RowKey, bytes] = {}
    rest = []
    for name, raw in reader.parts():
        kind = name.partition("/")[0]
        if kind == ROWS_PART:
            rows = _rows(manifest, _opened(target, manifest, name, raw))
        elif kind in (RECEIPTS_PART, CONTENTS_PART):
            rest.append((name, _opened(target, manifest, name, raw)))
    return manifest, rows, rest


def put_back(source: IO[bytes], target: Target) -> Manifest:
    """Write what a backup holds, each part checked before it is written; return what it says of itself.

    Whether it may be served is decided where the broker is opened: its holders know what came after.

    Raises:
        FormatError: `malformed-backup`. VerificationError: `backup-foreign`, `sealed-value-foreign`, `row-tampered`.
    """
    reader = _Reader(source, target)
    manifest = reader.manifest()
    for name, raw in reader.parts():
        _put(target, manifest, name, raw)
    _finish(target, manifest)
    return manifest


def _put(target: Target, manifest: Manifest, name: str, raw: bytes) -> None:
    kind, _, rest = name.partition("/")
    if kind == LOG_PART:
        TilePath.parse(rest)
        target.write_log(rest, raw)
        return
    plain = _opened(target, manifest, name, raw)
    if kind == ROWS_PART:
        changes = _rows(manifest, plain)
        pending = Pending(epoch=manifest.epoch, log_size=0, entry=b"", changes=changes)
        Store(target.database).commit(pending, manifest.checkpoint)
    elif kind == OPENINGS_PART:
        target.openings.write(hex_decode(rest, length=32), plain)
    else:
        _put_rest(Store(target.database), name, plain)


def _put_rest(store: Store, name: str, plain: bytes) -> None:
    kind, _, rest = name.partition("/")
    if kind == CONTENTS_PART:
        store.add_content(hex_decode(rest, length=32), plain)
    else:
        receipts = BackupReceipts.parse(plain, limit=MAX_PART).receipts
        store.add_receipts([(one.entry, one.lease_id) for one in receipts])


def _opened(target: Target, manifest: Manifest, name: str, raw: bytes) -> bytes:
    return Sealer(target.secrets.log.key, os.urandom).open(name, manifest.backup_id, raw)


def _rows(manifest: Manifest, plain: bytes) -> dict[RowKey, bytes]:
    rows = {(row.kind, row.id): row.body for row in BackupRows.parse(plain, limit=MAX_PART).rows}
    if state_root(rows) != manifest.state_root:
        raise VerificationError(
            "the rows in the backup are not those it names", code="row-tampered", stage="backup"
        )
    return rows


def _finish(target: Target, manifest: Manifest) -> None:
    """Sign the log's state anew, from tiles that lead to the checkpoint; without it nobody could write."""
    checkpoint = LogPolicy.of_key(target.secrets.log_key).verify(manifest.checkpoint).checkpoint
    edge = RightEdge.read(target.fetch, checkpoint.size)
    if edge.root() != checkpoint.root:
        raise VerificationError(
            "the log in the backup does not lead to its checkpoint", code="log-root-mismatch", stage="backup"
        )
    target.write_log(STATE, encode_state(edge, target.secrets.log))
    target.write_log(CHECKPOINT, manifest.checkpoint)


class _Reader:
    """Reads a backup from its beginning to its end, once."""

    def __init__(self, source: IO[bytes], target: Target) -> None:
        try:
            self._tar = tarfile.open(fileobj=source, mode="r|")  # noqa: SIM115 - read on in `parts`
        except tarfile.TarError as exc:
            raise _malformed() from exc
        self._secrets = target.secrets
        self._read = self._members()  # once: the stream cannot be turned back

    def manifest(self) -> Manifest:
        """Return the manifest, proved to be this broker's."""
        name, raw = next(self._read, ("", b""))
        if name != MANIFEST or len(raw) > MAX_MANIFEST:
            raise _malformed()
        manifest = Manifest.parse(
            Envelope.parse(raw).verify(
                Manifest.PAYLOAD_TYPE, [ed25519(self._secrets.root_public)], stage="backup"
            )
        )
        if manifest.log_key != self._secrets.log_key:
            raise VerificationError(
                "the backup is of another log than the keys here", code="backup-foreign", stage="backup"
            )
        return manifest

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """Yield the names and bytes of all other parts; each kind and no other."""
        seen: set[str] = set()
        for name, raw in self._read:
            kind = name.partition("/")[0]
            if kind not in (ROWS_PART, RECEIPTS_PART, CONTENTS_PART, OPENINGS_PART, LOG_PART):
                raise _malformed()
            if kind == ROWS_PART and kind in seen:
                raise _malformed()
            seen.add(kind)
            yield name, raw
        if not {ROWS_PART, LOG_PART} <= seen:
            raise _malformed()

    def _members(self) -> Iterator[tuple[str, bytes]]:
        try:
            for member in self._tar:
                file = self._tar.extractfile(member) if member.isreg() else None
                if file is None or member.size > _limit(member.name):
                    raise _malformed()
                yield member.name, file.read()
        except (tarfile.TarError, EOFError) as exc:
            raise _malformed() from exc


def _limit(name: str) -> int:
    kind = name.partition("/")[0]
    known = {LOG_PART: MAX_BUNDLE, OPENINGS_PART: MAX_OPENINGS + 64, CONTENTS_PART: MAX_RESOURCE + 128}
    return known.get(kind, MAX_PART)


def _into(log: Path) -> Callable[[str, bytes], None]:
    def write(path: str, raw: bytes) -> None:
        (log / path).parent.mkdir(parents=True, exist_ok=True)
        write_file(log / path, raw)

    return write


def _into_table(database: Database) -> Callable[[str, bytes], None]:
    def write(path: str, raw: bytes) -> None:
        with database.begin() as db:
            db.execute(insert(LOG_FILES).values(path=path, body=raw))

    return write


def _not_empty(where: str) -> SettingsError:
    return SettingsError(
        f"{where} holds something of a broker already: a backup goes into an empty one",
        code="restore-not-empty",
    )


def _malformed() -> FormatError:
    return FormatError("not a backup of a broker", code="malformed-backup")


def new_log(layout: Layout, secrets: BrokerSecrets, *, origin: str, at: object) -> None:
    """Give a broker's folder another log key and origin. The old log's key is kept as `log-OLDKEYID`.

    Raises:
        SettingsError: a bad origin, or the old one.
    """
    old = secrets.log
    if origin == old.name:
        raise SettingsError("a new log has a new name: --origin", code="restore-origin")
    settings = SettingsFile.from_json(
        {
            "format": "sealwright-broker/v1",
            "origin": origin,
            "created": at,
            "admin_token": secrets.admin_token,
        },
        error=SettingsError,
    )
    write_file(layout.key(f"log-{old.vkey.key_id.hex()}"), old.key.private_bytes_raw())
    write_file(layout.key("log"), os.urandom(SEED_BYTES))
    write_file(layout.settings, settings.encode())
