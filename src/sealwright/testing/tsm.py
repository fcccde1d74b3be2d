"""A stand-in for configfs-tsm that follows the kernel state by state (drivers/virt/coco/guest/report.c, fs/configfs).

What is kept: an entry's attributes appear with mkdir; a binary attribute takes effect on close and its result is
dropped; a report is made on the first read after a write; a read asks for the size first and for the bytes after, and
another writer can act in between; generations; write-only and read-only attributes; no provider, no entry.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sealwright.testing.software import FakePlatformWarning

BASE = "/sys/kernel/config/tsm/report"
MAX_INBLOB = 64
MAX_OUTBLOB = 32 * 1024
_WRITABLE = ("inblob", "privlevel", "service_provider", "service_guid", "service_manifest_version")
_BINARY = ("inblob", "outblob", "auxblob", "manifestblob")


def fail(number: int, path: str = "") -> OSError:
    """Return the OSError of a kernel's errno, of the class that open() raises."""
    return OSError(number, os.strerror(number), path)


def nothing(operation: str, path: str) -> None:
    """Do nothing before a step."""


@dataclass(slots=True)
class Options:
    """What a user of an entry has set (struct tsm_report_desc)."""

    inblob: bytes = b""
    privlevel: int = 0
    service_provider: str = ""


class Provider(Protocol):
    """A guest driver below configfs-tsm."""

    name: str
    floor: int
    attributes: frozenset[str]

    def report_new(self, options: Options) -> tuple[bytes, bytes]:
        """Return outblob and auxblob, or raise OSError."""


@dataclass(slots=True, kw_only=True)
class SevGuest:
    """The sev-guest driver of a guest that runs at VMPL `floor`. Its reports carry no signature."""

    floor: int = 0
    auxblob: bytes = b""
    failures: list[int] = field(default_factory=list)  # errno of the next reports
    name: str = "sev_guest"
    attributes: frozenset[str] = frozenset(
        {"generation", "provider", "privlevel", "privlevel_floor", "inblob", "outblob", "auxblob"}
    )

    def report_new(self, options: Options) -> tuple[bytes, bytes]:
        """Return a version 2 report of zeros but for VMPL and report data."""
        if self.failures:
            raise fail(self.failures.pop(0))
        if len(options.inblob) != 64 or options.privlevel < self.floor:
            raise fail(errno.EINVAL)
        report = bytearray(0x4A0)
        struct.pack_into("<I", report, 0, 2)
        struct.pack_into("<I", report, 0x30, options.privlevel)
        report[0x50:0x90] = options.inblob
        return bytes(report), self.auxblob


@dataclass(slots=True, kw_only=True)
class TdxGuest:
    """The tdx-guest driver. Its quotes carry no signature."""

    version: int = 4
    quote: bytes | None = None  # instead of one over the report data
    failures: list[int] = field(default_factory=list)
    floor: int = 0
    name: str = "tdx_guest"
    attributes: frozenset[str] = frozenset({"generation", "provider", "inblob", "outblob"})

    def report_new(self, options: Options) -> tuple[bytes, bytes]:
        """Return a quote of zeros but for its version and report data."""
        if self.failures:
            raise fail(self.failures.pop(0))
        if len(options.inblob) != 64:
            raise fail(errno.EINVAL)
        if self.quote is not None:
            return self.quote, b""
        header = struct.pack("<H", self.version).ljust(48 if self.version == 4 else 54, b"\0")
        return header + bytes(520) + options.inblob + bytes(64), b""


@dataclass(slots=True)
class _Entry:
    options: Options = field(default_factory=Options)
    written: int = 0  # write_generation
    made: int = 0  # read_generation
    outblob: bytes | None = None
    auxblob: bytes = b""


