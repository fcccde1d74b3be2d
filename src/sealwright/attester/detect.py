"""Which evidence this machine can give: each candidate with what speaks for it, what is missing, and what mends that.

A conclusion drawn here is for people and for choosing an interface. Nothing is proved until evidence is verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealwright.attester.base import STAGE
from sealwright.attester.machine import Machine
from sealwright.attester.tsm import REPORTS
from sealwright.errors import UnavailableError
from sealwright.evidence.azure import HclReport
from sealwright.evidence.envelope import PlatformType

TSM_KERNEL = (6, 7)
_CONFIGFS = "/sys/kernel/config"
_VMPL = ("/sys/devices/system/cpu/sev/vmpl", "/sys/hypervisor/sev/vmpl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What keeps an interface from being used, and the command that mends it."""

    text: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A platform that this machine seems to be."""

    platform: PlatformType
    interface: str
    reasons: tuple[str, ...]  # what was seen
    problems: tuple[Problem, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether evidence can be asked for now."""
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What a machine is."""

    cloud: str  # the firmware's word, unverified
    virtual: bool
    candidates: tuple[Candidate, ...]  # the strongest protection first
    gpus: tuple[str, ...]  # PCI addresses of NVIDIA devices
    notes: tuple[Problem, ...]  # what is no candidate, but nearly

    def choose(self) -> PlatformType:
        """Return the strongest platform. A weaker one is never taken instead of one that is not ready.

        Raises:
            UnavailableError: `no-attester`: there is none; `attester-not-ready`: with what mends it.
        """
        if not self.candidates:
            hints = "".join(f"; {note.text}: {note.mend}" for note in self.notes)
            raise UnavailableError(
                f"this machine gives no hardware evidence{hints}", code="no-attester", stage=STAGE
            )
        first = self.candidates[0]
        if not first.ready:
            lacks = "; ".join(f"{problem.text}: {problem.mend}" for problem in first.problems)
            raise UnavailableError(
                f"platform {first.platform} is here, but {lacks}", code="attester-not-ready", stage=STAGE
            )
        return first.platform


def detect(machine: Machine | None = None, *, hcl: Callable[[], HclReport | None] | None = None) -> Detected:
    """Return what this machine is; looks only.

    Args:
        hcl: reads the paravisor's report out of the TPM; None: nothing here speaks to a TPM.
    """
    seen = machine or Machine()
    found = [_nitro(seen), _sgx(seen), _tdx(seen), _snp(seen), _azure(seen, hcl), _tpm(seen)]
    return Detected(
        cloud=seen.cloud(),
        virtual=seen.virtual(),
        candidates=tuple(candidate for candidate in found if candidate is not None),
        gpus=_gpus(seen),
        notes=tuple(note for note in (_snp_host(seen), _sgx_host(seen), _azure_unknown(seen, hcl)) if note),
    )


def _nitro(seen: Machine) -> Candidate | None:
    if not seen.exists("/dev/nsm"):
        return None
    return Candidate(
        platform="nitro",
        interface="/dev/nsm",
        reasons=("/dev/nsm is there",),
        problems=_closed(seen, "/dev/nsm", "run as root in the enclave"),
    )


def _sgx(seen: Machine) -> Candidate | None:
    path = "/dev/attestation/attestation_type"
    if not seen.exists(path):
        return None
    kind = seen.text(path).strip("\0")
    problem = Problem(
        text=f"Gramine's attestation type is {kind or 'unreadable'}",
        mend='set sgx.remote_attestation = "dcap" in the manifest and sign it again',
    )
    return Candidate(
        platform="sgx",
        interface="/dev/attestation",
        reasons=(f"{path} is there",),
        problems=() if kind == "dcap" else (problem,),
    )


def _tdx(seen: Machine) -> Candidate | None:
    reasons = []
    if "tdx_guest" in seen.flags():
        reasons.append("CPU flag tdx_guest")
    device = _device(seen, "/dev/tdx_guest", "/dev/tdx-guest")
    if device:
        reasons.append(f"{device} is there")
    if not reasons:
        return None
    return Candidate(
        platform="tdx", interface=REPORTS, reasons=tuple(reasons), problems=_tsm(seen, device, "tdx-guest")
    )


def _snp(seen: Machine) -> Candidate | None:
    reasons = [f"{path} is there" for path in _VMPL if seen.exists(path)]
    device = _device(seen, "/dev/sev-guest")
    if device:
        reasons.append(f"{device} is there")
    # The flag alone is a host's as well; and below Azure's paravisor the firmware cannot be reached.
    if {"sev_snp", "hypervisor"} <= seen.flags() and (reasons or seen.cloud() != "azure"):
        reasons.append("CPU flag sev_snp, in a guest")
    if not reasons:
        return None
    return Candidate(
        platform="snp", interface=REPORTS, reasons=tuple(reasons), problems=_tsm(seen, device, "sev-guest")
    )


def _azure(seen: Machine, hcl: Callable[[], HclReport | None] | None) -> Candidate | None:
    report = hcl() if hcl is not None and seen.cloud() == "azure" else None
    if report is None:
        return None
    return Candidate(
        platform=report.platform,
        interface="/dev/tpmrm0",
        reasons=("the firmware says Azure", "the TPM holds a paravisor's report"),
    )


def _tpm(seen: Machine) -> Candidate | None:
    device = _device(seen, "/dev/tpmrm0")
    driver = seen.exists("/sys/class/tpm/tpm0")
    if not device and not driver:
        return None
    version = seen.text("/sys/class/tpm/tpm0/tpm_version_major")
    problems: tuple[Problem, ...] = ()
    if version == "1":
        problems = (
            Problem(text="the TPM is of version 1.2", mend="switch it to TPM 2.0 in the firmware setup"),
        )
    elif not device:
        problems = (
            Problem(text="/dev/tpmrm0 is missing", mend="boot a kernel with CONFIG_TCG_TPM=y, 4.12 or later"),
        )
    kind = "a virtual TPM, the host's" if seen.virtual() else "a TPM"
    return Candidate(
        platform="tpm",
        interface="/dev/tpmrm0",
        reasons=(f"{device or '/sys/class/tpm/tpm0'} is there: {kind}",),
        problems=problems or _closed(seen, "/dev/tpmrm0", "sudo usermod -aG tss $USER, and log in again"),
    )


def _tsm(seen: Machine, device: str, module: str) -> tuple[Problem, ...]:
    """Return what keeps configfs-tsm from being used."""
    if seen.kernel() < TSM_KERNEL:
        version = ".".join(str(part) for part in seen.kernel())
        text = (
            f"kernel {version} has no TSM reports; evidence through {device or 'its device'} is not supported"
        )
        return (Problem(text=text, mend="boot a kernel 6.7 or later"),)
    if not device:
        return (Problem(text="the guest driver is not loaded", mend=f"sudo modprobe {module}"),)
    if not seen.exists(REPORTS):
        if not seen.names(_CONFIGFS):
            return (Problem(text="configfs is not mounted", mend=f"sudo mount -t configfs none {_CONFIGFS}"),)
        mend = "boot a kernel with CONFIG_TSM_REPORTS=y, or: sudo modprobe tsm_report"
        return (Problem(text=f"{REPORTS} is missing", mend=mend),)
    return _closed(seen, REPORTS, "run the command as root: only root can read reports")


def _closed(seen: Machine, path: str, mend: str) -> tuple[Problem, ...]:
    return () if seen.usable(path) else (Problem(text=f"{path} is not open to this user", mend=mend),)


def _device(seen: Machine, *paths: str) -> str:
    return next((path for path in paths if seen.exists(path)), "")


def _gpus(seen: Machine) -> tuple[str, ...]:
    base = "/sys/bus/pci/devices"
    return tuple(
        name
        for name in seen.names(base)
        if seen.text(f"{base}/{name}/vendor") == "0x10de"
        and seen.text(f"{base}/{name}/class").startswith("0x03")
    )


def _snp_host(seen: Machine) -> Problem | None:
    flags = seen.flags()
    if "sev_snp" not in flags or "hypervisor" in flags:
        return None
    return Problem(
        text="this is a host for SEV-SNP guests, not a guest",
        mend="start a guest on it, and collect evidence there",
    )


def _sgx_host(seen: Machine) -> Problem | None:
    if not seen.exists("/dev/sgx_enclave") or seen.exists("/dev/attestation/attestation_type"):
        return None
    return Problem(text="SGX is here, but this process is in no enclave", mend="run it under gramine-sgx")


def _azure_unknown(seen: Machine, hcl: Callable[[], HclReport | None] | None) -> Problem | None:
    if hcl is not None or seen.cloud() != "azure" or not seen.exists("/dev/tpmrm0"):
        return None
    return Problem(
        text="on Azure only the TPM says whether this is a confidential VM",
        mend="sudo tpm2_nvreadpublic 0x01400001 shows an index on a confidential VM",
    )
