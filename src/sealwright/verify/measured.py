"""Which bytes of an event were measured? Only a digest is; type and data are the log's word.

Whoever sends a log chooses labels and data so that an event looks like another one, or like none. Therefore what must
not be missed (separators, actions, section names, images) is recognised by its digest, or is whatever is not explained.

An event is *proved* if its digest is the hash of its data in one of the ways that firmware and boot loaders are known to
hash data of that type. Everything else is *opaque*: its digest is known, what it stands for is not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives import hashes

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.eventlog import EV_NO_ACTION, Bank
from sealwright.evidence.uefi import VariableData

EV_POST_CODE = 0x00000001
EV_SEPARATOR = 0x00000004
EV_ACTION = 0x00000005
EV_EVENT_TAG = 0x00000006
EV_S_CRTM_VERSION = 0x00000008
EV_PLATFORM_CONFIG_FLAGS = 0x0000000A
EV_COMPACT_HASH = 0x0000000C
EV_IPL = 0x0000000D
EV_NONHOST_INFO = 0x00000011
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_VARIABLE_BOOT = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
EV_EFI_GPT_EVENT = 0x80000006
EV_EFI_ACTION = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
EV_EFI_HANDOFF_TABLES = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
EV_EFI_HANDOFF_TABLES2 = 0x8000000B
EV_EFI_VARIABLE_BOOT2 = 0x8000000C
EV_EFI_GPT_EVENT2 = 0x8000000D
EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

NAMES: Mapping[int, str] = MappingProxyType(
    {
        value: name
        for name, value in dict(globals()).items()
        if name.startswith("EV_") and isinstance(value, int)
    }
)
# Firmware always hashes these whole: where it did not, the log was changed.
ALWAYS_WHOLE = frozenset({EV_SEPARATOR, EV_EFI_ACTION, EV_EFI_VARIABLE_DRIVER_CONFIG})
SEPARATORS = (b"\0\0\0\0", b"\xff\xff\xff\xff")  # any other value tells of an error
_GRUB_LABELS = (b"grub_cmd: ", b"kernel_cmdline: ", b"grub_cmd ", b"grub_kernel_cmdline ")
_TD_SHIM_NAME_AND_SIZE = 20  # bytes before the content in td-shim's EV_PLATFORM_CONFIG_FLAGS


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEvent:
    """One event of a register that replays. `content` is what was hashed; None: opaque."""

    register: str  # "pcr7", "rtmr0"
    number: int  # position in the log, from 0; runtime events come after the log's
    type: int
    digest: bytes
    unverified_data: bytes  # as logged
    content: bytes | None
    label: str = ""  # what stood before the content in the log: never measured

    @property
    def proved(self) -> bool:
        """Whether `content` is what was measured."""
        return self.content is not None

    @property
    def name(self) -> str:
        """The type's name, for people; the type was not measured."""
        return NAMES.get(self.type, f"{self.type:#010x}")


def hashed(bank: Bank, data: bytes) -> bytes:
    """Return the hash of `data` in `bank`."""
    if bank != "sm3":
        return hashlib.new(bank, data).digest()
    sm3 = hashes.Hash(hashes.SM3())  # not every hashlib has it
    sm3.update(data)
    return sm3.finalize()


def is_separator(event: MeasuredEvent, bank: Bank) -> bool:
    """Say whether this is where firmware ended something, by its digest: whoever writes the log chooses its type."""
    return event.digest in {hashed(bank, value) for value in SEPARATORS}


def content_of(kind: int, data: bytes, digest: bytes, bank: Bank) -> tuple[bytes, str] | None:
    """Return what `digest` was made of, and its label, in one of the ways that stand for `kind`; else None."""
    for content, label in _candidates(kind, data):
        if hmac.compare_digest(hashed(bank, content), digest):
            return content, label
    return None


def _candidates(kind: int, data: bytes) -> Iterator[tuple[bytes, str]]:
    for way in _WAYS.get(kind, ()):
        yield from way(data)


def _whole(data: bytes) -> Iterator[tuple[bytes, str]]:
    yield data, ""


def _variable_value(data: bytes) -> Iterator[tuple[bytes, str]]:
    """Older firmware hashes only the value of a boot variable: its name then is not measured."""
    try:
        variable = VariableData.parse(data)
    except EvidenceFormatError:
        return
    if variable.variable_data:
        yield variable.variable_data, variable.unicode_name


def _without_last(data: bytes) -> Iterator[tuple[bytes, str]]:
    """Shim before version 15 logs one byte more than it hashes."""
    yield data[:-1], ""


def _text(data: bytes) -> Iterator[tuple[bytes, str]]:
    """GRUB hashes a command or command line without its label, and without the one or two bytes after it."""
    for label in _GRUB_LABELS:
        if data.startswith(label):
            text = data[len(label) :]
            for cut in range(min(3, len(text))):
                yield text[: len(text) - cut], label.decode().rstrip(": ")


def _section_name(data: bytes) -> Iterator[tuple[bytes, str]]:
    """systemd-stub logs a section's name as UTF-16 and hashes it as ASCII with its NUL."""
    try:
        name = data.decode("utf-16-le")
    except UnicodeDecodeError:
        return
    if name.startswith(".") and name.isascii() and len(name) <= 9:
        yield name.rstrip("\0").encode() + b"\0", ""


def _cut_utf16(data: bytes) -> Iterator[tuple[bytes, str]]:
    """systemd-boot before version 251 cuts off the last zero byte of UTF-16 text."""
    yield data + b"\0", ""


def _after_name(data: bytes) -> Iterator[tuple[bytes, str]]:
    if len(data) > _TD_SHIM_NAME_AND_SIZE:
        name = data[: _TD_SHIM_NAME_AND_SIZE - 4].split(b"\0")[0]
        yield data[_TD_SHIM_NAME_AND_SIZE:], name.decode("ascii", "replace")


_Way = Callable[[bytes], Iterator[tuple[bytes, str]]]
_WAYS: Mapping[int, tuple[_Way, ...]] = MappingProxyType(
    {
        EV_SEPARATOR: (_whole,),
        EV_ACTION: (_whole,),
        EV_EVENT_TAG: (_whole,),
        EV_S_CRTM_VERSION: (_whole,),
        EV_PLATFORM_CONFIG_FLAGS: (_whole, _after_name),
        EV_IPL: (_text, _section_name, _whole, _cut_utf16),
        EV_NONHOST_INFO: (_whole,),
        EV_EFI_VARIABLE_DRIVER_CONFIG: (_whole,),
        EV_EFI_VARIABLE_BOOT: (_whole, _variable_value),
        EV_EFI_VARIABLE_BOOT2: (_whole,),
        EV_EFI_VARIABLE_AUTHORITY: (_whole, _without_last),
        EV_EFI_GPT_EVENT: (_whole,),
        EV_EFI_ACTION: (_whole,),
    }
)


def extended(bank: Bank, value: bytes, digest: bytes) -> bytes:
    """Return a register that held `value` after it was extended with `digest`."""
    return hashed(bank, value + digest)


def is_extended(kind: int) -> bool:
    """Say whether an event of this type was extended: all but EV_NO_ACTION are."""
    return kind != EV_NO_ACTION
