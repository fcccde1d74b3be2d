"""Refusals as events: OCSF by its own schema, signed, bounded, never waited for."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.broker.support import Enclave, Kbs, World
from typer.testing import CliRunner

from sealwright.broker.events import MAX_QUEUED, TRIES, Events, Hook, check_url, encode
from sealwright.broker.ocsf import refusal_event
from sealwright.cli.broker import app
from sealwright.errors import SealwrightError, SettingsError

SECRET = b"s" * 32
URL = "https://siem.example/hook"
REFUSED = {"action": "attest", "verdict": "refuse", "stage": "policy", "code": "measurement-not-allowed",
           "reason": ["measurement 11 is not listed"], "at": "2026-06-01T12:00:00Z", "session": "ab12", "tenant": "acme"}  # fmt: skip


class Answers:
    """A webhook in process: answers as told, keeps what it got."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses, self.got = list(statuses), []  # type: ignore[var-annotated]
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.gate.wait(10)
        self.got.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return httpx2.Response(status, headers={"location": "http://127.0.0.1/secret"})


def make(answers: Answers, outcomes: list[str]) -> Events:
    return Events(
        Hook(url=URL, secret=SECRET),
        origin="example.org/log",
        count=outcomes.append,
        transport=httpx2.MockTransport(answers),
        first_wait_s=0.001,
    )


