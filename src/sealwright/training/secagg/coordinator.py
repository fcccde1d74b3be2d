"""The coordinator of one round: adds masked updates as they come, and takes the masks off. It is not trusted. No I/O.

Spec: docs/spec/secure-aggregation.md. Not thread-safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

from sealwright.crypto.dsse import Envelope
from sealwright.crypto.statement import ed25519
from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.training.secagg.enrol import Enrolment, refused
from sealwright.training.secagg.fixed import Residues, Sum, decode_sum
from sealwright.training.secagg.graph import Graph, check_enough
from sealwright.training.secagg.messages import (
    MAX_HEAD,
    Hello,
    Masked,
    Member,
    Opening,
    Roster,
    Split,
    Survivors,
    Unmask,
    body_digest,
    unmask_limit,
)
from sealwright.training.secagg.prg import Mask, apply_masks
from sealwright.training.secagg.shamir import combine, correct
from sealwright.training.secagg.spec import RunSpec
from sealwright.training.secagg.worker import commitment


def make_roster(spec: RunSpec, round_number: int, members: Iterable[tuple[Enrolment, bytes]]) -> Roster:
    """Return the roster of a round: enrolments, each with its current nonce."""
    listed = [Member(worker=one.worker, enrolment=one.digest(), nonce=nonce) for one, nonce in members]
    return Roster(
        run_spec=spec.digest(), round=round_number, members=sorted(listed, key=lambda member: member.worker)
    )


def verify_hello(envelope: bytes, enrolment: Enrolment) -> Hello:
    """Return a worker's nonce for its next round, proved to be its own."""
    said = Hello.verify(envelope, [ed25519(enrolment.key)], stage="hello")
    if (said.run_spec, said.enrolment) != (enrolment.run_spec, enrolment.digest()):
        raise refused("the hello is of another enrolment", "other-run", "hello")
    return said


