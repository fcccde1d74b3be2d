"""Confidential VMs of Azure: the paravisor's report (HCL) in the virtual TPM, and what the host adds to it.

A guest there cannot choose REPORT_DATA: the paravisor puts the digest of its runtime data there, among them the
key AK of the virtual TPM, and a quote by that key carries our report data. The TPM client is injected, and so is
HTTP to the instance metadata service, which is the host: what it answers is collateral or signed by Intel.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, Self

from sealwright.attester.base import STAGE, Attester, BindsConfig, Closes, check_report_data, missing
from sealwright.attester.imds import Http, imds, snp_certificates, td_quote
from sealwright.attester.tdx import report_data_of
from sealwright.attester.tpm.attester import TpmAttester
from sealwright.attester.tpm.commands import Tpm
from sealwright.attester.tpm.transport import connect
from sealwright.errors import VerificationError
from sealwright.evidence.azure import TD_REPORT_SIZE, AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpm import TpmQuote

HCL_REPORT = 0x01400001  # NV index
AK_HANDLE = 0x81000003  # persistent, RSA-2048; its public part stands in the runtime data as HCLAkPub
_REPORT_DATA: Final = {"snp": slice(0x50, 0x90), "tdx": slice(128, 192)}  # of a report; of a TDREPORT


class NvReader(Protocol):
    """The one TPM command needed here."""

    def nv_read(self, index: int, *, owner: bool = False) -> bytes | None:
        """Return what an NV index holds; None: there is no such index."""


class Vtpm(Attester, BindsConfig, Closes, Protocol):
    """A TPM's attester."""


class AzureAttester:
    """Evidence of a confidential VM on Azure. As thread-safe as the TPM attester it is given."""

    def __init__(self, nv: NvReader, vtpm: Vtpm, http: Http | None = None) -> None:
        """Set up; reads the report once to see which platform this is.

        Args:
            vtpm: quotes with the key at `AK_HANDLE`.
            http: to the instance metadata service; default: the real one.

        Raises:
            UnavailableError: `tee-interface-missing`: no report in the virtual TPM.
            EvidenceFormatError: `malformed-hcl-report`.
        """
        self._nv = nv
        self._vtpm = vtpm
        self._http = http or imds
        self.platform = self.report().platform

    @classmethod
    def open(cls, address: str, *, event_log: Path | None = None, http: Http | None = None) -> Self:
        """Return the attester of the virtual TPM at `address` (see `connect`); it stays open.

        Raises:
            SettingsError, UnavailableError, EvidenceFormatError: as the constructor and `TpmAttester.open`.
        """
        vtpm = TpmAttester.open(address, event_log=event_log, handle=AK_HANDLE)
        try:
            return cls(vtpm.tpm, vtpm, http)
        except BaseException:
            vtpm.close()
            raise

    def close(self) -> None:
        """Let go of the virtual TPM."""
        self._vtpm.close()

    def report(self) -> HclReport:
        """Return the paravisor's report as it is now. Raises as the constructor does."""
        report = read_report(self._nv)
        if report is None:
            raise missing(f"NV index {HCL_REPORT:#010x} is not there: this is no confidential VM of Azure")
        return report

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return the paravisor's report, the TD quote on TDX, and a TPM quote over `report_data` (64 bytes).

        Raises:
            UnavailableError: the TPM or the metadata service refuses.
            EvidenceFormatError: `malformed-hcl-report`, `malformed-runtime-data`, `malformed-imds-answer`.
            VerificationError: `report-data-mismatch`: report, runtime data or TD quote do not belong together;
                `ak-mismatch`: the virtual TPM quotes with another key.
        """
        check_report_data(report_data)
        hcl = self.report()
        _check_bound(hcl.hardware_report[_REPORT_DATA[hcl.kind]], hcl)
        quoted = self._vtpm.quote(report_data)
        evidence = AzureEvidence(
            hcl=hcl,
            quote=_keyless(TpmQuote.parse(quoted.evidence), hcl),
            td_quote=self._td_quote(hcl) if hcl.kind == "tdx" else None,
        )
        return EvidenceEnvelope(
            type=hcl.platform,
            evidence=evidence.encode(),
            event_log=quoted.event_log,
            runtime_log=quoted.runtime_log,
            endorsements=() if hcl.kind == "tdx" else snp_certificates(self._http),
        )

    def bind_config(self, config_digest: bytes) -> None:
        """Put `config_digest` (32 bytes) where the virtual TPM's attester puts it. Raises as that does."""
        self._vtpm.bind_config(config_digest)

    def describe(self) -> Mapping[str, object]:
        """Return what the paravisor states: the VM's configuration, and data that the guest chose."""
        claims = RuntimeClaims.parse(self.report().runtime_data)
        return {
            "interface": f"NV index {HCL_REPORT:#010x}",
            "vm_configuration": claims.vm_configuration,
            "user_data": claims.user_data.hex(),
        }

    def _td_quote(self, hcl: HclReport) -> bytes:
        quote = td_quote(self._http, hcl.hardware_report[:TD_REPORT_SIZE])
        _check_bound(report_data_of(quote), hcl)
        return quote


def read_report(nv: NvReader) -> HclReport | None:
    """Return the paravisor's report out of a TPM; None: there is none in it.

    Raises:
        UnavailableError: the TPM refuses. EvidenceFormatError: `malformed-hcl-report`, `too-large`.
    """
    raw = nv.nv_read(HCL_REPORT, owner=True)
    return None if raw is None else HclReport.parse(raw)


def machine_report(address: str) -> HclReport | None:
    """Return the paravisor's report of the TPM at `address`; None: no device open to this user, or no report in it.

    Raises:
        UnavailableError, EvidenceFormatError: as `connect` and `read_report`.
    """
    if not os.access(address, os.R_OK | os.W_OK):
        return None
    with Tpm(connect(address)) as tpm:
        return read_report(tpm)


def _check_bound(found: bytes, hcl: HclReport) -> None:
    if not hmac.compare_digest(found, hcl.expected_report_data()):
        raise VerificationError(
            "the paravisor's runtime data are not what the hardware's report is over",
            code="report-data-mismatch",
            stage=STAGE,
        )


def _keyless(quote: TpmQuote, hcl: HclReport) -> TpmQuote:
    """Return the quote without its key, which has to be the one that the report names."""
    named = RuntimeClaims.parse(hcl.runtime_data).ak()
    if quote.ak_public is None or quote.ak_public.key() != named:
        raise VerificationError(
            "the virtual TPM quotes with another key than the paravisor's report names",
            code="ak-mismatch",
            stage=STAGE,
        )
    return replace(quote, ak_public=None)
