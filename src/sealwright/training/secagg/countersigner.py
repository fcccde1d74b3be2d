"""Opens each round with one roster, and signs one survivor set for it. It sees no update.

Spec: docs/spec/secure-aggregation.md, Round, steps 1 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.training.secagg.enrol import NONCE_BYTES, refused
from sealwright.training.secagg.graph import Graph, check_enough
from sealwright.training.secagg.messages import MAX_OPENING, Opening, Roster, Survivors
from sealwright.training.secagg.spec import RunSpec

Kind = Literal["opening", "survivors"]


class SignedRounds(Protocol):
    """What has to outlive a restart: the last opening and the last survivor set that were signed in each run."""

    def last(self, run_spec: bytes, kind: Kind) -> bytes | None:
        """Return the last envelope of a kind."""
        ...

    def record(self, run_spec: bytes, kind: Kind, envelope: bytes) -> None:
        """Make it durable before returning."""
        ...


class Countersigner:
    """One per run. What it signs is recorded before it leaves. Not thread-safe: one call at a time.

    Args:
        rounds: trusted as the broker's own state.
        random: of cryptographic quality.
    """

    def __init__(
        self, spec: RunSpec, key: Ed25519PrivateKey, rounds: SignedRounds, *, random: Callable[[int], bytes]
    ) -> None:
        """Raises ValueError: the key is not the one that the run specification names."""
        if key.public_key().public_bytes_raw() != spec.countersigner:
            raise ValueError("the run specification names another countersigner")
        self._spec, self._key, self._rounds, self._random = spec, key, rounds, random
        self._run = spec.digest()

    @property
    def next_round(self) -> int:
        """The only round that can be opened now; a worker that enrols now takes part from there on."""
        last = self._opening()
        return last.roster.round + 1 if last is not None else 1

    def open(self, roster: Roster) -> bytes:
        """Return the opening (DSSE) of the next round; the same roster again gets the same answer.

        Raises:
            VerificationError: `other-run`, `roster-size`, `round-signed`.
        """
        roster.check(self._spec)
        last, envelope = self._opening(), self._rounds.last(self._run, "opening")
        if last is not None and envelope is not None and last.roster == roster:
            return envelope
        if roster.round != self.next_round:
            raise refused(
                f"round {roster.round} cannot be opened: {self.next_round} is the next",
                "round-signed",
                "roster",
            )
        return self._signed("opening", Opening(roster=roster, beacon=self._random(NONCE_BYTES)))

    def sign(self, survivors: Survivors) -> bytes:
        """Return the countersigned set (DSSE) of the round that is open; the same set again gets the same answer.

        Raises:
            VerificationError: `other-run`, `survivors-other-roster`, `survivors-unknown`, `survivors-too-few`,
                `round-signed`.
        """
        if survivors.run_spec != self._run:
            raise refused("the survivor set is of another run", "other-run", "survivors")
        opening, last = self._opening(), self._rounds.last(self._run, "survivors")
        if opening is None or not survivors.is_of(opening.roster):
            raise refused(
                "the survivor set is not of the roster that is open", "survivors-other-roster", "survivors"
            )
        if last is not None and (before := self._survivors(last)).round >= survivors.round:
            if before == survivors:
                return last
            raise refused("another survivor set of this round was signed", "round-signed", "survivors")
        if survivors.alive[-1] > len(opening.roster.members):
            raise refused("survivors that the roster does not have", "survivors-unknown", "survivors")
        check_enough(survivors, Graph(opening, self._spec), self._spec)
        return self._signed("survivors", survivors)

    def _signed(self, kind: Kind, statement: Opening | Survivors) -> bytes:
        envelope = statement.sign(self._key)
        self._rounds.record(self._run, kind, envelope)
        return envelope

    def _opening(self) -> Opening | None:
        envelope = self._rounds.last(self._run, "opening")
        if envelope is None:
            return None
        return Opening.verify(envelope, [self._key.public_key()], stage="state", limit=MAX_OPENING)

    def _survivors(self, envelope: bytes) -> Survivors:
        return Survivors.verify(envelope, [self._key.public_key()], stage="state")
