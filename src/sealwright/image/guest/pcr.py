"""PCR 8 of a TPM, by the two commands that it takes, for an initrd. TPM 2.0 Library part 3, PCR_Extend and PCR_Read."""

from __future__ import annotations

import hashlib
import hmac
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealwright.errors import UnavailableError, VerificationError

CONFIG_PCR = 8
DEVICES = ("/dev/tpmrm0", "/dev/tpm0")
_SHA256 = 0x000B
_SELECTION = struct.pack(">IHB", 1, _SHA256, 3) + (1 << CONFIG_PCR).to_bytes(3, "little")
_NO_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)  # TPM_RS_PW, an empty password
_HEAD = struct.Struct(">HII")
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_PCR_READ, _PCR_EXTEND = 0x17E, 0x182
_AGAIN = frozenset({0x908, 0x90A, 0x922})  # yielded, testing, retry
_TRIES, _PAUSE_S, _TIMEOUT_MS = 100, 0.05, 60_000
_SIZE = 32  # bytes

Send = Callable[[bytes], bytes]


@contextmanager
def opened(device: str) -> Iterator[Send]:
    """Open a TPM's device: one command in, one response out."""
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield lambda command: _exchange(fd, command)
    finally:
        os.close(fd)


def extend_config(send: Send, config_digest: bytes) -> None:
    """Extend `config_digest` (32 bytes) into PCR 8 of the SHA-256 bank, whose first and only extend it is.

    Raises:
        VerificationError: `config-register-used`: somebody measured into it before, or at the same time.
        UnavailableError: `tpm-refused`: the TPM answers an error, or in another form.
    """
    if len(config_digest) != _SIZE:
        raise ValueError("a config digest has 32 bytes")
    _expect(send, bytes(_SIZE))
    digests = struct.pack(">IH", 1, _SHA256) + config_digest
    _command(send, _SESSIONS, _PCR_EXTEND, struct.pack(">I", CONFIG_PCR) + _NO_PASSWORD + digests)
    _expect(send, hashlib.sha256(bytes(_SIZE) + config_digest).digest())


def _expect(send: Send, wanted: bytes) -> None:
    if not hmac.compare_digest(_read(send), wanted):
        raise VerificationError(
            f"PCR {CONFIG_PCR} does not hold the config digest alone: start the machine anew",
            code="config-register-used",
            stage="config-register",
        )


def _read(send: Send) -> bytes:
    answer = _command(send, _NO_SESSIONS, _PCR_READ, _SELECTION)
    head = _SELECTION + struct.pack(">IH", 1, _SIZE)
    if len(answer) != 4 + len(head) + _SIZE or answer[4:-_SIZE] != head:
        raise _refused("reads no PCR 8 in bank sha256")
    return answer[-_SIZE:]


def _command(send: Send, tag: int, code: int, rest: bytes) -> bytes:
    """Return what follows the header of a successful response."""
    command = _HEAD.pack(tag, _HEAD.size + len(rest), code) + rest
    found = 0
    for _ in range(_TRIES):
        answer = send(command)
        if len(answer) < _HEAD.size:
            raise _refused("answers less than a header")
        _, size, found = _HEAD.unpack_from(answer)
        if size != len(answer):
            raise _refused("answers another length than it states")
        if found not in _AGAIN:
            break
        time.sleep(_PAUSE_S)
    if found:
        raise _refused(f"answers 0x{found:x} to command 0x{code:x}")
    return answer[_HEAD.size :]


def _exchange(fd: int, command: bytes) -> bytes:
    os.write(fd, command)
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    if not waiting.poll(_TIMEOUT_MS):
        raise _refused("does not answer")
    return os.read(fd, 4096)


def _refused(text: str) -> UnavailableError:
    return UnavailableError(f"the TPM {text}", code="tpm-refused", stage="config-register")
