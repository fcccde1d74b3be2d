"""The how-to of training is run, block by block, against a broker on a port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from tests.broker.support import CODE, Clock, Lines, World
from tests.training.checkpoint import chains
from tests.training.world import PURPOSE, Site, Worker, arrays

from sealwright.broker import serve
from sealwright.broker.data import DataKeys
from sealwright.protocol.checkpoint import DataUse
from sealwright.protocol.plan import Plan
from sealwright.protocol.training_data import Shard
from sealwright.sealing import read_manifest
from sealwright.training.checkpoint import CheckpointFolder, CheckpointKeys
from sealwright.training.data import Batch, data_request, open_release
from sealwright.training.data.order import permutation
from sealwright.training.rerun import own_code, train

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "train-on-data-of-others.md"
PLAN = Plan(
    run="triage", trainer="sealwright.training.rerun:softmax", code=own_code(),
    parameters={"features": "3", "classes": "2", "rate": "0.05"}, seed=7, epochs=1, batch_rows=4, gate=[],
    purpose=PURPOSE,
)  # fmt: skip


@contextmanager
def served(running: Any) -> Iterator[str]:
    """The broker on a port of its own."""
    sock = serve.bind("127.0.0.1", 0)
    config = uvicorn.Config(running.app(log=Lines()), log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def batches(epoch: int) -> Iterator[Batch]:
    order = permutation(10, seed=PLAN.seed, epoch=epoch, what="north-1")
    for at in range(0, 10, 4):
        yield {name: value[order[at : at + 4]] for name, value in arrays().items()}


def test_the_how_to_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    now = datetime.now(UTC).replace(microsecond=0)
    monkeypatch.setattr("tests.broker.support.NOW", now)
    world = World(tmp_path / "broker", clock=Clock(now=now))
    with world.open() as running, served(running) as url:
        names = prepare(world, running, tmp_path) | {"url": url}
        for block in blocks[:3]:
            exec(compile(block, str(PAGE), "exec"), names)
            if block is blocks[1]:
                running.admin.admit(
                    "north-1", read_manifest(tmp_path / "north.npz.sealed"), owner_key=None, force=False
                )
        write_run(world, running, names, tmp_path)
        for block in blocks[3:]:
            exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "10 rows"
    assert said[1].startswith("{'policy': ")
    assert said[2:] == [
        "[4, 4, 2]",
        f"north for {PURPOSE}",
        "version 1 confidential False",
        "same",
    ]


def prepare(world: World, running: Any, folder: Path) -> dict[str, Any]:
    """What the page takes for granted."""
    running.admin.create_key("hospital-north", "north-1", "data", world.policy())
    running.admin.add_owner("hospital-north", world.owner.public_key().public_bytes_raw())
    np.savez(folder / "north.npz", **arrays())
    worker = Worker.make(world)
    return {
        "token": (world.root / "admin-token").read_text().strip(),
        "root": world.broker_root,
        "connect": lambda host, port: socket.create_connection((host, port)),
        "owner": world.owner,
        "plan": PLAN,
        "measured": CODE,
        "config_digest": hashlib.sha256(worker.config).digest(),
        "evidence": lambda nonce: worker.evidence(nonce, PLAN.attested_as),
        "keys": SimpleNamespace(digest=worker.keyset.digest(), receipt=worker.receipt, releases=worker.tee),
        "worker": worker,
        "batches": batches,
    }


def write_run(world: World, running: Any, names: dict[str, Any], folder: Path) -> None:
    """The checkpoint of the run, and the auditor's trust."""
    running.admin.create_key("hospital-north", "weights", "model", world.policy())
    shard: Shard = names["shard"]
    site = Site(
        world=world, running=running, folder=folder, keys=DataKeys(running.core), worker=names["worker"],
        plan=PLAN, shard=shard, dek=b"", policy=names["policy"],
        weights_dek=world.sealing_key(running, "weights"),
    )  # fmt: skip
    site.evidence = names["worker"].evidence(site.keys.nonce(), PLAN.attested_as)
    site.result = site.keys.enrol(site.evidence.encode(), ["north-1", "weights"])
    made = chains.Run(
        site=site,
        folder=CheckpointFolder(folder / "run"),
        keys=CheckpointKeys(receipt=names["worker"].receipt),
    )
    asked = data_request(site.policy, "north-1", PLAN, keyset_digest=site.worker.keyset.digest(), epoch=2)
    released = _released(site, asked)
    made.folder.put_sidecar(released.grant.digest(), released.grant_envelope)
    draft = made.draft(grants=[released.grant.digest()], data=_use(made), epoch=1)
    made.write(draft, tensors=train(PLAN, batches, code=own_code()))
    trust = made.trust().to_json() | {"owners": {"hospital-north": made.trust().to_json()["owners"]["acme"]}}
    (folder / "auditor.yaml").write_text(json.dumps(trust))


def _released(site: Site, asked: Any) -> Any:
    return open_release(site.ask(asked), asked, broker=site.broker_keys, tee=site.worker.tee)


def _use(made: chains.Run) -> Any:
    return (DataUse(policy=made.policy(), stages=[]),)
