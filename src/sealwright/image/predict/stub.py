"""What systemd's stub does with a unified kernel image: which sections it measures, and what it hands to the kernel.

Facts: systemd 257, src/fundamental/uki.h (order of measurement), src/boot/stub.c (order of initrds), src/boot/cpio.c
(archives made of sections). Spec: docs/spec/predicted-measurements.md, "The stub". A stub of another version, or a section
whose effect is not modelled here, is refused: a prediction that might be wrong is worth less than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from sealwright.errors import FormatError
from sealwright.image.predict.pe import PeImage

STUB_VERSIONS = frozenset({257})  # that the order below was checked against, by boots
# In the order in which the stub measures them, whatever their order in the file.
MEASURED = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".uname", ".sbat", ".pcrpkey")
UNMEASURED = (".pcrsig",)  # signs predicted values, so that it cannot be one of them
# They choose among device trees, profiles or firmware, which does not stand in the file; a picture was never tried.
UNKNOWN = frozenset({".dtb", ".dtbauto", ".profile", ".hwids", ".efifw", ".splash"})
# Sections that the stub wraps into archives behind the initrd, and the files' names there.
_WRAPPED = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
)
_MAGIC = re.compile(rb"#### LoaderInfo: systemd-stub ([0-9]{1,4})(?:[^0-9#][^#\0]{0,64})? ####\0?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uki:
    """A unified kernel image, and its sections as the stub sees them."""

    image: PeImage
    sections: dict[str, bytes]  # of `MEASURED` and `UNMEASURED`, as far as it has them

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the image in `raw`.

        Raises:
            FormatError: `malformed-pe`; `malformed-uki`: a section is missing, or its effect is not known;
                `stub-version`: the stub is none, or one whose measurements were not checked.
        """
        image = PeImage.parse(raw)
        _check_stub(image.section(".sdmagic") or b"")
        names = {section.name for section in image.sections}
        if names & UNKNOWN:
            _refuse(f"what sections {sorted(names & UNKNOWN)} do is not known: leave them out")
        read = {name: image.section(name) for name in (*MEASURED, *UNMEASURED)}
        sections = {name: data for name, data in read.items() if data is not None}
        for name in (".linux", ".cmdline", ".initrd"):
            if name not in sections:
                _refuse(f"no section {name}: the firmware or its shell would choose it")
        return cls(image=image, sections=sections)

    @property
    def kernel(self) -> PeImage:
        """The kernel, which the stub loads as an image of its own. Raises FormatError `malformed-pe`."""
        return PeImage.parse(self.sections[".linux"])

    def measured_sections(self) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents in the order in which the stub measures them."""
        for name in MEASURED:
            if name in self.sections:
                yield name, self.sections[name]

    def command_line(self) -> str:
        """Return what the kernel is given: control characters become spaces, and the ends are cut.

        Raises:
            FormatError: `malformed-uki`: the section is no ASCII text, or holds a NUL.
        """
        return stub_command_line(self.sections[".cmdline"])

    def initrd(self) -> bytes:
        """Return what the kernel is given: microcode, initrd, and archives of sections, each padded to four bytes."""
        base = [self.sections[name] for name in (".ucode", ".initrd") if name in self.sections]
        extra = [_archive(name, self.sections[key]) for key, name in _WRAPPED if key in self.sections]
        parts = [*base, *extra]
        return parts[0] if len(parts) == 1 else b"".join(map(_padded, parts))


def stub_command_line(raw: bytes) -> str:
    """Return a section .cmdline as the stub passes it on. Raises FormatError `malformed-uki`."""
    if not raw.isascii() or b"\0" in raw:
        _refuse("a command line that is no ASCII text")
    spaced = "".join(" " if char <= " " or char == "\x7f" else char for char in raw.decode("ascii"))
    return spaced.strip(" ")


def _check_stub(magic: bytes) -> None:
    found = _MAGIC.fullmatch(magic)
    if found is None or int(found[1]) not in STUB_VERSIONS:
        said = "none that is known" if found is None else f"systemd-stub {int(found[1])}"
        wanted = ", ".join(map(str, sorted(STUB_VERSIONS)))
        raise FormatError(
            f"the stub is {said}; what it measures is known for systemd-stub {wanted}", code="stub-version"
        )


def _archive(name: str, data: bytes) -> bytes:
    """Return the newc archive that the stub makes of one section: directory .extra and one file in it."""
    entries = _entry(1, 0o040555, ".extra", b"") + _entry(2, 0o100444, f".extra/{name}", data)
    # The trailer of the stub: one link, no other number, and its length of name in upper case.
    numbers = b"".join(b"%08X" % value for value in (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0))
    return entries + b"070701" + numbers + b"TRAILER!!!\0\0\0\0"


def _entry(inode: int, mode: int, name: str, data: bytes) -> bytes:
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def _refuse(text: str) -> NoReturn:
    raise FormatError(text, code="malformed-uki")
