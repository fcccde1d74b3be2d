"""The countersigner as a service: of a broker for all its runs, and how a driver reaches it. Spec: docs/spec/training.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sealwright.crypto.encoding import hex_decode
from sealwright.errors import MessageFormatError
from sealwright.training.agent.wire import Call, malformed, unwrapped
from sealwright.training.secagg.countersigner import Countersigner
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import MAX_OPENING, Roster, Survivors

Find = Callable[[bytes], Countersigner | None]
"""Returns the countersigner of a run, by the digest of its run specification."""


@dataclass(frozen=True, slots=True)
class CountersignHandler:
    """Answers `next`, `open` and `sign` for runs. One call at a time: the caller sees to it."""

    find: Find

    def handle(self, call: Call) -> Call:
        """As `Handler` says. Raises VerificationError: `other-run`, and as `Countersigner`."""
        run = hex_decode(call.text("run"), length=32, error=MessageFormatError)
        one = self.find(run)
        if one is None:
            raise refused(
                "this broker countersigns no such run: sealwright train register", "other-run", "call"
            )
        if call.name == "next":
            return Call("ok", {"round": one.next_round})
        raw = bytes(call.part())
        if call.name == "open":
            return Call("ok", {}, [one.open(Roster.parse(raw, limit=MAX_OPENING))])
        if call.name == "sign":
            return Call("ok", {}, [one.sign(Survivors.parse(raw))])
        raise malformed("a call that a countersigner does not answer")


@dataclass(frozen=True, slots=True)
class FarCountersign:
    """A `Countersign` behind calls."""

    run: bytes  # digest of the run specification
    call: Callable[[Call], Call]

    def next_round(self) -> int:
        """As `Countersign` says."""
        return self._asked("next").number("round")

    def open(self, roster: bytes) -> bytes:
        """As `Countersign` says."""
        return bytes(self._asked("open", roster).part())

    def sign(self, survivors: bytes) -> bytes:
        """As `Countersign` says."""
        return bytes(self._asked("sign", survivors).part())

    def _asked(self, name: str, *parts: bytes) -> Call:
        said: Mapping[str, str] = {"run": self.run.hex()}
        return unwrapped(self.call(Call(name, said, parts)))
