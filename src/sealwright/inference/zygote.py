"""The zygote: a child process forked before the enclave has any secret, which forks engines on demand.

An engine that is started again after a crash would otherwise be a fork of a process full of keys.
The zygote keeps no descriptor but its control socket, gets a model's sealed memfd and one end of a
socketpair with each request, and ends with the enclave.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Collection
from typing import NoReturn, Protocol, Self

from sealwright.errors import UnavailableError
from sealwright.inference.parameters import EngineParameters

_MAX_MESSAGE = 4096  # bytes


class Confine(Protocol):
    """Takes away from this process what an engine must not have; see `attester.software.confine_engine`."""

    def __call__(self, *, keep: Collection[int], parent: int, spawns: bool) -> None: ...


class EngineMain(Protocol):
    """What runs in an engine process; never returns."""

    def __call__(self, channel: socket.socket, model_fd: int, parameters: EngineParameters) -> NoReturn: ...


class Zygote:
    """The enclave's handle on its zygote. Used from one thread."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self._pid = pid
        self._control = control

    @classmethod
    def start(cls, engine: EngineMain, *, confine: Confine, prepare: Callable[[], object] = int) -> Self:
        """Fork the zygote. To be called while this process has one thread and no secret.

        Args:
            engine: runs in each engine process.
            prepare: called once in the zygote: loads the libraries that every engine needs.
            confine: called in the zygote before all else, and in each engine before it looks at the model.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _zygote(theirs, parent, engine, confine, prepare)
        theirs.close()
        return cls(pid, ours)

    def spawn(self, model_fd: int, parameters: EngineParameters) -> tuple[int, socket.socket]:
        """Start an engine on the model; return its process id and our end of its channel.

        Raises:
            UnavailableError: the zygote is gone (`engine-unavailable`).
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            message = json.dumps({"spawn": parameters.to_json()}).encode()
            try:
                return self._ask(message, [model_fd, theirs.fileno()]), ours
            except BaseException:
                ours.close()
                raise

    def kill(self, pid: int) -> None:
        """End an engine at once, whatever it is doing."""
        with contextlib.suppress(UnavailableError):
            self._ask(json.dumps({"kill": pid}).encode(), [])

    def close(self) -> None:
        """End the zygote and every engine."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _ask(self, message: bytes, fds: list[int]) -> int:
        try:
            socket.send_fds(self._control, [message], fds)
            answer = self._control.recv(_MAX_MESSAGE)
            return int(json.loads(answer)["pid"])
        except (OSError, ValueError, KeyError) as exc:
            raise UnavailableError(
                "the process that starts engines is gone", code="engine-unavailable", stage="engine"
            ) from exc


def _zygote(
    control: socket.socket,
    parent: int,
    engine: EngineMain,
    confine: Confine,
    prepare: Callable[[], object],
) -> NoReturn:
    """In the zygote: let go of what was inherited, then fork engines until the enclave is gone."""
    children: set[int] = set()
    try:
        _deafen()
        confine(keep={control.fileno()}, parent=parent, spawns=True)
        _ignore_signals()
        prepare()
        while True:
            message, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 2)
            _reap(children)
            if not message:
                break
            request = json.loads(message)
            if "spawn" in request:
                pid = _fork_engine(fds, EngineParameters(**request["spawn"]), engine, confine)
                children.add(pid)
            else:
                pid = int(request["kill"])
                _kill(children, pid)
            control.send(json.dumps({"pid": pid}).encode())
    finally:
        for pid in tuple(children):
            _kill(children, pid)
        os._exit(0)


def _fork_engine(
    fds: list[int],
    parameters: EngineParameters,
    engine: EngineMain,
    confine: Confine,
) -> int:
    model_fd, channel_fd = fds
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            confine(keep=fds, parent=parent, spawns=False)
            channel = socket.socket(fileno=channel_fd)
            engine(channel, model_fd, parameters)
        finally:
            os._exit(1)
    os.close(model_fd)
    os.close(channel_fd)
    return pid


def _deafen() -> None:
    """Make the standard streams a pipe without a reader: a library that prints a prompt prints it nowhere."""
    reader, writer = os.pipe()
    for stream in (0, 1, 2):
        os.dup2(writer, stream)
    os.close(reader)


def _ignore_signals() -> None:
    """Leave a terminal's Ctrl-C to the enclave, which then hangs up."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _kill(children: set[int], pid: int) -> None:
    if pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        children.discard(pid)


def _reap(children: set[int]) -> None:
    for pid in tuple(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)
