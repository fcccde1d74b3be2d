"""An attacker: another process of the same user that tries to look into a process. Standard library only."""

import contextlib
import ctypes
import json
import os
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
ATTACH, DETACH, SEIZE = 16, 17, 0x4206


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _ptrace(request, pid):
    """Trace from a child of ours: when that ends, the kernel lets the traced process go on."""
    child = os.fork()
    if child == 0:
        failed = LIBC.ptrace(request, pid, None, None) < 0
        if request == ATTACH and not failed:
            os.waitpid(pid, 0)
            LIBC.ptrace(DETACH, pid, None, None)
        os._exit(failed)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError("ptrace")


def _read_memory(pid):
    buffer = ctypes.create_string_buffer(8)
    local = _Vector(ctypes.addressof(buffer), 8)
    remote = _Vector(ctypes.addressof(buffer), 8)  # any address: a permission error comes first
    if LIBC.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        error = ctypes.get_errno()
        if error != 14:  # EFAULT: we were allowed to look, and nothing was there
            raise OSError(error, "process_vm_readv")


def _take_fd(pid):
    pidfd = os.pidfd_open(pid)
    try:
        taken = LIBC.syscall(438, pidfd, 3, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        os.close(taken)
    finally:
        os.close(pidfd)


ATTEMPTS = {
    "mem": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "maps": lambda pid: open(f"/proc/{pid}/maps").close(),
    "environ": lambda pid: open(f"/proc/{pid}/environ").close(),
    "fd": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "root fd": lambda pid: os.close(os.open(f"/proc/{pid}/fd/3", os.O_PATH)),
    "cwd": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
    "user namespace": lambda pid: os.close(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)),
    "process_vm_readv": _read_memory,
    "pidfd_getfd": _take_fd,
    "attach": lambda pid: _ptrace(ATTACH, pid),
    "seize": lambda pid: _ptrace(SEIZE, pid),
}


def attack(pid):
    """Return which attempts succeeded against `pid`."""
    won = []
    for name, attempt in ATTEMPTS.items():
        try:
            attempt(pid)
        except OSError:
            continue
        won.append(name)
    return won


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def besiege(parent, stop):
    """Attack every child of `parent` from the moment it exists until `stop` exists or it ends; return pid -> attempts won."""
    won, rounds = {}, {}
    while not os.path.exists(stop) and os.path.exists(f"/proc/{parent}"):
        for pid in children(parent):
            rounds[pid] = rounds.get(pid, 0) + 1
            found = attack(pid)
            won.setdefault(pid, [])
            won[pid] = sorted({*won[pid], *found})
    return {"won": won, "rounds": rounds}


if __name__ == "__main__":
    if sys.argv[1] == "once":
        print(json.dumps(attack(int(sys.argv[2]))), flush=True)
        with contextlib.suppress(BrokenPipeError):
            time.sleep(0)
    else:
        print(json.dumps(besiege(int(sys.argv[2]), sys.argv[3])), flush=True)
