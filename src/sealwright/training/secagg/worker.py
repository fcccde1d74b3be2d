"""A worker: takes part in one round at a time, masks what it sends, and opens once. No I/O.

Spec: docs/spec/secure-aggregation.md. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from sealwright.crypto.encoding import digest
from sealwright.crypto.statement import ed25519
from sealwright.errors import VerificationError
from sealwright.training.secagg.enrol import NONCE_BYTES, Enrolment, PairSecret, WorkerKeys, refused
from sealwright.training.secagg.fixed import Encoder, encode_update
from sealwright.training.secagg.graph import Graph, check_enough
from sealwright.training.secagg.messages import (
    Hello,
    Masked,
    Opening,
    PairSeed,
    PairShare,
    Roster,
    SelfShare,
    Survivors,
    Unmask,
    body_digest,
    encode_masked,
    residues_of,
)
from sealwright.training.secagg.prg import Mask, apply_masks
from sealwright.training.secagg.shamir import SECRET_BYTES, SHARE_BYTES, split
from sealwright.training.secagg.spec import RunSpec

Random = Callable[[int], bytes]
_SEED, _SHARE, _COMMIT = (f"sealwright/secagg/{name}/v1" for name in ("seed", "share", "commit"))
_NO_NONCE = bytes(12)  # a share's key is used once


@dataclass(slots=True, kw_only=True)
class _Round:
    """What a worker keeps between its masked update and its unmask."""

    roster: Roster
    digest: bytes
    graph: Graph
    place: int
    pairs: Mapping[int, PairSecret] = field(repr=False)  # as they were when the round began
    seeds: Mapping[int, bytes] = field(repr=False)  # with each neighbour
    opened: bool = False


class Worker:
    """One worker of one run, for one boot.

    Args:
        keys: of this boot.
        first_round: from the broker's grant: no earlier round is taken part in.
        random: of cryptographic quality.
    """

    def __init__(
        self, spec: RunSpec, keys: WorkerKeys, *, boot_id: bytes, first_round: int, random: Random
    ) -> None:
        self._spec, self._keys, self._random = spec, keys, random
        self.enrolment = keys.enrolment(
            run_spec=spec.digest(), boot_id=boot_id, first_round=first_round, random=random
        )
        self._nonce = self.enrolment.nonce
        self._seen = first_round - 1
        self._peers: dict[bytes, Enrolment] = {}
        self._pairs: dict[bytes, PairSecret] = {}
        self._sent: dict[bytes, bytes] = {}  # pairings
        self._round: _Round | None = None

    def signed_enrolment(self) -> bytes:
        """Return the enrolment (DSSE) for all peers and the coordinator."""
        return self.enrolment.sign(self._keys.sign)

    def admit(self, envelope: bytes) -> bytes | None:
        """Take a peer's enrolment, whose key the caller has proved to be an attested worker's.

        Returns:
            The pairing (DSSE) to send to a peer with a higher id; None: the peer sends one. The same enrolment
            again gets the same answer: a replay changes no secret.

        Raises:
            MessageFormatError, VerificationError: see `Enrolment.opened`; `peer-self`.
        """
        peer = Enrolment.opened(envelope, run_spec=self._spec.digest())
        if peer.worker == self.enrolment.worker:
            raise refused("a peer with this worker's own key", "peer-self")
        if self._peers.get(peer.worker) == peer:
            return self._sent.get(peer.worker)
        self._peers[peer.worker] = peer
        self._pairs.pop(peer.worker, None)
        if not self.enrolment.worker < peer.worker:
            return None
        self._sent[peer.worker], self._pairs[peer.worker] = self._keys.pair_with(self.enrolment, peer)
        return self._sent[peer.worker]

    def pair(self, worker: bytes, pairing: bytes) -> None:
        """Take the pairing that an admitted peer with a lower id sent.

        Raises:
            MessageFormatError, VerificationError: see `WorkerKeys.accept`; `peer-unverified`, `other-pair`.
        """
        peer = self._peers.get(worker)
        if peer is None:
            raise refused("a pairing of a peer that was not verified", "peer-unverified", "pairing")
        if not peer.worker < self.enrolment.worker:
            raise refused("the worker with the lower id encapsulates", "other-pair", "pairing")
        self._pairs[worker] = self._keys.accept(self.enrolment, peer, pairing)

    def hello(self) -> bytes:
        """Return a fresh nonce (DSSE) for the next round, where an unmask was missed. Ends the round under way."""
        self._end()
        said = Hello(
            run_spec=self._spec.digest(),
            enrolment=self.enrolment.digest(),
            after_round=max(self._seen, 0),
            nonce=self._nonce,
        )
        return said.sign(self._keys.sign)

    def check(self, opening: bytes) -> None:
        """Prove that `mask` would take this opening now: before the work for an update. Nothing is spent.

        Raises:
            MessageFormatError, VerificationError: as `mask`.
        """
        self._begin(Opening.opened(opening, self._spec))

    def mask(
        self,
        opening: bytes,
        update: NDArray[Any],
        weight: int,
        *,
        threads: int = 1,
        encode: Encoder = encode_update,
    ) -> bytearray:
        """Return the masked update for a round.

        Args:
            opening: of the round, countersigned (DSSE).
            update: numbers within ±clip, `elements` of them.
            weight: integer.
            encode: writes the residues: another than `encode_update` where noise is added before the masks.

        Raises:
            MessageFormatError: malformed; `update-length`, `update-out-of-range`.
            VerificationError: docs/spec/secure-aggregation.md, What is refused.
        """
        message = bytearray(4 * (self._spec.elements + 1))
        residues = residues_of(message)
        encode(update, weight, self._spec, residues)
        begun = self._begin(Opening.opened(opening, self._spec))
        # From here on the nonce is spent, whatever happens: a round is never masked twice.
        self._seen, self._round = begun.roster.round, begun
        self_seed = self._random(SECRET_BYTES)
        shares = commitments = b""
        if self._spec.masked:
            shares = self._shares(begun, self_seed)
            commitments = b"".join(commitment(begun.digest, seed) for seed in begun.seeds.values())
            pairs = [Mask(seed, begun.place < place) for place, seed in begun.seeds.items()]
            apply_masks(residues, [Mask(self_seed, add=True), *pairs], threads=threads)
        del residues  # nothing else looks into the message: it can grow where it is
        message += commitments + shares
        head = Masked(
            run_spec=self._spec.digest(),
            round=begun.roster.round,
            roster=begun.digest,
            worker=self.enrolment.worker,
            self_commitment=commitment(begun.digest, self_seed),
            body=body_digest(message, threads=threads),
        )
        encode_masked(message, head, self._keys.sign)
        return message

    def unmask(self, survivors: bytes, shares: Mapping[int, bytes]) -> bytes:
        """Return what opens the sum (DSSE), once.

        Args:
            survivors: countersigned (DSSE).
            shares: what each alive neighbour sealed for this worker, by its place.

        Raises:
            MessageFormatError: malformed. VerificationError: docs/spec/secure-aggregation.md, What is refused.
        """
        kept = self._round
        if kept is None or kept.opened:
            raise refused("this round was opened before, or there is none", "unmask-repeated", "unmask")
        said = self._checked(survivors, kept)
        alive = set(said.alive)
        neighbours = kept.graph.of(kept.place) if self._spec.masked else ()
        found = {
            place: self._opened(kept, place, shares.get(place, b"")) for place in neighbours if place in alive
        }
        opened = {place: given for place, given in found.items() if given}
        # Nothing fails from here on: what was opened for this set is opened for no other.
        kept.opened = True
        answer = Unmask(
            survivors=said.digest(),
            worker=self.enrolment.worker,
            self_shares=[SelfShare(of=place, share=given[0]) for place, given in opened.items()],
            pair_seeds=[
                PairSeed(dropped=place, seed=kept.seeds[place]) for place in neighbours if place not in alive
            ],
            pair_shares=[
                PairShare(of=place, dropped=other, share=share)
                for place, given in opened.items()
                for other, share in zip(kept.graph.of(place), given[1:], strict=True)
                if other not in alive
            ],
            unopened=[place for place, given in found.items() if not given],
            next_nonce=self._end(),
        )
        return answer.sign(self._keys.sign)

    def _end(self) -> bytes:
        """Forget the round and its seeds; return the nonce of the next."""
        self._round = None
        self._nonce = self._random(NONCE_BYTES)
        return self._nonce

    def _begin(self, opening: Opening) -> _Round:
        roster, own = opening.roster, self.enrolment
        if roster.round <= self._seen:
            raise refused(
                f"round {roster.round} was, or is before this worker's first", "round-repeated", "roster"
            )
        place = roster.place(own.worker)
        if not place or roster.members[place - 1].enrolment != own.digest():
            raise refused("this worker is not listed as it is", "roster-not-listed", "roster")
        if roster.members[place - 1].nonce != self._nonce:
            raise refused("the roster has another nonce of this worker", "roster-nonce", "roster")
        for member in roster.members:
            peer = self._peers.get(member.worker)
            if member.worker != own.worker and (peer is None or peer.digest() != member.enrolment):
                raise refused("a member that was not verified", "peer-unverified", "roster")
        graph, roster_digest = Graph(opening, self._spec), roster.digest()
        pairs = {other: self._pair(roster, other) for other in graph.of(place)}
        run = self._spec.digest()
        seeds = {other: pair.derive(_SEED, run, roster.round, roster_digest) for other, pair in pairs.items()}
        return _Round(roster=roster, digest=roster_digest, graph=graph, place=place, pairs=pairs, seeds=seeds)

    def _pair(self, roster: Roster, place: int) -> PairSecret:
        pair = self._pairs.get(roster.members[place - 1].worker)
        if pair is None:
            raise refused("a member without a pairing", "peer-unpaired", "roster")
        return pair

    def _shares(self, begun: _Round, self_seed: bytes) -> bytes:
        places = begun.graph.of(begun.place)
        threshold = self._spec.threshold_of(len(places))
        secrets = [self_seed, *begun.seeds.values()]
        split_up = [split(secret, threshold, places, self._random) for secret in secrets]
        return b"".join(
            AESGCM(self._share_key(begun, begun.place, place)).encrypt(
                _NO_NONCE, b"".join(shares[at] for shares in split_up), None
            )
            for at, place in enumerate(places)
        )

    def _share_key(self, kept: _Round, sender: int, recipient: int) -> bytes:
        other = recipient if sender == kept.place else sender
        ends = (kept.roster.members[place - 1].worker for place in (sender, recipient))
        return kept.pairs[other].derive(_SHARE, self._spec.digest(), kept.roster.round, kept.digest, *ends)

    def _opened(self, kept: _Round, place: int, sealed: bytes) -> list[bytes]:
        """Return the shares that an alive neighbour sealed for this worker, self seed first; none: they do not open."""
        try:
            raw = AESGCM(self._share_key(kept, place, kept.place)).decrypt(_NO_NONCE, sealed, None)
        except (InvalidTag, ValueError):
            return []
        if len(raw) != (1 + len(kept.graph.of(place))) * SHARE_BYTES:
            return []
        return [raw[at : at + SHARE_BYTES] for at in range(0, len(raw), SHARE_BYTES)]

    def _checked(self, envelope: bytes, kept: _Round) -> Survivors:
        try:
            said = Survivors.verify(envelope, [ed25519(self._spec.countersigner)], stage="survivors")
        except VerificationError as error:
            raise refused(
                f"the survivor set is not countersigned: {error}", "survivors-unsigned", "survivors"
            ) from None
        if not said.is_of(kept.roster):
            raise refused("the survivor set is of another roster", "survivors-other-roster", "survivors")
        if said.alive[-1] > len(kept.roster.members) or kept.place not in said.alive:
            raise refused(
                "survivors that the roster does not have, or not this worker",
                "survivors-unknown",
                "survivors",
            )
        check_enough(said, kept.graph, self._spec)
        return said


def commitment(roster: bytes, seed: bytes) -> bytes:
    """Return what is published of a seed (32 bytes) before it is opened."""
    return digest(_COMMIT, roster, seed)
