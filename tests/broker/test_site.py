"""Which site writes: named once, changed by k of n approvers only, and never onto a log that lacks what they saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.broker.support import NOW, World
from tests.broker.test_state import copy, refused
from tests.broker.witness_support import keyed

from sealwright.appraisal.signed import Signers
from sealwright.broker.site import Promotion
from sealwright.errors import SealwrightError
from sealwright.tlog.policy import LogPolicy


@dataclass
class Approvers:
    """Three people, of whom two have to agree."""

    world: World
    keys: list[Ed25519PrivateKey] = field(
        default_factory=lambda: [Ed25519PrivateKey.generate() for _ in range(3)]
    )

    def signers(self) -> Signers:
        return Signers(keys=[key.public_key().public_bytes_raw() for key in self.keys], threshold=2)

    def say(self, site: str, term: int, by: tuple[int, ...] = (0, 1), **changes: Any) -> bytes:
        note = (self.world.root / "log" / "checkpoint").read_bytes()
        head = LogPolicy.of_key(self.world.log_key).verify(note).checkpoint
        said = Promotion.model_validate(
            {
                "root": self.world.broker_root,
                "site": site,
                "term": term,
                "signers": self.signers(),
                "log_size": head.size,
                "log_root": head.root,
                "created": NOW,
                "expires": NOW + timedelta(hours=24),
            }
            | changes
        )
        return said.sign(*[self.keys[index] for index in by])


@pytest.fixture
def approvers(world: World) -> Approvers:
    return Approvers(world)


@pytest.fixture
def named(world: World, approvers: Approvers) -> Approvers:
    with world.open(site="a", promotion=approvers.say("a", 1)) as running:
        running.admin.add_caller("acme", "anna")
        (_, promoted, *_) = running.admin.decisions(5)
        assert (promoted["action"], promoted["site"], promoted["term"]) == ("promote", "a", 1)
    return approvers


def test_a_broker_without_a_site_serves_anywhere(world: World) -> None:
    for site in (None, "a", "b"):
        with world.open(site=site):
            pass


def test_a_standby_does_not_serve_before_it_is_promoted_and_the_old_site_not_after(
    named: Approvers, world: World
) -> None:
    assert refused(world, site="b") == "site-not-active"
    assert refused(world) == "site-not-active"
    with world.open(site="b", promotion=named.say("b", 2)) as running:
        running.admin.add_caller("acme", "otto")
    assert refused(world, site="a") == "site-not-active"
    with world.open(site="b"):
        pass


def test_a_promotion_that_is_true_changes_nothing(named: Approvers, world: World) -> None:
    said = named.say("b", 2)
    for _ in range(2):
        with world.open(site="b", promotion=said) as running:
            epoch = running.core.state.anchor.epoch
    with world.open(site="b", promotion=said) as running:
        assert running.core.state.anchor.epoch == epoch


REFUSALS: list[tuple[str, Callable[[Approvers], bytes], str]] = [
    ("one of three", lambda a: a.say("b", 2, by=(2,)), "untrusted-signer"),
    ("one, twice", lambda a: a.say("b", 2, by=(2, 2)), "untrusted-signer"),
    ("strangers", lambda a: Approvers(a.world).say("b", 2), "untrusted-signer"),
    ("a term left out", lambda a: a.say("b", 3), "promotion-mismatch"),
    ("the same term", lambda a: a.say("b", 1), "promotion-mismatch"),
    ("another site", lambda a: a.say("c", 2), "promotion-mismatch"),
    ("another broker", lambda a: a.say("b", 2, root=bytes(32)), "promotion-mismatch"),
    ("too late", lambda a: a.say("b", 2, expires=NOW), "promotion-expired"),
    ("too early", lambda a: a.say("b", 2, created=NOW + timedelta(1)), "promotion-expired"),
    ("more was seen", lambda a: a.say("b", 2, log_size=1 << 20), "log-rolled-back"),
    ("other was seen", lambda a: a.say("b", 2, log_root=bytes(32)), "log-forked"),
    ("no statement", lambda _: b"{}", "malformed-envelope"),
]


@pytest.mark.parametrize(("say", "code"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_a_promotion_is_refused(
    say: Callable[[Approvers], bytes], code: str, named: Approvers, world: World
) -> None:
    assert refused(world, site="b", promotion=say(named)) == code
    with world.open(site="a"):
        pass


def test_any_flipped_bit_of_a_signature_is_refused(named: Approvers, world: World) -> None:
    import base64
    import json

    body = json.loads(named.say("b", 2))
    for index in range(2):
        raw = bytearray(base64.b64decode(body["signatures"][index]["sig"]))
        raw[5] ^= 1
        bent = json.loads(json.dumps(body))
        bent["signatures"][index]["sig"] = base64.b64encode(raw).decode()
        text = json.dumps(bent, separators=(",", ":"), sort_keys=True).encode()
        assert refused(world, site="b", promotion=text) == "bad-signature"


def test_new_approvers_need_the_old_ones(named: Approvers, world: World) -> None:
    fresh = Approvers(world)
    assert refused(world, site="a", promotion=fresh.say("a", 2)) == "untrusted-signer"
    both = Approvers(world, keys=[*fresh.keys, *named.keys])
    said = both.say("a", 2, by=(0, 1, 3, 4), signers=fresh.signers())
    with world.open(site="a", promotion=said):
        pass
    assert refused(world, site="b", promotion=named.say("b", 3)) == "untrusted-signer"
    with world.open(site="b", promotion=fresh.say("b", 3)):
        pass


def test_a_standby_promoted_in_a_partition_is_refused(
    world: World,
    sites: Any,
    tmp_path: Path,
) -> None:
    """It cannot ask the witness; when it can, the first site has gone on, and the standby's log is too short."""
    (site,) = sites(1)
    texts = keyed(world, [site])
    approvers = Approvers(world)
    with world.open(witnesses=texts, site="a", promotion=approvers.say("a", 1)):
        pass
    standby = World.__new__(World)
    standby.root, standby.clock, standby.holder = copy(world.root, tmp_path / "standby"), world.clock, None
    promotion = approvers.say("b", 2)
    site.cut = True
    assert refused(standby, witnesses=texts, site="b", promotion=promotion) == "holder-unreachable"
    site.cut = False
    with world.open(witnesses=texts, site="a") as running:
        running.admin.revoke_key("k1")
    assert refused(standby, witnesses=texts, site="b", promotion=promotion) == "log-rolled-back"


def test_the_old_site_is_refused_when_the_standby_was_promoted(
    world: World,
    sites: Any,
    tmp_path: Path,
) -> None:
    texts = keyed(world, sites(1))
    approvers = Approvers(world)
    with world.open(witnesses=texts, site="a", promotion=approvers.say("a", 1)) as first:
        standby = World.__new__(World)
        standby.root, standby.clock, standby.holder = (
            copy(world.root, tmp_path / "standby"),
            world.clock,
            None,
        )
        with standby.open(witnesses=texts, site="b", promotion=approvers.say("b", 2)) as second:
            second.admin.add_caller("acme", "otto")
            with pytest.raises(SealwrightError) as caught:
                first.admin.add_caller("acme", "eve")
            assert caught.value.code == "log-rolled-back"  # to the witness, which has more by now
            second.admin.add_caller("acme", "mia")
