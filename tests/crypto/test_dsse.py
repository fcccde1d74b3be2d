"""DSSE: the published example, and nothing but what was signed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope, pae
from sealwright.errors import FormatError, SealwrightError, VerificationError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
TYPE = "application/vnd.sealwright.test.v1+json"


def test_pae_is_that_of_the_specification() -> None:
    # Example of the DSSE protocol document.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signed_payload_comes_back() -> None:
    raw = Envelope.sign(TYPE, b"payload", OTHER, KEY).encode()
    assert Envelope.parse(raw).verify(TYPE, [KEY.public_key()]) == b"payload"


def test_another_type_key_or_payload_is_refused() -> None:
    envelope = Envelope.sign(TYPE, b"payload", KEY)
    with pytest.raises(VerificationError, match="signed as") as refused:
        envelope.verify("application/other", [KEY.public_key()])
    assert refused.value.code == "wrong-payload-type"
    with pytest.raises(VerificationError) as refused:
        envelope.verify(TYPE, [OTHER.public_key()])
    assert refused.value.code == "untrusted-signer"
    with pytest.raises(VerificationError) as refused:
        envelope.verify(TYPE, [])
    assert refused.value.code == "untrusted-signer"


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    raw = bytearray(Envelope.sign(TYPE, b'{"a":1}', KEY).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealwrightError):
        Envelope.parse(bytes(raw)).verify(TYPE, [KEY.public_key()])


@pytest.mark.parametrize(
    "doc",
    [
        {},
        {"payload": "", "payloadType": "t", "signatures": []},
        {"payload": "", "payloadType": "t", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "====", "payloadType": "t", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "", "payloadType": "t", "signatures": [{"keyid": "", "sig": "AA==", "x": 1}]},
        {"payload": "", "payloadType": "t", "signatures": [{"keyid": "", "sig": "AA=="}], "more": 1},
    ],
)
def test_other_envelopes_are_malformed(doc: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        Envelope.parse(canonical(doc))
