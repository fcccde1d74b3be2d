"""PE images: the digest that firmware measures, and every layout that is refused."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.predict.support import kernel, pe, uki

from sealwright.errors import FormatError
from sealwright.image.predict.pe import PeImage

RAW = pe([(".text", b"a" * 700), (".data", b"b" * 100)], certificates=b"c" * 16)
OPTIONAL = 64 + 24
SECTIONS = OPTIONAL + 240
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")


def changed(at: int, layout: str, *values: int) -> bytes:
    raw = bytearray(RAW)
    struct.pack_into(layout, raw, at, *values)
    return bytes(raw)


def test_sections_and_certificates() -> None:
    image = PeImage.parse(RAW)
    assert [(one.name, one.virtual_size) for one in image.sections] == [(".text", 700), (".data", 100)]
    assert image.section(".text") == b"a" * 700
    assert image.section(".none") is None
    assert image.certificates == b"c" * 16


def test_the_digest_leaves_out_checksum_certificates_and_their_entry() -> None:
    image = PeImage.parse(RAW)
    whole = bytearray(RAW[:-16])
    parts = (whole[: OPTIONAL + 64], whole[OPTIONAL + 68 : OPTIONAL + 144], whole[OPTIONAL + 152 :])
    assert image.authenticode("sha256") == hashlib.sha256(b"".join(parts)).digest()
    assert image.authenticode("sha384") == hashlib.sha384(b"".join(parts)).digest()
    assert PeImage.parse(changed(OPTIONAL + 64, "<I", 7)).authenticode("sha256") == image.authenticode(
        "sha256"
    )
    other = RAW[:-16] + b"d" * 16
    assert PeImage.parse(other).authenticode("sha256") == image.authenticode("sha256")


@given(st.integers(0, len(RAW) - 17))
def test_any_other_byte_changes_the_digest_or_is_refused(at: int) -> None:
    raw = bytearray(RAW)
    raw[at] ^= 0xFF
    left_out = OPTIONAL + 64 <= at < OPTIONAL + 68 or OPTIONAL + 144 <= at < OPTIONAL + 152
    with contextlib.suppress(FormatError):
        found = PeImage.parse(bytes(raw)).authenticode("sha256")
        assert left_out or found != PeImage.parse(RAW).authenticode("sha256")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"MZ",
        b"ZM" + RAW[2:],
        RAW[:200],
        RAW[:-1],
        RAW + bytes(8),
        changed(0x3C, "<I", 0xFFFFFFFF),
        changed(64, "<I", 0),
        changed(64 + 6, "<H", 0),
        changed(64 + 6, "<H", 97),
        changed(64 + 20, "<H", 100),
        changed(OPTIONAL, "<H", 0x10B),
        changed(OPTIONAL + 60, "<I", 1 << 30),
        changed(OPTIONAL + 60, "<I", 64),
        changed(OPTIONAL + 108, "<I", 4),
        changed(OPTIONAL + 108, "<I", 17),
        changed(OPTIONAL + 144, "<I", 1),
        changed(OPTIONAL + 148, "<I", 8),
        changed(OPTIONAL + 144, "<II", 512, len(RAW) - 512),
        changed(SECTIONS, "<B", 0xC0),
        changed(SECTIONS + 1, "<B", 0),
        changed(SECTIONS + 16, "<I", 512),  # a gap before the next section
        changed(SECTIONS + 40 + 20, "<I", 512),  # two sections over each other
        changed(SECTIONS + 40 + 16, "<I", 1 << 20),
    ],
)
def test_what_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        PeImage.parse(raw)
    assert (caught.value.code, caught.value.stage) == ("malformed-pe", "parse")


def test_a_section_that_is_not_what_the_file_says_is_refused() -> None:
    for raw in (changed(SECTIONS + 8, "<I", 1025), pe([(".text", b"a"), (".text", b"b")])):
        with pytest.raises(FormatError) as caught:
            PeImage.parse(raw).section(".text")
        assert caught.value.code == "malformed-pe"


@pytest.mark.parametrize("name", ["kernel", "uki", "stub"])
def test_it_is_the_digest_that_signing_tools_sign(name: str, tmp_path: Path) -> None:
    """sbsign puts the digest that it computes into the signature."""
    if shutil.which("sbsign") is None or (name == "stub" and not STUB.is_file()):
        pytest.skip("not installed: sbsigntool, or systemd-boot-efi")
    raw = {"kernel": kernel, "uki": uki, "stub": STUB.read_bytes}[name]()
    raw += bytes(-len(raw) % 8)  # what sbsign adds, too
    image, key, certificate = (tmp_path / part for part in ("image", "key.pem", "cert.pem"))
    image.write_bytes(raw)
    made = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -subj /CN=test -days 1"
    )
    subprocess.run(made.split(), check=True, capture_output=True)
    signed = tmp_path / "signed"
    command = ["sbsign", "--key", key, "--cert", certificate, "--output", signed, image]
    subprocess.run(command, check=True, capture_output=True)
    found = PeImage.parse(signed.read_bytes())
    assert found.certificates
    assert found.authenticode("sha256") in found.certificates
    assert found.authenticode("sha256") == PeImage.parse(raw).authenticode("sha256")
