"""Runs a training over any engine: carries what agents say to each other, and decides nothing. Spec: docs/spec/training.md.

Whoever runs this sees ciphertext, signatures and who takes part. It can stop a run, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.training.agent.wire import AgentRefusal, Call, Part, unwrapped

Node = str


class Transport(Protocol):
    """An engine that carries calls to workers' agents."""

    def nodes(self) -> Sequence[Node]:
        """Return who can be reached now."""
        ...

    def exchange(self, calls: Mapping[Node, Call], *, timeout_s: float) -> Mapping[Node, Call]:
        """Return the answers that came in time. One that is missing is a worker that dropped out."""
        ...


class Countersign(Protocol):
    """The countersigner, wherever it is."""

    def next_round(self) -> int:
        """Return the only round that can be opened now."""
        ...

    def open(self, roster: bytes) -> bytes:
        """Return the opening (DSSE) of a round."""
        ...

    def sign(self, survivors: bytes) -> bytes:
        """Return the countersigned survivor set (DSSE)."""
        ...


Aggregator = Callable[[Call], Call]
"""Calls the aggregator's agent; an answer may be a refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What a round took."""

    train: float  # from the opening to the last masked update
    aggregate: float  # in the aggregator's agent
    unmask: float  # from the survivor set to the last unmask
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What everybody may know of a round."""

    number: int
    listed: int
    contributors: int
    metrics: Mapping[str, float]
    norm: float
    seconds: Seconds
    dropped: Mapping[Node, str] = field(default_factory=dict)  # why


Told = Callable[[str, Mapping[str, Any]], None]


def _silent(_event: str, _said: Mapping[str, Any]) -> None:
    return None


class Driver:
    """One run. `enrol` first, and again for whoever comes or has to attest anew; then `round`s."""

    def __init__(
        self,
        transport: Transport,
        aggregator: Aggregator,
        countersign: Countersign,
        *,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        told: Told = _silent,
    ) -> None:
        """Args: timeout_s: for one exchange; told: hears what happens, for a progress bar or a log."""
        self._transport, self._aggregator, self._countersign = transport, aggregator, countersign
        self._timeout_s, self._clock, self._told = timeout_s, clock, told
        self._workers: dict[Node, str] = {}  # worker ids, hex
        self._late: set[Node] = set()  # whose nonce the aggregator does not know
        self.refused: dict[Node, str] = {}

    @property
    def workers(self) -> Mapping[Node, str]:
        """Who is enrolled: worker ids by node."""
        return dict(self._workers)

    def enrol(self, nodes: Iterable[Node] | None = None) -> Mapping[Node, str]:
        """Have workers attest, shown to each other and to the aggregator, and paired; return who was refused, and why.

        Whoever an honest peer refuses cannot be in a round with it: the one that fewer admit stays away.

        Raises:
            UnavailableError: `too-few-workers`: nobody was admitted.
        """
        wanted = list(nodes if nodes is not None else self._transport.nodes())
        refused: dict[Node, str] = {}
        first = self._countersign.next_round()
        answers = self._ask({node: Call("enrol", {"first_round": first}) for node in wanted}, refused)
        shown = {node: bytes(answer.part()) for node, answer in answers.items()}
        names = {node: answer.text("worker") for node, answer in answers.items()}
        own = bytes(self._own("introduce").part())
        self._admit(shown, refused)
        self._introduce(shown, own, names, refused)
        self._workers = {node: name for node, name in names.items() if node not in refused}
        self._late = set()
        self.refused = refused
        self._told("enrolled", {"workers": len(self._workers), "refused": dict(refused)})
        if not self._workers:
            raise UnavailableError(
                f"no worker was admitted: {sorted(set(refused.values()))}",
                code="too-few-workers",
                stage="enrol",
            )
        return refused

    def round(self) -> Round:
        """Run one round with all who are enrolled.

        Raises:
            AgentRefusal: the aggregator's; UnavailableError: too few answered.
        """
        dropped: dict[Node, str] = {}
        try:
            done = self._round(dropped)
        except BaseException:
            self._late |= set(self._workers)  # whatever each of them still waits for
            raise
        self._late |= set(dropped)
        told = {"round": done.number, "contributors": done.contributors, "metrics": done.metrics}
        self._told("finished", told)
        return done

    def _round(self, dropped: dict[Node, str]) -> Round:
        began = self._clock()
        self._greet(dropped)
        nodes = [node for node in self._workers if node not in dropped]
        number = self._countersign.next_round()
        self._told("round", {"round": number, "workers": len(nodes)})
        listed = [self._workers[node] for node in nodes]
        roster = self._own("begin", {"round": number, "workers": listed}).part()
        opening = self._countersign.open(bytes(roster))
        model = self._own("open", {}, [opening])
        answers = self._ask({node: Call("train", {}, [opening, *model.parts]) for node in nodes}, dropped)
        trained = self._clock()
        self._receive(answers, dropped)
        survivors = self._own("survivors").part()
        signed = self._countersign.sign(bytes(survivors))
        self._own("signed", {}, [signed])
        asked = self._clock()
        alive = [node for node in nodes if node not in dropped]
        answers = self._ask({node: self._unmask(node, signed) for node in alive}, dropped)
        unmasked = self._clock()
        self._give("unmask", answers, dropped)
        said = self._own("finish")
        ended = self._clock()
        return Round(
            number=number,
            listed=len(listed),
            contributors=said.number("contributors"),
            metrics={name: float(value) for name, value in dict(said.said["metrics"]).items()},
            norm=float(said.text("norm")),
            seconds=Seconds(
                train=trained - began,
                aggregate=asked - trained + ended - unmasked,
                unmask=unmasked - asked,
                total=ended - began,
            ),
            dropped=dropped,
        )

    def _admit(self, shown: Mapping[Node, bytes], refused: dict[Node, str]) -> None:
        nodes = list(shown)
        answer = self._own("admit", {}, [shown[node] for node in nodes])
        for at, code in dict(answer.said["refused"]).items():
            refused[nodes[int(at)]] = str(code)

    def _introduce(
        self, shown: Mapping[Node, bytes], own: bytes, names: Mapping[Node, str], refused: dict[Node, str]
    ) -> None:
        """Show workers to each other until those who are left all admit each other, and pair them."""
        nodes = [node for node in shown if node not in refused]
        parts = [own, *(shown[node] for node in nodes)]
        answers = self._ask({node: Call("admit", {}, parts) for node in nodes}, refused)
        against: dict[Node, dict[Node, str]] = {}  # who is refused: by whom, why
        for node, answer in answers.items():
            for at, code in dict(answer.said["refused"]).items():
                if int(at) == 0:
                    refused[node] = f"refuses the aggregator: {code}"
                else:
                    against.setdefault(nodes[int(at) - 1], {})[node] = str(code)
        for node, by in sorted(against.items(), key=lambda item: -len(item[1])):
            left = [other for other in by if other not in refused]
            if node in refused or not left:
                continue
            if 2 * len(left) >= len([other for other in answers if other not in refused]) - 1:
                refused[node] = by[left[0]]
            else:
                refused |= {other: f"refuses {names[node][:8]}: {by[other]}" for other in left}
        self._pair({node: one for node, one in answers.items() if node not in refused}, names, refused)

    def _pair(
        self, answers: Mapping[Node, Call], names: Mapping[Node, str], refused: dict[Node, str]
    ) -> None:
        by_name = {name: node for node, name in names.items() if node not in refused}
        waiting: dict[Node, tuple[list[str], list[Part]]] = {}
        for node, answer in answers.items():
            for to, pairing in zip(answer.texts("to"), answer.parts, strict=True):
                if to in by_name:
                    senders, parts = waiting.setdefault(by_name[to], ([], []))
                    senders.append(names[node])
                    parts.append(pairing)
        calls = {node: Call("pair", {"from": senders}, parts) for node, (senders, parts) in waiting.items()}
        self._ask(calls, refused)

    def _greet(self, dropped: dict[Node, str]) -> None:
        """Ask whoever missed the end of a round for a fresh nonce."""
        late = [node for node in self._late if node in self._workers]
        self._give("hello", self._ask({node: Call("hello") for node in late}, dropped), dropped)
        self._late = set()

    def _give(self, name: str, answers: Mapping[Node, Call], dropped: dict[Node, str]) -> None:
        """Hand workers' answers to the aggregator; whose it refuses drops out."""
        for node, answer in answers.items():
            try:
                self._own(name, {"worker": self._workers[node]}, answer.parts)
            except AgentRefusal as error:
                dropped[node] = error.code

    def _receive(self, answers: Mapping[Node, Call], dropped: dict[Node, str]) -> None:
        for node, answer in answers.items():
            try:
                said = {"worker": self._workers[node], "grants": answer.number("grants")}
                self._own("receive", said, answer.parts)
            except (AgentRefusal, MessageFormatError) as error:
                dropped[node] = error.code

    def _unmask(self, node: Node, signed: bytes) -> Call:
        shares = self._own("shares", {"worker": self._workers[node]})
        return Call("unmask", {"places": shares.said["places"]}, [signed, *shares.parts])

    def _own(self, name: str, said: Mapping[str, Any] | None = None, parts: Sequence[Part] = ()) -> Call:
        return unwrapped(self._aggregator(Call(name, said or {}, parts)))

    def _ask(self, calls: Mapping[Node, Call], failed: dict[Node, str]) -> dict[Node, Call]:
        """Return the good answers; note who gave none, or a refusal."""
        if not calls:
            return {}
        answers, good = self._transport.exchange(calls, timeout_s=self._timeout_s), {}
        for node in calls:
            answer = answers.get(node)
            if answer is None:
                failed[node] = "no-answer"
                continue
            try:
                good[node] = unwrapped(answer)
            except AgentRefusal as error:
                failed[node] = error.code
        return good
