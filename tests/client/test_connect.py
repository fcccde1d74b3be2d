"""`connect`: a local endpoint for unchanged clients, its guard, and the receipts it keeps."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.client.support import Served

import sealwright
from sealwright.audit.receipts import verify_receipt_file
from sealwright.cli import main
from sealwright.client.connect import LocalEndpoint, Upstream
from sealwright.client.receipt_store import MAX_KEPT, ReceiptStore
from sealwright.client.receipts import ReceiptFile
from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.gateway import FakeServer
from sealwright.tlog.policy import LogPolicy

TOKEN = "local-token"
PROMPT = "the planted prompt of ward three"
ASK: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": PROMPT}]}


async def _soon(_: float) -> None:
    return None


class Local:
    def __init__(self, enclave: FakeEnclave, url: str, receipts: Path) -> None:
        client = sealwright.async_http_client(trust=enclave.trust_file())
        upstream = Upstream(client=client, url=url, credential=enclave.credential)
        self.receipts = receipts
        self.endpoint = LocalEndpoint(
            upstream, ReceiptStore(receipts), token=TOKEN, hosts=frozenset({"local.test"}), sleep=_soon
        )


@pytest.fixture
def local(live: FakeEnclave, live_url: str, tmp_path: Path) -> Local:
    return Local(live, live_url, tmp_path / "receipts")


@pytest.fixture
def url(local: Local) -> Iterator[str]:
    async def at_home(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # the port is only known once it is bound
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            host = dict(scope["headers"]).get(b"x-host", b"local.test")
            scope = {**scope, "headers": [*headers, (b"host", host)]}
        await local.endpoint.app(scope, receive, send)

    with Served(at_home) as served:
        yield served.url


def _wait_for_proof(path: Path) -> ReceiptFile:
    for _ in range(500):
        if path.exists() and (found := ReceiptFile.parse(path.read_bytes())).proof is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("no proof came")


def test_an_unchanged_openai_client_chats_and_gets_receipts(
    local: Local, url: str, live: FakeEnclave
) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN)
    assert [model.id for model in client.models.list()] == ["echo"]
    stream = client.chat.completions.create(**ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip() == PROMPT
    receipt_id = stream.response.headers["sealwright-receipt-id"]
    assert "sealwright-lease" not in stream.response.headers
    whole = client.chat.completions.with_raw_response.create(**ASK)
    assert whole.parse().choices[0].message.content == PROMPT
    file = _wait_for_proof(local.receipts / f"{receipt_id}.receipt.json")
    trust = live.trust_file()
    verified = verify_receipt_file(file, trust=trust, log_policy=LogPolicy.parse(trust.log_policy.encode()))
    assert verified.logged is not None
    served = httpx2.get(f"{url}/receipts/{receipt_id}", headers={"authorization": f"Bearer {TOKEN}"})
    assert ReceiptFile.parse(served.content) == file
    assert stat.S_IMODE((local.receipts / f"{receipt_id}.receipt.json").stat().st_mode) == 0o600
    client.close()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "wrong-local-token"),
        ({"authorization": "Bearer wrong"}, 401, "wrong-local-token"),
        ({"authorization": TOKEN}, 401, "wrong-local-token"),
        ({"authorization": f"Bearer {TOKEN}", "x-host": "evil.example"}, 421, "wrong-host"),
        ({"authorization": f"Bearer {TOKEN}", "origin": "https://evil.example"}, 403, "cross-origin"),
        ({"authorization": f"Bearer {TOKEN}", "origin": "null"}, 403, "cross-origin"),
        ({"authorization": f"Bearer {TOKEN}", "sec-fetch-site": "cross-site"}, 403, "cross-origin"),
        ({"authorization": f"Bearer {TOKEN}", "sec-fetch-site": "same-site"}, 403, "cross-origin"),
    ],
)
def test_the_guard(
    url: str, headers: dict[str, str], status: int, code: str, live_server: FakeServer
) -> None:
    for path in ("/v1/chat/completions", "/receipts/00", "/healthz"):
        answer = httpx2.post(f"{url}{path}", json=ASK, headers=headers)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.headers["x-should-retry"] == "false"
    assert live_server.seen == []


def test_the_local_token_does_not_reach_the_enclave(url: str, live_server: FakeServer) -> None:
    got: list[bytes] = []
    authenticate = live_server._authenticate
    live_server.app._authenticate = lambda headers: (
        got.append(repr(headers).encode()) or authenticate(headers)
    )  # type: ignore[attr-defined]
    httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {TOKEN}"})
    assert len(got) == 1
    assert TOKEN.encode() not in got[0]


def test_a_refusal_passes_through(live: FakeEnclave, live_url: str, tmp_path: Path) -> None:
    live.code = b"\0" * 32  # another build is running
    client = sealwright.async_http_client(trust=FakeTrust.of(live))
    upstream = Upstream(client=client, url=live_url, credential=live.credential)
    endpoint = LocalEndpoint(upstream, ReceiptStore(None), token=TOKEN, hosts=frozenset({"127.0.0.1:1"}))
    with Served(endpoint.app) as served:
        answer = httpx2.get(
            f"{served.url}/v1/models",
            headers={"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1:1"},
        )
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "code-not-allowed"


class FakeTrust:
    @staticmethod
    def of(enclave: FakeEnclave) -> Any:
        software = {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [enclave.platform.root_fingerprint],
            "code": [b"\xc0" * 32],
        }
        return enclave.trust_file(platforms={"software": software})


def test_an_unknown_receipt_and_a_strange_id_are_404(url: str, tmp_path: Path) -> None:
    for name in ("00" * 16, "..%2f..%2fsecret", "A" * 32):
        answer = httpx2.get(f"{url}/receipts/{name}", headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 404


def test_only_so_many_receipts_are_kept_in_memory(live: FakeEnclave) -> None:
    store = ReceiptStore(None)
    file = object()
    for number in range(MAX_KEPT + 1):
        store.put(f"{number:032x}", file)  # type: ignore[arg-type]
    assert store.get(f"{0:032x}") is None
    assert store.get(f"{1:032x}") is file


def test_the_command(live: FakeEnclave, live_url: str, tmp_path: Path) -> None:
    trust, credential, token = tmp_path / "trust", tmp_path / "credential", tmp_path / "token"
    trust.write_bytes(live.trust_yaml())
    credential.write_text(live.credential + "\n")
    args = [
        sys.executable,
        "-c",
        "import sys; from sealwright.cli import main; sys.exit(main())",
        *("connect", "--trust", str(trust), "--url", live_url, "--credential-file", str(credential)),
        *("--listen", "127.0.0.1:0", "--token-file", str(token), "--receipts", str(tmp_path / "r"), "--json"),
    ]
    running = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = running.stdout.readline()
            assert line, running.stderr.read() if running.stderr else ""
            text += line
        said = json.loads(text)
        assert next(iter(said)) == "confidential"
        assert said["confidential"] is False
        assert said["token"] is None
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        client = openai.OpenAI(base_url=said["base_url"], api_key=token.read_text().strip())
        stream = client.chat.completions.create(**ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip() == PROMPT
        client.close()
        rebound = httpx2.get(said["base_url"] + "/models", headers={"host": "evil.example"})
        assert rebound.status_code == 421
        assert len(os.listdir(tmp_path / "r")) == 1
    finally:
        running.terminate()
        running.communicate(timeout=20)


@pytest.mark.parametrize(
    ("change", "exit_code", "code"),
    [
        ({"credential": "swk_wrong"}, 10, "credential-unknown"),
        ({"credential": "two words"}, 65, "malformed-credential"),
        ({"listen": "0.0.0.0:0"}, 2, "usage"),
        ({"listen": "8787"}, 2, "usage"),
        ({"url": "ftp://x"}, 2, "usage"),
        ({"url": "http://127.0.0.1:9"}, 69, "enclave-unreachable"),
        ({"trust": b"format: x\n"}, 65, "malformed-document"),
        ({"config": ["00" * 32]}, 11, "config-not-allowed"),
    ],
)
def test_the_command_does_not_start_what_cannot_work(
    live: FakeEnclave,
    live_url: str,
    tmp_path: Path,
    change: dict[str, Any],
    exit_code: int,
    code: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trust, credential = tmp_path / "trust", tmp_path / "credential"
    rules = {"config": {"digests": change["config"]}} if "config" in change else {}
    trust.write_bytes(change.get("trust", live.trust_yaml(**rules)))
    credential.write_text(change.get("credential", live.credential))
    args = ["connect", "--trust", str(trust), "--url", change.get("url", live_url)]
    args += ["--credential-file", str(credential), "--listen", change.get("listen", "127.0.0.1:0"), "--json"]
    assert main(args) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
