"""Start a measured workload under a quoter, from any process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealwright.attester.local import AttesterSpec
from sealwright.attester.quoter import kernel, layout, swap
from sealwright.attester.quoter.elf import parse_elf
from sealwright.attester.quoter.image import Measurement
from sealwright.attester.quoter.state import default_state
from sealwright.errors import UnavailableError
from sealwright.evidence.software import Claims

_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from sealwright.attester.quoter.launcher import run; run()"
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A workload that runs, with its quoter beside it. Both end when this object's process ends."""

    pid: int
    measurement: Measurement
    claims: Claims
    _launcher: subprocess.Popen[bytes]
    _control: socket.socket

    def wait(self) -> int:
        """Wait for the end of the workload; return its exit code, 128 + signal if one ended it."""
        code = self._launcher.wait()
        self._control.close()
        return code

    def terminate(self) -> int:
        """Ask the workload to end, end it after ten seconds; return its exit code."""
        self._launcher.terminate()
        try:
            self._launcher.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._control.close()  # the launcher kills the workload when we are gone
        return self.wait()


def launch(
    config: bytes,
    *,
    entry: str,
    distributions: Sequence[str] = (),
    listen: socket.socket | None = None,
    extra_fds: Mapping[str, int] | None = None,
    state_dir: Path | None = None,
    allow_swap: bool = False,
    payload: bytes = b"",
    attester: AttesterSpec | None = None,
) -> Running:
    """Measure, seal and start a workload; return when its engines are forked and its entry is called.

    Args:
        config: the enclave config's canonical bytes; their digest is register 1.
        entry: measured function that is called with a `Workload`, `module:function`.
        distributions: requirement texts of what it needs besides package `sealwright`.
        listen: a listening socket for the workload.
        extra_fds: name -> descriptor, handed over under that name.
        state_dir: where the quoting root lies; default: `default_state()`.
        allow_swap: start even where memory can reach swap (the claim says so).
        payload: untrusted input, read by the workload.
        attester: where quotes come from; None: this quoter signs them, platform `software`.

    Raises:
        UnavailableError: this machine lacks a part that is needed, or the workload ended at once.
    """
    extra = dict(extra_fds or {})
    request = {
        "entry": entry,
        "distributions": list(distributions),
        "state": str(state_dir or default_state()),
        "allow_swap": allow_swap,
        "listener": listen is not None,
        "extra_fds": list(extra),
        "attester": None if attester is None else attester.to_json(),
    }
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        launcher = _spawn(theirs.fileno())
    owned = [kernel.memfd(config), kernel.memfd(payload)]
    fds = [*owned, *([] if listen is None else [listen.fileno()]), *extra.values()]
    try:
        socket.send_fds(control, [layout.packed(request)], fds)
        answer, listing, _, _ = socket.recv_fds(control, layout.PACKET, 1)
    except OSError:
        answer, listing = b"", []
    finally:
        for fd in owned:
            os.close(fd)
    return _running(launcher, control, answer, listing)


def _running(
    launcher: subprocess.Popen[bytes], control: socket.socket, answer: bytes, listing: list[int]
) -> Running:
    if answer[:1] != layout.OK:
        control.close()
        launcher.wait()
        if not answer:
            raise UnavailableError(
                "the quoter ended before the workload was running", code="quoter-gone", stage="start"
            )
        layout.raise_failure(answer)
    with open(listing[0], "rb") as file:
        files = tuple((path, mode, digest) for path, mode, digest in json.load(file))
    told = layout.unpacked(answer[1:])
    register0, register1 = (bytes.fromhex(register) for register in told["registers"])
    return Running(
        pid=told["pid"],
        measurement=Measurement(register0=register0, register1=register1, files=files),
        claims=Claims.model_validate(told["claims"]),
        _launcher=launcher,
        _control=control,
    )


def _spawn(control: int) -> subprocess.Popen[bytes]:
    """Start the launcher in an interpreter that is not dumpable from its first instruction."""
    interpreter = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    options = ["-I", "-S", "-B", "-c", _MAIN, str(control), *(path for path in sys.path if path)]
    loader = _unreadable_loader(interpreter)
    command = [*_scope(), *([] if loader is None else [f"/proc/self/fd/{loader}"]), interpreter, *options]
    kept = (control,) if loader is None else (control, loader)
    try:
        return subprocess.Popen(command, pass_fds=kept, stdin=subprocess.DEVNULL)
    finally:
        if loader is not None:
            os.close(loader)


def _unreadable_loader(interpreter: str) -> int | None:
    """Return a copy of the dynamic loader that may be executed but not read.

    The kernel makes a process that executes such a file not dumpable before its first instruction.
    Where memfds may not be executed, the launcher becomes so by its own first step instead.
    """
    program = parse_elf(Path(interpreter).read_bytes())
    if program is None or not program.interpreter:
        return None
    fd = kernel.memfd(Path(program.interpreter).read_bytes(), mode=0o111, executable=True)
    if os.access(f"/proc/self/fd/{fd}", os.X_OK):
        return fd
    os.close(fd)
    return None


def _scope() -> list[str]:
    """Return the command that puts an ordinary user's workload into a cgroup without swap, if one helps."""
    if os.geteuid() == 0 or not swap.machine_swaps() or swap.in_group_without_swap():
        return []
    tool = shutil.which("systemd-run")
    probe = [tool or "", "--user", "--scope", "--quiet", "-p", "MemorySwapMax=0"]
    if tool is None or subprocess.run([*probe, "true"], check=False, capture_output=True).returncode:
        return []
    return probe