class Coordinator:
    """One round. `receive` each masked update, `survivors` once, `open` each unmask, `sum` at the end."""

    def __init__(self, spec: RunSpec, opening: bytes, enrolments: Iterable[Enrolment]) -> None:
        """Raises VerificationError: see `Opening.opened`; `peer-unverified`: a member whose enrolment is not given."""
        opened = Opening.opened(opening, spec)
        self._spec, self.roster, self._digest = spec, opened.roster, opened.roster.digest()
        keys = {one.digest(): ed25519(one.key) for one in enrolments}
        if any(member.enrolment not in keys for member in self.roster.members):
            raise refused("a member whose enrolment is not known", "peer-unverified", "roster")
        self._keys = [keys[member.enrolment] for member in self.roster.members]  # by place, from 0
        self._graph = Graph(opened, spec)
        self._total: Residues = np.zeros(spec.elements + 1, dtype=np.uint32)
        self._heads: dict[int, Masked] = {}
        self._sealed: dict[int, tuple[bytes, bytes]] = {}  # commitments and shares of a place
        self._survivors: Survivors | None = None
        self._unmasks: dict[int, Unmask] = {}
        self._sum: Sum | None = None
        self.suspects: dict[int, str] = {}  # place: what it sent that does not fit

    @property
    def received(self) -> list[int]:
        """Places whose masked update is in the total."""
        return sorted(self._heads)

    def receive(self, message: bytes | bytearray | memoryview, *, threads: int = 1) -> int:
        """Add a masked update; return its sender's place.

        Raises:
            MessageFormatError: `masked-malformed`. VerificationError: `masked-repeated`, `masked-unlisted`,
                `bad-signature`, `survivors-fixed`.
        """
        if self._survivors is not None:
            raise refused("the survivors of this round are fixed", "survivors-fixed", "masked")
        neighbours = len(self._graph.of(1)) if self._spec.masked else 0  # each has as many as any other
        parts = Split.parse(message, self._spec, neighbours)
        envelope = Envelope.parse(parts.envelope, limit=2 * MAX_HEAD)
        head = Masked.parse(envelope.unverified_payload, limit=MAX_HEAD)
        place = self.roster.place(head.worker)
        if not place:
            raise refused(
                "a masked update of a worker that is not in the roster", "masked-unlisted", "masked"
            )
        if place in self._heads:
            raise refused("a second masked update of a worker", "masked-repeated", "masked")
        envelope.verify(Masked.PAYLOAD_TYPE, [self._keys[place - 1]], stage="masked")
        if head.body != body_digest(parts.body, threads=threads):
            raise MessageFormatError(
                "the update is not the one that was signed", code="masked-malformed", stage="masked"
            )
        self._check_head(head)
        np.add(self._total, parts.residues, out=self._total)
        self._heads[place], self._sealed[place] = head, (parts.commitments, parts.shares)
        return place

    def survivors(self) -> Survivors:
        """Return who is in the sum, for the countersigner. No update is taken any more.

        Raises:
            VerificationError: `survivors-too-few`, `seed-mismatch`.
        """
        said = Survivors(
            run_spec=self._spec.digest(),
            round=self.roster.round,
            roster=self._digest,
            alive=self.received or [1],
        )
        check_enough(said, self._graph, self._spec)
        self._check_seeds()
        self._survivors = said
        return said

    def shares_for(self, place: int) -> dict[int, bytes]:
        """Return what the alive neighbours of a place sealed for it, by their places."""
        if not self._spec.masked:
            return {}
        return {
            sender: self._cut(self._sealed[sender][1], sender)[place]
            for sender in self._graph.of(place)
            if sender in self._heads
        }

    def _cut(self, joined: bytes, sender: int) -> dict[int, bytes]:
        """Return the parts of what a sender joined for its neighbours, all of one length."""
        places = self._graph.of(sender)
        size = len(joined) // len(places)
        return {place: joined[at * size : (at + 1) * size] for at, place in enumerate(places)}

    def open(self, envelope: bytes) -> bytes:
        """Take an unmask; return the sender's nonce for the next round.

        Raises:
            MessageFormatError: malformed. VerificationError: `unmask-repeated`, `masked-unlisted`,
                `survivors-other-roster`, `bad-signature`.
        """
        fixed, limit = self._survivors, unmask_limit(self._spec)
        opened = Envelope.parse(envelope, limit=2 * limit)
        said = Unmask.parse(opened.unverified_payload, limit=limit)
        place = self.roster.place(said.worker)
        if fixed is None or place not in fixed.alive:
            raise refused("an unmask of a worker that is no survivor", "masked-unlisted", "unmask")
        if place in self._unmasks:
            raise refused("a second unmask of a worker", "unmask-repeated", "unmask")
        opened.verify(Unmask.PAYLOAD_TYPE, [self._keys[place - 1]], stage="unmask")
        if said.survivors != fixed.digest():
            raise refused("the unmask is for another survivor set", "survivors-other-roster", "unmask")
        self._unmasks[place] = said
        for other in said.unopened:
            self.suspects.setdefault(other, f"member {place} could not open its shares")
        return said.next_nonce

    def sum(self, *, threads: int = 1) -> Sum:
        """Return the weighted sum of the survivors' updates.

        Raises:
            UnavailableError: `too-few-shares`: wait for more unmasks. VerificationError: `sum-implausible`.
        """
        if self._survivors is None:
            raise RuntimeError("survivors are fixed before there is a sum")
        if self._sum is None:
            masks = self._masks(self._survivors) if self._spec.masked else []
            apply_masks(self._total, masks, threads=threads)
            self._sum = decode_sum(self._total, self._spec, len(self._survivors.alive))
        return self._sum

    def _masks(self, fixed: Survivors) -> list[Mask]:
        """Return what is left in the total, to be taken away."""
        alive, given = set(fixed.alive), _Given(self._unmasks)
        masks = []
        for place in fixed.alive:
            head = self._heads[place]
            seed = self._combined(given.self_shares[place], place, head.self_commitment)
            masks.append(Mask(seed, add=False))
            for other, wanted in self._cut(self._sealed[place][0], place).items():
                if other not in alive:
                    masks.append(Mask(self._pair_seed(given, place, other, wanted), add=place > other))
        return masks

    def _pair_seed(self, given: _Given, place: int, other: int, wanted: bytes) -> bytes:
        seed = given.pair_seeds.get((place, other))
        if seed is not None:
            if commitment(self._digest, seed) == wanted:
                return seed
            self.suspects.setdefault(place, "opened another seed than it has committed to")
        return self._combined(given.pair_shares[place, other], place, wanted)

    def _combined(self, shares: Mapping[int, bytes], place: int, wanted: bytes) -> bytes:
        """Return the seed that shares give and its owner has committed to."""
        neighbours = self._graph.of(place)
        threshold = self._spec.threshold_of(len(neighbours))
        given = {sender: shares[sender] for sender in neighbours if sender in shares}
        if len(given) >= threshold:
            seed = combine(dict(islice(given.items(), threshold)))
            if seed is not None and commitment(self._digest, seed) == wanted:
                return seed
            found = correct(given, threshold)
            if found is not None and commitment(self._digest, found[0]) == wanted:
                for sender in found[1]:
                    self.suspects.setdefault(sender, f"its share of member {place}'s seed does not fit")
                return found[0]
            self.suspects.setdefault(place, "shares of its seed do not give what it has committed to")
        raise UnavailableError(
            f"{len(given)} shares of member {place}'s seed, and {threshold} good ones are needed: "
            "wait for more workers, or repeat the round",
            code="too-few-shares",
            stage="sum",
        )

    def _check_head(self, head: Masked) -> None:
        if (head.run_spec, head.round, head.roster) != (
            self._spec.digest(),
            self.roster.round,
            self._digest,
        ):
            raise refused("a masked update of another round or roster", "masked-malformed", "masked")

    def _check_seeds(self) -> None:
        """Prove that both ends of each pair of survivors use the same seed."""
        if not self._spec.masked:
            return
        said = {place: self._cut(sealed[0], place) for place, sealed in self._sealed.items()}
        wrong = [
            (place, other)
            for place, commitments in said.items()
            for other, digest in commitments.items()
            if place < other and other in said and said[other].get(place) != digest
        ]
        if wrong:
            for place in wrong[0]:
                self.suspects[place] = "the seed of a pair is not the same at both ends"
            raise refused(
                f"members {wrong[0]} do not use the same seed: repeat without them",
                "seed-mismatch",
                "survivors",
            )


class _Given:
    """What all unmasks open, by whose it is: looked up once for each seed."""

    def __init__(self, unmasks: Mapping[int, Unmask]) -> None:
        self.self_shares: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        self.pair_shares: defaultdict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
        self.pair_seeds: dict[tuple[int, int], bytes] = {}
        for sender, said in unmasks.items():
            for one in said.self_shares:
                self.self_shares[one.of][sender] = one.share
            for share in said.pair_shares:
                self.pair_shares[share.of, share.dropped][sender] = share.share
            for opened in said.pair_seeds:
                self.pair_seeds[sender, opened.dropped] = opened.seed
