"""Attacks on a running installation (`_stand`). Each returns the refusal it ended in; demo and tests share them.

An attack that is not refused raises `Undefended`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealwright.cli._relay import Relay
from sealwright.cli._stand import KID, Outcome, Server, Stand, run
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.errors import VerificationError

_CODE = re.compile(r"\[([a-z0-9-]+)\]|(?:Error|Refusal): ([a-z0-9-]+):")
PTRACE_SEIZE = 0x4206


class Undefended(Exception):
    """An attack succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What stopped an attack."""

    code: str
    exit_code: int
    by: str  # who refused


def _of_command(outcome: Outcome, by: str) -> Refusal:
    if outcome.exit_code == 0:
        raise Undefended(json.dumps(outcome.result))
    return Refusal(code=outcome.code, exit_code=outcome.exit_code, by=by)


def _of_start(server: Server, by: str) -> Refusal:
    """Wait for the end of an enclave that must not come to serve."""
    exit_code = server.process.wait(120)
    found = _CODE.findall(server.log.read_text(errors="replace"))
    if not exit_code or not found:
        raise Undefended(server.last_line())
    return Refusal(code=found[-1][0] or found[-1][1], exit_code=exit_code, by=by)


# The enclave's side


def changed_code(stand: Stand) -> Refusal:
    """Start the enclave with one line added to its code."""
    import sealwright

    fake = stand.folder / "changed-code"
    shutil.rmtree(fake, ignore_errors=True)
    package = Path(sealwright.__file__).parent
    shutil.copytree(package, fake / "sealwright", ignore=shutil.ignore_patterns("__pycache__"))
    with (fake / "sealwright" / "enclave" / "app.py").open("a") as file:
        file.write("\n# one more line\n")
    env = {"PYTHONPATH": str(fake)}
    refusal = _of_start(stand.start_enclave(stand.enclave_config, name="changed-code", env=env), "broker")
    shutil.rmtree(fake)
    return refusal


def changed_config(stand: Stand, member: str, value: object) -> Refusal:
    """Start the enclave with another config: one member changed."""
    config = json.loads(stand.enclave_config.read_bytes())
    config[member] = value
    path = stand.folder / f"changed-{member}.json"
    path.write_bytes(canonical(config))
    shutil.copy(stand.enclave_config.with_suffix(".tenant.json"), path.with_suffix(".tenant.json"))
    return _of_start(stand.start_enclave(path, name=f"changed-{member}"), "broker")


def egress_host(stand: Stand) -> Refusal:
    """Let the enclave reach one host more."""
    return changed_config(stand, "egress", ["exfiltrate.example:443"])


def other_engine(stand: Stand) -> Refusal:
    """Change the engine's parameters."""
    engine = json.loads(stand.enclave_config.read_bytes())["engine"]
    return changed_config(stand, "engine", {**engine, "context_tokens": engine["context_tokens"] * 2})


def second_broker(stand: Stand) -> Refusal:
    """Let the enclave take keys from one broker more."""
    brokers = json.loads(stand.enclave_config.read_bytes())["brokers"]
    rogue = {"url": "http://127.0.0.1:9", "root": b64url(secrets.token_bytes(32))}
    return changed_config(stand, "brokers", [*brokers, rogue])


def rogue_broker(stand: Stand) -> Refusal:
    """Answer at a broker's address with keys of one's own making."""
    rogue = Stand(stand.folder / "rogue", servers=stand.servers)
    rogue.folder.mkdir(exist_ok=True)
    shutil.rmtree(rogue.folder / "broker", ignore_errors=True)
    rogue.holder.unlink(missing_ok=True)
    rogue.make_broker()
    path = stand.folder / "rogue-config.json"
    for old in (path, path.with_suffix(".tenant.json")):
        old.unlink(missing_ok=True)
    digest = stand.config_digest
    config = stand.config("rogue-config", artefact=stand.sealed, broker=f"{rogue.broker_url}={stand.root}")
    stand.config_digest = digest
    refusal = _of_start(stand.start_enclave(config, name="rogue-broker"), "enclave")
    rogue.broker.stop()
    return refusal


def unknown_machine(stand: Stand) -> Refusal:
    """Start the same enclave under the quoting root of another machine."""
    other = stand.folder / "other-machine"
    other.mkdir(mode=0o700, exist_ok=True)
    server = stand.start_enclave(stand.enclave_config, name="other-machine", state=other)
    return _of_start(server, "broker")


