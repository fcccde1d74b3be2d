"""Write tests/vectors/secagg.json anew: `python -m tests.training.secagg.make_vectors`. Deterministic.

But for the pairings: ML-KEM encapsulates with randomness of its own, so those in the file are kept while they fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.training.secagg.support import Remembered, run_spec

from sealwright.crypto.statement import Statement
from sealwright.errors import SealwrightError
from sealwright.training.secagg.coordinator import Coordinator, make_roster
from sealwright.training.secagg.countersigner import Countersigner
from sealwright.training.secagg.enrol import WorkerKeys
from sealwright.training.secagg.messages import Masked, Opening, Split, Survivors, Unmask
from sealwright.training.secagg.prg import Mask, apply_masks
from sealwright.training.secagg.shamir import split
from sealwright.training.secagg.spec import RunSpec
from sealwright.training.secagg.worker import Worker

TARGET = Path(__file__).parents[2] / "vectors" / "secagg.json"
WORKERS, DROPPED, ELEMENTS = 5, 5, 8
WEIGHTS = (1, 2, 8, 3, 5)
Case = dict[str, Any]


def stream(seed: str, length: int) -> bytes:
    """Return the "random" bytes of a vector: SHAKE-256 of its seed."""
    return hashlib.shake_256(f"secagg/{seed}".encode()).digest(length)


def counted(seed: str) -> Callable[[int], bytes]:
    """Return a source of bytes: SHAKE-256 of the seed and the number of the call."""
    calls = iter(range(1 << 20))
    return lambda length: stream(f"{seed}/{next(calls)}", length)


COUNTERSIGNER = Ed25519PrivateKey.from_private_bytes(stream("countersigner", 32))
STRANGER = Ed25519PrivateKey.from_private_bytes(stream("stranger", 32))


def spec() -> RunSpec:
    """Return the run of all vectors."""
    return run_spec(WORKERS, COUNTERSIGNER, run="vectors", elements=ELEMENTS, purpose="vectors")


def private(at: int) -> dict[str, bytes]:
    """Return the private keys of a worker, and its boot."""
    sizes = {"sign": 32, "x25519": 32, "mlkem768_seed": 64, "boot_id": 16}
    return {name: stream(f"{name}/{at}", size) for name, size in sizes.items()}


def make_worker(at: int, first_round: int = 1) -> Worker:
    """Return a worker before it knows any other."""
    raw = private(at)
    keys = WorkerKeys(
        sign=Ed25519PrivateKey.from_private_bytes(raw["sign"]),
        x25519=X25519PrivateKey.from_private_bytes(raw["x25519"]),
        mlkem=MLKEM768PrivateKey.from_seed_bytes(raw["mlkem768_seed"]),
    )
    return Worker(
        spec(), keys, boot_id=raw["boot_id"], first_round=first_round, random=counted(f"worker/{at}")
    )


class Round:
    """The one round of the vectors, as far as it has got."""

    def __init__(self, pairings: dict[str, str]) -> None:
        workers = [make_worker(at) for at in range(WORKERS)]
        self.workers = sorted(workers, key=lambda worker: worker.enrolment.worker)
        self.numbers = [workers.index(worker) for worker in self.workers]
        self.pairings = self._paired(pairings)
        self.countersigner = Countersigner(spec(), COUNTERSIGNER, Remembered(), random=counted("beacon"))
        members = [(worker.enrolment, worker.enrolment.nonce) for worker in self.workers]
        self.roster = make_roster(spec(), 1, members)
        self.opening = self.countersigner.open(self.roster)
        self.coordinator = Coordinator(spec(), self.opening, [worker.enrolment for worker in self.workers])

    def _paired(self, known: dict[str, str]) -> dict[str, str]:
        out = {}
        for low in range(WORKERS):
            for high in range(low + 1, WORKERS):
                out[f"{low + 1}-{high + 1}"] = self._pair(low, high, known.get(f"{low + 1}-{high + 1}"))
        return out

    def _pair(self, low: int, high: int, known: str | None) -> str:
        one, other = self.workers[low], self.workers[high]
        made = one.admit(other.signed_enrolment())
        other.admit(one.signed_enrolment())
        assert made is not None
        for pairing in ((known or "").encode(), made):
            try:
                other.pair(one.enrolment.worker, pairing)
            except SealwrightError:
                continue
            # Both ends have the same secret; the one who encapsulated before is no more.
            one._pairs[other.enrolment.worker] = other._pairs[one.enrolment.worker]
            return pairing.decode()
        raise RuntimeError("no pairing fits")

    def mask(self, place: int) -> bytearray:
        """Return the masked update of a place."""
        return self.workers[place - 1].mask(self.opening, update(place), WEIGHTS[place - 1])

    def masked(self) -> list[bytearray]:
        """Let all mask, and the coordinator receive those that are alive."""
        messages = [self.mask(place) for place in range(1, WORKERS + 1)]
        for place in range(1, WORKERS + 1):
            if place != DROPPED:
                self.coordinator.receive(messages[place - 1])
        return messages

    def unmask(self, place: int, signed: bytes) -> bytes:
        """Return the answer of a place."""
        return self.workers[place - 1].unmask(signed, self.coordinator.shares_for(place))


def update(place: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the update of a place: sixteenths, and the clip itself."""
    numbers = [place / 16 * (-1) ** at * at for at in range(ELEMENTS)]
    return np.array([*numbers[:-2], 4.0, -4.0])


