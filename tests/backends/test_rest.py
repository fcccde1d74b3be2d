"""The HTTP client of backends: addresses, certificates, retries, bounds; tokens of machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backends.tls import certificate, https

from sealwright.broker.backend.google import crc32c
from sealwright.broker.backend.metadata import azure_url, token_source
from sealwright.broker.backend.rest import MAX_ANSWER, Rest, check_url
from sealwright.broker.backend.settings import secret_of
from sealwright.broker.files import write_file
from sealwright.errors import SealwrightError, SettingsError, UnavailableError

Handler = Callable[[httpx2.Request], httpx2.Response]


def rest(handler: Handler) -> Rest:
    return Rest("name", "https://backend.test", timeout_s=1, transport=httpx2.MockTransport(handler))


@pytest.mark.parametrize(
    "url", ["https://kms.example", "https://kms.example:8200/x", "http://127.0.0.1:1", "http://[::1]:1"]
)
def test_addresses_that_may_be(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://kms.example",
        "ftp://127.0.0.1",
        "https://u:p@kms.example",
        "https://",
        "http://127.0.0.1.evil.test",
        "x",
    ],
)
def test_addresses_that_may_not_be(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_url(url)
    assert caught.value.code == "backend-url-insecure"


def test_what_changes_nothing_is_asked_twice_and_no_more() -> None:
    asked: list[str] = []

    def busy(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        return httpx2.Response(503)

    for again, times in ((True, 2), (False, 1)):
        asked.clear()
        with pytest.raises(UnavailableError) as caught:
            rest(busy).ask("POST", "/x", {}, headers={}, again=again)
        assert (caught.value.code, len(asked)) == ("backend-unavailable", times)


def test_an_overload_that_passes_is_not_seen() -> None:
    answers = iter([httpx2.Response(429), httpx2.Response(200, json={"a": 1})])
    assert rest(lambda _: next(answers)).ask("GET", "/x", headers={}).body == {"a": 1}


def test_a_call_that_hangs_is_not_asked_again() -> None:
    asked: list[int] = []

    def hangs(request: httpx2.Request) -> httpx2.Response:
        asked.append(1)
        raise httpx2.ReadTimeout("slow", request=request)

    with pytest.raises(UnavailableError):
        rest(hangs).ask("POST", "/x", {}, headers={})
    assert len(asked) == 1


@pytest.mark.parametrize("body", [b"[]", b"not json", b'{"a":1,"a":2}', b"x" * (MAX_ANSWER + 1)])
def test_an_answer_out_of_its_form_is_refused(body: bytes) -> None:
    with pytest.raises(UnavailableError) as caught:
        rest(lambda _: httpx2.Response(200, content=body)).ask("GET", "/x", headers={})
    assert caught.value.code == "backend-answer-malformed"


def test_redirects_are_not_followed() -> None:
    answer = rest(lambda _: httpx2.Response(302, headers={"location": "https://evil.test"})).ask(
        "GET", "/", headers={}
    )
    assert answer.status == 302


def test_only_a_server_of_the_pinned_ca_is_believed(tmp_path: Path) -> None:
    ours, other = certificate(tmp_path, "ours"), certificate(tmp_path, "other")
    with https(ours) as url:
        pinned = Rest("x", url, timeout_s=5, ca_file=ours)
        assert pinned.ask("GET", "/", headers={}).status == 200
        pinned.close()
        for ca_file in (other, None):
            wrong = Rest("x", url, timeout_s=5, ca_file=ca_file)
            with pytest.raises(UnavailableError) as caught:
                wrong.ask("GET", "/", headers={})
            assert caught.value.code == "backend-unavailable"
            wrong.close()


@given(st.binary(max_size=64), st.integers(0, 511))
def test_crc32c_finds_every_flipped_bit(data: bytes, at: int) -> None:
    if at // 8 >= len(data):
        return
    bent = bytearray(data)
    bent[at // 8] ^= 1 << at % 8
    assert crc32c(data) != crc32c(bytes(bent))


def test_crc32c_vectors() -> None:
    """RFC 3720, B.4, and the check value of the catalogue."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_a_machines_token_is_fetched_once_and_again_at_half_of_its_life() -> None:
    now, asked = [0.0], []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(200, json={"access_token": f"t{len(asked)}", "expires_in": "100"})

    source = token_source(
        "hsm",
        azure_url("https://managedhsm.azure.net", "client-1"),
        ("metadata", "true"),
        None,
        transport=httpx2.MockTransport(handler),
        monotonic=lambda: now[0],
    )
    assert (source(), source()) == ("t1", "t1")
    assert asked[0].headers["metadata"] == "true"
    assert dict(asked[0].url.params) == {
        "api-version": "2018-02-01",
        "resource": "https://managedhsm.azure.net",
        "client_id": "client-1",
    }
    now[0] = 50.0
    assert source() == "t2"
    source.forget()
    assert source() == "t3"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (httpx2.Response(400, json={"error": "invalid_request"}), "backend-denied"),
        (httpx2.Response(200, json={"access_token": "t"}), "backend-answer-malformed"),
        (httpx2.Response(200, json={"access_token": "t\n", "expires_in": 9}), "backend-answer-malformed"),
        (httpx2.Response(200, content=b"x" * (1 << 17)), "backend-answer-malformed"),
    ],
)
def test_a_metadata_service_without_a_token(answer: httpx2.Response, code: str) -> None:
    source = token_source(
        "kms", "http://metadata.test/", ("a", "b"), None, transport=httpx2.MockTransport(lambda _: answer)
    )
    with pytest.raises(SealwrightError) as caught:
        source()
    assert caught.value.code == code


def test_a_token_file_is_for_its_user_only_and_holds_one_line(tmp_path: Path) -> None:
    file = tmp_path / "token"
    write_file(file, b"secret\n")
    assert secret_of(str(file)) == "secret"
    file.chmod(0o640)
    with pytest.raises(SettingsError) as caught:
        secret_of(str(file))
    assert caught.value.code == "broker-files-exposed"
    for raw in (b"", b"\n", b"a\nb", b"\xff"):
        write_file(file, raw)
        with pytest.raises(SettingsError) as caught:
            secret_of(str(file))
        assert caught.value.code == "backend-secret-malformed"


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with pytest.raises(SettingsError) as caught:
        Rest("x", "https://a.test", timeout_s=1, ca_file=file)
    assert caught.value.code == "backend-ca-malformed"
