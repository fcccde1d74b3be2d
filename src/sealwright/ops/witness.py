"""A witness of logs (c2sp.org/tlog-witness) on files: a second party's memory of how far a log has come.

Whoever runs it needs nothing from the log but its verifier key. Spec: docs/spec/broker-state.md, Holders.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sealwright.broker.files import check_private, read_file, read_secret, write_file
from sealwright.broker.http import read_body
from sealwright.errors import LogFormatError, SealwrightError, SettingsError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import ED25519, Cosigner, VerifierKey
from sealwright.tlog.note import MAX_NOTE
from sealwright.tlog.policy import NO_QUORUM, LogPolicy
from sealwright.tlog.text import check_key_name
from sealwright.tlog.witness import MAX_REQUEST, PATH, SIZE_TYPE, AddCheckpoint, Conflict, Witness

_STATUS = {"unknown-log": 404, "untrusted-signer": 403, "bad-signature": 403, "log-forked": 422}


class FileHeads:
    """One file for each log. For one process: `update` compares and writes under a lock."""

    def __init__(self, directory: Path, logs: dict[str, VerifierKey]) -> None:
        self._directory, self._logs = directory, logs
        self._lock = Lock()

    def get(self, origin: str) -> Checkpoint | None:
        """As the protocol says. Raises VerificationError: the file is not the log's."""
        raw = read_file(self._path(origin), MAX_NOTE)
        if raw is None:
            return None
        policy = LogPolicy(logs=(self._logs[origin],), quorum=NO_QUORUM)
        return policy.verify(raw).checkpoint

    def note(self, origin: str) -> bytes | None:
        """As the protocol says."""
        return read_file(self._path(origin), MAX_NOTE)

    def update(self, origin: str, old_size: int, new: Checkpoint, note: bytes) -> None:
        """As the protocol says."""
        with self._lock:
            head = self.get(origin)
            at = 0 if head is None else head.size
            if at != old_size or (head is not None and at == new.size and head.root != new.root):
                raise Conflict(at)
            write_file(self._path(origin), note)

    def _path(self, origin: str) -> Path:
        return self._directory / f"{hashlib.sha256(origin.encode()).hexdigest()}.checkpoint"


def open_witness(directory: Path, logs: Sequence[str], *, name: str | None = None) -> Witness:
    """Return the witness of a folder, which is made with a fresh key if it is not there and `name` is given.

    Args:
        logs: verifier keys of the logs that it cosigns.

    Raises:
        SettingsError: `witness-missing`, `malformed-witness`, `broker-files-exposed`.
    """
    key = directory / "key"
    if name is not None and not key.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        seed = Ed25519PrivateKey.generate().private_bytes_raw()
        write_file(directory / "name", check_key_name(name).encode())
        write_file(key, seed)
    if not key.exists():
        raise SettingsError(f"{directory} holds no witness: give it a --name", code="witness-missing")
    check_private(directory)
    known = {vkey.name: vkey for vkey in map(_log_key, logs)}
    cosigner = Cosigner(
        name=read_secret(directory / "name").decode(),
        key=Ed25519PrivateKey.from_private_bytes(read_secret(key)),
    )
    return Witness(
        cosigner=cosigner, logs=known, heads=FileHeads(directory, known), time_s=lambda: int(time.time())
    )


def witness_app(witness: Witness) -> Starlette:
    """Return the ASGI application of a witness."""

    async def add(request: Request) -> Response:
        try:
            raw = await read_body(request, MAX_REQUEST)
            line = await run_in_threadpool(witness.add, AddCheckpoint.parse(raw))
        except Conflict as conflict:
            return Response(f"{conflict.size}\n".encode(), 409, headers={"content-type": SIZE_TYPE})
        except SealwrightError as error:
            return PlainTextResponse(f"{error.code}\n", status_code=_status(error))
        return Response(line, media_type="text/plain; charset=utf-8")

    async def latest(request: Request) -> Response:
        name = request.path_params["name"]
        found = await run_in_threadpool(_latest, witness, name)
        return PlainTextResponse("unknown-log\n", 404) if found is None else PlainTextResponse(found)

    return Starlette(
        routes=[Route(PATH, add, methods=["POST"]), Route("/{name}/checkpoint", latest, methods=["GET"])]
    )


def _latest(witness: Witness, name: str) -> bytes | None:
    """Return the highest checkpoint of the log whose origin has the SHA-256 `name` (hex)."""
    for origin in witness.logs:
        if hashlib.sha256(origin.encode()).hexdigest() == name:
            return witness.heads.note(origin)
    return None


def _status(error: SealwrightError) -> int:
    if isinstance(error, LogFormatError):
        return 400
    return _STATUS.get(error.code, 400 if not isinstance(error, VerificationError) else 403)


def _log_key(text: str) -> VerifierKey:
    try:
        key = VerifierKey.parse(text)
    except LogFormatError:
        key = None
    if key is None or key.kind != ED25519:
        raise SettingsError("a log is named by its verifier key", code="malformed-witness")
    return key
