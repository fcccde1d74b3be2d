"""Training over Flower's deployment engine beside plain Flower, and what attestation and sealing add to a step.

    SEALWRIGHT_FLOWER_PYTHON=.venv-flower/bin/python python bench/train.py [--rounds 3] [--price 4.00]

Prints one JSON object a line, as bench/run.py says. Three SuperNodes on this machine. Plain Flower sends weights and gets them
back: once a round (train), or twice (train, evaluate), as its strategies do; we send two messages. Agents attest on a fake
platform to a real broker over HTTP. `--price`: of a machine, an hour; the cost of a step is what agents and broker add.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.agent.world import OWNERS, World

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.training.agent.main import build
from sealwright.training.agent.model import open_model, seal_model
from sealwright.training.agent.wire import AgentServer, Handler, listen
from sealwright.training.job import Job
from sealwright.training.local_flower import LocalFlower, write_app

NODES = OWNERS[:3]
PLAIN = '''"""Plain Flower: weights to each node and back."""

import json
import time

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
import numpy as np

client = ClientApp()
server = ServerApp()


def back(message, context):
    return Message(RecordDict({"weights": message.content["weights"]}), reply_to=message)


client.train()(back)
client.evaluate()(back)


@server.main()
def main(grid, context):
    said = json.loads(open(context.run_config["job"]).read())
    while len(list(grid.get_node_ids())) < said["nodes"]:
        time.sleep(0.05)
    with open(said["report"], "w") as out:
        for _ in range(said["rounds"]):
            began, times = time.perf_counter(), {}
            for kind in ("train", "evaluate"):
                weights = ArrayRecord([np.zeros(said["elements"], dtype=np.float32)])
                messages = [
                    Message(RecordDict({"weights": weights}), dst_node_id=node, message_type=kind)
                    for node in grid.get_node_ids()
                ]
                list(grid.send_and_receive(messages))
                times[kind] = time.perf_counter() - began
            print(json.dumps(times), file=out, flush=True)
'''


def ours(folder: Path, python: Path, rounds: int) -> list[float]:
    """Return the seconds of each round, through agents."""
    world = World(folder / "world", epochs=rounds)
    with ExitStack() as stack:
        stack.enter_context(world.open())
        sockets = [
            served(stack, folder / f"{name}.sock", build(world.workload("worker", [name]))) for name in NODES
        ]
        aggregator = served(stack, folder / "a.sock", build(world.workload("aggregator")))
        host, port = world.peer
        job = Job(
            run=world.spec.digest(),
            aggregator=str(aggregator),
            countersigner=f"http://{host}:{port}",
            nodes=len(NODES),
            rounds=rounds,
            timeout_s=120,
            report=str(folder / "report"),
        )
        (folder / "job").write_bytes(job.encode())
        run(stack, folder, sockets, python, write_app(folder / "app"))
    said = [json.loads(line) for line in (folder / "report").read_text().splitlines()]
    return [one["total"] for one in said if one["event"] == "seconds"]


def plain(folder: Path, python: Path, rounds: int) -> list[dict[str, float]]:
    """Return the seconds of each round of plain Flower, after train and after evaluate."""
    job = {"nodes": len(NODES), "rounds": rounds, "elements": 17, "report": str(folder / "report")}
    (folder / "job").write_text(json.dumps(job))
    with ExitStack() as stack:
        sockets = [folder / f"{name}.sock" for name in NODES]
        run(stack, folder, sockets, python, write_app(folder / "app", module="plain", app=PLAIN))
    return [json.loads(line) for line in (folder / "report").read_text().splitlines()]


def run(stack: ExitStack, folder: Path, sockets: list[Path], python: Path, app: Path) -> None:
    """Run an app on three SuperNodes to its end."""
    flower = stack.enter_context(LocalFlower(folder / "flower", sockets, python=python))
    if flower.submit(app, {"job": str(folder / "job")}).wait(600):
        raise RuntimeError((folder / "flower" / "run.log").read_text()[-2000:])


def served(stack: ExitStack, path: Path, agent: Handler) -> Path:
    """Serve an agent."""
    server = AgentServer(listen(path), agent)
    threading.Thread(target=server.run, daemon=True).start()
    stack.callback(server.close)
    return path


def added(folder: Path) -> tuple[float, float]:
    """Return seconds to attest one agent, and to run a round of five agents in this process, all but training."""
    world = World(folder / "world")
    with world.open():
        driver = world.driver(world.agents())
        began = time.perf_counter()
        driver.enrol()
        enrolled = (time.perf_counter() - began) / (len(OWNERS) + 1)
        rounds = [driver.round().seconds.total for _ in range(5)]
    return enrolled, statistics.median(rounds)


def sealing(elements: int, workers: int) -> tuple[float, float]:
    """Return seconds to seal weights for so many workers, and to open them at one."""
    weights = np.random.default_rng(1).normal(size=elements).astype(np.float32)
    key, privates = Ed25519PrivateKey.generate(), [HpkePrivateKey.generate(Kem.XWING) for _ in range(workers)]
    to = {number.to_bytes(32, "big"): private.public for number, private in enumerate(privates)}
    run_spec, began = bytes(32), time.perf_counter()
    box = seal_model(weights, run_spec=run_spec, round_number=1, to=to, key=key, random=os.urandom)
    sealed = time.perf_counter() - began
    began = time.perf_counter()
    open_model(
        box, run_spec=run_spec, round_number=1, worker=bytes(32), private=privates[0],
        aggregator=key.public_key().public_bytes_raw(), elements=elements,
    )  # fmt: skip
    return sealed, time.perf_counter() - began


def row(work: str, ours: float, peer: float | None, unit: str = "s", limit: str = "shown, no target") -> None:
    """Print a row."""
    shown = {"ours": round(ours, 5), "peer": None if peer is None else round(peer, 5)}
    ratio = None if peer is None else round(ours / peer, 3)
    print(json.dumps({"work": work, **shown, "ratio": ratio, "unit": unit, "limit": limit}), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--price", type=float, default=4.0, help="of a machine, an hour")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        python = os.environ.get("SEALWRIGHT_FLOWER_PYTHON", "")
        if python and Path(python).exists():
            for part in ("ours", "plain"):
                (folder / part).mkdir()
            mine = statistics.median(ours(folder / "ours", Path(python), args.rounds))
            theirs = plain(folder / "plain", Path(python), args.rounds)
            both = statistics.median(one["evaluate"] for one in theirs)
            once = statistics.median(one["train"] for one in theirs)
            row(
                "round on Flower, 3 nodes: two messages, against train and evaluate",
                mine,
                both,
                limit="<= 1.5",
            )
            row("the same, against train alone", mine, once)
        (folder / "added").mkdir()
        attest, step = added(folder / "added")
        row("attest and enrol one agent, with all peers' judgements", attest, None)
        row("round of 5 agents in one process, trivial training", step, None)
        cost = step * args.price / 3600 / len(OWNERS)
        row(f"cost a worker and step at {args.price:.2f} an hour", cost, None, unit="price")
        for elements in (1_000_000, 10_000_000):
            sealed, opened = sealing(elements, 10)
            row(f"seal {elements // 1_000_000}M weights for 10 workers", sealed, None)
            row(f"open {elements // 1_000_000}M weights", opened, None)


if __name__ == "__main__":
    main()
