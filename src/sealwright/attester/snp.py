"""AMD SEV-SNP through configfs-tsm: report, and the certificates that the host put beside it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Literal

from sealwright.attester.base import check_ours, refused
from sealwright.attester.tsm import TsmReport, TsmReports
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.snp_certs import CertificateTable

PROVIDER = "sev_guest"
REPORT_SIZE = 0x4A0  # bytes, ATTESTATION_REPORT of AMD 56860
_REPORT_DATA = slice(0x50, 0x90)
_VMPL = 0x30


class SnpAttester:
    """Reports of this guest at one VMPL."""

    platform: Literal["snp"] = "snp"

    def __init__(self, reports: TsmReports | None = None, *, vmpl: int | None = None) -> None:
        """Args: vmpl: to ask for, 0 to 3; None: the guest's own, which is the least it may ask for."""
        self._reports = reports or TsmReports()
        self._vmpl = vmpl
        self.note = ""  # on the last quote

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return a report over `report_data` (64 bytes).

        The host's certificates go along if they are in their format: else `note` says why they were left out.

        Raises:
            UnavailableError: as `TsmReports.report`.
            VerificationError: `report-data-mismatch`.
        """
        made = self._reports.report(report_data, provider=PROVIDER, privlevel=self._vmpl)
        _check_report(made, report_data)
        try:
            endorsements, self.note = _certificates(made.auxblob), ""
        except EvidenceFormatError as exc:
            endorsements, self.note = (), f"the host's certificates were left out: {exc} [{exc.code}]"
        return EvidenceEnvelope(type="snp", evidence=made.outblob, endorsements=endorsements)

    def describe(self) -> Mapping[str, object]:
        """Return the provider's name, and the note on the last quote."""
        return {"interface": "configfs-tsm", "provider": self._reports.provider(), "note": self.note}


def _check_report(made: TsmReport, report_data: bytes) -> None:
    if len(made.outblob) != REPORT_SIZE:
        raise refused(f"configfs-tsm: a report of {len(made.outblob)} bytes instead of {REPORT_SIZE}")
    check_ours(made.outblob[_REPORT_DATA], report_data)
    (vmpl,) = struct.unpack_from("<I", made.outblob, _VMPL)
    if vmpl != made.privlevel:
        raise refused(f"configfs-tsm: a report of VMPL {vmpl} where {made.privlevel} was asked for")


def _certificates(table: bytes) -> tuple[bytes, ...]:
    """Return what a verifier will read of the host's table; one bad certificate would spoil the evidence for it."""
    if not any(table):
        return ()
    found = CertificateTable.parse(table).endorsements()
    Endorsements.detect(found)
    return tuple(found)
