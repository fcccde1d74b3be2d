"""Can the memory of a workload reach a swap device, and what keeps it from there?

Paths are arguments so that tests can show each machine; the real ones are the defaults.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def machine_swaps(proc: Path = _PROC) -> bool:
    """Return whether any swap is switched on; True also when that cannot be read."""
    try:
        return len((proc / "swaps").read_text().splitlines()) > 1
    except OSError:
        return True


def guard(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> str:
    """Return what keeps this process and its children out of swap: `none`, `cgroup`, or `mlock` to try.

    As root, moves this process into a cgroup without swap if it is not in one.
    """
    if not machine_swaps(proc):
        return "none"
    if in_group_without_swap(proc, cgroups) or _enter_group(cgroups):
        return "cgroup"
    return "mlock"


def in_group_without_swap(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> bool:
    """Return whether a cgroup of this process has `memory.swap.max` 0."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return False
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if own is None:
        return False
    folder = cgroups / own
    return any(_limit_is_zero(group) for group in (folder, *folder.parents) if group.is_relative_to(cgroups))


def _enter_group(cgroups: Path) -> bool:
    group = cgroups / f"sealwright-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.swap.max").write_text("0")
        if not _limit_is_zero(group):
            return False
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


def _limit_is_zero(group: Path) -> bool:
    try:
        return (group / "memory.swap.max").read_text().strip() == "0"
    except OSError:
        return False
