"""The vectors of docs/spec/secure-aggregation.md: made again the same, computed without our code, refused as said."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from tests.training.secagg.make_vectors import DROPPED, TARGET, WORKERS, Round, document, make_worker, update

from sealwright.crypto.dsse import Envelope
from sealwright.errors import SealwrightError

VECTORS = json.loads(TARGET.read_bytes())
PRIME = 2**256 + 297


def numbers(seed: bytes, first: int, count: int) -> list[int]:
    """Return numbers of a seed's stream, from a multiple of four on."""
    counter = (first // 4).to_bytes(16, "big")
    raw = Cipher(AES256(seed), CTR(counter)).encryptor().update(bytes(4 * count))
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]


def secret(shares: dict[int, bytes]) -> bytes:
    """Return what shares give at zero."""
    total = 0
    for one, share in shares.items():
        weight = 1
        for other in shares:
            if other != one:
                weight = weight * other * pow(other - one, -1, PRIME) % PRIME
        total += weight * int.from_bytes(share, "big")
    return (total % PRIME).to_bytes(32, "big")


def b64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def said(envelope: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(Envelope.parse(envelope.encode()).unverified_payload)
    return payload


def test_they_are_made_again_the_same() -> None:
    assert document(VECTORS["pairings"]) == TARGET.read_bytes()


def test_streams() -> None:
    for case in VECTORS["prg"]:
        assert numbers(bytes.fromhex(case["seed"]), case["at"], 4) == case["numbers"]


def test_shares() -> None:
    case = VECTORS["shamir"]
    shares = {int(point): bytes.fromhex(share) for point, share in case["shares"].items()}
    for left_out in shares:
        kept = {point: share for point, share in shares.items() if point != left_out}
        assert secret(kept).hex() == case["secret"]


def test_the_masked_updates_and_the_sum_by_hand() -> None:
    """From seeds and updates alone: y of each worker, seeds from shares, and the sum."""
    count = len(VECTORS["total"]) + 1
    self_seeds = {}
    for place in range(1, WORKERS):
        shares = {
            int(sender): b64url(one["share"])
            for sender, envelope in VECTORS["unmasks"].items()
            for one in said(envelope)["self_shares"]
            if one["of"] == place
        }
        assert len(shares) == WORKERS - 2
        self_seeds[place] = secret(shares)
    for worker in VECTORS["workers"]:
        place = worker["place"]
        if place == DROPPED:
            continue
        y = [worker["weight"] * round(x * VECTORS["scale"]) for x in worker["update"]] + [worker["weight"]]
        masks = [(1, numbers(self_seeds[place], 0, count))]
        for name, seed in VECTORS["pair_seeds"].items():
            low, high = map(int, name.split("-"))
            if place in (low, high):
                masks.append((1 if place == low else -1, numbers(bytes.fromhex(seed), 0, count)))
        for sign, mask in masks:
            y = [a + sign * b for a, b in zip(y, mask, strict=True)]
        wanted = b"".join((one % 2**32).to_bytes(4, "little") for one in y)
        assert bytes.fromhex(VECTORS["masked"][place - 1])[: 4 * count] == wanted
    alive = [worker for worker in VECTORS["workers"] if worker["place"] != DROPPED]
    columns = zip(*(worker["update"] for worker in alive), strict=True)
    weights = [worker["weight"] for worker in alive]
    assert VECTORS["weight"] == sum(weights)
    assert VECTORS["total"] == [
        sum(w * round(x * VECTORS["scale"]) for w, x in zip(weights, column, strict=True))
        for column in columns
    ]


def test_the_roster_digest_is_of_its_canonical_bytes() -> None:
    roster = said(VECTORS["opening"])["roster"]
    raw = json.dumps(roster, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(raw).hexdigest() == VECTORS["roster_digest"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_what_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(SealwrightError) as caught:
        refuse(case["step"], case["data"])
    assert f"{caught.value.stage}/{caught.value.code}" == case["expect"]


def refuse(step: str, data: str) -> None:
    run = Round(VECTORS["pairings"])
    first = run.workers[0]
    if step == "admit":
        make_worker(run.numbers[0]).admit(data.encode())
    elif step == "pair":
        run.workers[1].pair(first.enrolment.worker, data.encode())
    elif step == "mask":
        first.mask(data.encode(), update(1), 1)
    elif step == "receive":
        run.coordinator.receive(bytes.fromhex(data))
    else:
        run.masked()
        run.coordinator.survivors()
        if step == "unmask":
            first.unmask(data.encode(), run.coordinator.shares_for(1))
        else:
            run.coordinator.open(data.encode())
