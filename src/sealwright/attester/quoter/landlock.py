"""Landlock by system calls: read and execute beneath the sealed root, and nothing else of the file system.

ABI 1 (kernel 5.13) to 6 (6.12): each ABI adds rights, and whatever this kernel knows is denied.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping

from sealwright.attester.quoter.kernel import (
    SYS_LANDLOCK_ADD,
    SYS_LANDLOCK_CREATE,
    SYS_LANDLOCK_RESTRICT,
    syscall,
)

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_SOCK = 1 << 5, 1 << 9
READ = EXECUTE | READ_FILE | READ_DIR
SOCKETS = REMOVE_FILE | MAKE_SOCK  # enough to bind and unlink a unix socket, not to write a file

_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # ABI -> number of file system rights; 16 from ABI 5
_NET_SINCE, _SCOPE_SINCE = 4, 6
_PATH_BENEATH = 1


def abi() -> int:
    """Return the kernel's Landlock ABI, 0 if there is none."""
    try:
        return syscall(SYS_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def confine(allowed: Mapping[int, int]) -> bool:
    """Confine this thread and its children; return False where the kernel has no Landlock.

    Args:
        allowed: directory fd -> rights beneath it. Everything else is denied, TCP and abstract
            sockets of others too where the ABI knows them. Needs no_new_privs.

    Raises:
        OSError: the kernel has Landlock, but refused.
    """
    version = abi()
    if version < 1:
        return False
    attributes = struct.pack("<QQQ", (1 << _FS_BITS.get(version, 16)) - 1, *_beyond_files(version))
    size = 24 if version >= _SCOPE_SINCE else 16 if version >= _NET_SINCE else 8
    ruleset = syscall(SYS_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes, 24), size, 0)
    for fd, rights in allowed.items():
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, fd), 12)
        syscall(SYS_LANDLOCK_ADD, ruleset, _PATH_BENEATH, rule, 0)
    syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0)
    return True


def _beyond_files(version: int) -> tuple[int, int]:
    return (3 if version >= _NET_SINCE else 0, 3 if version >= _SCOPE_SINCE else 0)
