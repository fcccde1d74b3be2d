"""The first code of a workload, run by the sealed interpreter from the sealed root (never imported).

Spec: docs/spec/software-platform.md, "Start", step 4. Nothing of the host is believed here except what
the quoter says over the inherited socketpair, and the quoter is trusted.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealwright.attester.software import Workload

_SEALED = "/proc/self/fd/3"


def main() -> int:
    """Harden further, tell the quoter, and run the entry. Returns the exit code."""
    if not sys.prefix.startswith(_SEALED):
        return 1  # not started by the quoter
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = f"{_SEALED}/usr/{sys.platlibdir}/{version}"
    sys.path[:] = [library, f"{library}/lib-dynload", f"{library}/site-packages"]
    try:
        return _run()
    except Exception as exc:  # noqa: BLE001 - the last line of defence against plaintext in a traceback
        _report(exc)
        return getattr(exc, "exit_code", 70)


def _run() -> int:
    from sealwright.attester.quoter import kernel, layout, seccomp
    from sealwright.attester.software import Workload

    quotes = socket.socket(fileno=layout.QUOTES)
    hello = layout.unpacked(quotes.recv(layout.PACKET))
    quotes.send(layout.packed(_harden(hello)))
    claims = layout.unpacked(quotes.recv(layout.PACKET))
    workload = Workload(
        config=_read(layout.CONFIG),
        unverified_payload=_read(layout.PAYLOAD),
        listener=socket.socket(fileno=layout.LISTENER) if hello["listener"] else None,
        extra_fds={name: layout.FIRST_EXTRA + at for at, name in enumerate(hello["extra_fds"])},
        claims=claims,
        platform=hello["platform"],
        _quotes=quotes,
        _connections=socket.socket(fileno=layout.CONNECTIONS),
    )
    module, function = _entry()
    if hasattr(module, "prefork"):
        module.prefork(workload)
    if claims["seccomp"] == "enforced":
        seccomp.install(seccomp.enclave())
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    quotes.send(layout.packed({"running": True}))
    return _call(module, function, workload)


def _harden(hello: dict[str, Any]) -> dict[str, str]:
    """Take the steps that only the workload itself can take; return the claims that rest on its word."""
    from sealwright.attester.quoter import kernel, seccomp

    stated = {}
    if hello["unshare"]:
        stated["network"] = _leave_namespaces()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != hello["quoter"]:
        os._exit(1)  # the quoter ended before the line above could see it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hello["mlock"]:
        stated["swap"] = _lock_memory()
    if hello["seccomp"]:
        seccomp.install(seccomp.workload())
    return stated


def _leave_namespaces() -> str:
    from sealwright.attester.quoter import kernel

    empty = kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | empty)
    except OSError:
        return "seccomp"
    kernel.drop_capabilities()
    return "namespace"


def _lock_memory() -> str:
    from sealwright.attester.quoter import kernel

    try:
        kernel.mlockall(kernel.MCL_CURRENT | kernel.MCL_FUTURE | kernel.MCL_ONFAULT)
    except OSError:
        return "reachable"
    return "mlock"


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _entry() -> tuple[ModuleType, str]:
    with open(f"{_SEALED}/etc/sealwright/entry", encoding="ascii") as file:
        name, function = file.read().strip().split(":")
    return importlib.import_module(name), function


def _call(module: ModuleType, function: str, workload: Workload) -> int:
    result = getattr(module, function)(workload)
    return result if isinstance(result, int) else 0


def _report(exc: BaseException) -> None:
    """Say what refused the start, as commands do, in our own errors' words: another's may quote plaintext."""
    from sealwright.errors import SealwrightError

    if isinstance(exc, SealwrightError):
        lines = exc.lines()
    else:
        frames = traceback.extract_tb(exc.__traceback__)[-4:]
        places = " > ".join(f"{frame.name}:{frame.lineno}" for frame in frames)
        lines = [f"error: internal error, our bug: {type(exc).__name__} at {places}  [internal-error]"]
    for line in lines:
        print("".join(char if char.isprintable() else "?" for char in line), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
