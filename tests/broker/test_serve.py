"""The broker as a process: made, started, asked, searched for secrets, ended."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from sealwright.broker.settings import BrokerSecrets, Layout
from sealwright.cli import main
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import SettingsError


@contextmanager
def served(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = "import sys; from sealwright.cli import main; sys.exit(main())"
    args = [sys.executable, "-c", code, "broker", "serve", str(directory), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*args, "--log-format", "json", *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        yield process, json.loads(line)["url"] if line.startswith("{") else line
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_init_prints_what_others_must_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "broker"
    assert main(["broker", "init", str(directory), "--origin", "log.example/one", "--json"]) == 0
    out = capsys.readouterr().out
    shown = json.loads(out)
    secrets = BrokerSecrets.load(Layout(root=directory))
    assert b64url_decode(shown["root"]) == secrets.root_public
    assert shown["log_key"].startswith("log.example/one+")
    token = Path(shown["admin_token"]).read_text().strip()
    assert secrets.check_token(token)
    assert not secrets.check_token(token + "x")
    assert token not in out
    assert token.encode() not in (directory / "settings.json").read_bytes()
    assert main(["broker", "init", str(directory)]) == 65
    assert "broker-exists" in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["8420", ":1", "127.0.0.1:99999", "127.0.0.1:x"])
def test_a_bad_address_is_refused(listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "serve", str(tmp_path), "--listen", listen]) == 65
    assert "malformed-listen" in capsys.readouterr().err


def test_what_is_no_broker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        BrokerSecrets.load(Layout(root=tmp_path / "none"))
    assert caught.value.code == "broker-file-missing"


@pytest.mark.slow
def test_it_serves_and_ends_in_order_without_a_secret_in_any_output(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    assert main(["broker", "init", str(directory), "--json"]) == 0
    with served(directory, "--holder", str(tmp_path / "held"), "--new-holder") as (process, url):
        with httpx2.Client(base_url=url, trust_env=False) as http:
            assert http.get("/healthz").text == "serving"
            token = (directory / "admin-token").read_text().strip()
            headers = {"authorization": f"Bearer {token}"}
            assert http.get("/sealwright/v1/admin/status", headers=headers).json()["holder"] is True
            http.post("/kbs/v0/auth", json={"version": "0.4.0", "tee": "sample"})
            auth = {"version": "0.4.0", "tee": "software", "extra-params": {"sealwright": "keyset/v1"}}
            answer = http.post("/kbs/v0/auth", json=auth)
            session = answer.cookies["kbs-session-id"]
            nonce = answer.json()["nonce"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    events = [json.loads(line) for line in err.splitlines()]
    assert events[-1]["event"] == "stopped"
    assert [event["code"] for event in events if "code" in event] == ["tee-unsupported"]
    secrets = [token, session, nonce]
    for path in (directory / "keys").iterdir():
        raw = path.read_bytes()
        secrets += [raw.hex(), base64.b64encode(raw).decode()[:40]]
    assert not [secret for secret in secrets if secret in err]


@pytest.mark.slow
def test_a_restored_database_stops_the_start_with_its_code(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    assert main(["broker", "init", str(directory), "--json"]) == 0
    for path in directory.glob("broker.sqlite*"):
        path.unlink()
    with served(directory) as (process, first):
        _, err = process.communicate(timeout=30)
    assert process.returncode == 10
    assert "[state-rolled-back]" in first + err


def test_keys_are_32_fresh_bytes_and_nowhere_in_the_database(tmp_path: Path) -> None:
    from tests.broker.support import World

    world = World(tmp_path / "broker")
    with world.open() as running:
        dek = world.add_key(running)
    forms = (dek, dek.hex().encode(), base64.b64encode(dek), base64.urlsafe_b64encode(dek).rstrip(b"="))
    for path in world.root.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert not any(form in raw for form in forms), path
    assert re.fullmatch(rb"swa_[A-Za-z0-9_-]{43}\n", (world.root / "admin-token").read_bytes())
