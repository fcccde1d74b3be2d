"""`sealwright log`: show, prove and verify a transparency log on files, offline."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.cli._group import FILE, Json, group
from sealwright.cli._output import emit
from sealwright.cli._signing import write_new
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import SettingsError, UnavailableError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import Signer
from sealwright.tlog.merkle import leaf_hash, verify_inclusion
from sealwright.tlog.monitor import verify_log
from sealwright.tlog.note import MAX_NOTE, Note
from sealwright.tlog.policy import MAX_POLICY, LogPolicy, VerifiedCheckpoint
from sealwright.tlog.posix import PosixLog, directory_fetch, read_file
from sealwright.tlog.proof import LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.text import MAX_NUMBER, check_key_name
from sealwright.tlog.tiles import CHECKPOINT, MAX_ENTRY, Fetch

app = group("Show, prove and verify entries of the transparency log.")

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Directory of the log.")
]
Index = Annotated[int | None, typer.Argument(metavar="INDEX", min=0, max=MAX_NUMBER, help="Of an entry.")]


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; empty or absent.")],
    origin: Annotated[str, typer.Option(help="Name of the log, such as log.example.org/releases.")],
    key: Annotated[Path, typer.Option(help="File to make with the log's private key; mode 0600.")],
    as_json: Json = False,
) -> None:
    """Make an empty log and its key. A broker makes its own."""
    if directory.exists() and any(directory.iterdir()):
        raise SettingsError(f"{directory} is not empty", code="log-exists", stage="arguments")
    signer = Signer(name=check_key_name(origin), key=Ed25519PrivateKey.generate())
    write_new(key, f"{signer.encode()}\n".encode())
    directory.mkdir(parents=True, exist_ok=True)
    PosixLog.open(directory, signer, create=True).close()
    vkey = signer.vkey.encode()
    result: dict[str, object] = {"directory": str(directory), "log_key": vkey, "key": str(key)}
    lines = [
        f"log      {directory}",
        f"log key  {vkey}   (policies and trust files name it)",
        f"private  {key}   (whoever has it is the log)",
    ]
    emit(result, as_json=as_json, lines=lines)


@app.command()
def show(directory: Directory, index: Index = None, as_json: Json = False) -> None:
    """Show what a log claims: its head, or one entry. Nothing is verified."""
    fetch = _fetch(directory)
    checkpoint, signers = _claimed(fetch)
    result: dict[str, object] = {"verified": False, **_head(checkpoint), "signed_by": signers}
    lines = [
        f"origin   {checkpoint.origin}",
        f"entries  {checkpoint.size}",
        f"root     {checkpoint.root.hex()}",
        f"signed   {', '.join(signers)}",
    ]
    if index is not None:
        entry = TileReader(fetch, checkpoint.size).entry(_inside(index, checkpoint))
        text = _printable(entry)
        result |= {"index": index, "leaf_hash": leaf_hash(entry).hex(), "entry": b64url(entry), "text": text}
        lines = [text if text is not None else entry.hex()]
    emit(result, as_json=as_json, lines=[*lines, "not verified: see `sealwright log verify`"])


@app.command()
def prove(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the .tlog-proof goes.")],
    index: Index = None,
    entry: Annotated[
        Path | None, typer.Option(help="File with the entry, in place of INDEX.", **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the proof that an entry is in the log, under its latest checkpoint."""
    fetch = _fetch(directory)
    raw = _checkpoint(fetch)
    checkpoint = Checkpoint.parse(Note.parse(raw).unverified_text)
    reader = TileReader(fetch, checkpoint.size)
    if entry is not None and index is None:
        leaf = leaf_hash(read_file(entry, MAX_ENTRY))
        index = _find(reader, leaf)
    elif index is not None and entry is None:
        leaf = leaf_hash(reader.entry(_inside(index, checkpoint)))
    else:
        raise typer.BadParameter("give either INDEX or --entry")
    hashes = reader.inclusion_proof(index)
    # A damaged log must not hand out a proof that fails elsewhere.
    verify_inclusion(index, checkpoint.size, leaf, checkpoint.root, hashes)
    _write(out, LogProof(index=index, hashes=hashes, unverified_checkpoint=raw).encode())
    result: dict[str, object] = {**_head(checkpoint), "index": index, "proof": str(out)}
    emit(result, as_json=as_json, lines=[f"entry {index} of {checkpoint.size} in {checkpoint.origin}: {out}"])


