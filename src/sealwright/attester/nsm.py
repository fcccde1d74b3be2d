"""The Nitro Secure Module of an AWS Nitro enclave: attestation documents, registers, randomness.

Interface: include/uapi/linux/nsm.h (kernel 6.8, and AWS's own driver before it) and the CBOR messages of
aws-nitro-enclaves-nsm-api. A request and its answer travel in buffers of ours whose addresses the ioctl carries.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sealwright.attester.base import STAGE, check_ours, check_report_data, forbidden, missing, refused
from sealwright.crypto.cbor import CborValue, Key, Tagged, decode, encode
from sealwright.errors import EvidenceFormatError, UnavailableError, VerificationError

if TYPE_CHECKING:
    from sealwright.evidence.envelope import EvidenceEnvelope

DEVICE = "/dev/nsm"
IOCTL_RAW = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw)
MAX_REQUEST = 0x1000  # bytes
MAX_RESPONSE = 0x3000
CONFIG_PCR = 16  # the first that an enclave may extend
PCR_SIZE = 48  # bytes, SHA-384
_RAW = struct.Struct("=QQQQ")  # address and length of the request, address and length of the response

Ioctl = Callable[[int, bytearray], None]  # request number, struct nsm_raw in and out; raises OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pcr:
    """One register."""

    data: bytes
    lock: bool  # read-only until the enclave ends


class Nsm:
    """The module's commands. Each call is one ioctl; the driver serialises them."""

    def __init__(self, ioctl: Ioctl | None = None, *, device: str = DEVICE) -> None:
        self._ioctl = ioctl
        self._device = device

    def attestation(
        self, *, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """Return a signed document (COSE_Sign1) over the locked registers and what is given."""
        fields: dict[Key, CborValue] = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        return _bytes(self._ask("Attestation", fields), "document")

    def describe_pcr(self, index: int) -> Pcr:
        """Return a register."""
        found = self._ask("DescribePCR", {"index": index})
        lock = found.get("lock")
        if not isinstance(lock, bool):
            raise _malformed("lock")
        return Pcr(data=_bytes(found, "data"), lock=lock)

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend a register; return its new value."""
        return _bytes(self._ask("ExtendPCR", {"index": index, "data": data}), "data")

    def lock_pcr(self, index: int) -> None:
        """Make a register read-only. Only locked registers stand in documents."""
        self._ask("LockPCR", {"index": index})

    def lock_pcrs(self, count: int) -> None:
        """Make the first `count` registers read-only."""
        self._ask("LockPCRs", {"range": count})

    def describe(self) -> dict[str, object]:
        """Return the module's id, version, digest and locked registers."""
        found = self._ask("DescribeNSM", None)
        names = (
            "module_id",
            "digest",
            "max_pcrs",
            "locked_pcrs",
            "version_major",
            "version_minor",
            "version_patch",
        )
        if not set(names) <= found.keys():
            raise _malformed("DescribeNSM")
        return {name: found[name] for name in names}

    def random(self) -> bytes:
        """Return randomness of the module's own, to be mixed with the kernel's; some 256 bytes."""
        return _bytes(self._ask("GetRandom", None), "random")

    def _ask(self, command: str, fields: Mapping[Key, CborValue] | None) -> dict[object, object]:
        """Send a command and return the fields of its answer.

        Raises:
            UnavailableError: `tee-interface-missing`, `tee-permission`, `tee-refused` (with the module's code).
            EvidenceFormatError: `malformed-nsm-response`.
        """
        request = encode(command if fields is None else {command: fields})
        if len(request) > MAX_REQUEST:
            raise ValueError(f"a request of {len(request)} bytes is over {MAX_REQUEST}")
        try:
            answer = decode(self._exchange(request), limit=MAX_RESPONSE, error=EvidenceFormatError)
        except EvidenceFormatError as exc:
            raise _malformed(command) from exc
        return _fields(answer, command)

    def _exchange(self, request: bytes) -> bytes:
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(
            _RAW.pack(ctypes.addressof(sent), len(request), ctypes.addressof(received), MAX_RESPONSE)
        )
        try:
            (self._ioctl or _real(self._device))(IOCTL_RAW, raw)
        except OSError as exc:
            raise self._translated(exc) from exc
        length = _RAW.unpack(raw)[3]
        if length > MAX_RESPONSE:
            raise _malformed("length")
        return received.raw[:length]

    def _translated(self, exc: OSError) -> UnavailableError:
        if exc.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return missing(
                f"{self._device} is not there: this is no Nitro enclave, or its driver is not loaded"
            )
        if exc.errno in (errno.EACCES, errno.EPERM):
            return forbidden(self._device)
        return refused(f"{self._device}: {exc.strerror}")


class NitroAttester:
    """Documents of this enclave; the report data is `user_data`."""

    platform: Literal["nitro"] = "nitro"

    def __init__(self, nsm: Nsm | None = None) -> None:
        self._nsm = nsm or Nsm()

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return a document over `report_data` (64 bytes). Its certificates are in the document.

        Raises:
            UnavailableError, EvidenceFormatError: as the module's commands.
            VerificationError: `report-data-mismatch`.
        """
        from sealwright.evidence.envelope import (
            EvidenceEnvelope,
        )  # not there in an initrd, which never quotes

        check_report_data(report_data)
        document = self._nsm.attestation(user_data=report_data)
        check_ours(_user_data(document), report_data)
        return EvidenceEnvelope(type="nitro", evidence=document, endorsements=())

    def describe(self) -> Mapping[str, object]:
        """Return what the module says of itself."""
        return {"interface": DEVICE, **self._nsm.describe()}

    def bind_config(self, config_digest: bytes) -> None:
        """See `lock_config`."""
        self.lock_config(config_digest)

    def lock_config(self, config_digest: bytes) -> bytes:
        """Extend `config_digest` (32 bytes) into PCR 16, whose only extend it is, and lock it; return its value.

        Where exactly this was done before, nothing is.

        Raises:
            UnavailableError, EvidenceFormatError: as the module's commands.
            VerificationError: `config-register-used`: PCR 16 holds something else.
        """
        if len(config_digest) != 32:
            raise ValueError("a config digest has 32 bytes")
        wanted = hashlib.sha384(bytes(PCR_SIZE) + config_digest).digest()
        before = self._nsm.describe_pcr(CONFIG_PCR)
        if not before.lock:
            if before.data == bytes(PCR_SIZE):
                self._nsm.extend_pcr(CONFIG_PCR, config_digest)
            if hmac.compare_digest(self._nsm.describe_pcr(CONFIG_PCR).data, wanted):
                self._nsm.lock_pcr(CONFIG_PCR)
        after = self._nsm.describe_pcr(CONFIG_PCR)
        if not after.lock or not hmac.compare_digest(after.data, wanted):
            raise VerificationError(
                "PCR 16 does not hold the config digest alone, locked",
                code="config-register-used",
                stage=STAGE,
            )
        return after.data


def _real(device: str) -> Ioctl:
    import fcntl  # not there on Windows, where this module is imported but not used

    def ioctl(number: int, raw: bytearray) -> None:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(handle, number, raw, True)
        finally:
            os.close(handle)

    return ioctl


def _fields(answer: CborValue, command: str) -> dict[object, object]:
    match answer:
        case str() if answer == command:  # LockPCR and LockPCRs have no fields
            return {}
        case {"Error": str(code), **rest} if not rest:
            raise refused(f"the Nitro Secure Module answers {code[:64]!r} to {command}")
        case dict() if list(answer) == [command] and isinstance(fields := answer[command], dict):
            return dict(fields)
        case _:
            raise _malformed(command)


def _bytes(fields: Mapping[object, object], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes) or not value:
        raise _malformed(name)
    return value


def _user_data(document: bytes) -> bytes:
    """Return the report data in a document, for a check of our own; whoever verifies it looks much closer."""
    try:
        outer = decode(document, limit=MAX_RESPONSE, tags=(18,), error=EvidenceFormatError)
        match outer.value if isinstance(outer, Tagged) else outer:
            case [bytes(), _, bytes(payload), bytes()]:
                inner = decode(payload, limit=MAX_RESPONSE, error=EvidenceFormatError)
            case _:
                raise _malformed("document")
    except EvidenceFormatError as exc:
        raise _malformed("document") from exc
    return _bytes(inner, "user_data") if isinstance(inner, dict) else b""


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(
        f"the Nitro Secure Module's answer is not in its format: {what}",
        code="malformed-nsm-response",
        stage=STAGE,
    )
