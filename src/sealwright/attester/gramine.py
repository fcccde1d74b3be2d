"""Intel SGX through Gramine's pseudo-files in /dev/attestation. Only DCAP: EPID is gone, and `none` proves nothing.

The files share one buffer of report data, and Gramine does not lock it; so a quote is made under a lock of ours,
and is checked to be over our report data.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from typing import Literal

from sealwright.attester.base import busy, check_ours, check_report_data, forbidden, missing, refused
from sealwright.attester.files import Files, OsFiles
from sealwright.errors import UnavailableError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope

DIRECTORY = "/dev/attestation"
ATTEMPTS = 3
_REPORT_DATA = slice(48 + 320, 48 + 384)  # header, then the report body of the enclave
_MIN_QUOTE = 48 + 384 + 4
_TARGET_INFO_SIZE = 512
_LOCK = threading.Lock()  # one buffer for the whole process


class GramineAttester:
    """Quotes of the Gramine enclave that this process runs in."""

    platform: Literal["sgx"] = "sgx"

    def __init__(self, files: Files | None = None, *, directory: str = DIRECTORY) -> None:
        self._files: Files = files or OsFiles()
        self._directory = directory

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return a DCAP quote over `report_data` (64 bytes).

        Raises:
            UnavailableError: `tee-interface-missing`, `tee-permission`, `tee-refused`, `tee-busy`.
        """
        check_report_data(report_data)
        self._require_dcap()
        with _LOCK:
            for _ in range(ATTEMPTS):
                quote = self._quote(report_data)
                try:
                    check_ours(quote[_REPORT_DATA], report_data)
                except VerificationError:
                    continue  # another user of the buffer came in between
                return EvidenceEnvelope(type="sgx", evidence=quote, endorsements=())
        raise busy("Gramine: other code of this enclave writes report data at the same time")

    def describe(self) -> Mapping[str, object]:
        """Return the attestation type, MRENCLAVE and whether the enclave is one for debugging."""
        target = self._read("my_target_info")
        if len(target) != _TARGET_INFO_SIZE:
            raise refused(f"Gramine: a target info of {len(target)} bytes, not {_TARGET_INFO_SIZE}")
        return {
            "interface": self._directory,
            "attestation_type": self._type(),
            "mrenclave": target[:32].hex(),
            "debug": bool(target[32] & 2),  # ATTRIBUTES.FLAGS.DEBUG
        }

    def _require_dcap(self) -> None:
        kind = self._type()
        if kind != "dcap":
            raise refused(
                f'Gramine: attestation type {kind!r}; set sgx.remote_attestation = "dcap" in the manifest'
            )

    def _type(self) -> str:
        return self._read("attestation_type").decode("ascii", "replace").strip("\0\n ")

    def _quote(self, report_data: bytes) -> bytes:
        path = f"{self._directory}/user_report_data"
        try:
            self._files.write(path, report_data)
        except OSError as exc:
            raise _translated(exc, path) from exc
        quote = self._read("quote")
        if len(quote) < _MIN_QUOTE or quote[:2] != b"\x03\0":
            raise refused("Gramine: the quoting service gave no SGX quote of version 3")
        return quote

    def _read(self, name: str) -> bytes:
        path = f"{self._directory}/{name}"
        try:
            return self._files.read(path)
        except OSError as exc:
            raise _translated(exc, path) from exc


def _translated(exc: OSError, path: str) -> UnavailableError:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return missing(f"{path} is not there: this process does not run in Gramine with SGX")
    if exc.errno == errno.EPERM:
        return forbidden(path)
    # Gramine answers EACCES for every failure of attestation itself.
    return refused(
        f"Gramine: {path}: {exc.strerror}; are AESM and the quoting enclave reachable from the host?"
    )
