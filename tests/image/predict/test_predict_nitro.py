"""Enclave images: written, read back byte for byte, and measured."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.image.predict.support import issuer

from sealwright.errors import FormatError
from sealwright.image.eif import Eif
from sealwright.image.predict.nitro import predict_nitro

IMAGE = Eif.make(b"kernel", "console=ttyS0", [b"init", b"app"], name="test", version="1")
RAW = IMAGE.encode()


def extended(*parts: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(parts)).digest()).digest()


def code(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        Eif.parse(raw)
    return caught.value.code


def rewritten(raw: bytes) -> bytes:
    """Return the image with a right checksum."""
    head, body = raw[:544], raw[548:]
    return head + struct.pack(">I", zlib.crc32(body, zlib.crc32(head))) + body


def test_layout() -> None:
    assert RAW[:8] == b".eif\x00\x04\x00\x00"
    assert struct.unpack_from(">QQHH", RAW, 8) == (1 << 30, 2, 0, 5)
    offsets, sizes = struct.unpack_from(">32Q", RAW, 28), struct.unpack_from(">32Q", RAW, 284)
    kinds = [struct.unpack_from(">HHQ", RAW, offset) for offset in offsets[:5]]
    assert [(kind, size) for kind, _, size in kinds] == list(zip((1, 2, 5, 3, 3), sizes[:5], strict=True))
    assert not any(offsets[5:])
    assert not any(sizes[5:])
    assert RAW[offsets[0] + 12 :].startswith(b"kernel")
    assert struct.unpack_from(">I", RAW, 544)[0] == zlib.crc32(RAW[:544] + RAW[548:])


def test_the_same_input_gives_the_same_bytes() -> None:
    assert Eif.make(b"kernel", "console=ttyS0", [b"init", b"app"], name="test", version="1").encode() == RAW
    assert Eif.parse(RAW) == IMAGE
    other = Eif.make(b"kernel", "console=ttyS0", [b"init", b"app"], name="test", version="1", arm64=True)
    assert Eif.parse(other.encode()).arm64


def test_registers() -> None:
    registers = predict_nitro(IMAGE).registers
    assert registers == {
        "pcr0": extended(b"kernel", b"console=ttyS0", b"init", b"app"),
        "pcr1": extended(b"kernel", b"console=ttyS0", b"init"),
        "pcr2": extended(b"app"),
        "pcr8": bytes(48),
    }


def test_who_signs_is_in_pcr8() -> None:
    certificate, _ = issuer("enclave")
    assert predict_nitro(IMAGE, certificate).registers["pcr8"] == extended(
        certificate.public_bytes(Encoding.DER)
    )


def test_one_ramdisk_leaves_pcr2_extended_with_nothing() -> None:
    one = Eif.make(b"kernel", "", [b"init"], name="test", version="1")
    assert predict_nitro(one).registers["pcr2"] == extended()


def test_metadata_and_signature_are_not_measured() -> None:
    other = Eif.make(b"kernel", "console=ttyS0", [b"init", b"app"], name="other", version="2")
    assert predict_nitro(other) == predict_nitro(IMAGE)
    assert other.encode() != RAW


@pytest.mark.parametrize("at", [0, 5, 7, 15, 23, 25, 27, 30, 35, 290, 540, 545, 549, 560, len(RAW) - 1])
def test_any_changed_byte_is_refused(at: int) -> None:
    raw = bytearray(RAW)
    raw[at] ^= 0xFF
    assert code(bytes(raw)) == "malformed-eif"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        RAW[:100],
        RAW[:-1],
        rewritten(RAW + bytes(12)),
        rewritten(RAW[:548] + b"\0\x02" + RAW[550:]),  # the first section says it is a command line
        rewritten(RAW[:550] + b"\0\1" + RAW[552:]),  # flags
        rewritten(RAW[:548] + struct.pack(">HHQ", 1, 0, 1 << 40) + RAW[560:]),
        rewritten(RAW[:8] + bytes(8) + RAW[16:]),  # another default for memory
        RAW[:548] + struct.pack(">HHQ", 3, 0, 0) * 33,
    ],
)
def test_what_is_refused(raw: bytes) -> None:
    assert code(raw) == "malformed-eif"


@pytest.mark.parametrize(
    ("kernel", "cmdline", "ramdisks"),
    [
        (b"", "a", [b"r"]),
        (b"k", "a\0", [b"r"]),
        (b"k", "ä", [b"r"]),
        (b"k", "a" * 4097, [b"r"]),
        (b"k", "a", []),
        (b"k", "a", [b""]),
        (b"k", "a", [b"r"] * 30),
    ],
)
def test_what_is_not_written(kernel: bytes, cmdline: str, ramdisks: list[bytes]) -> None:
    with pytest.raises(FormatError) as caught:
        Eif.make(kernel, cmdline, ramdisks, name="test", version="1").encode()
    assert caught.value.code == "malformed-eif"
