# ruff: noqa: SIM115 - what is tried here is meant to fail
"""Workloads that the tests measure and start: each says on socket `test` what it could do."""

import json
import os
import socket
import sys
import threading
import time

OUTSIDE = "/tmp/sealwright-outside"


def _tell(workload, value):
    sock = socket.socket(fileno=workload.extra_fds["test"])
    sock.sendall(json.dumps(value).encode() + b"\n")
    return sock


def _tried(action):
    try:
        action()
    except BaseException as exc:
        return f"{type(exc).__name__}:{getattr(exc, 'errno', '')}"
    return "done"


def hello(workload):
    _tell(
        workload,
        {
            "config": workload.config.decode(),
            "payload": workload.unverified_payload.decode(),
            "claims": dict(workload.claims),
            "environ": dict(os.environ),
            "path": sys.path,
            "uid": os.getuid(),
            "argv": sys.argv,
        },
    )


def wait(workload):
    _tell(workload, "waiting").recv(1)


def fail(workload):
    raise ValueError("PLANTED-PLAINTEXT")


def quotes(workload):
    sock = _tell(workload, "ready")
    lock = threading.Lock()

    def one(at):
        envelope = workload.quote(bytes([at]) * 64)
        with lock:
            sock.sendall(json.dumps([at, envelope.decode()]).encode() + b"\n")

    threads = [threading.Thread(target=one, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sock.recv(1)


def connects(workload):
    peers = json.loads(workload.unverified_payload)
    said = []
    for host, port in peers:
        try:
            with workload.connect(host, port) as peer:
                peer.sendall(b"hello")
                said.append("connected")
        except Exception as exc:
            said.append(getattr(exc, "code", repr(exc)))
    _tell(workload, said)


def serve(workload):
    _tell(workload, "listening")
    peer, _ = workload.listener.accept()
    peer.sendall(b"served")


def attempts(workload):
    import ctypes
    import fcntl
    import resource

    libc = ctypes.CDLL(None, use_errno=True)

    def call(function, *args):
        def go():
            if function(*args) < 0:
                raise OSError(ctypes.get_errno(), "")

        return _tried(go)

    said = {
        "read /etc/passwd": _tried(lambda: open("/etc/passwd").read()),
        "list /": _tried(lambda: os.listdir("/")),
        "write sealed": _tried(lambda: open("/proc/self/fd/3/usr/new", "w")),
        "write scratch": _tried(lambda: open(workload.scratch + "/new", "w")),
        "write /tmp": _tried(lambda: open("/tmp/sealwright-probe", "w")),
        "write /dev/shm": _tried(lambda: open("/dev/shm/sealwright-probe", "w")),
        "own maps": _tried(lambda: open("/proc/self/maps").read()),
        "execve": _tried(lambda: os.execv("/proc/self/fd/3/usr/bin/python3", ["python3", "-c", ""])),
        "inet": _tried(lambda: socket.socket(socket.AF_INET)),
        "inet6": _tried(lambda: socket.socket(socket.AF_INET6)),
        "netlink": _tried(lambda: socket.socket(socket.AF_NETLINK)),
        "unix": _tried(lambda: socket.socket(socket.AF_UNIX)),
        "socketpair": _tried(lambda: socket.socketpair()),
        "ptrace parent": call(libc.ptrace, 16, os.getppid(), 0, 0),
        "unshare": call(libc.unshare, 0x10000000),
        "setns": call(libc.setns, 3, 0),
        "mount": call(libc.mount, b"x", b"/", b"tmpfs", 0, 0),
        "dumpable": call(libc.prctl, 4, 1, 0, 0, 0),
        "bpf": call(libc.syscall, 321, 0, 0, 0),
        "io_uring": call(libc.syscall, 425, 1, 0),
        "keyctl": call(libc.syscall, 250, 0, 0),
        "clone newuser": call(libc.syscall, 56, 0x10000011, 0, 0, 0, 0),
        "clone3": call(libc.syscall, 435, 0, 0),
        "datagram pair": _tried(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "raw pair": _tried(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)),
        "seqpacket pair": _tried(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)),
        "chmod": _tried(lambda: os.chmod("/tmp", 0o1777)),
        "chown": _tried(lambda: os.chown("/tmp", -1, -1)),
        "touch": _tried(lambda: os.utime("/tmp")),
        "xattr": _tried(lambda: os.setxattr("/tmp", "user.x", b"")),
        "truncate": _tried(lambda: os.truncate("/dev/null", 0)),
        "shared memory": call(libc.shmget, 1, 4096, 0o1600),
        "typing": _tried(lambda: fcntl.ioctl(workload.extra_fds["test"], 0x5412, b"x")),
        "owner": _tried(lambda: fcntl.fcntl(workload.extra_fds["test"], fcntl.F_SETOWN, os.getppid())),
        "limits of another": _tried(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)),
        "own limits": _tried(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)),
        "is dumpable": libc.prctl(3),
        "memfd": _tried(lambda: os.close(os.memfd_create("x"))),
        "thread": _tried(lambda: threading.Thread(target=time.sleep, args=(0,)).start()),
        "import outside": _tried(lambda: __import__("outside")),
        "import inside": _tried(lambda: __import__("xml.etree.ElementTree")),
        "children of 3": sorted(os.listdir("/proc/self/fd/3")),
    }
    _tell(workload, said)


