"""Flower itself: SuperLink and SuperNodes as real processes, and agents that attest to a real broker. Some 60 s."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.training.agent.world import OWNERS, World

from sealwright.training.agent.main import build
from sealwright.training.agent.wire import AgentServer, Handler, listen
from sealwright.training.job import Job
from sealwright.training.local_flower import LocalFlower, write_app

PYTHON = os.environ.get("SEALWRIGHT_FLOWER_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not PYTHON, reason="SEALWRIGHT_FLOWER_PYTHON names no interpreter with flwr (requirements/flower.txt)"
    ),
]


def serve(stack: ExitStack, path: Path, agent: Handler) -> Path:
    server = AgentServer(listen(path), agent)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    stack.callback(server.close)
    return path


def test_four_organisations_train_over_flower(tmp_path: Path) -> None:
    """One runs changed code, and gets nothing; one dies after the first round; the others finish."""
    world = World(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(world.open())
        agents = {name: build(world.workload("worker", [name])) for name in OWNERS}
        agents["west"] = build(world.workload("worker", ["west"], code=bytes(32)))
        sockets = {name: serve(stack, tmp_path / f"{name}.sock", agent) for name, agent in agents.items()}
        aggregator = serve(stack, tmp_path / "a.sock", build(world.workload("aggregator")))
        host, port = world.peer
        report = tmp_path / "report"
        job = Job(
            run=world.spec.digest(),
            aggregator=str(aggregator),
            countersigner=f"http://{host}:{port}",
            nodes=len(OWNERS),
            rounds=2,
            timeout_s=60,
            report=str(report),
        )
        (tmp_path / "job").write_bytes(job.encode())
        app = write_app(tmp_path / "app")
        flower = stack.enter_context(
            LocalFlower(tmp_path / "flower", list(sockets.values()), python=Path(PYTHON))
        )
        run = flower.submit(app, {"job": str(tmp_path / "job")})
        assert run.wait(200) == 0, (tmp_path / "flower" / "run.log").read_text()[-3000:]
    said = [json.loads(line) for line in report.read_text().splitlines()]
    assert said[-1] == {"event": "ended", "rounds": 2}, said
    enrolled = said[0]
    assert (enrolled["event"], enrolled["workers"]) == ("enrolled", len(OWNERS) - 1)
    assert list(enrolled["refused"].values()) == ["code-not-allowed"]
    finished = [one for one in said if one["event"] == "finished"]
    assert [one["contributors"] for one in finished] == [4, 4]
    assert finished[1]["metrics"]["loss"] < finished[0]["metrics"]["loss"]
