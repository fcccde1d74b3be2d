"""`sealwright enclave …`: what it writes, predicts and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.enclave.support import KID, MODEL, TENANT, World, chat
from tests.enclave.test_enclave_quoted import Machine

from sealwright.cli import main
from sealwright.client.httpx_transport import transport
from sealwright.client.receipts import receipt_of
from sealwright.crypto.encoding import b64url
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _new(world: World, out: Path, *more: str) -> list[str]:
    host, port = world.peer
    return [
        "enclave", "config", "new", str(out), "--tenant", TENANT,
        "--broker", f"http://{host}:{port}={b64url(world.broker_root)}",
        "--log-key", world.log_key, "--artefact", f"{KID}={MODEL}={world.artefact}",
        "--context-tokens", "1024", "--slots", "2", *more,
    ]  # fmt: skip


def test_config_new_writes_a_canonical_config_and_its_tenant_list(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chat.json"
    with world.broker():
        assert main([*_new(world, out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    config = EnclaveConfig.parse(out.read_bytes())
    listed = TenantList.parse((tmp_path / "chat.tenant.json").read_bytes())
    listed.check(config)
    assert said["config_digest"] == config.digest().hex()
    assert listed.artefacts[0].manifest_digest == world.openings[0].artefacts[0].manifest_digest
    assert (tmp_path / "chat.tenant.json").stat().st_mode & 0o077 == 0
    assert main(_new(world, out)) == 69  # nothing is overwritten


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--artefact", "k"], 2),
        (["--artefact", "k=m=nothing"], 65),
        (["--slots", "0"], 65),
        (["--broker", "http://x=short"], 65),
        (["--broker", f"ftp://x={'A' * 43}"], 65),
        (["--suite", "tulip"], 65),
    ],
)
def test_config_new_refuses(world: World, tmp_path: Path, more: list[str], code: int) -> None:
    with world.broker():
        assert main(_new(world, tmp_path / "chat.json", *more)) == code
    assert not (tmp_path / "chat.json").exists()


def test_measure_says_both_registers(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp")
    out = tmp_path / "chat.json"
    with world.broker():
        main(_new(world, out))
    capsys.readouterr()
    assert main(["enclave", "measure", str(out), "--list", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["config_digest"] == EnclaveConfig.parse(out.read_bytes()).digest().hex()
    assert any(path.endswith("/sealwright/inference/main.py") for path, _, _ in said["listing"])
    assert said["confidential"] is False


def test_serve_refuses_what_it_can_before_starting(world: World, tmp_path: Path) -> None:
    out = tmp_path / "chat.json"
    with world.broker():
        main(_new(world, out))
    model = f"{KID}={world.artefact}"
    assert main(["enclave", "serve", str(tmp_path / "none.json"), "--model", model]) == 69
    assert main(["enclave", "serve", str(out), "--model", "k"]) == 2
    assert main(["enclave", "serve", str(out), "--model", model, "--listen", "nowhere"]) == 2
    other = world.openings[0].encode()
    (tmp_path / "other.json").write_bytes(other)
    assert (
        main(["enclave", "serve", str(out), "--model", model, "--tenant-list", str(tmp_path / "other.json")])
        == 10
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_serve_until_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    machine = Machine(tmp_path)
    world, out = machine.world, tmp_path / "chat.json"
    with world.broker():
        assert main(_new(world, out)) == 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["enclave", "serve", str(out), "--model", f"{KID}={world.artefact}", "--json"]
        command += ["--listen", f"127.0.0.1:{port}", "--state", str(machine.state), "--allow-swap"]
        with subprocess.Popen(
            [sys.executable, "-m", "sealwright.cli", *command], stdout=subprocess.PIPE, env=_environment()
        ) as process:
            said = _first_object(process)
            assert said["code"] == world.code.hex()
            headers = {"authorization": f"Bearer {world.credential}"}
            inner: Any = transport(trust=world.trust())
            with httpx2.Client(
                transport=inner, base_url=said["serving"], headers=headers, timeout=60
            ) as http:
                answer = http.post("/v1/chat/completions", json=chat("Say hi", max_tokens=4))
                assert answer.status_code == 200, answer.text
                lease_id = receipt_of(answer).statement.predicate.lease_id
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert world.running.core.state.store.count_receipts(lease_id) == 1


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _first_object(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    raw = b""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        line = process.stdout.readline()
        raw += line
        if line.rstrip() == b"}" or not line:
            break
    value: dict[str, Any] = json.loads(raw)
    return value


def test_root_prints_the_fingerprint_that_policies_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert main(["enclave", "root", "--state", str(state), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["root"]
    assert said == hashlib.sha256((state / "quoter" / "root.crt").read_bytes()).hexdigest()
    assert main(["enclave", "root", "--state", str(state)]) == 0
    assert capsys.readouterr().out.strip() == said  # made once
