"""The kernel of a guest, closed: what a workload or an exploit in it could use is switched off before any secret."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.image.guest import linux

CAP_KILL, CAP_SYS_BOOT = 5, 22
_SCRATCH = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_ONE_WAY = "kernel/modules_disabled"
# Name below /proc/sys, value, and whether a kernel may be without it.
SETTINGS = (
    ("kernel/kexec_load_disabled", "1", True),
    ("kernel/kptr_restrict", "2", False),
    ("kernel/dmesg_restrict", "1", False),
    ("kernel/unprivileged_bpf_disabled", "1", True),
    ("kernel/perf_event_paranoid", "3", True),
    ("kernel/sysrq", "0", True),
    ("kernel/randomize_va_space", "2", False),
    ("kernel/core_pattern", "|/nothing", False),
    ("kernel/yama/ptrace_scope", "3", True),
    ("fs/suid_dumpable", "0", False),
    ("vm/unprivileged_userfaultfd", "0", True),
    ("net/core/bpf_jit_harden", "2", True),
    ("net/ipv4/ip_forward", "0", False),
    ("net/ipv4/conf/all/accept_redirects", "0", False),
    ("net/ipv4/conf/default/accept_redirects", "0", False),
    ("net/ipv4/conf/all/accept_source_route", "0", False),
    ("net/ipv4/tcp_syncookies", "1", True),
    ("net/ipv6/conf/all/accept_ra", "0", True),
    ("net/ipv6/conf/default/accept_ra", "0", True),
    ("net/ipv6/conf/all/accept_redirects", "0", True),
)


def mount_scratch() -> None:
    """Mount /tmp, in memory, bounded; nothing in it can be executed."""
    linux.mount("tmpfs", "/tmp", "tmpfs", _SCRATCH, "mode=1777,size=64m")  # noqa: S108 - this machine's only user


def refuse_swap(proc: Path = Path("/proc")) -> None:
    """Refuse a machine that can write its memory to a disk.

    Raises:
        UnavailableError: `swap-reachable`.
    """
    if len((proc / "swaps").read_text().splitlines()) != 1:
        raise UnavailableError("swap is switched on in this machine", code="swap-reachable", stage="memory")


def wait_for_entropy() -> None:
    """Return when the kernel's generator is seeded; before that nothing here may make a key."""
    os.getrandom(32)


def close_kernel(sysctl: Path = Path("/proc/sys")) -> None:
    """Apply the settings, and last of all bar modules, for which there is no way back.

    Raises:
        UnavailableError: `kernel-setting`: one is not in force.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value, optional in (*SETTINGS, (_ONE_WAY, "1", False)):
        _set(sysctl / name, value, optional=optional)


def _set(path: Path, value: str, *, optional: bool) -> None:
    try:
        if path.read_text().strip() != value:
            path.write_text(f"{value}\n")
        if path.read_text().strip() == value:
            return
    except OSError as exc:
        if optional and exc.errno == errno.ENOENT:
            return
    raise UnavailableError(
        f"the kernel does not take {path.name} {value}", code="kernel-setting", stage="kernel"
    )
