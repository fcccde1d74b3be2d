"""TPM response codes in words. TPM 2.0 Library part 2, TPM_RC."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RC_RETRY = 0x922  # what has to be sent again: the TPM was busy with its own affairs
RC_YIELDED = 0x908
RC_TESTING = 0x90A
AGAIN = frozenset({RC_RETRY, RC_YIELDED, RC_TESTING})
RC_NO_HANDLE = 0x18B  # of the first handle
RC_INITIALIZE = 0x100  # before TPM2_Startup, or after it was sent already

_FORMAT_ONE: Mapping[int, str] = MappingProxyType(
    {
        0x01: "asymmetric algorithm not supported",
        0x02: "attributes inconsistent",
        0x03: "hash algorithm not supported",
        0x04: "value out of range",
        0x05: "hierarchy disabled or wrong for this",
        0x07: "key size not supported",
        0x09: "mode of operation not supported",
        0x0A: "wrong type",
        0x0B: "no such handle, or one that is wrong for this",
        0x0C: "key derivation function not supported",
        0x0D: "out of range",
        0x0E: "wrong authorization, and it counts against dictionary attacks",
        0x0F: "nonce too short or missing",
        0x12: "scheme not supported or wrong for this",
        0x15: "wrong size",
        0x16: "symmetric algorithm or size not supported",
        0x17: "structure tag wrong",
        0x18: "selector wrong",
        0x1A: "cut off",
        0x1B: "wrong signature",
        0x1C: "key wrong for this",
        0x1D: "policy check failed",
        0x1F: "integrity check failed",
        0x20: "wrong ticket",
        0x21: "reserved bits set",
        0x22: "wrong authorization",
        0x23: "expired",
        0x24: "policy for another command",
        0x25: "binding wrong",
        0x26: "curve not supported",
        0x27: "point not on its curve",
    }
)
_WARNING: Mapping[int, str] = MappingProxyType(
    {
        0x01: "gap in contexts",
        0x02: "no room for another object: flush one",
        0x03: "no room for another session: flush one",
        0x04: "out of memory",
        0x05: "no room for another session handle",
        0x06: "no room for another object handle",
        0x07: "wrong locality",
        0x08: "yielded",
        0x0A: "testing itself",
        0x10: "no such handle (first)",
        0x18: "no such session (first)",
        0x20: "writes to NV are limited at this rate",
        0x21: "locked out against dictionary attacks: wait, or clear the lockout",
        0x22: "busy: send it again",
        0x23: "NV not available now",
    }
)
_ERROR: Mapping[int, str] = MappingProxyType(
    {
        0x00: "not initialized: send Startup",
        0x01: "failure mode: restart it",
        0x20: "disabled",
        0x21: "command needs exclusive use",
        0x24: "authorization handle wrong for this",
        0x25: "authorization missing",
        0x26: "policy wrong for this",
        0x42: "command size inconsistent",
        0x43: "command not supported",
        0x44: "authorization size inconsistent",
        0x48: "NV locked",
        0x49: "NV authorization wrong",
        0x4A: "NV not written yet",
        0x4B: "NV full",
        0x4C: "NV index exists already",
        0x53: "needs a self-test first",
    }
)


def explain(code: int) -> str:
    """Return a response code in words: `0x9a2: wrong authorization, of session 1`."""
    if code & 0x80:
        return f"{code:#05x}: {_FORMAT_ONE.get(code & 0x3F, 'error')}, of {_position(code)}"
    if code & 0x400:
        return f"{code:#05x}: error of the vendor's own"
    return f"{code:#05x}: {(_WARNING if code & 0x800 else _ERROR).get(code & 0x7F, 'error')}"


def _position(code: int) -> str:
    number = code >> 8 & 0xF
    if code & 0x40:
        return f"parameter {number}"
    return f"session {number & 7}" if number & 8 else f"handle {number}"