def resigned(statement: Statement, key: Ed25519PrivateKey, **changes: Any) -> str:
    """Return a statement with changes, signed by `key`."""
    return statement.model_copy(update=changes).sign(key).decode()


def document(pairings: dict[str, str]) -> bytes:
    """Return the vector file."""
    run = Round(pairings)
    messages = run.masked()
    begun = [worker._round for worker in run.workers]
    survivors = run.coordinator.survivors()
    signed = run.countersigner.sign(survivors)
    unmasks = {place: run.unmask(place, signed) for place in survivors.alive}
    for envelope in unmasks.values():
        run.coordinator.open(envelope)
    total = run.coordinator.sum()
    opening = Opening.unverified(run.opening)
    body = {
        "source": "made by tests/training/secagg/make_vectors.py, Apache-2.0",
        "run_spec": spec().encode().decode(),
        "run_spec_digest": spec().digest().hex(),
        "countersigner": stream("countersigner", 32).hex(),
        "workers": [
            {
                "place": place,
                **{name: raw.hex() for name, raw in private(at).items()},
                "worker": worker.enrolment.worker.hex(),
                "enrolment": worker.signed_enrolment().decode(),
                "update": list(update(place)),
                "weight": WEIGHTS[place - 1],
            }
            for place, (at, worker) in enumerate(zip(run.numbers, run.workers, strict=True), 1)
        ],
        "pairings": run.pairings,
        "pair_secrets": {
            name: run.workers[int(name[0]) - 1]
            ._pairs[run.workers[int(name[2]) - 1].enrolment.worker]
            .key.hex()
            for name in run.pairings
        },
        "opening": run.opening.decode(),
        "roster_digest": opening.roster.digest().hex(),
        "pair_seeds": {
            name: kept.seeds[int(name[2])].hex()
            for name in run.pairings
            if (kept := begun[int(name[0]) - 1]) is not None
        },
        "masked": [bytes(message).hex() for message in messages],
        "survivors": signed.decode(),
        "unmasks": {str(place): envelope.decode() for place, envelope in unmasks.items()},
        "scale": total.scale,
        "weight": total.weight,
        "total": [int(one) for one in total.total],
        "prg": prg(),
        "shamir": shamir(),
        "cases": cases(run, messages, survivors, unmasks),
    }
    return json.dumps(body, indent=1).encode() + b"\n"


def prg() -> list[Case]:
    """Return streams: of a seed, how many numbers in, and four of them."""
    seed, out = stream("prg", 32), np.zeros(65540, dtype=np.uint32)
    apply_masks(out, [Mask(seed, add=True)])
    return [
        {"seed": seed.hex(), "at": at, "numbers": [int(one) for one in out[at : at + 4]]}
        for at in (0, 4, 65536)
    ]


def shamir() -> Case:
    """Return shares of a secret."""
    secret, points = stream("secret", 32), [1, 2, 7, 4096]
    shares = split(secret, 3, points, counted("shamir"))
    named = dict(zip(map(str, points), (share.hex() for share in shares), strict=True))
    return {"secret": secret.hex(), "threshold": 3, "shares": named}


