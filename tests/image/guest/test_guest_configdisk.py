"""The config disk: one form, written and read; every other is refused, by the guest's own error."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.image.guest.disks import reader

from sealwright.errors import FormatError
from sealwright.image.guest.configdisk import (
    BLOCK,
    Member,
    check_member,
    content,
    header,
    index,
    is_config_disk,
    padding,
)

CONFIG = ("config.json", b'{"format":"x"}')
KEY = ("artefacts/k1", b"c" * 1000)


def disk(*files: tuple[str, bytes], end: bytes = bytes(2 * BLOCK)) -> bytes:
    return b"".join(header(name, len(raw)) + raw + padding(len(raw)) for name, raw in files) + end


def test_a_disk_is_read_back() -> None:
    raw = disk(CONFIG, ("network.json", b"n"), ("payload.json", b"p" * 512), ("certificates.pem", b"c"), KEY)
    found = index(reader(raw))
    assert [one.name for one in found] == [
        "config.json",
        "network.json",
        "payload.json",
        "certificates.pem",
        "artefacts/k1",
    ]
    assert found[0] == Member(name="config.json", offset=512, size=len(CONFIG[1]))
    assert content(reader(raw), found[0]) == CONFIG[1]
    assert raw[found[4].offset :][: found[4].size] == KEY[1]
    assert all(one.offset % 512 == 0 for one in found)
    assert is_config_disk(reader(raw))
    assert not is_config_disk(reader(disk(KEY)))
    assert index(reader(raw + b"whatever lies behind it")) == found


def test_other_programs_read_the_same() -> None:
    with tarfile.open(fileobj=io.BytesIO(disk(CONFIG, KEY))) as tar:
        for name, raw in (CONFIG, KEY):
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == raw
        assert all(one.isreg() and one.mode == 0o444 and one.mtime == 0 for one in tar.getmembers())


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 1 << 40])
def test_large_artefacts_have_the_sizes_of_gnu_tar(size: int) -> None:
    block = header("artefacts/k1", size)
    made = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    assert (made.size, made.name) == (size, "artefacts/k1")
    raw = {0: header(*map_config()), 512: CONFIG[1] + padding(len(CONFIG[1])), 1024: block}
    end = 1536 + -(-size // 512) * 512
    found = index(lambda offset, length: raw.get(offset, bytes(length) if offset >= end else b"")[:length])
    assert found[1] == Member(name="artefacts/k1", offset=1536, size=size)


def map_config() -> tuple[str, int]:
    return CONFIG[0], len(CONFIG[1])


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        disk(),
        disk(KEY),
        disk(("network.json", b"n")),
        disk(CONFIG, CONFIG),
        disk(CONFIG, KEY, KEY),
        disk(CONFIG, ("artefacts/k2", b"c"), KEY),
        disk(CONFIG, ("payload.json", b"p"), ("network.json", b"n")),
        disk(CONFIG, KEY, ("network.json", b"n")),
        disk(CONFIG, end=bytes(BLOCK)),
        disk(CONFIG, end=bytes(BLOCK) + b"x" * BLOCK),
        disk(CONFIG, end=b""),
        disk(CONFIG, ("network.json", b"")),
        disk(CONFIG, ("other.json", b"x")),
        disk(CONFIG, ("artefacts/", b"x")),
        disk(CONFIG, ("artefacts/../x", b"x")),
        disk(CONFIG, ("artefacts/a/b", b"x")),
        disk(CONFIG, ("artefacts/.a", b"x")),
        disk(("config.json", bytes(64 * 1024 + 1))),
        disk(CONFIG, *[(f"artefacts/k{at:02}", b"c") for at in range(65)]),
        header("config.json", 1 << 41),
    ],
)
def test_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        index(reader(raw))
    assert (caught.value.code, caught.value.stage) == ("malformed-config-disk", "config-disk")


@given(at=st.integers(0, BLOCK - 1), bit=st.integers(0, 7))
def test_no_bit_of_a_header_may_change(at: int, bit: int) -> None:
    raw = bytearray(disk(CONFIG))
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        index(reader(bytes(raw)))


@given(raw=st.binary(max_size=3000), after=st.booleans())
@settings(max_examples=300)
def test_nothing_but_its_own_error_is_raised(raw: bytes, after: bool) -> None:
    with pytest.raises(FormatError):
        index(reader((disk(CONFIG, end=b"") if after else b"") + b"\1" + raw))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("network.json")
    info.type, info.linkname, info.size = kind, "config.json", 1
    block = info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(FormatError):
        index(reader(disk(CONFIG, end=b"") + block + bytes(1024)))


def test_a_file_that_is_cut_off_is_refused() -> None:
    raw = disk(CONFIG)
    (member,) = index(reader(raw))
    with pytest.raises(FormatError):
        content(reader(raw[:520]), member)
    with pytest.raises(ValueError, match="artefacts"):
        content(reader(raw), Member(name="artefacts/k", offset=0, size=1))


def test_limits_are_checked_before_writing() -> None:
    check_member("payload.json", 4 << 20)
    for name, size in (("payload.json", (4 << 20) + 1), ("x", 1), ("config.json", 0)):
        with pytest.raises(FormatError):
            check_member(name, size)
