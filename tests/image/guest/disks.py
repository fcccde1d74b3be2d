"""Partition tables for tests, and config disks in memory."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence

from sealwright.image.guest import gpt

SECTORS = 4096
Read = Callable[[int, int], bytes]


def reader(raw: bytes) -> Read:
    return lambda offset, length: raw[offset : offset + length]


def entry(name: str, first: int, last: int, *, kind: bytes = b"\1" * 16) -> bytes:
    return gpt.ENTRY.pack(kind, bytes(range(16)), first, last, 0, name.encode("utf-16-le"))


def table(
    entries: Sequence[bytes], *, sectors: int = SECTORS, count: int = gpt.MAX_ENTRIES, **changes: object
) -> bytes:
    """Return the first 34 sectors of a disk."""
    raw = b"".join(entries).ljust(count * gpt.ENTRY_SIZE, b"\0")
    fields: dict[str, object] = {
        "signature": gpt.SIGNATURE,
        "revision": bytes.fromhex("00000100"),
        "size": gpt.HEADER.size,
        "crc": 0,
        "reserved": 0,
        "here": 1,
        "other": sectors - 1,
        "first": 34,
        "last": sectors - 34,
        "guid": bytes(16),
        "at": 2,
        "count": count,
        "entry": gpt.ENTRY_SIZE,
        "table": binascii.crc32(raw),
        **changes,
    }
    head = gpt.HEADER.pack(*fields.values())  # type: ignore[arg-type]
    if "crc" not in changes:
        head = head[:16] + binascii.crc32(head).to_bytes(4, "little") + head[20:]
    return bytes(512) + head.ljust(512, b"\0") + raw
