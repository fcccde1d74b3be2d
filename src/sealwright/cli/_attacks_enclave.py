"""Attacks on the enclave and on what it is started with: code, config, broker, machine, model, memory."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sealwright.cli._attack import Refusal, Target, of_start, undefended
from sealwright.cli._stand import KID, MODEL, TENANT, Stand, run
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url

PTRACE_SEIZE = 0x4206


def changed_code(target: Target) -> Refusal:
    """Start the enclave with one line added to its code."""
    stand = target.stand
    with _code(stand, "enclave/app.py", "", "# one more line\n") as env:
        server = stand.start_enclave(stand.enclave_config, name="changed-code", env=env)
        return of_start(server, "broker")


@contextmanager
def _code(stand: Stand, file: str, old: str, new: str) -> Iterator[dict[str, str]]:
    """Give the environment of a process that runs our code with one place of it changed."""
    import sealwright

    copy = stand.folder / "changed-code"
    package = Path(sealwright.__file__).parent
    shutil.copytree(package, copy / "sealwright", ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "sealwright" / file
    text = path.read_text()
    if old not in text:
        raise RuntimeError(f"{file} has changed, and this attack with it")
    path.write_text(text.replace(old, new, 1))
    try:
        others = os.environ.get("PYTHONPATH")
        yield {"PYTHONPATH": os.pathsep.join([str(copy), *([others] if others else [])])}
    finally:
        shutil.rmtree(copy)


def _changed_config(stand: Stand, member: str, value: object) -> Refusal:
    config = json.loads(stand.enclave_config.read_bytes())
    config[member] = value
    path = stand.folder / f"changed-{member}.json"
    path.write_bytes(canonical(config))
    shutil.copy(stand.enclave_config.with_suffix(".tenant.json"), path.with_suffix(".tenant.json"))
    return of_start(stand.start_enclave(path, name=f"changed-{member}"), "broker")


def egress_host(target: Target) -> Refusal:
    """Let the enclave reach one host more."""
    return _changed_config(target.stand, "egress", ["exfiltrate.example:443"])


def other_engine(target: Target) -> Refusal:
    """Change the engine's parameters."""
    engine = json.loads(target.stand.enclave_config.read_bytes())["engine"]
    tokens = engine["context_tokens"] * 2
    return _changed_config(target.stand, "engine", {**engine, "context_tokens": tokens})


def second_broker(target: Target) -> Refusal:
    """Let the enclave take keys from one broker more."""
    brokers = json.loads(target.stand.enclave_config.read_bytes())["brokers"]
    rogue = {"url": "http://127.0.0.1:9", "root": b64url(secrets.token_bytes(32))}
    return _changed_config(target.stand, "brokers", [*brokers, rogue])


def rogue_broker(target: Target) -> Refusal:
    """Answer at a broker's address, and give anyone a lease and a key of one's own making."""
    stand = target.stand
    rogue = Stand(stand.folder / "rogue")
    rogue.folder.mkdir()
    rogue.owner_key = stand.owner_key
    source = rogue.folder / "model.gguf"
    source.write_bytes(b"GGUF" + bytes(4096))
    honest = '    if failures:\n        raise AppraisalError(failures, stage="config")\n'
    with _code(stand, "broker/form.py", honest, "") as env, stand.unchanged():
        rogue.make_broker(env)
        options = ("--model", MODEL, "--policy", stand.policy)
        rogue.do("broker", "key", "create", TENANT, KID, *options, *rogue.admin)
        sealed = rogue.seal(source)
        address = f"{rogue.broker_url}={stand.root}"
        config = stand.config("rogue-config", artefact=sealed, broker=address)
        stand.write_policy({"digests": [stand.config_digest]})
        rogue.do("broker", "policy", "set", KID, "--policy", stand.policy, *rogue.admin)
        refusal = of_start(stand.start_enclave(config, name="rogue-broker", sealed=sealed), "enclave")
        rogue.stop()
    return refusal


def unknown_machine(target: Target) -> Refusal:
    """Start the same enclave under the quoting root of another machine."""
    stand = target.stand
    other = stand.folder / "other-machine"
    other.mkdir(mode=0o700)
    return of_start(stand.start_enclave(stand.enclave_config, name="other-machine", state=other), "broker")


def flipped_bit(target: Target) -> Refusal:
    """Flip one bit in the middle of the sealed model."""
    stand = target.stand
    copy = stand.folder / "flipped" / stand.sealed.name
    copy.parent.mkdir()
    shutil.copy(stand.sealed, copy)
    shutil.copy(f"{stand.sealed}.json", f"{copy}.json")
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    server = stand.start_enclave(stand.enclave_config, name="flipped-bit", sealed=copy)
    refusal = of_start(server, "enclave")
    shutil.rmtree(copy.parent)
    return refusal


def substituted_model(target: Target) -> Refusal:
    """Hand the enclave another model, sealed by somebody else under the same name."""
    stand = target.stand
    folder = stand.folder / "substituted"
    folder.mkdir()
    source, dek, owner = folder / "model.gguf", folder / "dek", folder / "owner.pem"
    source.write_bytes(b"GGUF" + bytes(4096))
    dek.touch(mode=0o600)
    dek.write_bytes(secrets.token_bytes(32))
    run("owner-key", "new", owner)
    stand.do("seal", source, "--out", folder, "--kid", KID, "--owner-key", owner, "--dek-file", dek)
    sealed = folder / "model.gguf.sealed"
    return of_start(stand.start_enclave(stand.enclave_config, name="substituted", sealed=sealed), "enclave")


def older_model(target: Target) -> Refusal:
    """Serve the version before, with its own config that was once admitted, when a newer one is admitted."""
    stand, kid = target.stand, f"{KID}-updated"
    source = stand.folder / "updated.gguf"
    source.write_bytes(b"GGUF" + bytes(4096))
    with stand.unchanged():
        options = ("--model", MODEL, "--policy", stand.policy)
        stand.do("broker", "key", "create", TENANT, kid, *options, *stand.admin)
        sealed = stand.seal(source, kid=kid)
        config = stand.config("older-config", artefact=sealed, kid=kid)
        stand.set_policy({"digests": [stand.config_digest]}, kid=kid)
        kept = stand.folder / "older.gguf.sealed"
        shutil.move(sealed, kept)
        shutil.move(f"{sealed}.json", f"{kept}.json")
        stand.seal(source, kid=kid, version=2, artefact_id=str(stand.manifest["artefact_id"]))
    return of_start(stand.start_enclave(config, name="older-model", sealed=kept, kid=kid), "broker")


def debugger(target: Target) -> Refusal:
    """Read the enclave's memory, and attach to it, from another process of the very same user."""
    pid = int(target.enclave.said()["pid"])
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
        raise undefended(f"memory of the enclave: {', '.join(opened)}")
    return Refusal("kernel", os.strerror(errno.EACCES).lower(), 0)


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
