"""Variable-length integers of QUIC (RFC 9000, section 16)."""

from __future__ import annotations

MAX_VARINT = (1 << 62) - 1


def encode_varint(value: int) -> bytes:
    """Return `value` (0 to 2^62 - 1) in its shortest form."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def decode_varint(buffer: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Return (value, position after it), or None while `buffer` does not hold all of it."""
    if start >= len(buffer):
        return None
    length = 1 << (buffer[start] >> 6)
    end = start + length
    if end > len(buffer):
        return None
    value = int.from_bytes(buffer[start:end], "big")
    return value & ((1 << (8 * length - 2)) - 1), end