def prefork(workload):
    if b"engine" not in workload.unverified_payload:
        return
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        try:
            _engine(theirs, parent, workload)
        except BaseException as exc:
            print("engine:", repr(exc), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    theirs.close()
    global ENGINE
    ENGINE = ours


def _fork():
    if os.fork() == 0:
        os._exit(0)


def _send_out():
    """Give a prompt to whoever on this machine waits at a path: no `connect` is needed for it."""
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"prompt", OUTSIDE)


def _engine(channel, parent, workload):
    import signal

    from sealwright.attester.quoter import kernel
    from sealwright.attester.software import confine_engine

    confine_engine(keep=[channel.fileno()], parent=parent, memory_locked=workload.claims["swap"] == "mlock")
    tgkill = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
    said = {
        "inet": _tried(lambda: socket.socket(socket.AF_INET)),
        "datagram": _tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "connect": _tried(lambda: socket.socket(socket.AF_UNIX).connect("/run/x")),
        "quotes": _tried(lambda: os.fstat(4)),
        "connections": _tried(lambda: os.fstat(5)),
        "config": _tried(lambda: os.fstat(6)),
        "listener": _tried(lambda: os.fstat(9)),
        "test": _tried(lambda: os.fstat(10)),
        "passwd": _tried(lambda: open("/etc/passwd")),
        "signal": _tried(lambda: os.kill(parent, 0)),
        "signal by pidfd": _tried(lambda: os.pidfd_open(parent)),
        "signal its thread": _tried(lambda: kernel.syscall(tgkill, parent, parent, 0)),
        "signal all": _tried(lambda: kernel.syscall(62 if tgkill == 234 else 129, -1, 0)),
        "own signal": _tried(lambda: kernel.syscall(tgkill, os.getpid(), os.getpid(), 0)),
        "fork": _tried(_fork),
        "outlive": _tried(lambda: kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)),
        "end with": _tried(lambda: kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)),
        "slow down": _tried(lambda: os.setpriority(os.PRIO_PROCESS, parent, 19)),
        "pin": _tried(lambda: os.sched_setaffinity(parent, {0})),
        "pair": _tried(socket.socketpair),
        "send out": _tried(_send_out),
        "thread": _tried(lambda: threading.Thread(target=time.sleep, args=(0,)).start()),
        "execve": _tried(lambda: os.execv("/proc/self/fd/3/usr/bin/python3", ["python3", "-c", ""])),
    }
    if b"model" in workload.unverified_payload:
        said["answer"] = _generate(channel, workload.scratch)
    channel.sendall(json.dumps(said).encode() + b"\n")
    channel.recv(1)
    os._exit(0)


def _generate(channel, scratch):
    import secrets

    import xllamacpp

    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    params = xllamacpp.CommonParams()
    params.model.path = f"/proc/self/fd/{fds[0]}"
    params.n_ctx, params.verbosity, params.cache_ram_mib = 256, -1, 0
    params.cpuparams.n_threads = 2
    params.cache_prompt = False
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.hostnames = [scratch + "/e.sock"]
    params.api_keys = [secrets.token_hex(32)]
    server = xllamacpp.Server(params)
    os.close(fds[0])
    os.unlink(scratch + "/e.sock")
    body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 3, "temperature": 0}
    answer = server.handle_chat_completions(body)
    return answer["usage"]["completion_tokens"]


def engine(workload):
    model = workload.extra_fds.get("model")
    if model is not None:
        socket.send_fds(ENGINE, [b"m"], [model])
    sock = _tell(workload, json.loads(ENGINE.makefile().readline()))
    sock.recv(1)
