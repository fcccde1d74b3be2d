"""Intel TDX: quotes through configfs-tsm, the CCEL event log, and the measurement registers of kernel 6.16.

The device /dev/tdx_guest gives only a TDREPORT, which nobody outside this machine can check; so it is not used.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from sealwright.attester.base import STAGE, check_ours, forbidden, missing, refused
from sealwright.attester.files import Files, OsFiles
from sealwright.attester.tsm import TsmReports
from sealwright.errors import VerificationError

if TYPE_CHECKING:
    from sealwright.evidence.envelope import EvidenceEnvelope

PROVIDER = "tdx_guest"
CCEL = "/sys/firmware/acpi/tables/data/CCEL"
MEASUREMENTS = "/sys/devices/virtual/misc/tdx_guest/measurements"
REGISTER_SIZE = 48  # bytes, SHA-384
_REPORT_DATA = {
    4: 48 + 520,
    5: 48 + 6 + 520,
}  # by quote version: header, type and size of the body, REPORTDATA
_NAMES = ("mrtd:sha384", "mrconfigid", "mrowner", "mrownerconfig")


class TdxAttester:
    """Quotes of this trust domain, with the firmware's event log."""

    platform: Literal["tdx"] = "tdx"

    def __init__(
        self, reports: TsmReports | None = None, files: Files | None = None, *, ccel: str = CCEL
    ) -> None:
        self._files: Files = files or OsFiles()
        self._reports = reports or TsmReports(self._files)
        self._ccel = ccel

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return a quote over `report_data` (64 bytes). The PCK chain is in the quote itself.

        Raises:
            UnavailableError: as `TsmReports.report`; `tee-permission` if the event log cannot be read.
            VerificationError: `report-data-mismatch`.
        """
        from sealwright.evidence.envelope import (
            EvidenceEnvelope,
        )  # not there in an initrd, which never quotes

        made = self._reports.report(report_data, provider=PROVIDER)
        check_ours(report_data_of(made.outblob), report_data)
        return EvidenceEnvelope(
            type="tdx", evidence=made.outblob, event_log=self._event_log(), endorsements=()
        )

    def describe(self) -> Mapping[str, object]:
        """Return the provider's name, and whether there is an event log."""
        log = self._event_log()
        return {
            "interface": "configfs-tsm",
            "provider": self._reports.provider(),
            "event_log": None if log is None else len(log),
        }

    def _event_log(self) -> bytes | None:
        """Return the log area as the firmware left it; None where the firmware has none."""
        try:
            return self._files.read(self._ccel) or None
        except FileNotFoundError:
            return None
        except PermissionError as exc:
            raise forbidden(self._ccel) from exc
        except OSError as exc:
            raise refused(f"{self._ccel}: {exc.strerror}") from exc


def report_data_of(quote: bytes) -> bytes:
    """Return the report data of a quote. Older kernels hand out what a failed request left, so look first.

    Raises:
        UnavailableError: `tee-refused`: it is no quote.
    """
    version = struct.unpack_from("<H", quote)[0] if len(quote) >= 2 else 0
    at = _REPORT_DATA.get(version)
    if at is None or len(quote) < at + 64:
        raise refused("the host's quoting service gave no TDX quote of version 4 or 5")
    return quote[at : at + 64]


class TdxMeasurements:
    """The registers of this trust domain, as the kernel (6.16 and later) shows them. Nothing here is signed."""

    def __init__(self, files: Files | None = None, *, base: str = MEASUREMENTS) -> None:
        self._files: Files = files or OsFiles()
        self._base = base

    def read(self) -> dict[str, bytes]:
        """Return `mrtd`, `mrconfigid`, `mrowner`, `mrownerconfig` and `rtmr0` to `rtmr3` (48 bytes each).

        Raises:
            UnavailableError: `tee-interface-missing`, `tee-permission`, `tee-refused`.
        """
        names = [*_NAMES, *(_rtmr(index) for index in range(4))]
        return {name.partition(":")[0]: self._read(name) for name in names}

    def extend_rtmr(self, index: int, digest: bytes) -> bytes:
        """Extend RTMR `index` (2 or 3; 0 and 1 are the firmware's) by 48 bytes; return its new value.

        Raises:
            UnavailableError: as `read`.
            VerificationError: `config-register-used`: somebody else extended it at the same time.
        """
        if index not in (2, 3) or len(digest) != REGISTER_SIZE:
            raise ValueError(f"RTMR 2 or 3 is extended by {REGISTER_SIZE} bytes")
        before = self._read(_rtmr(index))
        self._write(_rtmr(index), digest)
        return self._expect(index, _extended(before, digest))

    def extend_config(self, config_digest: bytes) -> bytes:
        """Extend `config_digest` (32 bytes, zero-padded) into RTMR3, whose only extend it is; return its value.

        Where exactly this was done before, nothing is.

        Raises:
            UnavailableError: as `read`.
            VerificationError: `config-register-used`: RTMR3 holds something else.
        """
        if len(config_digest) != 32:
            raise ValueError("a config digest has 32 bytes")
        padded = config_digest.ljust(REGISTER_SIZE, b"\0")
        wanted = _extended(bytes(REGISTER_SIZE), padded)
        if self._read(_rtmr(3)) == bytes(REGISTER_SIZE):
            self._write(_rtmr(3), padded)
        return self._expect(3, wanted)

    def _expect(self, index: int, wanted: bytes) -> bytes:
        found = self._read(_rtmr(index))
        if not hmac.compare_digest(found, wanted):
            raise VerificationError(
                f"RTMR{index} does not hold what was extended alone", code="config-register-used", stage=STAGE
            )
        return found

    def _read(self, name: str) -> bytes:
        path = f"{self._base}/{name}"
        try:
            value = self._files.read(path)
        except OSError as exc:
            raise _translated(exc, path) from exc
        if len(value) != REGISTER_SIZE:
            raise refused(f"{path} has {len(value)} bytes, not {REGISTER_SIZE}")
        return value

    def _write(self, name: str, value: bytes) -> None:
        path = f"{self._base}/{name}"
        try:
            self._files.write(path, value)
        except OSError as exc:
            raise _translated(exc, path) from exc


def _rtmr(index: int) -> str:
    return f"rtmr{index}:sha384"


def _extended(before: bytes, value: bytes) -> bytes:
    return hashlib.sha384(before + value).digest()


def _translated(exc: OSError, path: str) -> Exception:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return missing(f"{path} is not there: measurement registers need kernel 6.16 in a TDX guest")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return forbidden(path)
    return refused(f"{path}: {exc.strerror}")