def flipped_byte(stand: Stand) -> Refusal:
    """Flip one bit in the middle of the sealed model."""
    copy = stand.folder / "flipped" / stand.sealed.name
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(stand.sealed, copy)
    shutil.copy(f"{stand.sealed}.json", f"{copy}.json")
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    refusal = _of_start(
        stand.start_enclave(stand.enclave_config, name="flipped-byte", sealed=copy), "enclave"
    )
    shutil.rmtree(copy.parent)
    return refusal


def substituted_model(stand: Stand) -> Refusal:
    """Hand the enclave another model, sealed by somebody else under the same name."""
    folder = stand.folder / "substituted"
    folder.mkdir(exist_ok=True)
    source, dek, owner = folder / "model.gguf", folder / "dek", folder / "owner.pem"
    for old in (owner, dek):
        old.unlink(missing_ok=True)
    source.write_bytes(b"GGUF" + bytes(4096))
    dek.touch(mode=0o600)
    dek.write_bytes(secrets.token_bytes(32))
    run("owner-key", "new", owner)
    stand.do("seal", source, "--out", folder, "--kid", KID, "--owner-key", owner, "--dek-file", dek)
    sealed = folder / "model.gguf.sealed"
    return _of_start(stand.start_enclave(stand.enclave_config, name="substituted", sealed=sealed), "enclave")


def debugger(pid: int) -> Refusal:
    """Read the enclave's memory, and attach to it, from another process of the very same user."""
    uid = _uid(pid)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - a process of its own
        os.close(read)
        if uid != os.geteuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        os.write(write, json.dumps(_break_in(pid)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        opened = json.loads(file.read() or b'["the attacker died"]')
    os.waitpid(child, 0)
    if opened:
        raise Undefended(", ".join(opened))
    return Refusal(code=os.strerror(errno.EACCES).lower(), exit_code=0, by="kernel")


def _uid(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])


def _break_in(pid: int) -> list[str]:
    """Return the ways in that were open."""
    opened = []
    for name in ("mem", "environ", "fd", "root", "cwd", "auxv"):
        path = f"/proc/{pid}/{name}"
        try:
            if name == "fd":
                os.listdir(path)
            elif name in ("root", "cwd"):
                os.readlink(path)
            else:
                os.close(os.open(path, os.O_RDONLY))
        except OSError:
            continue
        opened.append(path)
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, pid, 0, 0) == 0:
        opened.append("ptrace")
    return opened


# The network's side


def replayed_request(relay: Relay, enclave: Server) -> Refusal:
    """Send the last captured sealed request once more. Its refusal is sealed too: the enclave's log names it."""
    before = enclave.log.stat().st_size
    relay.replay(enclave.url)
    said = enclave.log.read_text(errors="replace")[before:]
    found = re.findall(r"request-refused code=([a-z0-9-]+)", said)
    if not found:
        raise Undefended("the enclave answered a captured request")
    return Refusal(code=found[-1], exit_code=VerificationError.exit_code, by="enclave")


# What is kept: evidence, receipts, log, database


def stale_nonce(stand: Stand, bundle: Path) -> Refusal:
    """Pass off old evidence as an answer to a new nonce."""
    trust = stand.folder / "hospital.trust"
    nonce = secrets.token_hex(32)
    return _of_command(run("verify", bundle, "--trust", trust, "--nonce", nonce), "client")


def swapped_keyset(stand: Stand, bundle: Path, nonce: str) -> Refusal:
    """Put keys of one's own under a genuine quote."""
    doc = json.loads(bundle.read_bytes())
    keyset = json.loads(b64url_decode(doc["keyset"]))
    keyset["receipt_key"] = b64url(secrets.token_bytes(32))
    doc["keyset"] = b64url(canonical(keyset))
    path = stand.folder / "swapped-keyset.json"
    path.write_bytes(canonical(doc))
    trust = stand.folder / "hospital.trust"
    return _of_command(run("verify", path, "--trust", trust, "--nonce", nonce), "client")


def require_hardware(stand: Stand, bundle: Path, nonce: str) -> Refusal:
    """Pass off this stand-in as hardware."""
    trust = stand.folder / "hospital.trust"
    args = ("verify", bundle, "--trust", trust, "--nonce", nonce, "--require-hardware")
    return _of_command(run(*args), "client")


