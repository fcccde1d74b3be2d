"""Release by AWS KMS itself: to the key in a Nitro document, against the mock of ours that verifies documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.backends.mocks import MockAwsKms, enveloped
from tests.backends.stands import NOW, aws_environment, platform
from tests.backends.test_contract import CONTEXT, OTHERS

from sealwright.crypto.cms import open_enveloped
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.testing.nitro import FakePlatformWarning, NitroTestPlatform

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SPKI = PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
REPORT = bytes(range(64))


@pytest.fixture
def mock() -> Iterator[MockAwsKms]:
    with ExitStack() as stack:
        aws_environment(stack)
        yield stack.enter_context(MockAwsKms(platform(), NOW))


@pytest.fixture
def backend(mock: MockAwsKms) -> Iterator[Any]:
    pytest.importorskip("boto3", reason="backends-test: boto3 is not installed")
    from sealwright.broker.backend.aws import AwsBackend
    from sealwright.broker.backend.settings import AwsSettings

    made = AwsSettings(
        kind="aws-kms", region="eu-central-1", keys=[mock.new_key()], url=mock.url, timeout_s=2
    )
    backend = AwsBackend("aws", made)
    yield backend
    backend.close()


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(SealwrightError) as caught:
        yield
    assert caught.value.code == code


def test_the_enclave_opens_what_kms_sealed_and_the_broker_never_sees_it(
    mock: MockAwsKms, backend: Any
) -> None:
    wrapped = backend.create(CONTEXT)
    document = mock.platform.document(REPORT, public_key=SPKI)
    sealed = backend.release_to(wrapped, CONTEXT, document)
    assert mock.asked == ["GenerateDataKeyWithoutPlaintext", "Decrypt"]
    key = open_enveloped(sealed, PRIVATE)
    assert backend.unwrap(wrapped, CONTEXT) == key
    assert key not in sealed


def test_a_document_that_does_not_verify_gets_nothing(mock: MockAwsKms, backend: Any) -> None:
    wrapped = backend.create(CONTEXT)
    good = mock.platform.document(REPORT, public_key=SPKI)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        foreign = NitroTestPlatform(NOW).document(REPORT, public_key=SPKI)
    bent = bytearray(good)
    bent[-1] ^= 1
    for document in (foreign, bytes(bent), mock.platform.document(REPORT), b"x"):
        with refused("recipient-refused"):
            backend.release_to(wrapped, CONTEXT, document)


def test_a_wrong_context_gets_nothing_either(mock: MockAwsKms, backend: Any) -> None:
    wrapped = backend.create(CONTEXT)
    with refused("key-unwrap-failed"):
        backend.release_to(wrapped, OTHERS["tenant"], mock.platform.document(REPORT, public_key=SPKI))


def test_a_service_that_ignores_the_recipient_is_found_out(mock: MockAwsKms, backend: Any) -> None:
    mock.ignores_recipient = True
    wrapped = backend.create(CONTEXT)
    with refused("recipient-ignored"):
        backend.release_to(wrapped, CONTEXT, mock.platform.document(REPORT, public_key=SPKI))


def test_moto_is_such_a_service() -> None:
    """Why the mock of ours is there: moto knows nothing of Recipient."""
    pytest.importorskip("moto", reason="backends-test: moto is not installed")
    from tests.backends.stands import moto

    with ExitStack() as stack:
        backend: Any = moto(Path(), stack).make()
        with refused("recipient-ignored"):
            backend.release_to(backend.create(CONTEXT), CONTEXT, b"any document")


def test_a_key_of_a_key_that_is_not_in_the_settings_is_not_asked_for(mock: MockAwsKms, backend: Any) -> None:
    from sealwright.broker.backend import Wrapped

    wrapped = backend.create(CONTEXT)
    other = Wrapped(version="arn:aws:kms:eu-central-1:999988887777:key/evil", payload=wrapped.payload)
    mock.asked.clear()
    with refused("key-version-destroyed"):
        backend.unwrap(other, CONTEXT)
    assert mock.asked == []


def test_the_key_service_of_another_account_is_refused(mock: MockAwsKms, backend: Any) -> None:
    describe = mock.op_DescribeKey

    def imported(body: dict[str, Any]) -> dict[str, Any]:
        answer = describe(body)
        answer["KeyMetadata"]["Origin"] = "EXTERNAL"
        return answer

    mock.op_DescribeKey = imported  # type: ignore[method-assign]
    with refused("backend-key-unfit"):
        backend.current()


@pytest.mark.parametrize("indefinite", [True, False])
def test_enveloped_data_opens_in_both_lengths(indefinite: bool) -> None:
    assert (
        open_enveloped(enveloped(b"k" * 32, PRIVATE.public_key(), indefinite=indefinite), PRIVATE)
        == b"k" * 32
    )


def test_another_key_does_not_open_it() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(VerificationError) as caught:
        open_enveloped(enveloped(b"k" * 32, PRIVATE.public_key()), other)
    assert (caught.value.code, caught.value.stage) == ("recipient-open-failed", "open")


@settings(max_examples=150, deadline=None)
@example(at=35359, flip=32)  # an algorithm without its name
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_another_key(at: int, flip: int) -> None:
    good = enveloped(b"k" * 32, PRIVATE.public_key())
    bent = bytearray(good)
    bent[at % len(good)] ^= flip
    try:
        opened = open_enveloped(bytes(bent), PRIVATE)
    except (MessageFormatError, VerificationError):
        return
    # The subject key identifier is not ours to check; CBC itself proves nothing (docs/spec/key-backends.md).
    assert opened == b"k" * 32 or len(opened) < 49


@given(st.binary(max_size=300))
def test_the_parser_raises_only_its_own_error(raw: bytes) -> None:
    with pytest.raises(MessageFormatError):
        open_enveloped(raw, PRIVATE)


def test_deep_and_long_values_are_refused() -> None:
    for raw in (b"\x30\x80" * 5000, bytes(1 << 17), b"\x30\x84\xff\xff\xff\xff" + bytes(9)):
        with pytest.raises(MessageFormatError):
            open_enveloped(raw, PRIVATE)