def wait(found: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(1000):
        if found():
            return
        done.wait(0.01)
    raise AssertionError("it did not come")


def schema(event: dict[str, Any]) -> dict[str, Any]:
    embedded = pytest.importorskip("ocsf_json_schema")
    made: dict[str, Any] = embedded.get_ocsf_schema(version="1.3.0")
    return embedded.OcsfJsonSchemaEmbedded(made).get_class_schema(class_uid(event))  # type: ignore[no-any-return]


def class_uid(event: dict[str, Any]) -> str:
    return {3002: "authentication", 6003: "api_activity"}[event["class_uid"]]


@pytest.mark.parametrize(
    "action", ["auth", "attest", "lease", "release", "resource", "admin-key-create", "other"]
)
def test_an_event_is_valid_ocsf(action: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    event = refusal_event({**REFUSED, "action": action}, origin="example.org/log")
    made = schema(event)
    jsonschema.validators.validator_for(made)(made).validate(event)
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]  # type: ignore[operator]
    for needed in ("user",) if event["class_uid"] == 3002 else ("actor", "api", "src_endpoint"):
        missing = {name: value for name, value in event.items() if name != needed}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validators.validator_for(made)(made).validate(missing)


@pytest.mark.parametrize(
    ("code", "action", "severity"),
    [
        ("row-tampered", "attest", 5),
        ("log-forked", "lease", 5),
        ("bad-signature", "attest", 4),
        ("lease-missing", "release", 3),
    ],
)
def test_severity(code: str, action: str, severity: int) -> None:
    assert refusal_event({**REFUSED, "code": code, "action": action}, origin="o")["severity_id"] == severity


def test_an_event_is_signed_and_sent_once() -> None:
    answers, outcomes = Answers(204), []  # type: ignore[var-annotated]
    events = make(answers, outcomes)
    with events.running():
        events(REFUSED)
        events({**REFUSED, "verdict": "grant"})
        wait(lambda: "sent" in outcomes)
    assert outcomes == ["queued", "sent"]
    (request,) = answers.got
    stamp = request.headers["sealwright-timestamp"]
    message = b"sealwright/event/v1\n" + stamp.encode() + b"\n" + request.content
    want = hmac.new(SECRET, message, hashlib.sha256).hexdigest()
    assert request.headers["sealwright-signature"] == f"v1={want}"
    assert request.content == encode(refusal_event(REFUSED, origin="example.org/log"))
    assert SECRET not in request.content


@pytest.mark.parametrize("failure", [500, 429, 404, 302, httpx2.ConnectError("gone")])
def test_what_fails_is_tried_again(failure: int | Exception) -> None:
    answers, outcomes = Answers(failure, failure, 200), []  # type: ignore[var-annotated]
    events = make(answers, outcomes)
    with events.running():
        events(REFUSED)
        wait(lambda: "sent" in outcomes)
    assert outcomes == ["queued", "failed", "failed", "sent"]
    assert {str(request.url) for request in answers.got} == {URL}  # a redirect is not followed


def test_what_never_succeeds_is_dropped() -> None:
    answers, outcomes = Answers(500), []  # type: ignore[var-annotated]
    events = make(answers, outcomes)
    with events.running():
        events(REFUSED)
        wait(lambda: "dropped" in outcomes)
    assert outcomes == ["queued", *["failed"] * TRIES, "dropped"]


def test_a_full_queue_drops_and_does_not_wait() -> None:
    answers, outcomes = Answers(200), []  # type: ignore[var-annotated]
    events = make(answers, outcomes)  # nothing sends: it is not running
    for _ in range(MAX_QUEUED + 7):
        events(REFUSED)
    assert (outcomes.count("queued"), outcomes.count("dropped")) == (MAX_QUEUED, 7)


def test_an_event_that_cannot_be_written_does_not_stop_the_others() -> None:
    answers, outcomes = Answers(200), []  # type: ignore[var-annotated]
    events = make(answers, outcomes)
    with events.running():
        events({**REFUSED, "at": "never"})
        events({**REFUSED, "session": object(), "tenant": object()})
        events(REFUSED)
        wait(lambda: "sent" in outcomes)
    assert sorted(outcomes) == ["dropped", "dropped", "queued", "queued", "queued", "sent"]


async def test_a_hanging_webhook_blocks_no_decision(
    world: World, dek: bytes, running: Any, enclave: Enclave
) -> None:
    answers, outcomes = Answers(200), []  # type: ignore[var-annotated]
    answers.gate.clear()
    events = make(answers, outcomes)
    running.core.state.observers.append(events)
    kbs = Kbs(running)
    with events.running():
        for _ in range(3):
            assert (await kbs.attest(enclave, nonce="A" * 43 + "=")).status_code == 401
        got = await kbs.leased(enclave)
        assert await kbs.released(enclave, got) == dek  # while the first event still hangs
        assert outcomes == ["queued"] * 3
        answers.gate.set()
        wait(lambda: outcomes.count("sent") == 3)
    sent = [json.loads(request.content) for request in answers.got]
    assert {event["class_uid"] for event in sent} == {3002}
    text = json.dumps(sent)
    assert all(event["status_detail"] for event in sent)
    for secret in (kbs.http.cookies["kbs-session-id"], dek.hex()):
        assert secret not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://siem.example/hook", "ftp://siem.example", "https://user:pw@siem.example/", "https://", "siem.example", "",
        "http://localhost/hook", "http://127.0.0.1.example/", "https://169.254.169.254/latest", "https://[fe80::1]/",
        "https://0.0.0.0/", "https://224.0.0.1/", "https://siem.example/#part", "https://[::1", "https://siem.example:99999/",
    ],
)  # fmt: skip
def test_an_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_url(url)
    assert caught.value.code == "event-url"


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:8080/", "http://[::1]/", "https://10.1.2.3/siem?x=1"])
def test_an_address_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("content", "mode", "code"), [("short", 0o600, "event-secret"), ("s" * 64, 0o644, "broker-files-exposed")]
)
def test_a_secret_is_refused(tmp_path: Path, content: str, mode: int, code: str) -> None:
    file = tmp_path / "secret"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(SealwrightError) as caught:
        Hook.load(URL, file)
    assert caught.value.code == code


def test_the_command_tests_a_hook(world: World, tmp_path: Path) -> None:
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200 if self.path == "/hook" else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    secret = tmp_path / "secret"
    secret.write_text("s" * 64)
    secret.chmod(0o600)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        command = ["events", str(world.root), "--events-secret", str(secret), "--events-url"]
        done = CliRunner().invoke(app, [*command, f"{base}/hook", "--json"])
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"status": 200})
        refused = CliRunner().invoke(app, [*command, f"{base}/other"])
        assert isinstance(refused.exception, SealwrightError)
        assert refused.exception.code == "event-refused"
        server.shutdown()
    assert json.loads(got[0])["status_code"] == "event-test"
