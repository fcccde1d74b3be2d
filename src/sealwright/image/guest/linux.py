"""The Linux calls that process 1 needs and Python's library does not have, through libc and ctypes.

Each raises OSError with the kernel's errno. Numbers are of x86-64 and of uapi/linux/{mount,reboot,prctl}.h.
"""

from __future__ import annotations

import ctypes
import os

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE = 32, 4096, 8192
_SYS_FINIT_MODULE = 313
_COMPRESSED = 4  # MODULE_INIT_COMPRESSED_FILE
_POWER_OFF = 0x4321FEDC
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """`mount(2)`."""
    texts = [text.encode() for text in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode() or None))


def finit_module(path: str) -> None:
    """Load the kernel module in a file, compressed or not; one that is loaded already is no error."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = 0 if path.endswith(".ko") else _COMPRESSED
        number = ctypes.c_long(_SYS_FINIT_MODULE)
        _checked(_libc.syscall(number, ctypes.c_int(fd), b"", ctypes.c_int(flags)))
    except FileExistsError:
        pass
    finally:
        os.close(fd)


def power_off() -> None:
    """End this machine. Process 1 alone can; elsewhere it is a PermissionError or the end of a namespace."""
    os.sync()
    _checked(_libc.reboot(ctypes.c_int(_POWER_OFF)))


def no_new_privileges() -> None:
    """Let no program that this process or its children execute give them more than they have."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *(ctypes.c_ulong(0),) * 3))


def keep_capabilities(kept: frozenset[int]) -> None:
    """Give up all capabilities of this thread but `kept`, for itself and for whatever it executes."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for number in set(range(last + 1)) - kept:
        _checked(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), *(ctypes.c_ulong(0),) * 3))
    bits = sum(1 << one for one in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable, twice
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _checked(result: int) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
