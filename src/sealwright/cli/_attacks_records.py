"""Attacks on what is kept: evidence, receipts, log, and the broker's database."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sealwright.cli._attack import Refusal, Target, json_changed, of_command, of_start
from sealwright.cli._stand import Server, Stand, run
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url, b64url_decode


def stale_nonce(target: Target) -> Refusal:
    """Pass off old evidence as an answer to a new nonce."""
    return _verified(target, target.bundle, secrets.token_hex(32))


def swapped_keyset(target: Target) -> Refusal:
    """Put keys of one's own under a genuine quote."""

    def swap(doc: dict[str, Any]) -> None:
        keyset = json.loads(b64url_decode(doc["keyset"]))
        keyset["receipt_key"] = b64url(secrets.token_bytes(32))
        doc["keyset"] = b64url(canonical(keyset))

    path = json_changed(target.bundle, target.stand.folder / "swapped-keyset.json", swap)
    return _verified(target, path, target.nonce)


def require_hardware(target: Target) -> Refusal:
    """Pass off this stand-in as hardware."""
    return _verified(target, target.bundle, target.nonce, "--require-hardware")


def _verified(target: Target, bundle: Path, nonce: str, *more: str) -> Refusal:
    return of_command(run("verify", bundle, "--trust", target.trust, "--nonce", nonce, *more), "client")


def forged_receipt(target: Target) -> Refusal:
    """Change one word of a signed receipt: `confidential` to true."""

    def forge(doc: dict[str, Any]) -> None:
        envelope = doc["receipt"]["receipt"]
        said = base64.b64decode(envelope["payload"])
        forged = said.replace(b'"confidential":false', b'"confidential":true')
        envelope["payload"] = base64.b64encode(forged).decode()

    return _receipt(target, "forged-receipt.json", forge)


def moved_field(target: Target) -> Refusal:
    """Show the opening of one field as that of another."""

    def move(doc: dict[str, Any]) -> None:
        fields = doc["receipt"]["fields"]
        fields["tokens_in"] = fields["tokens_out"]

    return _receipt(target, "moved-field.json", move)


def _receipt(target: Target, name: str, change: Callable[[dict[str, Any]], None]) -> Refusal:
    path = json_changed(target.receipt, target.stand.folder / name, change)
    return of_command(run("receipt", "verify", path, "--trust", target.trust), "auditor")


def edited_log(target: Target) -> Refusal:
    """Change one byte of an entry of the log."""
    return _changed_log(target.stand, "edited-log", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))


def shortened_log(target: Target) -> Refusal:
    """Leave the last entry out of the log."""

    def cut(raw: bytes) -> bytes:
        last = at = 0
        while at < len(raw):
            last, at = at, at + 2 + int.from_bytes(raw[at : at + 2], "big")
        return raw[:last]

    return _changed_log(target.stand, "shortened-log", cut)


def _changed_log(stand: Stand, name: str, change: Callable[[bytes], bytes]) -> Refusal:
    copy = _log_copy(stand, name)
    bundles = [path for path in (copy / "tile" / "entries").rglob("*") if path.is_file()]
    newest = max(bundles, key=lambda path: path.stat().st_size)
    newest.write_bytes(change(newest.read_bytes()))
    return of_command(run("log", "verify", copy, "--key", stand.log_key), "auditor")


def older_log(target: Target) -> Refusal:
    """Show the log as it was before the last decision, every signature in it genuine."""
    old = _log_copy(target.stand, "older-log")
    return _continued(target.stand, old, "after-older-log")


def forked_log(target: Target) -> Refusal:
    """Show some people another history, signed with the log's own key."""
    from sealwright.broker.settings import BrokerSecrets, Layout
    from sealwright.tlog.posix import PosixLog

    fork = _log_copy(target.stand, "forked-log")
    signer = BrokerSecrets.load(Layout(root=target.stand.broker_dir)).log
    with PosixLog.open(fork, signer) as log:
        log.append([b'{"type":"another history"}'] * 8)
    return _continued(target.stand, fork, "after-forked-log")


def _log_copy(stand: Stand, name: str) -> Path:
    return Path(shutil.copytree(stand.broker_dir / "log", stand.folder / name))


def _continued(stand: Stand, shown: Path, decision: str) -> Refusal:
    """Let the broker decide something, hold its checkpoint, and verify the log `shown` against that."""
    stand.add_caller(decision)
    held = stand.folder / f"{decision}.checkpoint"
    shutil.copy(stand.broker_dir / "log" / "checkpoint", held)
    args = ("log", "verify", shown, "--key", stand.log_key, "--previous", held)
    return of_command(run(*args), "auditor")


def restored_database(target: Target) -> Refusal:
    """Give the broker back the database of an earlier day, and start it; then put things right again."""
    stand = target.stand
    database = stand.broker_dir / "broker.sqlite"
    old, kept = stand.folder / "old.sqlite", stand.folder / "new.sqlite"
    _back_up(database, old)
    stand.add_caller("added-later")
    stand.broker.stop()
    _back_up(database, kept)
    _restore(old, database)
    listen = ("--listen", f"127.0.0.1:{stand.broker_port}", "--holder", stand.holder)
    server = Server.start(stand.folder / "restored.log", ["broker", "serve", stand.broker_dir, *listen])
    refusal = of_start(server, "broker")
    _restore(kept, database)
    stand.start_broker()
    return refusal


def _back_up(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _restore(copy: Path, database: Path) -> None:
    for name in (f"{database.name}-wal", f"{database.name}-shm"):
        database.with_name(name).unlink(missing_ok=True)
    shutil.copy(copy, database)
