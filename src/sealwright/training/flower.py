"""Flower as the engine across organisations (extra `flower`): it carries calls, and holds no secret.

A ClientApp hands each call to its organisation's agent, and the answer back. A ServerApp runs the driver. Nothing is kept in
`context.state`. Works with flwr 1.41 and 1.42, in deployment and in simulation. Spec: docs/spec/training.md, Engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp

from sealwright.errors import MessageFormatError, SealwrightError, UnavailableError
from sealwright.training.agent.wire import AgentClient, Call, answered
from sealwright.training.drive import Node
from sealwright.training.job import load_job, run_job

ACTION = "sealwright"  # of messages of type `query`
RECORD = "sealwright"
AGENT = "agent"  # in a node's config: the path of its agent's socket
POLL_S = 0.05
_MESSAGE_TYPE = f"query.{ACTION}"

Reach = Callable[[Context], Callable[[Call], Call]]
"""Finds the agent of a node, and calls it."""


def agent_of_node(context: Context) -> Callable[[Call], Call]:
    """Return what calls the agent that the node's config names."""
    path = context.node_config.get(AGENT)
    if not isinstance(path, str):
        raise UnavailableError(
            f"this node's config does not name an agent: --node-config '{AGENT}=\"PATH\"'",
            code="agent-unreachable",
            stage="call",
        )

    def call(call: Call) -> Call:
        with AgentClient(Path(path)) as client:
            return client.call(call)

    return call


def sealwright_mod(reach: Reach = agent_of_node) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """Return a mod that hands our calls to the agent, and lets everything else through to the app."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type != _MESSAGE_TYPE:
            return call_next(message, context)
        return _carried(message, context, reach)

    return mod


def client_app(reach: Reach = agent_of_node) -> ClientApp:
    """Return a ClientApp that carries calls to the node's agent, and does nothing else."""
    app = ClientApp()

    @app.query(ACTION)  # type: ignore[untyped-decorator, unused-ignore]
    def query(message: Message, context: Context) -> Message:
        return _carried(message, context, reach)

    return app


def server_app() -> ServerApp:
    """Return a ServerApp that drives the job that the run's config names: `job`, a path."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def run(grid: Grid, context: Context) -> None:
        transport = GridTransport(grid)
        job = load_job(Path(str(context.run_config["job"])))
        run_job(
            job,
            transport,
            lambda count, wait_s: transport.wait(count, timeout_s=wait_s),
            clock=time.monotonic,
        )

    return app


class GridTransport:
    """A `Transport` over Flower's grid."""

    def __init__(self, grid: Grid, *, poll_s: float = POLL_S) -> None:
        self._grid, self._poll_s = grid, poll_s

    def nodes(self) -> Sequence[Node]:
        """Return the ids of connected SuperNodes."""
        return sorted(str(node) for node in self._grid.get_node_ids())

    def wait(self, count: int, *, timeout_s: float) -> Sequence[Node]:
        """Return the nodes once so many are connected, or what there is when time is up."""
        end = time.monotonic() + timeout_s
        while len(found := self.nodes()) < count and time.monotonic() < end:
            time.sleep(self._poll_s)
        return found

    def exchange(self, calls: Mapping[Node, Call], *, timeout_s: float) -> Mapping[Node, Call]:
        """As `Transport` says. What does not parse is no answer."""
        messages = [
            Message(
                RecordDict({RECORD: ConfigRecord({"call": call.encode()})}),
                dst_node_id=int(node),
                message_type=_MESSAGE_TYPE,
            )
            for node, call in calls.items()
        ]
        waiting = set(self._grid.push_messages(messages))
        answers: dict[Node, Call] = {}
        end = time.monotonic() + timeout_s
        while waiting and time.monotonic() < end:
            for reply in self._grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                answer = _answer(reply)
                if answer is not None:
                    answers[str(reply.metadata.src_node_id)] = answer
            time.sleep(self._poll_s)
        return answers


def _carried(message: Message, context: Context, reach: Reach) -> Message:
    raw = message.content[RECORD]["call"]
    if not isinstance(raw, bytes):
        raise MessageFormatError("a message without a call", code="malformed-call", stage="call")

    class Far:
        def handle(self, call: Call) -> Call:
            return reach(context)(call)

    answer = answered(Far(), Call.parse(raw))
    return Message(RecordDict({RECORD: ConfigRecord({"answer": answer.encode()})}), reply_to=message)


def _answer(reply: Message) -> Call | None:
    if reply.has_error():
        return None
    try:
        raw = reply.content[RECORD]["answer"]
        return Call.parse(raw) if isinstance(raw, bytes) else None
    except (KeyError, SealwrightError):
        return None
