"""What the stub measures, and what it hands to the kernel."""

from __future__ import annotations

import pytest
from tests.image.predict.support import CMDLINE, MAGIC, SBAT, kernel, parsed, uki

from sealwright.errors import FormatError
from sealwright.image.predict.stub import Uki, stub_command_line


def test_sections_in_the_stubs_own_order() -> None:
    names = [
        name for name, _ in parsed({".ucode": b"u", ".pcrsig": b"s", ".pcrpkey": b"k"}).measured_sections()
    ]
    order = [".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".uname", ".sbat", ".pcrpkey"]
    assert names == order  # .pcrsig signs the result: it is no part of it
    assert dict(parsed().measured_sections())[".sbat"] == SBAT


def test_an_empty_section_counts_as_none() -> None:
    assert ".osrel" not in dict(parsed({".osrel": b""}).measured_sections())


def test_the_command_line_is_cut_at_its_ends_and_spaced() -> None:
    assert parsed().command_line() == "console=ttyS0 roothash=" + "ab" * 32
    assert stub_command_line(b"\n a\x01b  c\x7f ") == "a b  c"
    for wrong in (b"a\0b", b"\xc3\xa4"):
        with pytest.raises(FormatError) as caught:
            stub_command_line(wrong)
        assert caught.value.code == "malformed-uki"


def test_an_initrd_alone_is_handed_on_as_it_is() -> None:
    assert parsed({".osrel": None}).initrd() == b"an initrd"


def test_more_than_one_is_joined_each_padded() -> None:
    found = parsed({".ucode": b"micro"}).initrd()
    assert found.startswith(b"micro\0\0\0" + b"an initrd\0\0\0" + b"070701" + b"00000001" + b"0000416d")
    assert b".extra\0" in found
    assert b".extra/os-release\0" in found
    assert found.endswith(b"TRAILER!!!\0\0\0\0")
    assert len(found) % 4 == 0


def test_archives_follow_each_other() -> None:
    found = parsed({".pcrsig": b"s", ".pcrpkey": b"k"}).initrd()
    names = (b"tpm2-pcr-signature.json", b"tpm2-pcr-public-key.pem", b"os-release")
    places = [found.index(name) for name in names]
    assert places == sorted(places)


@pytest.mark.parametrize("name", [".linux", ".cmdline", ".initrd"])
def test_a_part_that_others_would_choose_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        Uki.parse(uki({name: None}))
    assert (caught.value.code, caught.value.stage) == ("malformed-uki", "parse")


@pytest.mark.parametrize("name", [".dtb", ".dtbauto", ".profile", ".hwids", ".efifw", ".splash"])
def test_a_section_whose_effect_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        Uki.parse(uki({name: b"x"}))
    assert caught.value.code == "malformed-uki"


@pytest.mark.parametrize(
    "magic",
    [b"", b"systemd-stub 257", MAGIC.replace(b"257", b"252"), MAGIC.replace(b"257", b"258"), MAGIC + b"x"],
)
def test_another_stub_is_refused(magic: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        Uki.parse(uki(magic=magic))
    assert caught.value.code == "stub-version"


def test_the_kernel_is_an_image_of_its_own() -> None:
    assert parsed().kernel.raw == kernel()
    with pytest.raises(FormatError) as caught:
        _ = parsed({".linux": b"no image"}).kernel
    assert caught.value.code == "malformed-pe"
    assert parsed().sections[".cmdline"] == CMDLINE
