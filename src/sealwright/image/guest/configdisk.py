"""The config disk: all that a guest takes from its host, as a tar of which exactly one form is read.

A header is not parsed but made again from the name and size that it states, and compared: what differs in a byte is
refused. So this reads what this writes, and any tar program reads both. Spec: docs/spec/guest.md, "Config disk".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sealwright.errors import FormatError
from sealwright.image.guest.gpt import Read

BLOCK = 512  # bytes
CONFIG, NETWORK, PAYLOAD, CERTIFICATES = "config.json", "network.json", "payload.json", "certificates.pem"
ARTEFACTS = "artefacts/"
MAX_CONFIG = 64 * 1024  # bytes, as in sealwright.protocol.enclave_config
LIMITS = {CONFIG: MAX_CONFIG, NETWORK: 64 * 1024, PAYLOAD: 4 << 20, CERTIFICATES: 256 * 1024}  # bytes
MAX_ARTEFACT = 1 << 40  # bytes
MAX_ARTEFACTS = 64
STAGE = "config-disk"
_ORDER = tuple(LIMITS)
_ARTEFACT = re.compile(rf"{ARTEFACTS}[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}", re.ASCII)
_OCTAL_LIMIT = 8**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of the disk: where its bytes are. `offset` is a multiple of 512."""

    name: str
    offset: int
    size: int


def is_config_disk(read: Read) -> bool:
    """Return whether a disk says that it is one: its first block begins with the config's name."""
    first = CONFIG.encode() + b"\0"
    return read(0, len(first)) == first


def index(read: Read) -> tuple[Member, ...]:
    """Return the members of a config disk in their one order: the config, what else there is, artefacts by kid.

    Raises:
        FormatError: `malformed-config-disk`.
    """
    found: list[Member] = []
    offset = 0
    while True:
        block = read(offset, BLOCK)
        if len(block) != BLOCK:
            raise _malformed("it ends before its end mark")
        if not any(block):
            break
        member = _member(block, offset + BLOCK)
        _check_order(found[-1].name if found else "", member.name)
        found.append(member)
        offset = member.offset + _padded(member.size)
    if read(offset + BLOCK, BLOCK) != bytes(BLOCK):
        raise _malformed("it has half an end mark")
    if not found or found[0].name != CONFIG:
        raise _malformed(f"its first file is not {CONFIG}")
    if sum(member.name.startswith(ARTEFACTS) for member in found) > MAX_ARTEFACTS:
        raise _malformed(f"it has over {MAX_ARTEFACTS} artefacts")
    return tuple(found)


def content(read: Read, member: Member) -> bytes:
    """Return the bytes of a member that is not an artefact. Raises FormatError: `malformed-config-disk`."""
    if member.name not in LIMITS:
        raise ValueError("artefacts are not read into memory")
    found = read(member.offset, member.size)
    if len(found) != member.size:
        raise _malformed(f"{member.name} is cut off")
    return found


def header(name: str, size: int) -> bytes:
    """Return the block (512 bytes) that stands before a member: ustar, a regular file of nobody at the epoch."""
    digits = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    owner = b"0000444\0" + b"0000000\0" * 2
    rest = b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    before, after = (
        name.encode("ascii").ljust(100, b"\0") + owner + digits + b"00000000000\0",
        b"0" + bytes(100),
    )
    block = (before + b" " * 8 + after + rest).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size: int) -> bytes:
    """Return the zeros that follow the bytes of a member."""
    return bytes(_padded(size) - size)


def check_member(name: str, size: int) -> None:
    """Check that a disk may have such a member. Raises FormatError: `malformed-config-disk`."""
    limit = MAX_ARTEFACT if _ARTEFACT.fullmatch(name) else LIMITS.get(name)
    if limit is None:
        raise _malformed("it has a file of another name")
    if not 0 < size <= limit:
        raise _malformed(f"{name} has {size} bytes; 1 to {limit} are allowed")


def _member(block: bytes, offset: int) -> Member:
    try:
        name = block[:100].rstrip(b"\0").decode("ascii")
        size = _size(block[124:136])
    except ValueError:
        raise _malformed("a header has another form") from None
    check_member(name, size)
    if header(name, size) != block:
        raise _malformed(f"the header of {name} has another form")
    return Member(name=name, offset=offset, size=size)


def _size(field: bytes) -> int:
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field[:11], 8)


def _check_order(before: str, name: str) -> None:
    if _rank(before) >= _rank(name):
        raise _malformed(f"{name} stands twice, or not in its place")


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER) if name else -1, name)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _malformed(text: str) -> FormatError:
    return FormatError(
        f"the config disk is not in its format: {text}", code="malformed-config-disk", stage=STAGE
    )
