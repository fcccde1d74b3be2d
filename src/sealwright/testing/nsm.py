"""A stand-in for /dev/nsm: struct nsm_raw with real addresses, CBOR messages, registers, locks and error codes.

It follows drivers/misc/nsm.c (sizes, truncation) and the device model of QEMU's nitro-enclave machine (commands).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sealwright.crypto.cbor import CborValue, decode, encode
from sealwright.errors import FormatError
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tsm import fail

IOCTL_RAW = 0xC0200A00
MAX_REQUEST = 0x1000
MAX_RESPONSE = 0x3000
MAX_PCRS = 32

Document = Callable[[Mapping[int, bytes], Mapping[str, bytes | None]], bytes]


def unsigned_document(pcrs: Mapping[int, bytes], given: Mapping[str, bytes | None]) -> bytes:
    """Return a document whose signature and certificates are zeros."""
    locked: dict[Any, CborValue] = {index: value for index, value in pcrs.items()}  # noqa: C416 - another key type
    payload: dict[Any, CborValue] = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcde",
        "digest": "SHA384",
        "timestamp": 1_700_000_000_000,
        "pcrs": locked,
        "certificate": bytes(64),
        "cabundle": [bytes(64)],
        **given,
    }
    return encode([encode({1: -35}), {}, encode(payload), bytes(96)])


class FakeNsm:
    """An ioctl function for `Nsm`. Registers 0 to 15 are locked from the start, as in an enclave.

    Args of the constructor: document: makes a document of the locked registers and what was given.
    """

    def __init__(self, document: Document = unsigned_document) -> None:
        warnings.warn("FakeNsm attests whatever a test wants", FakePlatformWarning, stacklevel=2)
        self.pcrs = [bytes([n + 1]) * 48 if n < 3 else bytes(48) for n in range(MAX_PCRS)]
        self.locked = set(range(16))
        self.requests: list[bytes] = []
        self.answer: bytes | None = None  # instead of the right one
        self.failure = 0  # errno
        self.before: Callable[[str], None] = _nothing
        self._document = document

    def __call__(self, number: int, raw: bytearray) -> None:
        """nsm_dev_ioctl."""
        if number != IOCTL_RAW or len(raw) != 32:
            raise fail(errno.EINVAL)
        if self.failure:
            raise fail(self.failure)
        sent, length, received, room = struct.unpack("=QQQQ", raw)
        if length > MAX_REQUEST:
            raise fail(errno.EMSGSIZE)
        request = ctypes.string_at(sent, length)
        self.requests.append(request)
        answer = encode(self._respond(request)) if self.answer is None else self.answer
        answer = answer[: min(room, MAX_RESPONSE)]  # what does not fit is cut, without an error
        ctypes.memmove(received, answer, len(answer))
        struct.pack_into("=Q", raw, 24, len(answer))

    def _respond(self, request: bytes) -> CborValue:
        try:
            asked = decode(request)
        except FormatError:
            return {"Error": "InvalidOperation"}
        match asked:
            case str(command):
                return self._plain(command)
            case {**fields} if len(fields) == 1:
                ((name, arguments),) = fields.items()
                self.before(str(name))
                return self._command(str(name), arguments)
            case _:
                return {"Error": "InvalidOperation"}

    def _plain(self, command: str) -> CborValue:
        if command == "GetRandom":
            return {command: {"random": hashlib.shake_256(bytes([len(self.requests)])).digest(256)}}
        if command != "DescribeNSM":
            return {"Error": "InvalidOperation"}
        version: dict[Any, CborValue] = {"version_major": 1, "version_minor": 0, "version_patch": 0}
        module: dict[Any, CborValue] = {
            "module_id": "i-0123456789abcdef0-enc0123456789abcde",
            "max_pcrs": MAX_PCRS,
            "digest": "SHA384",
        }
        return {command: {**module, **version, "locked_pcrs": sorted(self.locked)}}

    def _command(self, command: str, fields: Any) -> CborValue:
        match command, fields:
            case "Attestation", dict(given):
                pcrs = {index: self.pcrs[index] for index in sorted(self.locked)}
                return {command: {"document": self._document(pcrs, dict(given))}}
            case "LockPCRs", {"range": int(count)}:
                if count > MAX_PCRS:
                    return {"Error": "InvalidIndex"}
                self.locked |= set(range(count))
                return command
            case _, {"index": int(index)} if index >= MAX_PCRS:
                return {"Error": "InvalidIndex"}
            case "DescribePCR", {"index": int(index)}:
                return {command: {"lock": index in self.locked, "data": self.pcrs[index]}}
            case "ExtendPCR" | "LockPCR", {"index": int(index)} if index in self.locked:
                return {"Error": "ReadOnlyIndex"}
            case "ExtendPCR", {"index": int(index), "data": bytes(data)}:
                self.pcrs[index] = hashlib.sha384(self.pcrs[index] + data).digest()
                return {command: {"data": self.pcrs[index]}}
            case "LockPCR", {"index": int(index)}:
                self.locked.add(index)
                return command
            case _:
                return {"Error": "InvalidOperation"}


def _nothing(command: str) -> None:
    """Do nothing before a command."""
