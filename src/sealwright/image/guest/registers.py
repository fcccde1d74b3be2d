"""Where the config's digest goes: into, or against, each register for it that this machine has.

The host chooses HOST_DATA and MRCONFIGID at launch; where it chose none (zeros), the config goes into a register that
is extended. Whether it stands in the right one is for the verifier: its reference values name it.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from sealwright.attester.files import Files, OsFiles
from sealwright.attester.nsm import CONFIG_PCR as NITRO_PCR
from sealwright.attester.nsm import DEVICE as NSM
from sealwright.attester.nsm import NitroAttester, Nsm
from sealwright.attester.tdx import MEASUREMENTS, TdxMeasurements
from sealwright.attester.tsm import TsmReports
from sealwright.errors import UnavailableError, VerificationError
from sealwright.image.guest import pcr, tdreport

STAGE = "config-register"
_HOST_DATA = slice(0xC0, 0xE0)  # in an SNP report, AMD 56860
_SNP = "sev_guest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interfaces:
    """What this machine has; None: it is not there."""

    nsm: Nsm | None = None
    snp: TsmReports | None = None
    mrconfigid: Callable[[], bytes] | None = None
    rtmr: TdxMeasurements | None = None
    tpm: pcr.Send | None = None


def bind_config(config_digest: bytes, machine: Interfaces) -> tuple[str, ...]:
    """Put `config_digest` (32 bytes) into this machine's registers; return their names.

    Raises:
        VerificationError: `config-register-used`: one holds something already; `config-register-mismatch`: the host
            launched this machine for another config.
        UnavailableError: `no-config-register`, and those of the interfaces.
    """
    if machine.nsm is not None:
        return (_nitro(config_digest, machine.nsm),)
    bound: list[str] = []
    if machine.snp is not None and (found := _host_data(machine.snp)) != bytes(len(found)):
        bound.append(_compare("HOST_DATA", found, config_digest))
    if machine.mrconfigid is not None:
        bound += _tdx(config_digest, machine.mrconfigid(), machine.rtmr)
    if machine.tpm is not None:
        pcr.extend_config(machine.tpm, config_digest)
        bound.append(f"PCR{pcr.CONFIG_PCR}")
    if not bound:
        raise UnavailableError(
            "this machine has no register for the config: launch it with HOST_DATA or MRCONFIGID, or with a TPM",
            code="no-config-register",
            stage=STAGE,
        )
    return tuple(bound)


def _nitro(config_digest: bytes, nsm: Nsm) -> str:
    before = nsm.describe_pcr(NITRO_PCR)
    if before.lock or any(before.data):
        raise _used(f"PCR {NITRO_PCR}")
    NitroAttester(nsm).lock_config(config_digest)
    return f"PCR{NITRO_PCR}"


def _host_data(reports: TsmReports) -> bytes:
    asked = secrets.token_bytes(64)
    report = reports.report(asked, provider=_SNP).outblob
    if len(report) < _HOST_DATA.stop or not hmac.compare_digest(report[0x50:0x90], asked):
        raise UnavailableError(
            "the report is not the one that was asked for", code="tee-refused", stage=STAGE
        )
    return report[_HOST_DATA]


def _tdx(config_digest: bytes, mrconfigid: bytes, rtmr: TdxMeasurements | None) -> list[str]:
    if any(mrconfigid):
        return [_compare("MRCONFIGID", mrconfigid, config_digest)]
    if rtmr is None:
        return []
    if any(rtmr.read()["rtmr3"]):
        raise _used("RTMR3")
    rtmr.extend_config(config_digest)
    return ["RTMR3"]


def _compare(name: str, found: bytes, config_digest: bytes) -> str:
    if not hmac.compare_digest(found, config_digest.ljust(len(found), b"\0")):
        raise VerificationError(
            f"{name} is {found.hex()}, which is not the config's digest {config_digest.hex()}",
            code="config-register-mismatch",
            stage=STAGE,
        )
    return name


def _used(name: str) -> VerificationError:
    return VerificationError(
        f"{name} holds something before the config was measured: start the machine anew",
        code="config-register-used",
        stage=STAGE,
    )


def found(
    send: pcr.Send | None, *, exists: Callable[[str], bool] = os.path.exists, files: Files | None = None
) -> Interfaces:
    """Return what there is on this machine. Args: send: to its TPM, if it has one."""
    kernel = files or OsFiles()
    tdx = exists(tdreport.DEVICE)
    return Interfaces(
        nsm=Nsm() if exists(NSM) else None,
        snp=TsmReports(kernel) if exists("/dev/sev-guest") else None,
        mrconfigid=tdreport.mrconfigid if tdx else None,
        rtmr=TdxMeasurements(kernel) if tdx and exists(MEASUREMENTS) else None,
        tpm=send,
    )
