"""The manifest: each stage before any segment is read, and a parser that raises only its own errors."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.sealing.support import DEK, OWNER, Sealed

from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.errors import ArtefactFormatError, SealwrightError, VerificationError
from sealwright.sealing import Entry, Manifest
from sealwright.sealing.manifest import PAYLOAD_TYPE, check_path

Make = Callable[..., Sealed]
ENTRY = Entry(path="weights.bin", length=5, blake3=bytes(32), sha256=bytes(32))


def build(*entries: Entry, **changes: Any) -> Manifest:
    known: dict[str, Any] = {
        "dek": DEK,
        "kid": "weights",
        "artefact_id": bytes(16),
        "version": 1,
        "nonce": bytes(12),
    }
    return Manifest.build(entries or (ENTRY,), **{**known, **changes})


def sign(payload: bytes, payload_type: str = PAYLOAD_TYPE, key: Ed25519PrivateKey = OWNER) -> bytes:
    return Envelope.sign(payload_type, payload, key).encode()


def verify(envelope: bytes, expected: bytes) -> Manifest:
    return Manifest.verify(envelope, [OWNER.public_key()], expected)


MANIFEST = build()
ENVELOPE = sign(MANIFEST.payload)


def test_a_genuine_manifest_says_what_was_sealed() -> None:
    manifest = verify(ENVELOPE, MANIFEST.manifest_digest)
    assert (manifest.version, manifest.kid, manifest.lengths) == (1, "weights", (5,))
    assert manifest.contents(DEK) == (ENTRY,)
    assert manifest == MANIFEST == Manifest.unverified_parse(ENVELOPE)


def test_names_and_digests_are_not_in_the_clear() -> None:
    secret = Entry(path="codename.gguf", length=5, blake3=b"\xab" * 32, sha256=b"\xcd" * 32)
    payload = build(secret).payload
    for planted in (b"codename", secret.blake3.hex().encode(), b"cd" * 32, DEK.hex().encode()):
        assert planted not in payload


@given(st.integers(0, len(ENVELOPE) * 8 - 1))
def test_any_flipped_bit_of_the_envelope_is_refused(bit: int) -> None:
    raw = bytearray(ENVELOPE)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ArtefactFormatError, VerificationError)):
        verify(bytes(raw), MANIFEST.manifest_digest)


@given(st.integers(0, len(MANIFEST.payload) * 8 - 1))
def test_a_flipped_payload_fails_at_the_signature(bit: int) -> None:
    raw = bytearray(MANIFEST.payload)
    raw[bit // 8] ^= 1 << bit % 8
    envelope = json.loads(ENVELOPE)
    envelope["payload"] = base64.b64encode(raw).decode()
    with pytest.raises(VerificationError) as caught:
        verify(canonical(envelope), MANIFEST.manifest_digest)
    assert caught.value.stage == "signature"


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_the_parser_raises_only_its_own_error(raw: bytes) -> None:
    with pytest.raises(ArtefactFormatError):
        Manifest.unverified_parse(raw)
    with pytest.raises(ArtefactFormatError):
        Manifest.unverified_parse(sign(raw))


def test_a_stranger_a_wrong_type_and_an_old_version_are_refused() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
    older = build(version=2)
    cases = [
        (sign(MANIFEST.payload, key=stranger), "untrusted-signer", "signature"),
        (
            sign(MANIFEST.payload, "application/vnd.sealwright.lease.v1+json"),
            "wrong-payload-type",
            "signature",
        ),
        (sign(older.payload), "manifest-not-admitted", "admitted"),
    ]
    for envelope, code, stage in cases:
        with pytest.raises(VerificationError) as caught:
            verify(envelope, MANIFEST.manifest_digest)
        assert (caught.value.code, caught.value.stage) == (code, stage)


CHANGES: list[tuple[str, object, str]] = [
    ("format", "sealwright-manifest/v2", "unknown-manifest-format"),
    ("suite", "classical", "unknown-manifest-suite"),
    ("artefact_id", "00" * 15, "malformed-manifest"),
    ("artefact_id", "AA" * 16, "malformed-manifest"),
    ("version", 0, "malformed-manifest"),
    ("version", "1", "malformed-manifest"),
    ("version", True, "malformed-manifest"),
    ("kid", "", "malformed-manifest"),
    ("kid", "../etc", "malformed-manifest"),
    ("kid", ".hidden", "malformed-manifest"),
    ("kid", "line\n", "malformed-manifest"),
    ("files", [], "malformed-manifest"),
    ("files", [{"length": -1}], "malformed-manifest"),
    ("files", [{"length": 2**52 + 2**40}], "malformed-manifest"),
    ("files", [{"length": 1, "path": "a"}], "malformed-manifest"),
    ("files", [{"length": 0}] * 4097, "malformed-manifest"),
    ("key_commitment", b64url(bytes(31)), "wrong-length"),
    ("key_commitment", "=", "malformed-base64"),
    ("sealed", b64url(bytes(27)), "malformed-manifest"),
    ("extra", 1, "malformed-manifest"),
]


@pytest.mark.parametrize(("member", "value", "code"), CHANGES, ids=lambda value: str(value)[:24])
def test_a_member_outside_the_format_is_refused(member: str, value: object, code: str) -> None:
    payload = canonical({**json.loads(MANIFEST.payload), member: value})
    with pytest.raises(ArtefactFormatError) as caught:
        Manifest.unverified_parse(sign(payload))
    assert (caught.value.code, caught.value.stage) == (code, "parse")


def test_only_canonical_bytes_are_a_manifest() -> None:
    loose = json.dumps(json.loads(MANIFEST.payload)).encode()
    with pytest.raises(ArtefactFormatError) as caught:
        verify(sign(loose), MANIFEST.manifest_digest)
    assert caught.value.code == "not-canonical"


@pytest.mark.parametrize("dek", [bytes(32), DEK[:31], b"", DEK + b"\0"])
def test_a_wrong_key_fails_at_its_commitment(dek: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        MANIFEST.contents(dek)
    assert (caught.value.code, caught.value.stage) == ("wrong-dek", "key-commitment")


@pytest.mark.parametrize(("member", "value"), [("version", 7), ("kid", "other"), ("files", [{"length": 6}])])
def test_contents_belong_to_the_clear_part_even_if_the_owner_signs(member: str, value: object) -> None:
    payload = canonical({**json.loads(MANIFEST.payload), member: value})
    with pytest.raises(VerificationError) as caught:
        Manifest.verify_signed(sign(payload), [OWNER.public_key()]).contents(DEK)
    assert (caught.value.code, caught.value.stage) == ("bad-contents", "contents")


def test_several_files_are_in_the_format() -> None:
    second = Entry(path="sub/tokenizer.json", length=0, blake3=bytes(32))
    manifest = build(ENTRY, second)
    assert manifest.lengths == (5, 0)
    assert manifest.contents(DEK) == (ENTRY, second)
    assert manifest.associated_data(ENTRY, 0) != manifest.associated_data(ENTRY, 1)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "a\\b",
        "c:a",
        "a\0",
        "a\n",
        "\x7f",
        "\x85",
        "\udcff",
        "é" * 513,
    ],
    ids=ascii,
)
def test_a_path_outside_the_format_is_refused(path: str) -> None:
    with pytest.raises(ArtefactFormatError) as caught:
        build(Entry(path=path, length=0, blake3=bytes(32)))
    assert (caught.value.code, caught.value.stage) == ("bad-artefact-path", "contents")


def test_two_files_of_one_path_are_refused() -> None:
    with pytest.raises(ArtefactFormatError, match="one path"):
        build(ENTRY, ENTRY)


@given(st.text(max_size=40))
def test_a_path_is_taken_or_refused_and_nothing_else(path: str) -> None:
    try:
        check_path(path)
    except SealwrightError:
        return
    assert path
    assert not path.startswith("/")
    assert ".." not in path.split("/")


def test_associated_data_names_every_part() -> None:
    base = MANIFEST.associated_data(ENTRY, 0)
    others = [
        build(artefact_id=b"\1" * 16).associated_data(ENTRY, 0),
        build(version=2).associated_data(ENTRY, 0),
        MANIFEST.associated_data(ENTRY, 1),
        MANIFEST.associated_data(Entry(path="w", length=5, blake3=bytes(32)), 0),
        MANIFEST.associated_data(Entry(path="weights.bin", length=6, blake3=bytes(32)), 0),
    ]
    assert len({base, *others}) == 6
