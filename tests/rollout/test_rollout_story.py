"""A whole rollout against a real broker over HTTP, through the command line: 6 s."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.rollout.support import NEW, OLD, Guest, Site, served

from sealwright.cli import main
from sealwright.client.admin import AdminClient
from sealwright.errors import SealwrightError
from sealwright.ops.rollout.broker import RolloutBroker
from sealwright.ops.rollout.folder import Folder

REFUSED = 401  # of the KBS routes
pytestmark = pytest.mark.slow


class Stand:
    """A site with its broker running, and enclaves of both builds."""

    def __init__(self, site: Site, url: str, guests: dict[str, Guest], capsys: Any) -> None:
        self.site, self.url, self.guests, self._capsys = site, url, guests, capsys
        self.folder = site.root / "rollout"

    def run(self, command: str, *options: str, broker: bool = True, signing: bool = True) -> tuple[int, Any]:
        arguments = ["rollout", command, str(self.folder), *options, "--json"]
        if broker:
            arguments += [f"--broker={self.url}", f"--token-file={self.site.token}"]
        if signing:
            arguments += self.site.signing()
        self._capsys.readouterr()
        code = main(arguments)
        out = self._capsys.readouterr().out
        return code, json.loads(out) if out else None

    def refused(self, command: str, *options: str, **how: bool) -> tuple[int, str]:
        code, said = self.run(command, *options, **how)
        return code, said["error"]["code"]

    def plan(self) -> None:
        code, said = self.run("plan", *self.site.planning(), "--attestations=2", "--within=3600")
        assert code == 0, said


@pytest.fixture
def stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Stand]:
    site = Site(root=tmp_path)
    site.make_key()
    builds = {"old": OLD, "old2": OLD, "new": NEW, "new2": NEW}
    enclaves = {name: site.enclave() for name in builds}
    with ExitStack() as stack:
        url = stack.enter_context(served(site))
        guests = {
            name: Guest(site, enclaves[name], code, stack.enter_context(httpx2.Client(base_url=url)))
            for name, code in builds.items()
        }
        yield Stand(site, url, guests, capsys)


def test_from_the_old_build_to_the_new(stand: Stand) -> None:
    site, old, new, other = stand.site, stand.guests["old"], stand.guests["new"], stand.guests["new2"]
    evidence = f"--evidence={site.record(site.root / 'recorded', {'running': OLD, 'fresh': NEW})}"
    # The old build runs, the new one is a stranger.
    old.leased()
    assert old.key().status_code == 200
    assert new.attest().status_code == REFUSED
    # Nothing goes before the plan's order.
    stand.plan()
    assert stand.refused("canary") == (10, "rollout-step-order")
    code, said = stand.run("dry-run", evidence, broker=False)
    assert code == 0, said
    assert [(one["name"], one["canary"]) for one in said["cases"]] == [("running", []), ("fresh", [])]
    assert said["cases"][0]["retire"] == ["code-not-allowed"]
    # A few of the new build, and the old as before.
    assert stand.run("canary")[0] == 0
    assert old.attest().status_code == 200
    assert old.lease().status_code == 200
    new.leased()
    assert stand.refused("promote") == (11, "rollout-not-proven")  # one attestation, and no key taken
    assert new.key().status_code == 200
    assert stand.refused("promote") == (11, "rollout-not-proven")  # one attestation still
    assert other.attest().status_code == 200
    answer = other.lease()
    assert answer.status_code == REFUSED
    assert "canary-full" in answer.text
    assert other.key().status_code == REFUSED  # without a lease no key
    new.leased()  # its renewal is the second attestation, and no second place
    code, said = stand.run("promote")
    assert code == 0, said
    statement = Folder(stand.folder).load()[0].last
    attested = statement.predicate.attested
    assert attested is not None
    assert len(attested) == 3  # two leases and a release
    # The limit is gone.
    assert other.attest().status_code == 200
    assert other.lease().status_code == 200
    assert stand.run("retire")[0] == 0
    # The old: no lease at its renewal, nothing at a new start; the key it asks for again in its session, neither.
    assert old.attest().status_code == REFUSED
    assert stand.guests["old2"].attest().status_code == REFUSED
    assert old.key().status_code == REFUSED
    new.leased()
    assert new.key().status_code == 200
    code, said = stand.run("status", broker=False, signing=False)
    assert code == 0
    assert [one["step"] for one in said["statements"]] == ["plan", "dry-run", "canary", "promote", "retire"]
    assert said["next"] == ["revoke"]
    assert len(said["not_checked"]) == 2


def test_a_lease_held_when_its_build_is_retired_gets_no_key(stand: Stand) -> None:
    """The session was attested and leased under the old policy; each request is judged by the one of its moment."""
    old = stand.guests["old"]
    old.leased()
    stand.plan()
    site = stand.site
    evidence = f"--evidence={site.record(site.root / 'recorded', {'running': OLD, 'fresh': NEW})}"
    assert stand.run("dry-run", evidence, broker=False)[0] == 0
    assert stand.run("canary")[0] == 0
    assert old.key().status_code == 200
    policy = site.root / "revoke.policy"
    policy.write_bytes(site.policy(9, [NEW]))
    code, said = stand.run("revoke", f"--policy={policy}", "--reason=the old build leaks", evidence)
    assert code == 0, said
    assert old.key().status_code == REFUSED
    assert old.lease().status_code == REFUSED
    assert old.attest().status_code == REFUSED
    assert stand.refused("promote") == (10, "rollout-step-order")


def test_a_broken_off_step_is_taken_up_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.plan()
    site = stand.site
    evidence = f"--evidence={site.record(site.root / 'recorded', {'running': OLD, 'fresh': NEW})}"
    assert stand.run("dry-run", evidence, broker=False)[0] == 0

    def broken(*_: object, **__: object) -> None:
        raise SealwrightError("the power went", code="broker-unreachable", stage="test")

    with monkeypatch.context() as patch:  # stated and logged, and the broker was not told
        patch.setattr(RolloutBroker, "set_policy", broken)
        assert stand.run("canary")[0] == 70
    assert stand.guests["new"].attest().status_code == REFUSED
    assert stand.refused("promote") == (10, "rollout-broker-differs")
    options = [f"--log={site.root / 'log'}", f"--log-key={site.root / 'log.key'}"]
    assert stand.run("apply", *options, signing=False)[0] == 0
    assert stand.run("apply", *options, signing=False)[0] == 0
    assert stand.guests["new"].attest().status_code == 200
    with monkeypatch.context() as patch:  # logged, and not yet in the folder
        patch.setattr(Folder, "add", broken)
        policy = site.root / "revoke.policy"
        policy.write_bytes(site.policy(9, [OLD]))
        assert stand.run("revoke", f"--policy={policy}", "--reason=back")[0] == 70
    assert stand.run("apply", *options, signing=False)[0] == 0
    assert Folder(stand.folder).load()[0].last.predicate.step == "revoke"
    assert stand.guests["new"].attest().status_code == REFUSED


def test_another_broker_or_policy_is_noticed(stand: Stand) -> None:
    root = "A" * 43
    options = [*stand.site.planning(), "--attestations=1", f"--broker-root={root}"]
    assert stand.refused("plan", *options) == (10, "rollout-broker-differs")
    stand.plan()
    site = stand.site
    evidence = f"--evidence={site.record(site.root / 'recorded', {'running': OLD, 'fresh': NEW})}"
    assert stand.run("dry-run", evidence, broker=False)[0] == 0
    around = site.root / "around.policy"
    around.write_bytes(site.policy(2, [OLD, NEW]))
    arguments = ["broker", "policy", "set", "k1", f"--policy={around}"]
    assert main([*arguments, f"--broker={stand.url}", f"--token-file={site.token}"]) == 0
    assert stand.refused("canary") == (10, "rollout-broker-differs")


def test_the_broker_cannot_make_attestations_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an administrator's answer says is counted only as far as the log commits to it."""
    stand.plan()
    site = stand.site
    evidence = f"--evidence={site.record(site.root / 'recorded', {'running': OLD, 'fresh': NEW})}"
    assert stand.run("dry-run", evidence, broker=False)[0] == 0
    assert stand.run("canary")[0] == 0
    new = stand.guests["new"]
    new.leased()
    assert new.key().status_code == 200
    asked = AdminClient.ask

    def doubled(self: AdminClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = asked(self, method, path, body)
        if path.startswith("/decisions") and answer["decisions"]:
            lease = next((one for one in answer["decisions"] if one["action"] == "lease"), None)
            if lease is not None:
                copy = json.loads(json.dumps(lease))
                copy["openings"]["fields"]["session"]["value"] = "ImFub3RoZXIi"
                answer["decisions"].insert(answer["decisions"].index(lease) + 1, copy)
                copy["index"] -= 1
        return answer

    monkeypatch.setattr(AdminClient, "ask", doubled)
    assert stand.refused("promote") == (11, "proof-unknown")
