"""Seccomp filters, assembled by hand: which system calls a workload, its enclave and its engine may not make.

Three filters are laid over one another; each only takes away.

- `start`: put on by the quoter before the workload's first instruction.
- `workload`: put on by the measured bootstrap, once it has left its namespaces.
- `enclave` or `engine`: put on before any secret exists, by what each process has become.

A denied call fails with EPERM; a call of another architecture ends the process.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence

from sealwright.attester.quoter.kernel import SYS_SECCOMP, machine, syscall

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH_AT, _ARG = 0, 4, (16, 24, 32, 40, 48, 56)  # low words, little-endian machines
_X32 = 0x40000000

_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag
_PR_SET_DUMPABLE = 4

# name -> (x86_64, aarch64); None where the architecture has no such call.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "setns": (308, 268),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prctl": (157, 167),
    "socket": (41, 198),
    "connect": (42, 203),
}
_AFTER_START = {"execve", "execveat", "unshare", "clone", "clone3", "prctl", "socket", "connect"}
_START = tuple(name for name in _CALLS if name not in _AFTER_START)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def start() -> bytes:
    """Return the quoter's filter: no debugging, mounting, keys, modules, clocks; sockets only AF_UNIX."""
    return _program(_deny(_START) + _unless("socket", 0, 0xFFFFFFFF, _AF_UNIX))


def workload() -> bytes:
    """Return the bootstrap's filter: no execve, no namespaces, never dumpable again."""
    denied = _deny(("execve", "execveat", "unshare")) + _deny(("clone3",), _ENOSYS)
    return _program(denied + _if_any("clone", 0, _CLONE_NEW) + _dumpable())


def enclave() -> bytes:
    """Return the enclave's filter: no socket of its own; it has the listener, socketpairs and the quoter."""
    return _program(_deny(("socket", "connect")))


def engine() -> bytes:
    """Return the engine's filter: a stream socket to listen on, no connection to anyone."""
    return _program(_deny(("connect",)) + _unless("socket", 1, _SOCK_TYPE_MASK, _SOCK_STREAM))


def install(program: bytes) -> None:
    """Lay `program` over all threads of this process. Needs no_new_privs.

    Raises:
        OSError: the kernel has no seccomp filters, or refused.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    set_mode_filter, tsync = 1, 1
    result = syscall(
        SYS_SECCOMP[machine()], set_mode_filter, tsync, ctypes.create_string_buffer(header, len(header))
    )
    if result:
        raise OSError(_EPERM, f"thread {result} could not take the filter")


def _number(name: str) -> int | None:
    return _CALLS[name][0 if machine() == "x86_64" else 1]


def _deny(names: Iterable[str], errno: int = _EPERM) -> list[Instruction]:
    numbers = (_number(name) for name in names)
    return [
        line
        for number in numbers
        if number is not None
        for line in ((_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | errno))
    ]


def _unless(name: str, arg: int, mask: int, wanted: int) -> list[Instruction]:
    """Deny `name` unless its argument, masked, is `wanted`."""
    return _with_argument(
        name, arg, [(_AND, 0, 0, mask), (_JEQ, 1, 0, wanted), (_RET, 0, 0, _ERRNO | _EPERM)]
    )


def _if_any(name: str, arg: int, bits: int) -> list[Instruction]:
    """Deny `name` if its argument has any of `bits`."""
    return _with_argument(name, arg, [(_JSET, 0, 1, bits), (_RET, 0, 0, _ERRNO | _EPERM)])


def _dumpable() -> list[Instruction]:
    deny: Instruction = (_RET, 0, 0, _ERRNO | _EPERM)
    return _with_argument(
        "prctl", 0, [(_JEQ, 0, 3, _PR_SET_DUMPABLE), (_LOAD, 0, 0, _ARG[1]), (_JEQ, 1, 0, 0), deny]
    )


def _with_argument(name: str, arg: int, body: Sequence[Instruction]) -> list[Instruction]:
    """Run `body` on an argument of `name`, then load the call number again for what follows."""
    number = _number(name)
    if number is None:
        return []
    inner = [(_LOAD, 0, 0, _ARG[arg]), *body, (_LOAD, 0, 0, _NR)]
    return [(_JEQ, 0, len(inner), number), *inner]


def _program(rules: Sequence[Instruction]) -> bytes:
    head: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JEQ, 1, 0, _ARCH[machine()]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if machine() == "x86_64":
        head += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _KILL)]
    return b"".join(struct.pack("<HBBI", *line) for line in [*head, *rules, (_RET, 0, 0, _ALLOW)])
