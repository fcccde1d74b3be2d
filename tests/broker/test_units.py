"""Parts alone: wrapping, sessions, rates, and the vectors of docs/spec/broker-state.md."""

from __future__ import annotations

import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.broker.support import NOW, Lines, World

from sealwright.broker import files
from sealwright.broker.backend import Backends, EmbeddedBackend, WrapContext
from sealwright.broker.http import BURST, MAX_PEERS, Guard, Journalist, RateLimit
from sealwright.broker.rows import state_root
from sealwright.broker.sessions import Sessions
from sealwright.errors import RevokedError, UnavailableError, VerificationError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "broker.json").read_text())


def run(case: dict[str, Any]) -> str:
    given = case["input"]
    if case["kind"] == "state-root":
        rows = {(kind, row_id): body.encode() for kind, row_id, body in given["rows"]}
        return state_root(rows).hex()
    context = WrapContext(
        kid=given["kid"],
        tenant=given["tenant"],
        policy_digest=bytes.fromhex(given["policy_digest"]),
        epoch=given["epoch"],
    )
    backend = Backends({"embedded": EmbeddedBackend(bytes.fromhex(given["kek"]), lambda _: b"")})
    return backend.unwrap(bytes.fromhex(given["wrapped"]), context).hex()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        assert run(case) == case["output"]
        return
    stage, code = case["expect"].split("/")
    with pytest.raises(VerificationError) as caught:
        run(case)
    assert (caught.value.stage, caught.value.code) == (stage, code)


def counting() -> Any:
    seen = iter(range(1, 1 << 20))
    return lambda size: next(seen).to_bytes(size, "big")


def test_sessions_are_bounded_and_those_that_proved_something_stay() -> None:
    sessions = Sessions(counting(), limit=3)
    first = sessions.start("software", NOW)
    first.attested = object()  # type: ignore[assignment]
    second = sessions.start("software", NOW)
    sessions.start("software", NOW)
    sessions.start("software", NOW)  # pushes out the oldest that has not attested
    assert sessions.get(first.session_id, NOW) is first
    with pytest.raises(VerificationError) as unknown:
        sessions.get(second.session_id, NOW)
    assert unknown.value.code == "session-unknown"
    for session in list(sessions._open.values()):
        session.attested = object()  # type: ignore[assignment]
    with pytest.raises(UnavailableError) as full:
        sessions.start("software", NOW)
    assert full.value.code == "too-many-sessions"


def test_sessions_end_after_five_minutes() -> None:
    sessions = Sessions(counting())
    session = sessions.start("software", NOW)
    assert sessions.get(session.session_id, NOW + timedelta(seconds=299)) is session
    with pytest.raises(RevokedError) as ended:
        sessions.get(session.session_id, NOW + timedelta(minutes=5))
    assert ended.value.code == "session-expired"


def test_a_peer_over_its_rate_is_told_to_wait_and_others_are_not() -> None:
    now = [0.0]
    rate = RateLimit(lambda: now[0])
    assert sum(rate.admit("a") for _ in range(int(BURST) + 50)) == BURST
    assert rate.admit("b")
    now[0] += 1
    assert rate.admit("a")
    for number in range(MAX_PEERS + 10):
        rate.admit(str(number))
    assert len(rate._buckets) <= MAX_PEERS


async def test_a_rate_over_the_limit_is_answered_429_before_anything_is_read() -> None:

    async def app(*_: Any) -> None:
        raise AssertionError

    guard = Guard(app, rate=RateLimit(lambda: 0.0, burst=0.5), log=Lines())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(guard), base_url="http://b.test") as http:
        answer = await http.post("/kbs/v0/auth", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")


async def test_our_own_bug_is_not_quoted_anywhere() -> None:

    async def app(*_: Any) -> None:
        raise KeyError("the planted plaintext")

    lines = Lines()
    guard = Guard(app, rate=RateLimit(lambda: 0.0), log=lines)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(guard), base_url="http://b.test") as http:
        answer = await http.get("/healthz")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    assert "planted" not in answer.text + repr(lines)
    assert lines[0]["code"] == "internal-error:KeyError"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_line_is_one_line_whatever_stands_in_it(as_json: bool) -> None:
    stream = io.StringIO()
    Journalist(as_json=as_json, stream=stream)("request", path="/a\nserving url=evil \x1b[2J", status=200)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text


async def test_ready_means_that_a_decision_could_be_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [0.0]
    with world.open() as running:
        app = running.app(log=lambda *_, **__: None, monotonic=lambda: at[0])
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://b.test") as http:

            async def ready() -> tuple[int, str]:
                at[0] += 2
                answer = await http.get("/readyz")
                return answer.status_code, answer.text if answer.status_code == 200 else answer.json()["code"]

            assert await ready() == (200, "ready")
            with monkeypatch.context() as patched:
                patched.setattr(files, "LEAST_ROOM", 1 << 62)
                assert await ready() == (503, "file-unwritable")
            with monkeypatch.context() as patched:
                patched.setattr(os, "access", lambda *_: False)
                assert await ready() == (503, "file-unwritable")
            openings = world.root / "openings"
            openings.rename(world.root / "elsewhere")
            assert await ready() == (503, "file-unwritable")
            (world.root / "elsewhere").rename(openings)
            assert await ready() == (200, "ready")
            running.core.state.ledger._log.close()
            assert await ready() == (503, "log-closed")
            assert (await http.get("/healthz")).status_code == 200
