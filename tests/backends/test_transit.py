"""What is particular to Vault and OpenBao, on a real OpenBao server: logins, rights, namespaces, keys that must not be."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.backends.stands import Bao
from tests.backends.test_contract import CONTEXT

from sealwright.broker.backend.settings import TransitSettings
from sealwright.broker.backend.transit import TransitBackend
from sealwright.broker.files import write_file
from sealwright.errors import SealwrightError, SettingsError

POLICY = """
path "transit/encrypt/{key}" {{ capabilities = ["update"] }}
path "transit/decrypt/{key}" {{ capabilities = ["update"] }}
path "transit/keys/{key}" {{ capabilities = ["read"] }}
"""
Opened = Callable[..., TransitBackend]
slow = pytest.mark.slow  # starts OpenBao, about 4 s once


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(SealwrightError) as caught:
        yield
    assert caught.value.code == code


@pytest.fixture
def opened() -> Iterator[Callable[..., TransitBackend]]:
    """Makes backends, and closes them in the end."""
    with ExitStack() as stack:

        def make(settings: TransitSettings, **more: Any) -> TransitBackend:
            return stack.enter_context(closing(TransitBackend("bao", settings, **more)))

        yield make


def settings(bao: Bao, folder: Path, key: str, token: str | None = None, **more: Any) -> TransitSettings:
    fields: dict[str, Any] = {"kind": "transit", "url": bao.url, "key": key} | more
    if "role_id" not in more:
        file = folder / f"token-{time.monotonic_ns()}"
        write_file(file, f"{token or bao.root}\n".encode())
        fields["token_file"] = str(file)
    return TransitSettings(**fields)


def app_role(bao: Bao, folder: Path, name: str, ttl: str) -> dict[str, str]:
    """Make an AppRole with the rights of the how-to, and no more."""
    if "approle/" not in bao.ask("GET", "sys/auth")["data"]:
        bao.ask("POST", "sys/auth/approle", {"type": "approle"})
    bao.ask("POST", f"transit/keys/{name}", {"type": "aes256-gcm96"})
    bao.ask("PUT", f"sys/policies/acl/{name}", {"policy": POLICY.format(key=name)})
    bao.ask(
        "POST",
        f"auth/approle/role/{name}",
        {"token_policies": [name], "token_ttl": ttl, "token_max_ttl": "1h"},
    )
    role = bao.ask("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
    secret = bao.ask("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    write_file(folder / f"secret-{name}", secret.encode())
    return {"role_id": role, "secret_id_file": str(folder / f"secret-{name}")}


@slow
def test_an_approle_with_the_rights_of_the_how_to_is_enough(bao: Bao, tmp_path: Path, opened: Opened) -> None:
    role = app_role(bao, tmp_path, "narrow", "10m")
    backend = opened(settings(bao, tmp_path, "narrow", **role))
    assert backend.current() == "1"
    assert len(backend.unwrap(backend.create(CONTEXT), CONTEXT)) == 32
    with refused("backend-denied"):
        backend.rotate()


@slow
def test_a_token_that_was_revoked_is_replaced_by_a_new_login(
    bao: Bao, tmp_path: Path, opened: Opened
) -> None:
    role = app_role(bao, tmp_path, "relogin", "10m")
    backend = opened(settings(bao, tmp_path, "relogin", **role))
    wrapped = backend.create(CONTEXT)
    bao.ask("POST", "auth/token/revoke", {"token": backend._login._token})
    assert len(backend.unwrap(wrapped, CONTEXT)) == 32


@slow
def test_a_token_is_renewed_at_half_of_its_life(bao: Bao, tmp_path: Path, opened: Opened) -> None:
    role = app_role(bao, tmp_path, "renewed", "60s")
    now = [0.0]
    backend = opened(settings(bao, tmp_path, "renewed", **role), monotonic=lambda: now[0])
    backend.current()
    token = backend._login._token
    assert backend._login._renew_at == 30.0
    now[0] = 31.0
    backend.current()
    assert (backend._login._token, backend._login._renew_at) == (token, 61.0)


@slow
def test_a_wrong_secret_or_token_is_denied_and_the_token_file_is_read_again(
    bao: Bao, tmp_path: Path, opened: Opened
) -> None:
    role = app_role(bao, tmp_path, "wrong", "10m")
    file = tmp_path / "other-secret"
    write_file(file, b"00000000-0000-0000-0000-000000000000")
    with refused("backend-denied"):
        opened(settings(bao, tmp_path, "wrong", **role | {"secret_id_file": str(file)})).current()
    with_token = settings(bao, tmp_path, "wrong", token="no-such-token")
    backend = opened(with_token)
    with refused("backend-denied"):
        backend.current()
    write_file(Path(with_token.token_file or ""), bao.root.encode())  # by an agent that renews it
    assert backend.current() == "1"


@slow
@pytest.mark.parametrize(
    "made",
    [
        {"type": "aes256-gcm96", "exportable": True},
        {"type": "aes256-gcm96", "derived": True},
        {"type": "chacha20-poly1305"},
        {"type": "aes256-gcm96", "allow_plaintext_backup": True},
    ],
    ids=["exportable", "derived", "chacha", "plaintext-backup"],
)
def test_a_key_that_must_not_be_a_root_key_is_refused(
    bao: Bao, tmp_path: Path, opened: Opened, made: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    key = f"unfit-{request.node.callspec.id}"
    bao.ask("POST", f"transit/keys/{key}", made)
    with refused("backend-key-unfit"):
        opened(settings(bao, tmp_path, key)).current()


@slow
def test_a_missing_key_and_how_it_is_made(bao: Bao, tmp_path: Path, opened: Opened) -> None:
    backend = opened(settings(bao, tmp_path, "not-yet"))
    with refused("backend-key-missing"):
        backend.current()
    assert (backend.rotate(), backend.rotate()) == ("1", "2")


@slow
def test_the_servers_own_rewrap_does_not_know_of_associated_data(
    bao: Bao, tmp_path: Path, opened: Opened
) -> None:
    """Why it is not used (docs/spec/key-backends.md): if this fails, the server has learnt it."""
    backend = opened(settings(bao, tmp_path, "own"))
    backend.rotate()
    wrapped = backend.create(CONTEXT)
    body = {
        "ciphertext": wrapped.payload.decode(),
        "associated_data": base64.b64encode(CONTEXT.aad()).decode(),
    }
    answer = httpx2.post(f"{bao.url}/v1/transit/rewrap/own", json=body, headers={"x-vault-token": bao.root})
    assert answer.status_code == 400


def answering(
    handler: Callable[[httpx2.Request], httpx2.Response], tmp_path: Path, **more: Any
) -> TransitBackend:
    file = tmp_path / "token"
    write_file(file, b"t0ken")
    fields = {"kind": "transit", "url": "https://vault.test", "key": "k", "token_file": str(file)} | more
    return TransitBackend("vault", TransitSettings(**fields), transport=httpx2.MockTransport(handler))


def test_the_namespace_and_the_token_stand_in_headers_alone(tmp_path: Path) -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(404, json={"errors": []})

    backend = answering(handler, tmp_path, namespace="team/a", mount="keys/transit")
    with refused("backend-key-missing"):
        backend.current()
    assert {request.headers["x-vault-namespace"] for request in seen} == {"team/a"}
    assert seen[-1].url.path == "/v1/keys/transit/keys/k"
    assert "t0ken" not in "".join(str(request.url) for request in seen)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"data": {"ciphertext": "vault:v1:not base64"}}, "backend-answer-malformed"),
        ({"data": {}}, "backend-answer-malformed"),
        ([], "backend-answer-malformed"),
        ({"data": {"ciphertext": 7}}, "backend-answer-malformed"),
    ],
)
def test_a_wrong_answer_to_encrypt_is_refused(tmp_path: Path, body: object, code: str) -> None:
    backend = answering(lambda _: httpx2.Response(200, json=body), tmp_path)
    with refused(code):
        backend.create(CONTEXT)


def test_either_a_token_or_an_approle_has_to_be_given(tmp_path: Path) -> None:
    for more in ({}, {"role_id": "r"}, {"role_id": "r", "secret_id_file": "/s", "token_file": "/t"}):
        with pytest.raises(SettingsError) as caught:
            TransitBackend("v", TransitSettings(kind="transit", url="https://v.test", key="k", **more))
        assert caught.value.code == "backend-credential-missing"
