"""What the quoter sees of a workload from outside, and the claims that follow from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.evidence.software import Claims

_START_TIME = 19  # field 22 of /proc/PID/stat, counted after the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A process as /proc shows it to others."""

    uid: int
    start_time: int  # clock ticks since boot
    status: Mapping[str, str]
    not_dumpable: bool
    core_limit: str
    own_network: bool | None  # None: not ours to look at


def process(pid: int) -> Seen:
    """Look at a process from outside."""
    base = Path(f"/proc/{pid}")
    lines = (line.partition(":") for line in (base / "status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    uid = int(status["Uid"].split()[0])
    fields = (base / "stat").read_text().rpartition(")")[2].split()
    core = next(line for line in (base / "limits").read_text().splitlines() if "core file" in line)
    return Seen(
        uid=uid,
        start_time=int(fields[_START_TIME]),
        status=status,
        not_dumpable=(base / "status").stat().st_uid
        == 0
        != uid,  # the kernel gives such a process's files to root
        core_limit=core.split()[5],
        own_network=_other_network(base),
    )


def claims_of(
    seen: Seen, stated: Mapping[str, str], done: Mapping[str, bool], *, guard: str, sealed_root: str
) -> Claims:
    """Return the claims of a workload.

    Args:
        stated: what the measured bootstrap says it did.
        done: which steps the quoter itself took.
        guard: what `swap.guard` found.

    Raises:
        UnavailableError: `no-hardening`: it looks different from outside than it should.
    """
    _require("not dumpable", seen.not_dumpable or seen.uid == 0)
    _require("no_new_privs", seen.status["NoNewPrivs"] == "1")
    _require("no debugger", seen.status["TracerPid"] == "0")
    _require("core limit", seen.core_limit == "0")
    _require("seccomp", seen.status["Seccomp"] == "2" or not done["seccomp"])
    _require("own network", seen.own_network is not False or not done["namespaces"])
    swap = stated.get("swap", "reachable") if guard == "mlock" else guard
    _require("locked memory", swap != "mlock" or not seen.status["VmLck"].startswith("0 "))
    network = "namespace" if done["namespaces"] else stated.get("network", "seccomp")
    return Claims.model_validate(
        {
            "user": "own" if os.geteuid() == 0 and seen.uid != 0 else "shared",
            "sealed_root": sealed_root,
            "dumpable": "late" if _suid_dumpable() == "1" else "never",
            "core": "off",
            "filesystem": "landlock" if done["landlock"] else "open",
            "seccomp": "enforced" if done["seccomp"] else "none",
            "network": "open" if network == "seccomp" and not done["seccomp"] else network,
            "swap": swap,
        }
    )


def require_untraced() -> None:
    """Refuse to go on under a debugger.

    Raises:
        UnavailableError: `quoter-traced`.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    if "TracerPid:\t0" not in lines:
        raise UnavailableError("a debugger is attached to the quoter", code="quoter-traced", stage="start")


def boot_id() -> str:
    """Return the kernel's id of this boot, a UUID."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _suid_dumpable() -> str:
    return Path("/proc/sys/fs/suid_dumpable").read_text().strip()


def _other_network(base: Path) -> bool | None:
    try:
        theirs = os.readlink(base / "ns/net")
    except PermissionError:
        return None
    return theirs != os.readlink("/proc/self/ns/net")


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise UnavailableError(
            f"the workload does not look as it should from outside: {what}",
            code="no-hardening",
            stage="start",
        )