class FakeConfigfs:
    """`Files` over one tsm/report directory. `before(operation, path)` is called before each step of each call."""

    def __init__(self, provider: Provider | None, *, base: str = BASE, mounted: bool = True) -> None:
        warnings.warn("FakeConfigfs reports whatever a test wants", FakePlatformWarning, stacklevel=2)
        self.provider = provider
        self.base = base
        self.mounted = mounted
        self.root = True
        self.entries: dict[str, _Entry] = {}
        self.before: Callable[[str, str], None] = nothing

    def mkdir(self, path: str) -> None:
        """tsm_report_make_item."""
        self.before("mkdir", path)
        parent, _, name = path.rpartition("/")
        if not self.mounted or parent != self.base:
            raise fail(errno.ENOENT, path)
        if not self.root:
            raise fail(errno.EACCES, path)
        if name in self.entries:
            raise fail(errno.EEXIST, path)
        if self.provider is None:
            raise fail(errno.ENXIO, path)
        self.entries[name] = _Entry()

    def rmdir(self, path: str) -> None:
        """tsm_report_drop_item."""
        self.before("rmdir", path)
        if self.entries.pop(path.rpartition("/")[2], None) is None:
            raise fail(errno.ENOENT, path)

    def read(self, path: str) -> bytes:
        """Open, read to the end, close."""
        self.before("read", path)
        entry, name = self._find(path)
        if name in _WRITABLE:
            raise fail(errno.EACCES, path)
        if name not in _BINARY:
            return f"{self._show(entry, name)}\n".encode()
        size = len(self._report(entry, name))
        if size > MAX_OUTBLOB:
            raise fail(errno.EFBIG, path)
        if size == 0:
            return b""
        self.before("fill", path)
        return self._report(entry, name)[:size].ljust(size, b"\xa5")  # the buffer is not cleared

    def write(self, path: str, data: bytes) -> None:
        """Open, write once, close."""
        self.before("write", path)
        entry, name = self._find(path)
        if name not in _WRITABLE:
            raise fail(errno.EACCES, path)
        if name != "inblob":
            self._store(entry, name, data.decode("ascii").strip())
            return
        if len(data) > MAX_INBLOB:
            raise fail(errno.EFBIG, path)
        if not data:
            raise fail(errno.EFAULT, path)
        self.before("close", path)
        if self._advance(entry):  # what the store returns on close is dropped
            entry.options.inblob = data

    def _find(self, path: str) -> tuple[_Entry, str]:
        folder, _, name = path.rpartition("/")
        entry = self.entries.get(folder.removeprefix(f"{self.base}/"))
        shown = self.provider.attributes if self.provider else frozenset(_WRITABLE) | {"provider", "outblob"}
        if entry is None or name not in shown:
            raise fail(errno.ENOENT, path)
        return entry, name

    def _show(self, entry: _Entry, name: str) -> object:
        if name == "generation":
            return entry.written
        if self.provider is None:
            raise fail(errno.ENXIO)
        return self.provider.name if name == "provider" else self.provider.floor

    def _store(self, entry: _Entry, name: str, text: str) -> None:
        if name == "privlevel":
            if self.provider is None:
                raise fail(errno.ENXIO)
            if not text.isdigit() or not self.provider.floor <= int(text) <= 3:
                raise fail(errno.EINVAL)
        if not self._advance(entry):
            raise fail(errno.EBUSY)
        if name == "privlevel":
            entry.options.privlevel = int(text)
        elif name == "service_provider":
            entry.options.service_provider = text

    def _advance(self, entry: _Entry) -> bool:
        """try_advance_write_generation."""
        if entry.written == entry.made - 1:
            return False
        entry.written += 1
        return True

    def _report(self, entry: _Entry, name: str) -> bytes:
        """tsm_report_read: the cached report, or a new one if anything was written since."""
        if not entry.options.inblob:
            raise fail(errno.EINVAL)
        if entry.outblob is None or entry.made != entry.written:
            if self.provider is None:
                raise fail(errno.ENXIO)
            entry.outblob = None
            entry.outblob, entry.auxblob = self.provider.report_new(entry.options)
            entry.made = entry.written
        return entry.outblob if name == "outblob" else entry.auxblob


class FakeTdxRegisters:
    """`Files` over the measurements directory of tdx-guest: 48-byte registers, RTMRs extended by whole writes."""

    def __init__(self, *, base: str = "/sys/devices/virtual/misc/tdx_guest/measurements") -> None:
        warnings.warn("FakeTdxRegisters measures nothing", FakePlatformWarning, stacklevel=2)
        self.base = base
        self.values = dict.fromkeys(("mrtd:sha384", "mrconfigid", "mrowner", "mrownerconfig"), bytes(48))
        self.values |= {f"rtmr{index}:sha384": bytes(48) for index in range(4)}
        self.before: Callable[[str, str], None] = nothing

    def read(self, path: str) -> bytes:
        """tm_digest_read."""
        self.before("read", path)
        name = path.removeprefix(f"{self.base}/")
        if name not in self.values:
            raise fail(errno.ENOENT, path)
        return self.values[name]

    def write(self, path: str, data: bytes) -> None:
        """tm_digest_write."""
        self.before("write", path)
        value = self.read(path)
        name = path.removeprefix(f"{self.base}/")
        if not name.startswith("rtmr"):
            raise fail(errno.EACCES, path)
        if len(data) != 48:
            raise fail(errno.EINVAL, path)
        self.values[name] = hashlib.sha384(value + data).digest()

    def mkdir(self, path: str) -> None:
        """sysfs has no mkdir."""
        raise fail(errno.EPERM, path)

    def rmdir(self, path: str) -> None:
        """sysfs has no rmdir."""
        raise fail(errno.EPERM, path)