@app.command()
def verify(
    directory: Directory,
    key: Annotated[str | None, typer.Option(metavar="VKEY", help="The log's verifier key.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A log policy (c2sp.org/tlog-policy).", **FILE)] = None,
    previous: Annotated[
        Path | None, typer.Option(help="An earlier checkpoint, kept elsewhere.", **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a whole log again: every entry, every tile, the root, the signature, and its past."""
    if key is not None and policy is None:
        trusted = LogPolicy.of_key(key)
    elif policy is not None and key is None:
        trusted = LogPolicy.parse(read_file(policy, MAX_POLICY))
    else:
        raise typer.BadParameter("give either --key or --policy")
    held = None if previous is None else trusted.verify(read_file(previous, MAX_NOTE)).checkpoint
    report = verify_log(_fetch(directory), trusted, previous=held)
    checkpoint = report.verified.checkpoint
    cosigned = _cosignatures(report.verified)
    result: dict[str, object] = {
        "verified": True,
        **_head(checkpoint),
        "entry_bytes": report.entry_bytes,
        "quorum": report.verified.quorum,
        "cosignatures": cosigned,
        "previous_size": report.previous_size,
    }
    past = (
        "its past was not checked: keep this checkpoint and give it as --previous next time"
        if held is None
        else f"it continues the checkpoint of {held.size} entries"
    )
    emit(
        result,
        as_json=as_json,
        lines=[
            f"verified: {checkpoint.size} entries of {checkpoint.origin} lead to the signed root",
            f"witnesses: {len(cosigned)} cosigned, quorum {report.verified.quorum}",
            past,
        ],
    )


@app.command()
def witness(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the witness: key and heads.")],
    log_key: Annotated[list[str], typer.Option(help="Verifier key of a log to cosign; again for more.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the witness, such as w.example.org/1: makes its key.")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8430",
) -> None:
    """Remember how far logs have come, and cosign what continues that (c2sp.org/tlog-witness)."""
    from sealwright.broker import serve as server
    from sealwright.broker.http import Journalist
    from sealwright.ops.witness import open_witness, witness_app

    host, port = server.parse_listen(listen)
    server.harden()
    made = open_witness(directory, log_key, name=name)
    log = Journalist()
    with server.bind(host, port) as sock:
        log("serving", url=f"http://{host}:{sock.getsockname()[1]}", key=made.cosigner.vkey.encode())
        server.serve(witness_app(made), sock, log)


def _fetch(directory: Path) -> Fetch:
    return directory_fetch(directory)


def _checkpoint(fetch: Fetch) -> bytes:
    try:
        return fetch(CHECKPOINT)
    except FileNotFoundError:
        raise VerificationError(
            "the directory has no checkpoint", code="log-checkpoint-missing", stage="checkpoint"
        ) from None


def _claimed(fetch: Fetch) -> tuple[Checkpoint, list[str]]:
    note = Note.parse(_checkpoint(fetch))
    return Checkpoint.parse(note.unverified_text), [item.name for item in note.signatures]


def _head(checkpoint: Checkpoint) -> dict[str, object]:
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _cosignatures(verified: VerifiedCheckpoint) -> list[dict[str, object]]:
    return [{"witness": item.witness, "time": _time(item.time_s)} for item in verified.cosignatures]


def _time(time_s: int) -> str | int:
    try:
        return rfc3339(datetime.fromtimestamp(time_s, UTC))
    except (ValueError, OverflowError, OSError):  # a witness may sign any number
        return time_s


def _inside(index: int, checkpoint: Checkpoint) -> int:
    if index >= checkpoint.size:
        raise typer.BadParameter(f"the log has {checkpoint.size} entries", param_hint="INDEX")
    return index


def _find(reader: TileReader, leaf: bytes) -> int:
    index = reader.find(leaf)
    if index is None:
        raise VerificationError("the log does not hold this entry", code="log-entry-unknown", stage="entries")
    return index


def _printable(entry: bytes) -> str | None:
    """Return an entry as text, if it is one line of it."""
    try:
        text = entry.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _write(path: Path, raw: bytes) -> None:
    try:
        path.write_bytes(raw)
    except OSError as exc:
        raise UnavailableError(
            f"{path} cannot be written: {exc.strerror}", code="log-write-failed", stage="log"
        ) from exc