def cases(
    run: Round, messages: list[bytearray], survivors: Survivors, unmasks: dict[int, bytes]
) -> list[Case]:
    """Return what is refused: at which step, and by which stage and code."""
    key, opening = COUNTERSIGNER, Opening.unverified(run.opening)

    def roster(**changes: Any) -> str:
        return resigned(opening, key, roster=opening.roster.model_copy(update=changes))

    def members(**changes: Any) -> str:
        first = opening.roster.members[0].model_copy(update=changes)
        return roster(members=[first, *opening.roster.members[1:]])

    def case(name: str, step: str, data: str, expect: str) -> Case:
        return {"id": name, "step": step, "data": data, "expect": expect}

    worker, one = run.workers[1], Unmask.unverified(unmasks[1])
    enrolment = worker.enrolment
    parts = Split.parse(messages[0], spec(), WORKERS - 1)
    flipped = bytes([messages[0][0] ^ 1]) + bytes(messages[0][1:])
    forged = resigned(Masked.unverified(parts.envelope), STRANGER).encode()
    other = bytes(parts.body) + forged + len(forged).to_bytes(4, "big")
    sign = run.workers[0]._keys.sign
    return [
        case(
            "enrolment-by-another-key", "admit", resigned(enrolment, STRANGER), "enrolment/untrusted-signer"
        ),
        case(
            "enrolment-of-another-run",
            "admit",
            resigned(enrolment, worker._keys.sign, run_spec=bytes(32)),
            "enrolment/other-run",
        ),
        case(
            "enrolment-small-order",
            "admit",
            resigned(enrolment, worker._keys.sign, x25519=bytes(32)),
            "pairing/peer-key",
        ),
        case("enrolment-own", "admit", run.workers[0].signed_enrolment().decode(), "enrolment/peer-self"),
        case("pairing-of-another-pair", "pair", run.pairings["2-3"], "pairing/untrusted-signer"),
        case("pairing-for-another", "pair", run.pairings["1-3"], "pairing/other-pair"),
        case("opening-by-another-key", "mask", resigned(opening, STRANGER), "roster/roster-unsigned"),
        case("opening-of-another-run", "mask", roster(run_spec=bytes(32)), "roster/other-run"),
        case(
            "roster-too-small", "mask", roster(members=opening.roster.members[:1]), "parse/malformed-document"
        ),
        case(
            "roster-not-ordered",
            "mask",
            roster(members=opening.roster.members[::-1]),
            "parse/malformed-document",
        ),
        case("round-before-the-first", "mask", roster(round=0), "roster/round-repeated"),
        case(
            "without-the-worker",
            "mask",
            roster(members=opening.roster.members[1:]),
            "roster/roster-not-listed",
        ),
        case(
            "another-enrolment-of-the-worker",
            "mask",
            members(enrolment=bytes(32)),
            "roster/roster-not-listed",
        ),
        case("another-nonce-of-the-worker", "mask", members(nonce=bytes(32)), "roster/roster-nonce"),
        case("masked-cut", "receive", bytes(messages[0][:-1]).hex(), "parse/masked-malformed"),
        case("masked-residue-altered", "receive", flipped.hex(), "masked/masked-malformed"),
        case("masked-by-another-key", "receive", other.hex(), "masked/untrusted-signer"),
        case(
            "survivors-by-another-key",
            "unmask",
            resigned(survivors, STRANGER),
            "survivors/survivors-unsigned",
        ),
        case(
            "survivors-of-another-roster",
            "unmask",
            resigned(survivors, key, roster=bytes(32)),
            "survivors/survivors-other-roster",
        ),
        case(
            "survivors-of-another-round",
            "unmask",
            resigned(survivors, key, round=2),
            "survivors/survivors-other-roster",
        ),
        case(
            "survivors-without-the-worker",
            "unmask",
            resigned(survivors, key, alive=[2, 3, 4, 5]),
            "survivors/survivors-unknown",
        ),
        case(
            "survivors-too-few",
            "unmask",
            resigned(survivors, key, alive=[1, 2, 3]),
            "survivors/survivors-too-few",
        ),
        case(
            "unmask-of-another-set",
            "open",
            resigned(one, sign, survivors=bytes(32)),
            "unmask/survivors-other-roster",
        ),
        case("unmask-by-another-key", "open", resigned(one, STRANGER), "unmask/untrusted-signer"),
        case(
            "unmask-of-the-dropped",
            "open",
            resigned(one, sign, worker=run.workers[DROPPED - 1].enrolment.worker),
            "unmask/masked-unlisted",
        ),
    ]


def known_pairings() -> dict[str, str]:
    """Return the pairings of the file, if there is one."""
    found: dict[str, str] = json.loads(TARGET.read_bytes())["pairings"] if TARGET.exists() else {}
    return found


if __name__ == "__main__":
    TARGET.write_bytes(document(known_pairings()))
