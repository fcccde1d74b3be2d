"""The sealed place: a read-only tmpfs that hangs in no directory tree and belongs to one workload.

The mount is made with fsopen/fsmount and never attached anywhere: only the file descriptor leads to it.
An ordinary user needs a user namespace of its own to make the mount; only a helper enters it, which
is a fork of the (not dumpable) quoter, and it ends before the workload is started.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sealwright.attester.quoter import kernel
from sealwright.attester.quoter.image import ImageFile
from sealwright.errors import UnavailableError

_SET_FLAG, _SET_STRING, _CREATE, _RECONFIGURE = 0, 1, 6, 7
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_AT_EMPTY_PATH = 0x1000
_CLOEXEC = 1
_DIRECTORY = os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRoot:
    """Where a workload's code lies. `kind` is the claim `sealed_root`: `tmpfs` or `directory`."""

    root_fd: int
    scratch_fd: int  # empty, writable only by the workload, no files can be executed from it
    kind: str
    directory: Path | None  # to be removed at the end, only for `directory`

    def close(self) -> None:
        """Let go of the sealed place; a directory is removed."""
        os.close(self.root_fd)
        os.close(self.scratch_fd)
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def seal(files: Iterable[ImageFile], *, uid: int, gid: int, state: Path) -> SealedRoot:
    """Copy `files` to a sealed place; the bytes written are those that were measured.

    Args:
        uid, gid: whom the scratch directory belongs to.
        state: where a directory is made if this machine lets us mount nothing.
    """
    image = tuple(files)
    namespace = None if _may_mount() else _user_namespace()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _helper(theirs, namespace, image, uid, gid)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 16, 2)
    os.waitpid(child, 0)
    if namespace is not None:
        os.close(namespace)
    if len(fds) == 2:
        for fd in fds:
            os.set_inheritable(fd, False)
        return SealedRoot(root_fd=fds[0], scratch_fd=fds[1], kind="tmpfs", directory=None)
    return _seal_directory(image, uid, gid, state)


def _helper(
    channel: socket.socket, namespace: int | None, image: tuple[ImageFile, ...], uid: int, gid: int
) -> NoReturn:
    """In the helper process: make both mounts, fill, make read-only, hand over, end."""
    code = 1
    try:
        if namespace is not None:
            kernel.setns(namespace, kernel.CLONE_NEWUSER)
            kernel.unshare(kernel.CLONE_NEWNS)
        root, scratch = _mount(b"0755"), _mount(b"0700")
        _write(root, image)
        if os.geteuid() == 0 and (uid, gid) != (0, 0):
            os.chown(f"/proc/self/fd/{scratch}", uid, gid)
        _read_only(root)
        socket.send_fds(channel, [b"sealed"], [root, scratch])
        code = 0
    except OSError as exc:
        channel.send(struct.pack("<i", exc.errno or 0))
    finally:
        os._exit(code)


def _may_mount() -> bool:
    try:
        os.close(kernel.syscall(kernel.SYS_FSOPEN, b"tmpfs", _CLOEXEC))
    except OSError:
        return False
    return True


def _user_namespace() -> int | None:
    """Return the fd of a new user namespace in which our own uid is mapped, None if we may make none.

    A process that is not dumpable cannot write its own uid_map (/proc gives the file to root), so a
    dummy without secrets or descriptors makes the namespace, and the helper, never dumpable, joins it.
    """
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        _dummy(go)
    os.close(go)
    try:
        if os.read(ready, 1) != b"+":
            return None
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _dummy(go: int) -> NoReturn:
    """In the dummy: enter a user namespace, map our uid and gid, tell, and wait for the end."""
    try:
        os.dup2(go, 0)
        os.closerange(1, 1 << 16)
        uid, gid = os.geteuid(), os.getegid()
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        os.write(0, b"+")
        signal.pause()
    finally:
        os._exit(1)


def _mount(mode: bytes) -> int:
    """Return the fd of a new tmpfs that is attached nowhere."""
    context = kernel.syscall(kernel.SYS_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        kernel.syscall(kernel.SYS_FSCONFIG, context, _SET_STRING, b"mode", mode, 0)
        kernel.syscall(kernel.SYS_FSCONFIG, context, _CREATE, None, None, 0)
        noexec = _ATTR_NOEXEC if mode == b"0700" else 0
        attributes = _ATTR_NOSUID | _ATTR_NODEV | noexec
        return kernel.syscall(kernel.SYS_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def _read_only(mount: int) -> None:
    """Make the mount and its superblock read-only; the kernel refuses while a file is open for writing."""
    attributes = struct.pack("<QQQQ", _ATTR_RDONLY, 0, 0, 0)
    buffer = kernel.buffer(attributes)
    kernel.syscall(kernel.SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, buffer, len(attributes))
    fspick_cloexec_empty_path = 1 | 8
    context = kernel.syscall(kernel.SYS_FSPICK, mount, b"", fspick_cloexec_empty_path)
    try:
        kernel.syscall(kernel.SYS_FSCONFIG, context, _SET_FLAG, b"ro", None, 0)
        kernel.syscall(kernel.SYS_FSCONFIG, context, _RECONFIGURE, None, None, 0)
    finally:
        os.close(context)


def _write(root: int, image: Iterable[ImageFile]) -> None:
    """Write the files beneath `root`, which nobody else can reach."""
    made: set[str] = set()
    for file in image:
        parent = os.path.dirname(file.path.lstrip("/"))
        parts = parent.split("/")
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder and folder not in made:
                os.mkdir(folder, dir_fd=root)
                os.chmod(folder, 0o755, dir_fd=root)  # noqa: S103  (whatever the caller's umask is)
                made.add(folder)
        fd = os.open(file.path.lstrip("/"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
        try:
            view = memoryview(file.content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, file.mode)
        finally:
            os.close(fd)


def _seal_directory(image: tuple[ImageFile, ...], uid: int, gid: int, state: Path) -> SealedRoot:
    """Copy to a private directory, for machines that let us mount nothing."""
    try:
        top = Path(tempfile.mkdtemp(prefix="sealed-", dir=state))
        (top / "root").mkdir()
        (top / "root").chmod(0o755)
        (top / "scratch").mkdir(0o700)
        root = os.open(top / "root", _DIRECTORY)
        _write(root, image)
        if os.geteuid() == 0:
            os.chown(top / "scratch", uid, gid)
        scratch = os.open(top / "scratch", _DIRECTORY)
    except OSError as exc:
        raise UnavailableError(
            f"no sealed place can be made under {state}: {exc.strerror}", code="no-sealed-root", stage="seal"
        ) from exc
    return SealedRoot(root_fd=root, scratch_fd=scratch, kind="directory", directory=top)
