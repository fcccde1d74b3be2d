"""Run as an ordinary user: start a probe, print what it said as JSON; `siege` attacks it meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support import HERE, PROBE, install

from sealwright.attester.quoter import kernel
from sealwright.attester.quoter import launch as launching
from sealwright.attester.quoter.launch import launch


def attacker(*arguments):
    command = [sys.executable, "-I", str(HERE / "attacker.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def once(pid):
    return json.loads(attacker("once", str(pid)).communicate()[0])


def control():
    """What the attacker gets of a process that nothing guards: it must be everything."""
    child = os.fork()
    if child == 0:
        os.open("/", os.O_RDONLY)
        os.dup2(0, 3)
        signal.pause()
    try:
        return once(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def trap():
    """What it gets of a process that executed an unreadable loader inside a user namespace of ours."""
    loader = launching._unreadable_loader(sys.executable)
    child = os.fork()
    if child == 0:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        code = "import time; time.sleep(60)"
        os.execv(f"/proc/self/fd/{loader}", ["ld.so", sys.executable, "-I", "-S", "-c", code])
    try:
        while Path(f"/proc/{child}/cmdline").read_bytes()[:5] != b"ld.so":
            pass
        return once(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main(folder, function, payload=""):
    ours, theirs = socket.socketpair()
    sys.path.append(str(install(folder / "site", {"probe.py": PROBE})))
    said = {"control": control(), "trap": trap()} if function == "siege" else {}
    siege = None
    if function == "siege":
        function, spawn = "wait", launching._spawn

        def besieged(fd):
            nonlocal siege
            launcher = spawn(fd)
            said["launcher"] = launcher.pid
            siege = attacker("siege", str(launcher.pid), str(folder / "stop"))
            return launcher

        launching._spawn = besieged
    running = launch(
        b"{}", entry=f"probe:{function}", distributions=["probe"], state_dir=folder / "state",
        extra_fds={"test": theirs.fileno()}, payload=payload.encode(),
    )  # fmt: skip
    theirs.close()
    said |= {"said": json.loads(ours.makefile().readline()), "pid": running.pid}
    said |= {"claims": running.claims.to_json(), "register0": running.measurement.register0.hex()}
    if siege is not None:
        (folder / "stop").touch()
        said["siege"] = json.loads(siege.communicate()[0])
        said["quoting"] = [int(pid) for pid in said["siege"]["rounds"] if int(pid) != running.pid]
        said["launcher now"] = once(said["launcher"])
    ours.close()
    said["exit"] = running.wait()
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
