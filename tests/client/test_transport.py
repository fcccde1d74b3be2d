"""Attested clients against a fake enclave on a loopback port: httpx and httpx2, sync and async, stock OpenAI."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from tests.client.support import Served, fake_enclave

import sealwright
from sealwright.client.httpx_transport import Library, async_transport, transport
from sealwright.errors import CollateralError, VerificationError
from sealwright.protocol.attestation import AttestationRequest
from sealwright.testing.broker import FakeBroker
from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.gateway import FakeServer
from sealwright.testing.software import FakePlatformWarning

LIBRARIES: list[Library] = ["httpx", "httpx2"]
PROMPT = "the planted prompt of ward three"
ASK: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": PROMPT}]}


def _now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def enclave() -> FakeEnclave:
    return fake_enclave(_now)  # type: ignore[arg-type]


@pytest.fixture
def server(enclave: FakeEnclave) -> FakeServer:
    return FakeServer(enclave)


@pytest.fixture
def url(server: FakeServer) -> Iterator[str]:
    with Served(server.app) as served:
        yield served.url


def _bearer(enclave: FakeEnclave) -> dict[str, str]:
    return {"authorization": f"Bearer {enclave.credential}"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_sync(library: Library, enclave: FakeEnclave, url: str) -> None:
    with sealwright.http_client(trust=enclave.trust_file(), library=library) as client:
        answer = client.post(f"{url}/v1/chat/completions", json=ASK, headers=_bearer(enclave))
        assert answer.json()["choices"][0]["message"]["content"] == PROMPT
        made = sealwright.receipt(answer)
        assert made.receipt_id == answer.headers["sealwright-receipt-id"]
        assert made.statement.predicate.confidential is False
        with client.stream(
            "POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}, headers=_bearer(enclave)
        ) as stream:
            with pytest.raises(CollateralError) as caught:
                sealwright.receipt(stream)
            assert caught.value.code == "receipt-not-yet"
            text = "".join(stream.iter_text())
        assert text.endswith("data: [DONE]\n\n")
        assert sealwright.receipt(stream).statement.predicate.sequence == 2


@pytest.mark.parametrize("library", LIBRARIES)
async def test_async(library: Library, enclave: FakeEnclave, url: str) -> None:
    async with sealwright.async_http_client(trust=enclave.trust_file(), library=library) as client:
        answer = await client.post(f"{url}/v1/chat/completions", json=ASK, headers=_bearer(enclave))
        assert answer.json()["choices"][0]["message"]["content"] == PROMPT
        assert sealwright.receipt(answer).receipt_id == answer.headers["sealwright-receipt-id"]
        body = {**ASK, "stream": True}
        request = client.build_request(
            "POST", f"{url}/v1/chat/completions", json=body, headers=_bearer(enclave)
        )
        stream = await client.send(request, stream=True)
        pieces = [piece async for piece in stream.aiter_bytes()]
        await stream.aclose()
        assert len(pieces) == len(PROMPT.split()) + 2
        assert sealwright.receipt(stream).statement.predicate.sequence == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stream_is_not_buffered_and_may_be_closed_early(
    library: Library, enclave: FakeEnclave, url: str
) -> None:
    with sealwright.http_client(trust=enclave.trust_file(), library=library) as client:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "a " * 5000}]}
        with client.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=_bearer(enclave)
        ) as stream:
            assert next(stream.iter_text()).startswith("data: ")
        with pytest.raises(CollateralError):
            sealwright.receipt(stream)
        assert client.get(f"{url}/v1/models", headers=_bearer(enclave)).status_code == 200


@pytest.mark.parametrize("library", LIBRARIES)
async def test_an_async_stream_may_be_closed_early(library: Library, enclave: FakeEnclave, url: str) -> None:
    async with sealwright.async_http_client(trust=enclave.trust_file(), library=library) as client:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "a " * 5000}]}
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=_bearer(enclave)
        ) as stream:
            assert (await anext(stream.aiter_text())).startswith("data: ")
        assert (await client.get(f"{url}/v1/models", headers=_bearer(enclave))).status_code == 200


def test_stock_openai_3(enclave: FakeEnclave, server: FakeServer, url: str) -> None:
    assert openai.__version__.startswith("3.")
    http_client = sealwright.http_client(trust=enclave.trust_file())
    with openai.OpenAI(base_url=f"{url}/v1", api_key=enclave.credential, http_client=http_client) as client:
        assert [model.id for model in client.models.list()] == ["echo"]
        stream = client.chat.completions.create(**ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip() == PROMPT
        assert sealwright.receipt(stream).file.receipt.fields["model"].value == b'"echo"'
        raw = client.chat.completions.with_raw_response.create(**ASK)
        assert raw.parse().choices[0].message.content == PROMPT
        assert sealwright.receipt(raw).receipt_id == raw.headers["sealwright-receipt-id"]
        with client.chat.completions.with_streaming_response.create(**ASK) as streaming:
            streaming.read()
            assert sealwright.receipt(streaming)
        with pytest.raises(TypeError, match="with_raw_response"):
            sealwright.receipt(raw.parse())
    assert server.seen == [PROMPT] * 3


async def test_stock_openai_3_async(enclave: FakeEnclave, url: str) -> None:
    http_client = sealwright.async_http_client(trust=enclave.trust_file())
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=enclave.credential, http_client=http_client
    ) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(words).strip() == PROMPT
        assert sealwright.receipt(stream)


OPENAI_2 = """
import sys, warnings, openai, sealwright
assert openai.__version__.startswith("2."), openai.__version__
url, trust, key, prompt = sys.argv[1:]
client = openai.OpenAI(
    base_url=url + "/v1", api_key=key, http_client=sealwright.http_client(trust=trust, library="httpx")
)
stream = client.chat.completions.create(
    model="echo", messages=[{"role": "user", "content": prompt}], stream=True
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip() == prompt
print(sealwright.receipt(stream).receipt_id)
client = openai.OpenAI(
    base_url=url + "/v1", api_key=key, http_client=sealwright.http_client(trust=trust + ".none", library="httpx")
)
try:
    client.models.list()
except openai.PermissionDeniedError as error:
    print(error.code)
"""


def test_stock_openai_2(enclave: FakeEnclave, url: str, tmp_path: Path) -> None:
    python = os.environ.get("SEALWRIGHT_OPENAI2_PYTHON")
    if not python:
        pytest.skip("SEALWRIGHT_OPENAI2_PYTHON names no interpreter with openai 2 (requirements/openai2.txt)")
    trust = tmp_path / "test.trust"
    trust.write_bytes(enclave.trust_yaml())
    source = Path(sealwright.__file__).parents[1]
    done = subprocess.run(
        [python, "-c", OPENAI_2, url, str(trust), enclave.credential, PROMPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    receipt_id, code = done.stdout.split()
    assert len(receipt_id) == 32
    assert code == "unreadable-file"


def test_a_refusal_is_a_403_that_openai_neither_retries_nor_hides(
    enclave: FakeEnclave, server: FakeServer, url: str
) -> None:
    trust = enclave.trust_file(config={"digests": ["00" * 32]})
    http_client = sealwright.http_client(trust=trust)
    asked = server.enclave.bundle
    count = []
    server.enclave.bundle = lambda request: count.append(1) or asked(request)  # type: ignore[method-assign,func-returns-value]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=enclave.credential, http_client=http_client)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.code == "config-not-allowed"
    assert caught.value.param == "appraisal"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "config" in caught.value.message
    assert len(count) == 1
    assert server.seen == []
    client.close()


def test_a_wrong_credential_is_the_enclaves_answer_in_openais_form(enclave: FakeEnclave, url: str) -> None:
    http_client = sealwright.http_client(trust=enclave.trust_file())
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="swk_wrong", http_client=http_client)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "credential-unknown"
    client.close()


def test_the_trust_file_is_read_again_for_each_request(
    enclave: FakeEnclave, url: str, tmp_path: Path
) -> None:
    trust = tmp_path / "test.trust"
    trust.write_bytes(enclave.trust_yaml())
    with sealwright.http_client(trust=trust) as client:

        def models() -> httpx2.Response:
            return client.get(f"{url}/v1/models", headers=_bearer(enclave))

        assert models().status_code == 200
        trust.write_bytes(enclave.trust_yaml(config={"digests": ["00" * 32]}))
        assert models().json()["error"]["code"] == "config-not-allowed"
        trust.write_bytes(enclave.trust_yaml())
        assert models().status_code == 200
        trust.write_bytes(b"format: nothing\n")
        assert models().json()["error"]["code"] == "malformed-document"
        trust.unlink()
        assert models().json()["error"]["code"] == "unreadable-file"


def test_a_new_keyset_is_verified_before_the_next_request(
    enclave: FakeEnclave, server: FakeServer, url: str
) -> None:
    with sealwright.http_client(trust=enclave.trust_file()) as client:

        def models() -> httpx2.Response:
            return client.get(f"{url}/v1/models", headers=_bearer(enclave))

        assert models().status_code == 200
        server.reboot()
        # Whether it ran is not known, so it is not sent again by itself; the next one is verified anew.
        assert models().json()["error"]["code"] == "outcome-unknown"
        assert models().status_code == 200


def test_not_started_is_sealed_again_once(enclave: FakeEnclave, server: FakeServer, url: str) -> None:
    with sealwright.http_client(trust=enclave.trust_file()) as client:

        def models() -> httpx2.Response:
            return client.get(f"{url}/v1/models", headers=_bearer(enclave))

        assert models().status_code == 200
        server.gateway.accepting = False
        asked = server.enclave.bundle
        count = []

        def bundle(request: Any) -> Any:
            count.append(1)
            server.gateway.accepting = len(count) > 1
            return asked(request)

        server.enclave.bundle = bundle  # type: ignore[method-assign]
        assert models().json()["error"]["code"] == "not-started"  # twice: it gives up
        assert len(count) == 1
        server.gateway.accepting = False
        assert models().status_code == 200  # refused once, verified again, sealed again
        assert len(count) >= 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_server_that_is_not_there_is_the_librarys_own_error(library: Library, enclave: FakeEnclave) -> None:
    lib = {"httpx": httpx, "httpx2": httpx2}[library]
    with (
        sealwright.http_client(trust=enclave.trust_file(), library=library) as client,
        pytest.raises(lib.ConnectError),
    ):
        client.get("http://127.0.0.1:9/v1/models")


def test_no_proxy_of_the_environment_is_mounted(
    enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with sealwright.http_client(trust=enclave.trust_file()) as client:
        assert client._mounts == {}


def _planted(enclave: FakeEnclave) -> list[bytes]:
    return [PROMPT.encode(), b"ward", enclave.credential.encode(), b"/v1/chat", b"x-planted", b"echo"]


def test_nothing_of_the_request_stands_in_the_outer_bytes(enclave: FakeEnclave, server: FakeServer) -> None:
    sent: list[bytes] = []

    async def outer(request: httpx2.Request) -> httpx2.Response:
        sent.append(repr((request.method, str(request.url), request.headers.raw)).encode() + request.content)
        return await inner.handle_async_request(request)

    inner = httpx2.ASGITransport(server.app)
    made = async_transport(trust=enclave.trust_file(), outer=httpx2.MockTransport(outer))

    async def run() -> None:
        async with httpx2.AsyncClient(transport=made) as client:
            answer = await client.post(
                "http://enclave.test/v1/chat/completions?planted=1",
                json=ASK,
                headers={**_bearer(enclave), "x-planted": "1", "cookie": "planted"},
            )
            assert answer.json()["choices"][0]["message"]["content"] == PROMPT

    asyncio.run(run())
    assert len(sent) == 2
    for planted in [*_planted(enclave), b"planted", b"cookie"]:
        assert not any(planted in item for item in sent), planted


@pytest.mark.parametrize("status", [200, 301, 307, 401, 500])
def test_no_application_byte_leaves_before_the_verification_succeeded(
    enclave: FakeEnclave, status: int
) -> None:
    sent: list[httpx2.Request] = []
    bundle = enclave.bundle

    def outer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        asked = json.loads(request.content)
        assert set(asked) == {"nonce", "tenant"}
        enclave.boot()
        stale = bundle(AttestationRequest(nonce=b"0" * 32, tenant="test"))
        return httpx2.Response(status, headers={"location": "https://evil.test/"}, content=stale.encode())

    made = transport(trust=enclave.trust_file(), outer=httpx2.MockTransport(outer))
    with httpx2.Client(transport=made, follow_redirects=True) as client:
        answer = client.post("https://enclave.test/v1/chat/completions", json=ASK, headers=_bearer(enclave))
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] in {"report-data-mismatch", "attestation-unavailable"}
    assert [request.url.path for request in sent] == ["/.well-known/sealwright/attestation"]


BLOCKED = "import sys\n" + "\n".join(
    f"sys.modules[{name!r}] = None"
    for name in ("fcntl", "resource", "pwd", "grp", "termios", "spwd", "crypt", "syslog", "pty", "tty")
)
PORTABLE = """
import ctypes
def refuse(*_, **__): raise OSError("no libc here")
ctypes.CDLL = refuse
import os
for name in ("memfd_create", "pidfd_open", "sched_setaffinity", "setresuid", "prlimit", "posix_fadvise", "fork"):
    if hasattr(os, name): delattr(os, name)
import socket
if hasattr(socket, "AF_UNIX"): del socket.AF_UNIX
import pkgutil, importlib
import sealwright, sealwright.client, sealwright.audit
for package in (sealwright.client, sealwright.audit):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
for name in ("connect", "verify", "receipt", "trust", "attest"):
    importlib.import_module("sealwright.cli." + name)
import sealwright.testing.gateway
sealwright.http_client, sealwright.async_http_client, sealwright.receipt
"""


def test_the_client_imports_nothing_that_only_linux_has() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED + PORTABLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    assert set(dir(sealwright)) == {"__version__", "async_http_client", "http_client", "receipt"}
    with pytest.raises(AttributeError):
        _ = sealwright.nothing


def test_many_threads_share_one_client(enclave: FakeEnclave, url: str) -> None:
    asked, bundle = [], enclave.bundle
    enclave.bundle = lambda request: asked.append(1) or bundle(request)  # type: ignore[method-assign,func-returns-value]
    with sealwright.http_client(trust=enclave.trust_file()) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> tuple[str, str]:
            body = {"model": "echo", "messages": [{"role": "user", "content": str(number)}]}
            answer = client.post(f"{url}/v1/chat/completions", json=body, headers=_bearer(enclave))
            return answer.json()["choices"][0]["message"]["content"], sealwright.receipt(answer).receipt_id

        answers = list(pool.map(ask, range(40)))
    assert [content for content, _ in answers] == [str(number) for number in range(40)]
    assert len({receipt_id for _, receipt_id in answers}) == 40
    assert len(asked) == 1  # one verification serves all that wait for it


async def test_many_tasks_wait_for_one_verification(enclave: FakeEnclave, url: str) -> None:
    asked, bundle = [], enclave.bundle
    enclave.bundle = lambda request: asked.append(1) or bundle(request)  # type: ignore[method-assign,func-returns-value]
    async with sealwright.async_http_client(trust=enclave.trust_file()) as client:
        calls = [client.get(f"{url}/v1/models", headers=_bearer(enclave)) for _ in range(10)]
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["request", "response", "platform"])
def test_a_receipt_about_something_else_is_refused(enclave: FakeEnclave, url: str, name: str) -> None:
    receipt = enclave.receipt

    def another(fields: Any, *, record_id: bytes) -> Any:
        return receipt({**fields, name: "00" * 32}, record_id=record_id)

    if name == "platform":
        enclave.platform_name = "snp"
    else:
        enclave.receipt = another  # type: ignore[method-assign]
    with sealwright.http_client(trust=enclave.trust_file()) as client:
        answer = client.post(f"{url}/v1/chat/completions", json=ASK, headers=_bearer(enclave))
        with pytest.raises(VerificationError) as caught:
            sealwright.receipt(answer)
    assert caught.value.code == "receipt-mismatch"


def test_an_answer_without_a_receipt_says_so(enclave: FakeEnclave, url: str) -> None:
    with sealwright.http_client(trust=enclave.trust_file()) as client:
        answer = client.get(f"{url}/v1/models", headers=_bearer(enclave))
        with pytest.raises(CollateralError) as caught:
            sealwright.receipt(answer)
        assert caught.value.code == "receipt-missing"
        with pytest.raises(TypeError):
            sealwright.receipt(httpx2.Response(200))
        refused = client.get("ftp://enclave.test/v1/models")
        assert refused.json()["error"]["code"] == "unsupported-url"
        with pytest.raises(TypeError):
            sealwright.receipt(refused)


def test_fakes_warn_when_they_are_constructed() -> None:
    with pytest.warns(FakePlatformWarning, match="FakeEnclave protects nothing"):
        FakeEnclave()
    with pytest.warns(FakePlatformWarning, match="FakeBroker appraises nothing"):
        FakeBroker(_now())
