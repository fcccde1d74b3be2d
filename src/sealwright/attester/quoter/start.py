"""The start of a workload: from a fork of the quoter to the sealed loader (spec, "Start", steps 2 and 3)."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sealwright.attester.quoter import kernel, landlock, layout, seccomp
from sealwright.attester.quoter.image import INTERPRETER, LIBRARIES, LOADER, SITE
from sealwright.attester.quoter.seal import SealedRoot
from sealwright.errors import UnavailableError

_BOOTSTRAP = f"{SITE}/sealwright/attester/quoter/bootstrap.py"
_PARKED = 512  # where descriptors wait until their own numbers are free


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a workload is started with. Descriptors stay the caller's."""

    sealed: SealedRoot
    uid: int
    gid: int
    quotes: int
    connections: int
    config: int
    payload: int
    listener: int | None
    extra: Sequence[int]


def start_workload(start: Start) -> tuple[int, dict[str, bool]]:
    """Fork and harden, execute the sealed loader; return its pid and which steps this kernel could do.

    Raises:
        UnavailableError: a step failed that the kernel should have been able to do.
    """
    report, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(report)
        _become(start, tell)
    os.close(tell)
    with open(report, "rb") as file:
        told = file.read()
    lines = told.splitlines()
    if len(lines) != 1:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        step = lines[-1].decode() if lines else "unknown"
        raise UnavailableError(
            f"the workload could not be started: {step}", code="no-hardening", stage="start"
        )
    done: dict[str, bool] = layout.unpacked(lines[0])
    return pid, done


def _become(start: Start, tell: int) -> NoReturn:
    """In the forked child: give up everything, then execute."""
    step = "namespaces"
    try:
        os.setsid()
        done: dict[str, Any] = {"namespaces": _empty_namespaces()}
        step = "descriptors"
        tell = _place_descriptors(start, tell)
        step = "limits and user"
        _drop(start)
        step = "landlock"
        rules = {layout.ROOT: landlock.READ, layout.SCRATCH: landlock.SOCKETS}
        done["landlock"] = landlock.confine(rules)
        step = "seccomp"
        done["seccomp"] = _filter()
        os.write(tell, layout.packed(done) + b"\n")
        step = "exec"
        _execute()
    except Exception as exc:  # noqa: BLE001 - told to the parent, who raises
        with contextlib.suppress(OSError):
            os.write(tell, f"{step}: {type(exc).__name__}: {exc}\n".encode())
    finally:
        os._exit(126)


def _empty_namespaces() -> bool:
    """As root, move to empty network, IPC and UTS namespaces; an ordinary user can only after execve."""
    if os.geteuid() != 0:
        return False
    try:
        kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
    except OSError:
        return False
    return True


def _place_descriptors(start: Start, tell: int) -> int:
    null = os.open("/dev/null", os.O_RDONLY)
    wanted = {
        layout.NULL: null,
        layout.ROOT: start.sealed.root_fd,
        layout.QUOTES: start.quotes,
        layout.CONNECTIONS: start.connections,
        layout.CONFIG: start.config,
        layout.PAYLOAD: start.payload,
        layout.SCRATCH: start.sealed.scratch_fd,
        **({} if start.listener is None else {layout.LISTENER: start.listener}),
        **{layout.FIRST_EXTRA + at: fd for at, fd in enumerate(start.extra)},
    }
    parked = {number: os.dup2(fd, _PARKED + number, inheritable=False) for number, fd in wanted.items()}
    tell = os.dup2(tell, _PARKED - 1, inheritable=False)
    for number, fd in parked.items():
        os.dup2(fd, number)
    for number in set(range(3, _PARKED - 1)) - set(wanted):
        with contextlib.suppress(OSError):
            os.close(number)
    return tell


def _drop(start: Start) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(start.gid, start.gid, start.gid)
        os.setresuid(start.uid, start.uid, start.uid)
    os.umask(0o077)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)


def _filter() -> bool:
    try:
        program = seccomp.start()
        seccomp.install(program)
    except OSError:
        return False
    return True


def _execute() -> NoReturn:
    inside = layout.SEALED
    arguments = [
        "sealwright-workload",
        *("--inhibit-cache", "--library-path", f"{inside}{LIBRARIES}"),
        f"{inside}{INTERPRETER}",
        *("-I", "-S", "-B", "-X", "utf8", f"{inside}{_BOOTSTRAP}"),
    ]
    os.execve(f"{inside}{LOADER}", arguments, {})  # noqa: S606 - no shell is the point
