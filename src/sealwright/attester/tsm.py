"""Reports through Linux configfs-tsm (kernel 6.7 and later), for any provider.

Interface: Documentation/ABI/testing/configfs-tsm-report. Two facts shape this module. A binary attribute takes
effect when its file is closed, and the kernel drops the result, so only `generation` shows whether a write counted.
And `auxblob` is made anew when somebody wrote since, so it can belong to another report than `outblob`.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sealwright.attester.base import STAGE, busy, check_report_data, forbidden, missing, refused
from sealwright.attester.files import Files, OsFiles
from sealwright.errors import UnavailableError

REPORTS = "/sys/kernel/config/tsm/report"
PAUSES_S = (0.0, 0.2, 1.0)  # before each attempt
MAX_PRIVLEVEL = 3  # TSM_REPORT_PRIVLEVEL_MAX
_AGAIN = {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENOENT}
_MEANING = {
    errno.EINVAL: "the provider takes no such report data or privilege level",
    errno.EIO: "the firmware or the host's quoting service failed; its log says why",
    errno.ETIMEDOUT: "the host's quoting service did not answer in time",
    errno.ENOTTY: "the guest's key to the firmware is disabled after an earlier failure; only a reboot mends it",
    errno.EFBIG: "the report is larger than this kernel takes",
    errno.ENXIO: "the provider's driver is gone, or its firmware failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmReport:
    """One report. `auxblob` came from the host beside it and is not covered by the report."""

    provider: str
    outblob: bytes
    auxblob: bytes
    privlevel: int | None  # what was asked for


class _MeddledError(Exception):
    """Somebody else wrote to our entry, or the provider was busy: this attempt is worth nothing."""


class TsmReports:
    """configfs-tsm of this machine. Each report has an entry of its own, so calls need no lock."""

    def __init__(
        self,
        files: Files | None = None,
        *,
        base: str = REPORTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._files: Files = files or OsFiles()
        self._base = base
        self._sleep = sleep

    def report(self, report_data: bytes, *, provider: str, privlevel: int | None = None) -> TsmReport:
        """Return a report over `report_data` (64 bytes) by exactly this provider.

        Args:
            privlevel: which to ask for (SNP: the VMPL); None: the floor, where the provider has one.

        Raises:
            UnavailableError: `tee-interface-missing`, `tee-permission`, `tee-provider`, `tee-refused`,
                `tee-busy`.
        """
        check_report_data(report_data)
        reason = ""
        for pause in PAUSES_S:
            self._sleep(pause)
            try:
                return self._once(report_data, provider, privlevel)
            except _MeddledError as exc:
                reason = str(exc)
        raise busy(f"configfs-tsm: no undisturbed report in {len(PAUSES_S)} attempts: {reason}")

    def provider(self) -> str:
        """Return the provider's name.

        Raises:
            UnavailableError: as `report`.
        """
        try:
            with self._entry() as entry:
                return self._text(entry, "provider")
        except _MeddledError as exc:
            raise busy(f"configfs-tsm: {exc}") from exc

    def _once(self, report_data: bytes, provider: str, privlevel: int | None) -> TsmReport:
        with self._entry() as entry:
            found = self._text(entry, "provider")
            if found != provider:
                raise UnavailableError(
                    f"configfs-tsm has provider {found!r}, not {provider!r}", code="tee-provider", stage=STAGE
                )
            # An entry is made with generation 0: more means that options are set which we did not choose.
            if self._number(entry, "generation") != 0:
                raise _MeddledError("another process wrote to a fresh entry")
            level = self._ask_level(entry, privlevel)
            self._files.write(f"{entry}/inblob", report_data)
            outblob = self._files.read(f"{entry}/outblob")
            auxblob = self._optional(entry, "auxblob")
            wanted = 1 if level is None else 2
            if self._number(entry, "generation") != wanted:
                raise _MeddledError("another process wrote to the entry, or a write of ours did not count")
        return TsmReport(provider=found, outblob=outblob, auxblob=auxblob or b"", privlevel=level)

    def _ask_level(self, entry: str, privlevel: int | None) -> int | None:
        """Write the privilege level, where there are any; return it."""
        lowest = self._optional(entry, "privlevel_floor")
        if lowest is None:
            if privlevel is not None:
                raise refused("configfs-tsm: this provider knows no privilege levels")
            return None
        floor = _decimal(lowest)
        level = floor if privlevel is None else privlevel
        if not floor <= level <= MAX_PRIVLEVEL:
            raise refused(f"privilege level {level} is not between {floor} and {MAX_PRIVLEVEL}")
        self._files.write(f"{entry}/privlevel", str(level).encode())
        return level

    @contextlib.contextmanager
    def _entry(self) -> Iterator[str]:
        """Make an entry, and remove it whatever happens."""
        entry = f"{self._base}/sealwright-{secrets.token_hex(8)}"
        try:
            self._files.mkdir(entry)
        except OSError as exc:
            raise self._cannot_begin(exc) from exc
        try:
            yield entry
        except OSError as exc:
            raise _translated(exc) from exc
        finally:
            with contextlib.suppress(OSError):
                self._files.rmdir(entry)

    def _cannot_begin(self, exc: OSError) -> Exception:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return missing(
                f"{self._base} is not there: configfs is not mounted, or the kernel lacks TSM reports"
            )
        if exc.errno in (errno.EACCES, errno.EPERM):
            return forbidden(self._base)
        if exc.errno == errno.ENXIO:
            return UnavailableError(
                "configfs-tsm has no provider: the guest driver is not loaded",
                code="tee-provider",
                stage=STAGE,
            )
        return _translated(exc)

    def _text(self, entry: str, name: str) -> str:
        return self._files.read(f"{entry}/{name}").decode("ascii", "replace").strip()

    def _number(self, entry: str, name: str) -> int:
        return _decimal(self._files.read(f"{entry}/{name}"))

    def _optional(self, entry: str, name: str) -> bytes | None:
        """Return an attribute, None where the provider does not show it."""
        try:
            return self._files.read(f"{entry}/{name}")
        except FileNotFoundError:
            return None


def _decimal(raw: bytes) -> int:
    text = raw.strip()
    if not text.isdigit() or len(text) > 20:
        raise refused("configfs-tsm: an attribute that should be a number is none")
    return int(text)


def _translated(exc: OSError) -> Exception:
    if exc.errno in _AGAIN:
        return _MeddledError(f"the kernel answers {errno.errorcode[exc.errno or 0]}")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return forbidden(str(exc.filename or "configfs-tsm"))
    name = errno.errorcode.get(exc.errno or 0, str(exc.errno))
    return refused(f"configfs-tsm: {name}: {_MEANING.get(exc.errno or 0, 'the kernel refused')}")
