"""The Linux calls that Python's library does not have, through libc and ctypes.

Each wrapper raises OSError with the kernel's errno; whether a missing feature may be done without
is decided by the callers.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC = 1, 2, 8, 16

# These numbers are the same on every architecture with the generic table, and on x86_64.
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT, SYS_FSPICK = 430, 431, 432, 433
SYS_MOUNT_SETATTR = 442
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine() -> str:
    """Return `x86_64` or `aarch64`, the machines whose call numbers we know; else OSError."""
    name = platform.machine()
    if name not in SYS_SECCOMP:
        raise OSError(38, f"no system call table for {name}")
    return name


def syscall(number: int, *args: int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Make one system call. Integers are passed as longs, bytes and structures by address."""
    result = _libc.syscall(ctypes.c_long(number), *(_argument(arg) for arg in args))
    return _checked(int(result))


def prctl(option: int, value: int = 0) -> int:
    """`prctl(option, value, 0, 0, 0)`."""
    rest = (ctypes.c_ulong(0),) * 3
    return _checked(int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), *rest)))


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags`."""
    _checked(int(_libc.unshare(ctypes.c_int(flags))))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind `fd`, which must be of `kind` (a CLONE_NEW* flag)."""
    _checked(int(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind))))


def mlockall(flags: int) -> None:
    """Keep the memory of this process out of swap. Not inherited by a forked child."""
    _checked(int(_libc.mlockall(ctypes.c_int(flags))))


def drop_capabilities() -> None:
    """Give up every capability of this thread, in whatever user namespace it is."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    number = SYS_CAPSET[machine()]
    _checked(int(_libc.syscall(ctypes.c_long(number), ctypes.byref(header), ctypes.byref(data))))


def memfd(content: bytes, *, mode: int = 0o400, executable: bool = False) -> int:
    """Return a sealed memfd (close-on-exec) with `content`, offset 0."""
    flags = MFD_CLOEXEC | MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("", flags | (MFD_EXEC if executable else MFD_NOEXEC_SEAL))
    except OSError:
        fd = os.memfd_create("", flags)  # before kernel 6.3 there are no such flags
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.fchmod(fd, mode)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    return fd


def buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    """Return `content` in memory that a call may be given the address of."""
    return ctypes.create_string_buffer(content, len(content))


def _argument(arg: object) -> object:
    if arg is None or isinstance(arg, bytes):
        return ctypes.c_char_p(arg)
    if isinstance(arg, int):
        return ctypes.c_long(arg)
    return ctypes.byref(arg)  # type: ignore[arg-type]


def _checked(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result
