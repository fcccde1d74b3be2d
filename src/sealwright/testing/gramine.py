"""A stand-in for Gramine's /dev/attestation (libos/src/fs/dev/attestation.c): one shared buffer, no locking."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable

from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tsm import fail, nothing


class FakeGramine:
    """`Files` over the directory. Quotes are of zeros but for version and report data, and unsigned."""

    def __init__(
        self, kind: str = "dcap", *, directory: str = "/dev/attestation", debug: bool = False
    ) -> None:
        warnings.warn("FakeGramine quotes whatever a test wants", FakePlatformWarning, stacklevel=2)
        self.kind = kind
        self.directory = directory
        self.debug = debug
        self.aesm = True
        self.user_report_data = bytes(64)
        self.before: Callable[[str, str], None] = nothing

    def read(self, path: str) -> bytes:
        """Each open loads the file anew."""
        self.before("read", path)
        match path.removeprefix(f"{self.directory}/"):
            case "attestation_type":
                return self.kind.encode()
            case "my_target_info":
                return (b"\x11" * 32 + bytes([4 | (2 if self.debug else 0)])).ljust(512, b"\0")
            case "user_report_data":
                return b""  # it has no load callback
            case "quote" if self.kind != "none":
                if not self.aesm:
                    raise fail(errno.EACCES, path)
                return b"\x03\0".ljust(48, b"\0") + bytes(320) + self.user_report_data + bytes(4) + bytes(600)
            case _:
                raise fail(errno.ENOENT, path)

    def write(self, path: str, data: bytes) -> None:
        """Saved on close: cut at 64 bytes, or padded with zeros, without an error."""
        self.before("write", path)
        if path != f"{self.directory}/user_report_data":
            raise fail(errno.EACCES, path)
        self.user_report_data = data[:64].ljust(64, b"\0")

    def mkdir(self, path: str) -> None:
        """Nothing can be made here."""
        raise fail(errno.EACCES, path)

    def rmdir(self, path: str) -> None:
        """Nothing can be removed here."""
        raise fail(errno.EACCES, path)
