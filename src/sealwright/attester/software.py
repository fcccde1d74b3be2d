"""The workload's side of the software platform: what its entry function is given, and how engines are confined.

Runs inside the sealed root; imports nothing but the standard library and errors.
Spec: docs/spec/software-platform.md, "Start".
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sealwright.attester.quoter import kernel, layout, seccomp


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a measured workload was started with. `config` is measured; payload and fds are the host's."""

    config: bytes  # the enclave config whose digest stands in register 1
    unverified_payload: bytes
    listener: socket.socket | None
    extra_fds: Mapping[str, int]
    claims: Mapping[str, str]
    platform: str  # what `quote` returns evidence of
    scratch: str = layout.SCRATCH_PATH  # a directory for unix sockets; no file can be made there
    _quotes: socket.socket
    _connections: socket.socket
    _quote_lock: threading.Lock = field(default_factory=threading.Lock)
    _connection_lock: threading.Lock = field(default_factory=threading.Lock)

    def quote(self, report_data: bytes) -> bytes:
        """Return an evidence envelope over `report_data` (64 bytes). Thread-safe; takes milliseconds.

        Raises:
            UnavailableError: `quoter-gone`.
        """
        if len(report_data) != 64:
            raise ValueError("report data has 64 bytes")
        with self._quote_lock:
            try:
                self._quotes.send(report_data)
                return layout.receive_answer(self._quotes)
            except OSError:
                layout.raise_failure(b"")

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connected TCP socket to a broker or egress host of the enclave config, else refuse.

        Raises:
            AppraisalError: `peer-not-allowed`.
            UnavailableError: `peer-unreachable`, `quoter-gone`.
        """
        with self._connection_lock:
            try:
                self._connections.send(layout.packed({"host": host, "port": port}))
                answer, fds, _, _ = socket.recv_fds(self._connections, layout.PACKET, 1)
            except OSError:
                answer, fds = b"", []
        if answer[:1] != layout.OK:
            layout.raise_failure(answer)
        os.set_inheritable(fds[0], False)
        return socket.socket(fileno=fds[0])


def confine_engine(
    *, keep: Collection[int], parent: int, memory_locked: bool = False, spawns: bool = False
) -> None:
    """Confine this forked child of the workload to be an engine: no keys, no quotes, no network.

    It keeps the sealed root, the scratch directory, standard streams and `keep`; it may listen on a
    unix socket, connects to nobody, dies with its parent, and has threads but no other process, nor
    signals to one. Call it before anything else, while the process has one thread.

    Args:
        keep: descriptors the engine needs, such as its socketpair.
        parent: pid of the workload or zygote, read before the fork.
        memory_locked: whether the workload's claim `swap` is `mlock`.
        spawns: a zygote, which forks engines and ends them; each engine then confines itself further.

    Raises:
        OSError: the kernel refused; the child must end.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the workload ended before the line above could see it
    _close_all_but({0, 1, 2, layout.ROOT, layout.SCRATCH, *keep})
    if memory_locked:
        kernel.mlockall(kernel.MCL_CURRENT | kernel.MCL_FUTURE | kernel.MCL_ONFAULT)
    seccomp.install(seccomp.zygote())
    if not spawns:
        seccomp.install(seccomp.engine(os.getpid()))


def _close_all_but(keep: Collection[int]) -> None:
    low = 0
    for fd in sorted(keep):
        if low < fd:  # of an empty range at 0, CPython closes everything
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
