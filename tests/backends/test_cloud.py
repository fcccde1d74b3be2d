"""What is particular to the mocks of Azure Managed HSM and Google Cloud KMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.backends.mocks import MockAzureHsm, MockGoogleKms
from tests.backends.stands import GOOGLE_KEY, token
from tests.backends.test_contract import CONTEXT

from sealwright.broker.backend.azure import AzureBackend
from sealwright.broker.backend.google import GoogleBackend
from sealwright.broker.backend.rest import CachedToken
from sealwright.broker.backend.settings import AzureSettings, GoogleSettings
from sealwright.errors import SealwrightError


@pytest.fixture
def azure() -> MockAzureHsm:
    return MockAzureHsm()


@pytest.fixture
def google() -> MockGoogleKms:
    mock = MockGoogleKms(GOOGLE_KEY)
    mock.rotate()
    return mock


def hsm(mock: MockAzureHsm, source: CachedToken | None = None) -> AzureBackend:
    settings = AzureSettings(kind="azure-hsm", url="https://mock.managedhsm.azure.net", key="kek")
    return AzureBackend("hsm", settings, transport=mock.transport(), token=source or token())


def kms(mock: MockGoogleKms) -> GoogleBackend:
    settings = GoogleSettings(kind="google-kms", key=GOOGLE_KEY)
    return GoogleBackend("kms", settings, transport=mock.transport(), token=token())


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(SealwrightError) as caught:
        yield
    assert caught.value.code == code


def test_a_missing_hsm_key_and_how_it_is_made(azure: MockAzureHsm) -> None:
    backend = hsm(azure)
    for work in (backend.current, lambda: backend.create(CONTEXT)):
        with refused("backend-key-missing"):
            work()
    assert backend.rotate() == azure.versions.last


def test_a_missing_google_key(google: MockGoogleKms) -> None:
    google.versions.keys.clear()
    backend = kms(google)
    for work in (backend.current, lambda: backend.create(CONTEXT), backend.rotate):
        with refused("backend-key-missing"):
            work()


def test_a_token_that_was_refused_is_fetched_anew(azure: MockAzureHsm) -> None:
    tokens = iter([("stale", 3600.0), ("mock-access-token", 3600.0)])
    azure.rotate()
    backend = hsm(azure, CachedToken(lambda: next(tokens), lambda: 0.0))
    assert backend.current() == azure.versions.last
    wrong = hsm(azure, CachedToken(lambda: ("stale", 3600.0), lambda: 0.0))
    with refused("backend-denied"):
        wrong.current()


@pytest.mark.parametrize(
    "change", [{"key": {"kty": "RSA-HSM", "kid": "x"}}, {"attributes": {"exportable": True}}]
)
def test_an_unfit_hsm_key(azure: MockAzureHsm, change: dict[str, Any]) -> None:
    azure.rotate()
    azure.bend = lambda body: body | change
    with refused("backend-key-unfit"):
        hsm(azure).current()


def test_the_hsms_own_release_of_an_exportable_key(azure: MockAzureHsm) -> None:
    azure.rotate()
    backend = hsm(azure)
    assert backend.secure_release("model-1", "a" * 32, "a.token.of-maa") == "a.jws.of-the-hsm"
    assert azure.released == [
        {
            "path": f"/keys/model-1/{'a' * 32}/release",
            "target": "a.token.of-maa",
            "enc": "RSA_AES_KEY_WRAP_256",
        }
    ]
    with refused("recipient-refused"):
        backend.secure_release("model-1", "a" * 32, "another.token.of-maa")
    with refused("backend-key-unfit"):
        backend.secure_release("kek", "a" * 32, "a.token.of-maa")


WRONG_HSM: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another key": lambda body: body | {"kid": body["kid"].replace("/kek/", "/other/")},
    "short iv": lambda body: body | {"iv": "AAAA"},
    "long value": lambda body: body | {"value": "A" * 64},
    "no tag": lambda body: {name: value for name, value in body.items() if name != "tag"},
}


@pytest.mark.parametrize("what", WRONG_HSM)
def test_a_wrong_answer_of_the_hsm(azure: MockAzureHsm, what: str) -> None:
    azure.rotate()
    azure.bend = WRONG_HSM[what]
    with refused("backend-answer-malformed"):
        hsm(azure).create(CONTEXT)


WRONG_KMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another key": lambda body: body | {"name": body["name"].replace("/kek/", "/other/")},
    "did not check": lambda body: body | {"verifiedPlaintextCrc32c": False},
    "did not check the aad": lambda body: body | {"verifiedAdditionalAuthenticatedDataCrc32c": None},
    "altered": lambda body: body | {"ciphertextCrc32c": "1"},
    "not base64": lambda body: body | {"ciphertext": "!"},
}


@pytest.mark.parametrize("what", WRONG_KMS)
def test_a_wrong_answer_of_google(google: MockGoogleKms, what: str) -> None:
    google.bend = WRONG_KMS[what]
    with refused("backend-answer-malformed"):
        kms(google).create(CONTEXT)


def test_a_plaintext_altered_on_its_way(google: MockGoogleKms) -> None:
    backend = kms(google)
    wrapped = backend.create(CONTEXT)
    google.bend = lambda body: body | {"plaintext": "A" * 43 + "="}
    with refused("backend-answer-malformed"):
        backend.unwrap(wrapped, CONTEXT)


def test_an_unfit_google_key(google: MockGoogleKms) -> None:
    google.bend = lambda body: body | {"purpose": "ASYMMETRIC_DECRYPT"}
    with refused("backend-key-unfit"):
        kms(google).current()


def test_rights_that_do_not_reach(google: MockGoogleKms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "answer", lambda *_: (403, {"error": {"status": "PERMISSION_DENIED"}}))
    with refused("backend-denied"):
        kms(google).create(CONTEXT)
