"""Intel's judgement of a platform: TCB levels matched and statuses merged as Intel's own verification library does.

Pure functions over collateral that was verified before. docs/spec/dcap.md, "TCB".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from sealwright.endorsement.intel import UP_TO_DATE, SvnLevel, TcbInfo, TcbLevel, TdxModule
from sealwright.endorsement.intel_pck import PckExtension
from sealwright.errors import VerificationError
from sealwright.verify.verified import Condition

NOT_RECOGNISED = "NotRecognised"  # no level that Intel lists is as low, or its status is a new word
OUT_OF_DATE, REVOKED = "OutOfDate", "Revoked"
CONFIGURATION, SW_HARDENING = "ConfigurationNeeded", "SWHardeningNeeded"
CONFIGURATION_AND_SW_HARDENING = "ConfigurationAndSWHardeningNeeded"
OUT_OF_DATE_CONFIGURATION = "OutOfDateConfigurationNeeded"
RELAUNCH, RELAUNCH_CONFIGURATION = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"

# Which conditions each of Intel's words stands for.
STATUS_CODES = MappingProxyType(
    {
        UP_TO_DATE: (),
        SW_HARDENING: ("tcb-sw-hardening-needed",),
        CONFIGURATION: ("tcb-configuration-needed",),
        CONFIGURATION_AND_SW_HARDENING: ("tcb-configuration-needed", "tcb-sw-hardening-needed"),
        OUT_OF_DATE: ("tcb-out-of-date",),
        OUT_OF_DATE_CONFIGURATION: ("tcb-out-of-date", "tcb-configuration-needed"),
        RELAUNCH: ("tcb-relaunch-advised",),
        RELAUNCH_CONFIGURATION: ("tcb-relaunch-advised", "tcb-configuration-needed"),
        REVOKED: ("tcb-revoked",),
        NOT_RECOGNISED: ("tcb-not-recognised",),
    }
)
_TEXTS = MappingProxyType(
    {
        "tcb-sw-hardening-needed": ("the platform is safe only for software hardened as Intel advises", 32),
        "tcb-configuration-needed": ("the platform is configured less securely than Intel advises", 32),
        "tcb-out-of-date": ("the platform's firmware, TDX module or quoting enclave is out of date", 96),
        "tcb-relaunch-advised": ("the TD was started before the TDX module was updated; start it again", 32),
        "tcb-revoked": ("Intel has revoked this level of firmware, TDX module or quoting enclave", 96),
        "tcb-not-recognised": ("the platform's TCB is at no level that Intel lists", 96),
    }
)
_OF_LEVEL = frozenset(STATUS_CODES) - {RELAUNCH, RELAUNCH_CONFIGURATION}


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVerdict:
    """What Intel says of platform, TDX module and quoting enclave, and of all together."""

    status: str
    platform_status: str
    module_status: str | None  # None: the module has no version of its own, or this is SGX
    qe_status: str
    advisory_ids: tuple[str, ...]  # of all three, sorted
    tcb_date: datetime | None  # of the platform's level
    qe_tcb_date: datetime | None

    def conditions(self) -> tuple[Condition, ...]:
        """Return the conditions that the status stands for."""
        words = f"Intel's status is {self.status}"
        if self.advisory_ids:
            words += f" ({', '.join(self.advisory_ids)[:300]})"
        return tuple(
            Condition(code=code, text=f"{_TEXTS[code][0]}: {words}", value=_TEXTS[code][1])
            for code in STATUS_CODES[self.status]
        )


def judge_sgx(info: TcbInfo, pck: PckExtension, qe: SvnLevel | None) -> TcbVerdict:
    """Return the verdict on an SGX platform. Args: qe: the level its quoting enclave is at, None: below all."""
    level = next((one for one in info.levels if _sgx_reached(one, pck)), None)
    platform, qe_status = _status(level), _component(qe)
    return _verdict(_merged(platform, qe_status), level, None, qe, platform, None, qe_status)


def judge_tdx(
    info: TcbInfo, pck: PckExtension, qe: SvnLevel | None, tee_tcb_svn: bytes, tee_tcb_svn_2: bytes | None
) -> TcbVerdict:
    """Return the verdict on a TDX platform.

    Args:
        qe: the level its quoting enclave is at, None: below all.
        tee_tcb_svn: 16 bytes; byte 1 is the module's version, byte 0 its SVN.
        tee_tcb_svn_2: 16 bytes, of TDX 1.5: of the module that runs now.

    Raises:
        VerificationError: `tdx-module-mismatch`.
    """
    sgx_levels = [one for one in info.levels if _sgx_reached(one, pck)]
    level = next((one for one in sgx_levels if _tdx_reached(one, tee_tcb_svn)), None)
    module = _module_level(info, tee_tcb_svn)
    module_status = None if tee_tcb_svn[1] == 0 else _component(module)
    platform, qe_status = _status(level), _component(qe)
    status = _merged(platform, module_status or UP_TO_DATE)
    sgx_status = _status(sgx_levels[0]) if sgx_levels else NOT_RECOGNISED
    if (
        tee_tcb_svn_2 is not None
        and qe_status == UP_TO_DATE
        and module_status == OUT_OF_DATE
        and sgx_status in (UP_TO_DATE, SW_HARDENING, CONFIGURATION, CONFIGURATION_AND_SW_HARDENING)
        and _runs_latest(info, tee_tcb_svn_2)
    ):
        status = _relaunch(status, sgx_status)
    return _verdict(_merged(status, qe_status), level, module, qe, platform, module_status, qe_status)


def _relaunch(status: str, sgx_status: str) -> str:
    """Return the status of a TD that is out of date only because it is older than the module that runs now."""
    if status not in (OUT_OF_DATE, OUT_OF_DATE_CONFIGURATION):
        return status
    return RELAUNCH_CONFIGURATION if "Configuration" in sgx_status + status else RELAUNCH


def svn_level(levels: Sequence[SvnLevel], isvsvn: int) -> SvnLevel | None:
    """Return the first level, in the order Intel lists them, that an SVN reaches."""
    return next((level for level in levels if isvsvn >= level.isvsvn), None)


def tdx_module(info: TcbInfo, version: int) -> TdxModule:
    """Return what the TCB info says of the TDX module of a version; 0: the one without a version.

    Raises:
        VerificationError: `tdx-module-mismatch`: nothing.
    """
    wanted = f"TDX_{version:02X}" if version else ""
    modules = info.tdx_module_identities if version else (info.tdx_module,)
    found = next((one for one in modules if one is not None and one.id == wanted), None)
    if found is None:
        raise VerificationError(
            f"the TCB info does not know version {version} of the TDX module",
            code="tdx-module-mismatch",
            stage="tcb",
        )
    return found


def _sgx_reached(level: TcbLevel, pck: PckExtension) -> bool:
    return _reached(pck.tcb, level.sgx) and pck.pce_svn >= level.pce_svn


def _tdx_reached(level: TcbLevel, tee_tcb_svn: bytes) -> bool:
    # A module with a version is judged by its own levels: its two bytes are not compared here.
    start = 2 if tee_tcb_svn[1] else 0
    return _reached(tee_tcb_svn[start:], level.tdx[start:])


def _reached(found: bytes, wanted: bytes) -> bool:
    return all(have >= need for have, need in zip(found, wanted, strict=True))


def _module_level(info: TcbInfo, tee_tcb_svn: bytes) -> SvnLevel | None:
    svn, version = tee_tcb_svn[0], tee_tcb_svn[1]
    return svn_level(tdx_module(info, version).levels, svn) if version else None


def _runs_latest(info: TcbInfo, tee_tcb_svn_2: bytes) -> bool:
    """Say whether the module that runs now, and the SEAM loader, are at the latest level."""
    latest, svn, version = info.levels[0].tdx, tee_tcb_svn_2[0], tee_tcb_svn_2[1]
    levels = tdx_module(info, version).levels
    if version and not levels:
        return False
    wanted = levels[0].isvsvn if version else latest[0]
    return svn >= wanted and tee_tcb_svn_2[2] >= latest[2]


def _status(level: TcbLevel | None) -> str:
    return level.tcb_status if level is not None and level.tcb_status in _OF_LEVEL else NOT_RECOGNISED


def _component(level: SvnLevel | None) -> str:
    """Return the status of a quoting enclave or TDX module: what is neither current nor revoked is out of date."""
    if level is None:
        return NOT_RECOGNISED
    return level.tcb_status if level.tcb_status in (UP_TO_DATE, REVOKED) else OUT_OF_DATE


def _merged(status: str, component: str) -> str:
    for worst in (REVOKED, NOT_RECOGNISED):
        if worst in (status, component):
            return worst
    if component == OUT_OF_DATE and status in (UP_TO_DATE, SW_HARDENING):
        return OUT_OF_DATE
    if component == OUT_OF_DATE and status in (CONFIGURATION, CONFIGURATION_AND_SW_HARDENING):
        return OUT_OF_DATE_CONFIGURATION
    return status


def _verdict(
    status: str,
    level: TcbLevel | None,
    module: SvnLevel | None,
    qe: SvnLevel | None,
    platform: str,
    module_status: str | None,
    qe_status: str,
) -> TcbVerdict:
    lists: Iterable[tuple[str, ...]] = (one.advisory_ids for one in (level, module, qe) if one is not None)
    return TcbVerdict(
        status=status,
        platform_status=platform,
        module_status=module_status,
        qe_status=qe_status,
        advisory_ids=tuple(sorted({advisory for one in lists for advisory in one})),
        tcb_date=level.tcb_date if level is not None else None,
        qe_tcb_date=qe.tcb_date if qe is not None else None,
    )
