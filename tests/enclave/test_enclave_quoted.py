"""The real thing: measured and started by the quoter, llama.cpp on the real model, a real broker and client."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.enclave.support import CODE, KID, World, chat
from tests.inference.test_inference_llamacpp import gguf

from sealwright.attester.quoter.image import measure
from sealwright.attester.quoter.launch import Running, launch
from sealwright.attester.quoter.state import root_fingerprint
from sealwright.client.httpx_transport import transport
from sealwright.client.receipts import receipt_of
from sealwright.enclave.image import DISTRIBUTIONS, ENTRY
from sealwright.protocol.enclave_config import EnclaveConfig

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What a machine that is not set up for it may give; a demo policy names such values.
WEAKER = {
    "user": ["shared"],
    "sealed_root": ["directory"],
    "dumpable": ["late"],
    "filesystem": ["open"],
    "network": ["seccomp", "open"],
    "swap": ["reachable"],
}


class Machine:
    """A world whose enclave is a real workload of this machine."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.world = World(folder / "world", model=Path(gguf()).read_bytes(), claims=WEAKER, **settings)
        self.world.root = root_fingerprint(self.state, datetime.now(UTC))
        self.world.code = measure(b"{}", entry=ENTRY, distributions=DISTRIBUTIONS).register0

    def config(self) -> EnclaveConfig:
        root = self.world.config().to_json()["brokers"][0]["root"]
        host, port = self.world.peer
        return self.world.config(brokers=[{"url": f"http://{host}:{port}", "root": root}])

    def start(self, listener: socket.socket) -> Running:
        fd = os.open(self.world.artefact, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return launch(
                self.config().encode(),
                entry=ENTRY,
                distributions=DISTRIBUTIONS,
                listen=listener,
                extra_fds={KID: fd},
                state_dir=self.state,
                allow_swap=True,
                payload=self.world.payload().encode(),
            )
        finally:
            os.close(fd)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "world").mkdir()
    return Machine(tmp_path)


def test_a_streamed_sealed_answer_from_a_measured_enclave(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    world = machine.world
    with world.broker(), socket.create_server(("127.0.0.1", 0)) as listener:
        running = machine.start(listener)
        try:
            assert running.measurement.register0 == world.code
            with client(world, listener) as http:
                body = chat("Name a tulip colour.", stream=True, temperature=0, max_tokens=12)
                with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    raw = b"".join(answer.iter_raw())
                assert answer.status_code == 200, raw
                events = [
                    json.loads(line[6:])
                    for line in raw.decode().split("\n\n")
                    if line and "[DONE]" not in line
                ]
                text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
                assert len(text) > 5
                receipt = receipt_of(answer)
                assert json.loads(receipt.file.receipt.fields["status"].value) == "complete"
                assert not receipt.statement.predicate.confidential
        finally:
            code = running.terminate()
        assert code == 0
        lease_id = receipt.statement.predicate.lease_id
        assert world.running.core.state.store.count_receipts(lease_id) == 1
    said = capfd.readouterr()
    assert "serving" in said.err
    assert "ended" in said.err
    assert "tulip" not in said.err + said.out


def test_other_code_than_the_policy_names_gets_no_key(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.world.code = CODE
    with machine.world.broker(), socket.create_server(("127.0.0.1", 0)) as listener:
        running = machine.start(listener)
        assert running.wait() == 11
    assert "code-not-allowed" in capfd.readouterr().err


def test_a_revocation_reaches_a_measured_enclave_long_before_its_lease_ends(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    world = machine.world  # leases of 600 s
    with world.broker(), socket.create_server(("127.0.0.1", 0)) as listener:
        running = machine.start(listener)
        try:
            with client(world, listener) as http:
                assert http.post("/v1/chat/completions", json=chat("Hi", max_tokens=2)).status_code == 200
            world.running.life.revoke("measurement", world.code.hex(), "drill")
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            health = httpx2.get(f"{url}/healthz", timeout=5)
            for _ in range(600):
                if health.status_code == 503:
                    break
                time.sleep(0.1)
                health = httpx2.get(f"{url}/healthz", timeout=5)
            assert (health.status_code, health.text) == (503, "stopped: measurement-revoked\n")
            gateway = httpx2.post(f"{url}/.well-known/sealwright/gateway", content=b"{}", timeout=5)
            assert (gateway.status_code, gateway.json()["code"]) == (503, "measurement-revoked")
        finally:
            running.terminate()
    assert "tenant-stopped" in capfd.readouterr().err


def client(world: World, listener: socket.socket) -> httpx2.Client:
    host, port = listener.getsockname()
    url = f"http://{host}:{port}"
    for _ in range(600):
        try:
            if httpx2.get(f"{url}/healthz", timeout=1).text == "serving\n":
                break
        except httpx2.HTTPError:
            time.sleep(0.1)
    headers = {"authorization": f"Bearer {world.credential}"}
    return httpx2.Client(transport=transport(trust=world.trust()), base_url=url, headers=headers, timeout=60)
