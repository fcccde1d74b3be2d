"""Seccomp filters, assembled by hand: which system calls a workload, its enclave and its engine may not make.

Filters are laid over one another; each only takes away.

- `start`: put on by the quoter before the workload's first instruction.
- `workload`: put on by the measured bootstrap, once it has left its namespaces.
- `enclave`, or `zygote` and over it `engine`: put on before any secret exists, by what each process has become.

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

_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE_MASK = 1, 1, 5, 0xF
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag
_CLONE_THREAD = 0x10000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _SIGKILL = 1, 4, 9
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
# Typing into a terminal, taking one, and signals to others by way of a descriptor.
_IOCTLS = {
    "TIOCSCTTY": 0x540E,
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "FIOSETOWN": 0x8901,
    "SIOCSPGRP": 0x8902,
}

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
    "socketpair": (53, 199),
    "connect": (42, 203),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "prlimit64": (302, 261),
    # What Landlock does not see: changes by path to files of the same user, and queues with names.
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "truncate": (76, 45),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "syslog": (103, 116),
    "modify_ldt": (154, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "fork": (57, None),
    "vfork": (58, None),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
}
_SIGNALS = ("kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal")
_PRIORITIES = ("setpriority", "ioprio_set", *(name for name in _CALLS if name.startswith("sched_set")))
_BY_ARGUMENT = {"clone", "prctl", "socket", "socketpair", "ioctl", "fcntl", "prlimit64", "tgkill"}
_LATER = {"execve", "execveat", "unshare", "clone3", "connect", "fork", "vfork", *_SIGNALS, *_PRIORITIES}
_START = tuple(name for name in _CALLS if name not in _BY_ARGUMENT | _LATER)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def start() -> bytes:
    """Return the quoter's filter: no debugging, mounting, keys, modules, clocks; sockets only AF_UNIX.

    Pairs are of streams: a datagram socket can be sent from to any path, without `connect`.
    """
    rules = _deny(_START) + _unless("socket", 0, 0xFFFFFFFF, _AF_UNIX)
    rules += _unless("socketpair", 1, _SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_SEQPACKET)
    rules += _if_one("ioctl", 1, _IOCTLS.values()) + _if_one("fcntl", 1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX))
    return _program(rules + _unless("prlimit64", 0, 0xFFFFFFFF, 0))


def workload() -> bytes:
    """Return the bootstrap's filter: no execve, no namespaces, never dumpable again."""
    denied = _deny(("execve", "execveat", "unshare")) + _deny(("clone3",), _ENOSYS)
    return _program(denied + _if_any("clone", 0, _CLONE_NEW) + _prctl(_PR_SET_DUMPABLE, 0))


def enclave() -> bytes:
    """Return the enclave's filter: no socket of its own; it has the listener, socketpairs and the quoter."""
    return _program(_deny(("socket", "connect")))


def zygote() -> bytes:
    """Return the filter of what forks engines: stream sockets to listen on, no connection, dies with its parent."""
    rules = _deny(("connect",)) + _unless("socket", 1, _SOCK_TYPE_MASK, _SOCK_STREAM)
    return _program(rules + _prctl(_PR_SET_PDEATHSIG, _SIGKILL))


def engine(pid: int) -> bytes:
    """Return the engine's filter, over the zygote's: no process but itself, no signal to another.

    Its fork would outlive it, since only the process itself is ended with its parent.

    Args:
        pid: the engine's own, so that it can abort.
    """
    rules = _deny((*_SIGNALS, *_PRIORITIES, "fork", "vfork"))
    return _program(
        rules + _unless("clone", 0, _CLONE_THREAD, _CLONE_THREAD) + _unless("tgkill", 0, 0xFFFFFFFF, pid)
    )


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


def _unless(name: str, arg: int, mask: int, *wanted: int) -> list[Instruction]:
    """Deny `name` unless its argument, masked, is one of `wanted`."""
    last = len(wanted)
    checks = [(_JEQ, last - at, 0, value) for at, value in enumerate(wanted)]
    return _with_argument(name, arg, [(_AND, 0, 0, mask), *checks, (_RET, 0, 0, _ERRNO | _EPERM)])


def _if_one(name: str, arg: int, refused: Iterable[int]) -> list[Instruction]:
    """Deny `name` if its argument is one of `refused`."""
    lines = [line for value in refused for line in ((_JEQ, 0, 1, value), (_RET, 0, 0, _ERRNO | _EPERM))]
    return _with_argument(name, arg, lines)


def _if_any(name: str, arg: int, bits: int) -> list[Instruction]:
    """Deny `name` if its argument has any of `bits`."""
    return _with_argument(name, arg, [(_JSET, 0, 1, bits), (_RET, 0, 0, _ERRNO | _EPERM)])


def _prctl(option: int, wanted: int) -> list[Instruction]:
    """Deny `prctl(option, value)` unless `value` is `wanted`."""
    deny: Instruction = (_RET, 0, 0, _ERRNO | _EPERM)
    return _with_argument(
        "prctl", 0, [(_JEQ, 0, 3, option), (_LOAD, 0, 0, _ARG[1]), (_JEQ, 1, 0, wanted), deny]
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
