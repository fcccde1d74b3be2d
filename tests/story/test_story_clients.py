"""Stock OpenAI clients of both major versions hold a streamed chat with the real model, and get receipts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sealwright
from sealwright.cli._attack import Target
from sealwright.cli._stand import Server, run
from sealwright.cli.demo import fetch_proof
from sealwright.client.receipts import ReceiptFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).with_name("chat.py")
SOURCE = Path(sealwright.__file__).parent.parent


@pytest.fixture(params=["2", "3"])
def client(request: pytest.FixtureRequest) -> list[str]:
    """The command that runs a script beside a stock `openai` of that major version."""
    major = request.param
    python = sys.executable if major == "3" else os.environ.get("SEALWRIGHT_OPENAI2_PYTHON", "")
    if not python or not Path(python).exists():
        pytest.skip("no interpreter with openai 2: set SEALWRIGHT_OPENAI2_PYTHON (make test does)")
    asked = subprocess.run(
        [python, "-c", "import openai; print(openai.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.startswith(f"{major}."), asked.stdout + asked.stderr
    return [python, str(SCRIPT)]


@dataclass
class Connected:
    """A running `sealwright connect`."""

    base_url: str
    token: str
    receipts: Path


@pytest.fixture(scope="module")
def connected(target: Target) -> Iterator[Connected]:
    """A local endpoint for unchanged clients."""
    folder = target.stand.folder
    token, receipts = folder / "connect.token", folder / "receipts"
    options = ["--trust", target.trust, "--url", target.relay.url, "--listen", "127.0.0.1:0", "--json"]
    files = ["--credential-file", folder / "app.credential", "--token-file", token, "--receipts", receipts]
    server = Server.start(folder / "connect.log", ["connect", *options, *files])
    try:
        yield Connected(server.said()["base_url"], token.read_text().strip(), receipts)
    finally:
        server.stop()


def _chat(command: list[str], *arguments: str) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=env, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert sum(map(bool, said["pieces"])) > 3, "an answer, piece by piece"
    assert "tulip" in "".join(said["pieces"]).lower()
    return said


def _verified(target: Target, receipt: Path) -> dict[str, Any]:
    """Verify offline: the files alone, and the broker's address in none of the arguments."""
    outcome = run("receipt", "verify", receipt, "--trust", target.trust)
    assert outcome.exit_code == 0, outcome.result
    assert outcome.result["log"] is not None
    assert outcome.result["confidential"] is False
    return outcome.result


@pytest.mark.parametrize("how", ["sync", "async"])
def test_direct(client: list[str], how: str, target: Target, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    url = f"{target.relay.url}/v1"
    _chat(client, how, url, target.credential, str(target.trust), str(receipt))
    missing = run("receipt", "verify", receipt, "--trust", target.trust)
    assert (missing.exit_code, missing.code) == (12, "proof-missing")
    fetch_proof(target.stand, receipt)
    _verified(target, receipt)


def test_through_connect(client: list[str], connected: Connected, target: Target) -> None:
    said = _chat(client, "plain", connected.base_url, connected.token)
    receipt = connected.receipts / f"{said['receipt_id']}.receipt.json"
    end = time.monotonic() + 60
    while not receipt.exists() or ReceiptFile.parse(receipt.read_bytes()).proof is None:
        assert time.monotonic() < end, "connect got no proof"
        time.sleep(0.1)
    assert _verified(target, receipt)["receipt_id"] == said["receipt_id"]


def test_a_refusal_reaches_the_sdk_and_is_not_retried(target: Target) -> None:
    import openai

    stand = target.stand
    trust = stand.folder / "another.trust"
    text = target.trust.read_text()
    assert stand.code in text
    trust.write_text(text.replace(stand.code, "0" * 64))
    before = len(target.relay.recorded)
    with (
        openai.OpenAI(
            base_url=f"{target.relay.url}/v1",
            api_key=target.credential,
            http_client=sealwright.http_client(trust=trust),
        ) as client,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "code-not-allowed"
    assert caught.value.response.headers["x-should-retry"] == "false"
    sent = target.relay.recorded[before:]
    assert sent.count(b"POST ") == 1, "one attestation was asked for, and nothing else was sent"
