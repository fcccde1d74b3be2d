"""The administrator's side: over HTTP with a token, as functions, and as commands."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.broker.support import NOW, Kbs, Lines, World

from sealwright.broker import serve
from sealwright.broker.service import Running
from sealwright.cli import main
from sealwright.client.admin import AdminClient, admit_manifest, fetch_sealing_key
from sealwright.crypto.encoding import b64url
from sealwright.errors import (
    AppraisalError,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)


@dataclass(slots=True)
class Live:
    """A broker on a real socket, in a thread."""

    world: World
    running: Running
    url: str
    token: str
    lines: Lines

    def client(self) -> AdminClient:
        return AdminClient(self.url, self.token)


@contextmanager
def listening(running: Running, lines: Lines) -> Iterator[str]:
    sock = serve.bind("127.0.0.1", 0)
    config = uvicorn.Config(running.app(log=lines), log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


@pytest.fixture
def live(world: World, running: Running) -> Iterator[Live]:
    lines = Lines()
    token = (world.root / "admin-token").read_text().strip()
    with listening(running, lines) as url:
        yield Live(world, running, url, token, lines)


def test_a_key_from_its_making_to_an_admitted_manifest(live: Live) -> None:
    owner = live.world.owner.public_key().public_bytes_raw()
    body = {"tenant": "acme", "kid": "k1", "model": "smol", "policy": live.world.policy().decode()}
    with live.client() as client:
        made = client.ask("POST", "/keys", body)
        assert (made["kid"], made["status"], made["manifest_digest"]) == ("k1", "active", None)
        dek = fetch_sealing_key(live.url, live.token, "k1", root=live.world.broker_root, at=NOW)
        assert len(dek) == 32
        assert live.running.admin.decisions(1)[0]["action"] == "admin-sealing-key"
        admitted = admit_manifest(live.url, live.token, "k1", live.world.manifest(dek, "k1"), owner_key=owner)
        assert admitted["version"] == 1
        again = fetch_sealing_key(live.url, live.token, "k1", root=live.world.broker_root, at=NOW)
        assert again == dek
    assert b64url(dek) not in repr(live.lines)
    assert live.token not in repr(live.lines)


def code_of(error: pytest.ExceptionInfo[SealwrightError]) -> str:
    return error.value.code


def test_another_root_is_refused_before_the_key_is_opened(live: Live) -> None:
    live.world.add_key(live.running)
    with pytest.raises(VerificationError) as caught:
        fetch_sealing_key(live.url, live.token, "k1", root=os.urandom(32), at=NOW)
    assert code_of(caught) in ("untrusted-signer", "bad-signature")


def test_a_sealing_key_for_another_request_is_refused(live: Live) -> None:
    import httpx2

    live.world.add_key(live.running)
    live.world.add_key(live.running, "acme", "k2")

    def swapping(request: httpx2.Request) -> httpx2.Response:
        with httpx2.Client(trust_env=False) as http:
            url = str(request.url).replace("/keys/k1/", "/keys/k2/")
            answer = http.request(request.method, url, headers=request.headers, content=request.read())
        return httpx2.Response(answer.status_code, content=answer.content)

    relay = httpx2.MockTransport(swapping)
    root = live.world.broker_root
    with pytest.raises(VerificationError) as caught:
        fetch_sealing_key(live.url, live.token, "k1", root=root, at=NOW, transport=relay)
    assert code_of(caught) == "sealing-key-mismatch"


@pytest.mark.parametrize("token", ["swa_", "swa_wrong", "ü"])
def test_without_the_token_nothing_is_answered(token: str, live: Live) -> None:
    import httpx2

    for method, path in (
        ("GET", "status"),
        ("POST", "keys"),
        ("GET", "decisions"),
        ("POST", "keys/k1/sealing-key"),
    ):
        headers = {"authorization": f"Bearer {token}".encode()}
        answer = httpx2.request(
            method, f"{live.url}/sealwright/v1/admin/{path}", headers=headers, trust_env=False
        )
        assert (answer.status_code, answer.json()["code"]) == (401, "admin-token")
    with pytest.raises(AppraisalError) as caught:
        fetch_sealing_key(live.url, "swa_wrong", "k1", root=live.world.broker_root)
    assert code_of(caught) == "admin-token"


def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError) as caught:
        fetch_sealing_key("http://127.0.0.1:1", "t", "k1", root=bytes(32))
    assert code_of(caught) == "broker-unreachable"


def test_an_unknown_key_is_told_with_its_reason_to_the_administrator(live: Live) -> None:
    with pytest.raises(AppraisalError, match="no key nope") as caught:
        fetch_sealing_key(live.url, live.token, "nope", root=live.world.broker_root)
    assert code_of(caught) == "key-unknown"
    assert live.running.admin.decisions(1)[0]["code"] == "key-unknown"


@pytest.fixture
def sealed(world: World, running: Running) -> bytes:
    return world.add_key(running)


def admit(running: Running, envelope: bytes, **options: Any) -> dict[str, object]:
    return running.admin.admit("k1", envelope, **{"owner_key": None, "force": False} | options)


def test_manifests_are_admitted_only_forward(world: World, running: Running, sealed: bytes) -> None:
    second = world.manifest(sealed, "k1", version=2)
    assert admit(running, second)["version"] == 2
    assert admit(running, second)["version"] == 2  # the same again
    cases = [
        (world.manifest(sealed, "k1", version=1), "manifest-older"),
        (world.manifest(sealed, "k1", version=2), "manifest-older"),
        (world.manifest(sealed, "k1", version=3, artefact=b"b" * 16), "artefact-changed"),
        (world.manifest(sealed, "k2", version=3), "manifest-kid"),
        (world.manifest(os.urandom(32), "k1", version=3), "wrong-dek"),
    ]
    for envelope, code in cases:
        with pytest.raises(SealwrightError) as caught:
            admit(running, envelope)
        assert code_of(caught) == code
        assert running.admin.decisions(1)[0]["code"] == code
    assert running.admin.key("k1")["version"] == 2
    assert admit(running, cases[0][0], force=True)["version"] == 1


def test_the_owner_is_pinned_with_the_first_manifest(world: World, running: Running) -> None:
    running.admin.create_key("acme", "k1", "model", world.policy())
    dek = world.sealing_key(running, "k1")
    with pytest.raises(AppraisalError) as caught:
        admit(running, world.manifest(dek, "k1"))
    assert code_of(caught) == "owner-key-required"
    owner = world.owner.public_key().public_bytes_raw()
    admit(running, world.manifest(dek, "k1"), owner_key=owner)
    world.owner = Ed25519PrivateKey.generate()
    thief = world.owner.public_key().public_bytes_raw()
    newer = world.manifest(dek, "k1", version=2)
    with pytest.raises(VerificationError) as forged:
        admit(running, newer, owner_key=thief, force=True)
    assert code_of(forged) == "untrusted-signer"
    running.admin.add_owner("acme", thief)
    assert admit(running, newer)["version"] == 2


def test_a_key_is_made_once_and_dies_once(world: World, running: Running, sealed: bytes) -> None:
    with pytest.raises(AppraisalError) as twice:
        running.admin.create_key("other", "k1", "model", world.policy())
    assert code_of(twice) == "key-exists"
    running.admin.revoke_key("k1")
    for act in (
        lambda: running.admin.revoke_key("k1"),
        lambda: running.admin.set_policy("k1", world.policy()),
        lambda: admit(running, world.manifest(sealed, "k1", version=2)),
        lambda: world.sealing_key(running, "k1"),
    ):
        with pytest.raises(RevokedError) as caught:
            act()
        assert code_of(caught) == "key-revoked"


def test_policies_that_cannot_decide_are_refused(world: World, running: Running, sealed: bytes) -> None:
    cases = {
        b"{}": "malformed-document",
        b"- 1": "malformed-yaml",
        world.policy(created="2026-05-30T00:00:00Z", expires="2026-05-30T20:00:00Z"): "policy-expired",
        world.policy(surprise=1): "malformed-document",
        world.policy(profile="production"): "malformed-document",
    }
    for policy, code in cases.items():
        with pytest.raises(SealwrightError) as caught:
            running.admin.set_policy("k1", policy)
        assert code_of(caught) == code


async def test_callers_come_and_go(world: World, running: Running, sealed: bytes) -> None:
    from tests.broker.support import Enclave

    credential = running.admin.add_caller("acme", "anna")
    assert credential.startswith("swk_")
    with pytest.raises(AppraisalError):
        running.admin.add_caller("acme", "anna")
    kbs, enclave = Kbs(running), Enclave.make(world, running)
    assert [item.caller for item in (await kbs.leased(enclave)).callers.callers] == ["anna"]
    running.admin.remove_caller("acme", "anna")
    with pytest.raises(AppraisalError):
        running.admin.remove_caller("acme", "anna")
    assert (await kbs.leased(enclave)).callers.callers == []


def run(live: Live, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any]:
    token = str(live.world.root / "admin-token")
    code = main(["broker", *args, "--broker", live.url, "--token-file", token, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_command_against_a_broker(
    live: Live, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(live.world.policy())
    envelope = tmp_path / "model.sealed.json"
    owner = b64url(live.world.owner.public_key().public_bytes_raw())
    code, made = run(live, capsys, "key", "create", "acme", "k1", "--model", "smol", "--policy", str(policy))
    assert (code, made["status"]) == (0, "active")
    envelope.write_bytes(live.world.manifest(live.world.sealing_key(live.running, "k1"), "k1"))
    steps: list[tuple[tuple[str, ...], str, object]] = [
        (("manifest", "admit", "k1", str(envelope), "--owner-key", owner), "version", 1),
        (("policy", "set", "k1", "--policy", str(policy)), "kid", "k1"),
        (("key", "status", "k1"), "status", "active"),
        (("owner", "add", "acme", "--owner-key", b64url(b"\xfb" + os.urandom(31))), "tenant", "acme"),
        (("caller", "add", "acme", "anna"), "caller", "anna"),
        (("caller", "list", "acme"), "callers", ["anna"]),
        (("caller", "remove", "acme", "anna"), "removed", True),
        (("key", "revoke", "k1"), "status", "revoked"),
        (("status",), "keys", 1),
    ]
    for args, name, value in steps:
        code, shown = run(live, capsys, *args)
        assert (code, shown.get(name)) == (0, value), (args, shown)
    code, shown = run(live, capsys, "decisions", "list", "--limit", "3")
    assert shown["decisions"][0]["action"] == "admin-key-revoke"
    code, shown = run(live, capsys, "key", "status", "none")
    assert (code, shown["error"]["code"]) == (11, "key-unknown")
    code, shown = run(live, capsys, "key", "revoke", "k1")
    assert (code, shown["error"]["code"]) == (13, "key-revoked")


@pytest.mark.parametrize(
    "args",
    [["status"], ["key", "list"], ["decisions", "list"], ["caller", "list", "acme"], ["key", "status", "k1"]],
)
def test_commands_for_people_print_lines(
    args: list[str], live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    live.world.add_key(live.running)
    token = str(live.world.root / "admin-token")
    assert main(["broker", *args, "--broker", live.url, "--token-file", token]) == 0
    out = capsys.readouterr().out
    assert out.strip()
    assert "{" not in out.splitlines()[0]
