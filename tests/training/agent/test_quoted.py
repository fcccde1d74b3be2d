"""Agents as processes that a real quoter measured, hardened and started; a real broker over TCP. Some 20 s."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.training.agent.world import OWNERS, World

from sealwright.crypto.encoding import b64url
from sealwright.sealing import read_manifest
from sealwright.training.agent.config import ENTRY, AgentPayload, TrainingConfig
from sealwright.training.agent.image import DISTRIBUTIONS
from sealwright.training.agent.wire import AgentClient, Call, listen
from sealwright.training.countersign import FarCountersign
from sealwright.training.drive import Driver
from sealwright.training.job import http_call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="issue 2: enclaves are Linux only"),
]
NAMES = OWNERS[:3]


class Measured(World):
    """A world whose agents a real quoter starts."""

    state: Path

    def policy(self, **changes: Any) -> dict[str, Any]:
        from sealwright.cli._stand import WEAKER_CLAIMS

        said = super().policy(**changes)
        said["platforms"]["software"]["claims"] = WEAKER_CLAIMS
        return said

    def config(self, role: str, **changes: Any) -> TrainingConfig:
        host, port = self.peer
        return super().config(
            role, brokers=[{"url": f"http://{host}:{port}", "root": b64url(self.root)}], **changes
        )


@dataclass
class Sockets:
    """A transport to agents' sockets."""

    clients: dict[str, AgentClient]

    def nodes(self) -> Sequence[str]:
        return list(self.clients)

    def exchange(self, calls: Any, *, timeout_s: float) -> Any:
        return {node: self.clients[node].call(call) for node, call in calls.items()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Measured]:
    from sealwright.attester.quoter.image import measure
    from sealwright.attester.quoter.state import root_fingerprint

    world = Measured(tmp_path / "world")
    world.state = tmp_path / "state"
    world.code = measure(b"", entry=ENTRY, distributions=DISTRIBUTIONS).register0
    fingerprint = root_fingerprint(world.state, datetime.now(UTC))
    world.platform.__class__ = type(
        "Real", (type(world.platform),), {"root_fingerprint": property(lambda _: fingerprint)}
    )
    with world.open():
        yield world


def test_measured_agents_train(world: Measured, tmp_path: Path) -> None:
    from sealwright.attester.quoter.launch import launch

    with ExitStack() as stack:

        def start(name: str, role: str, kids: Sequence[str]) -> AgentClient:
            path = tmp_path / f"{name}.sock"
            shards = [kid for kid in kids if kid in world.shards]
            payload = AgentPayload.from_json(
                {
                    "format": "sealwright-agent-payload/v1",
                    "kids": list(kids),
                    "policies": [b64url(world.policies[kid]) for kid in shards] if role == "worker" else [],
                    "manifests": {
                        kid: b64url(read_manifest(world.folder / f"{kid}.npz.sealed")) for kid in shards
                    },
                }
            )
            listener = stack.enter_context(listen(path))
            fds = {kid: os.open(world.folder / f"{kid}.npz.sealed", os.O_RDONLY) for kid in shards}
            running = launch(
                world.config(role).encode(),
                entry=ENTRY,
                distributions=DISTRIBUTIONS,
                listen=listener,
                extra_fds=fds,
                state_dir=world.state,
                allow_swap=True,
                payload=payload.encode(),
            )
            stack.callback(running.terminate)
            assert running.measurement.register0 == world.code
            return stack.enter_context(AgentClient(path, timeout_s=60))

        clients = {name: start(name, "worker", [name]) for name in NAMES[1:]}
        clients[NAMES[0]] = stack.enter_context(by_command(stack, world, tmp_path))
        aggregator = start("aggregator", "aggregator", [NAMES[0]])
        host, port = world.peer
        driver = Driver(
            Sockets(clients),
            aggregator.call,
            FarCountersign(world.spec.digest(), http_call(f"http://{host}:{port}")),
        )
        assert driver.enrol() == {}
        rounds = [driver.round() for _ in range(2)]
        assert [one.contributors for one in rounds] == [len(NAMES)] * 2
        assert rounds[1].metrics["loss"] < rounds[0].metrics["loss"]
        answer = clients[NAMES[0]].call(Call("no such call"))
        assert (answer.name, answer.said["code"]) == ("refused", "malformed-call")


def by_command(stack: ExitStack, world: Measured, folder: Path) -> AgentClient:
    """Start the first worker as a person does: `sealwright train agent`."""
    name, path = NAMES[0], folder / "first.sock"
    (folder / "config").write_bytes(world.config("worker").encode())
    (folder / "policy").write_bytes(world.policies[name])
    command = [
        *(sys.executable, "-m", "sealwright.cli", "train", "agent", str(folder / "config")),
        *("--listen", str(path), "--shard", f"{name}={world.folder / f'{name}.npz.sealed'}"),
        *("--policy", str(folder / "policy"), "--state", str(world.state), "--allow-swap"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    assert process.stdout.readline().split() == ["serving", str(path)]
    assert process.stdout.readline().split() == ["code", world.code.hex()]
    return AgentClient(path, timeout_s=60)