def forged_receipt(stand: Stand, receipt: Path) -> Refusal:
    """Change one word of a signed receipt."""

    def forge(doc: dict[str, Any]) -> None:
        envelope = doc["receipt"]["receipt"]
        payload = bytearray(envelope["payload"], "ascii")
        payload[40] ^= 1
        envelope["payload"] = payload.decode()

    return _changed_receipt(stand, receipt, "forged-receipt.json", forge)


def moved_field(stand: Stand, receipt: Path) -> Refusal:
    """Show the opening of one field as that of another."""

    def move(doc: dict[str, Any]) -> None:
        fields = doc["receipt"]["fields"]
        fields["tokens_in"] = fields["tokens_out"]

    return _changed_receipt(stand, receipt, "moved-field.json", move)


def _changed_receipt(
    stand: Stand, receipt: Path, name: str, change: Callable[[dict[str, Any]], None]
) -> Refusal:
    doc = json.loads(receipt.read_bytes())
    change(doc)
    path = stand.folder / name
    path.write_text(json.dumps(doc))
    trust = stand.folder / "hospital.trust"
    return _of_command(run("receipt", "verify", path, "--trust", trust), "auditor")


def edited_log(stand: Stand) -> Refusal:
    """Change one byte of an entry of the log."""
    return _changed_log(stand, "edited-log", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))


def shortened_log(stand: Stand) -> Refusal:
    """Leave the last entry out of the log."""

    def cut(raw: bytes) -> bytes:
        last = at = 0
        while at < len(raw):
            last, at = at, at + 2 + int.from_bytes(raw[at : at + 2], "big")
        return raw[:last]

    return _changed_log(stand, "shortened-log", cut)


def _changed_log(stand: Stand, name: str, change: Callable[[bytes], bytes]) -> Refusal:
    copy = stand.folder / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(stand.broker_dir / "log", copy)
    bundles = [path for path in (copy / "tile" / "entries").rglob("*") if path.is_file()]
    newest = max(bundles, key=lambda path: path.stat().st_size)
    newest.write_bytes(change(newest.read_bytes()))
    return _of_command(run("log", "verify", copy, "--key", stand.log_key), "auditor")


def restored_database(stand: Stand) -> Refusal:
    """Give the broker back the database of an earlier day, and start it. The broker stays down."""
    database = stand.broker_dir / "broker.sqlite"
    old = stand.folder / "old.sqlite"
    with sqlite3.connect(database) as source, sqlite3.connect(old) as target:
        source.backup(target)
    stand.add_caller("revoked-later")
    stand.broker.stop()
    for name in ("broker.sqlite-wal", "broker.sqlite-shm"):
        (stand.broker_dir / name).unlink(missing_ok=True)
    kept = stand.folder / "new.sqlite"
    shutil.copy(database, kept)
    shutil.copy(old, database)
    listen = ("--listen", f"127.0.0.1:{stand.broker_port}", "--holder", stand.holder)
    server = Server.start(stand.folder / "restored.log", ["broker", "serve", stand.broker_dir, *listen])
    refusal = _of_start(server, "broker")
    shutil.copy(kept, database)
    return refusal


# Planted plaintext


def search(planted: Mapping[str, bytes], folder: Path, wire: bytes) -> list[str]:
    """Return where any planted secret stands, in any of its usual encodings: files of `folder`, or the wire.

    Args:
        planted: what it is -> its bytes.
        wire: every byte that crossed the network.
    """
    needles = {
        f"{name} ({how})": coded
        for name, raw in planted.items()
        for how, coded in {
            "raw": raw,
            "hex": raw.hex().encode(),
            "base64": _middle_of_base64(raw),
            "json": json.dumps(raw.decode("latin-1"))[1:-1].encode(),
        }.items()
    }
    places = {"the wire": wire}
    found = [
        f"{name} in {place}"
        for place, raw in places.items()
        for name, coded in needles.items()
        if coded in raw
    ]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            raw = path.read_bytes()
            found += [f"{name} in {path.name}" for name, coded in needles.items() if coded in raw]
    return found


def _middle_of_base64(raw: bytes) -> bytes:
    """Return base64 that occurs whenever `raw` was encoded from its start, without padding at the end."""
    import base64

    return base64.b64encode(raw[: len(raw) // 3 * 3])
