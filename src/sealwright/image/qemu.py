"""A guest image in QEMU: UEFI firmware with Secure Boot, a software TPM, a network of its own. No TEE: the host sees all."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from sealwright.errors import UnavailableError

QEMU, SWTPM = "qemu-system-x86_64", "swtpm"
FIRMWARE = Path("/usr/share/OVMF")
STAGE = "boot"
GUEST_ADDRESS, GUEST_GATEWAY = (
    "10.0.2.15/24",
    "10.0.2.2",
)  # of QEMU's user network; the gateway is this machine
Accelerator = Literal["kvm", "tcg"]
_CODE = {True: "OVMF_CODE_4M.secboot.fd", False: "OVMF_CODE_4M.fd"}
NO_KEYS = "OVMF_VARS_4M.fd"  # variables without Secure Boot keys
_PROBE_S = 30.0
_PROBE_SAYS = b"BdsDxe"  # the firmware came up, and says that it finds nothing to boot
_SOCKET_S = 10.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """A kernel that QEMU loads itself, in place of firmware."""

    kernel: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is booted, and how. Nothing of it is written to but `variables` and the TPM's state."""

    disks: Sequence[Path]  # raw; the image first, then what the host brings
    variables: Path | None = None  # UEFI's, raw; Secure Boot is on if they have keys
    direct: Direct | None = None
    tpm_state: Path | None = None  # folder, as `swtpm_setup` makes it
    memory_mib: int = 2048
    cpus: int = 2
    forward: tuple[int, int] | None = None  # port on this machine's loopback, port of the guest
    accelerator: Accelerator = "tcg"
    secure_boot: bool = True  # firmware that keeps its variables from the system

    def command(self, folder: Path) -> list[str]:
        """Return QEMU's command line. Args: folder: where console and sockets lie."""
        command = [QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += ["-machine", f"q35,smm={'on' if self.secure_boot else 'off'},accel={self.accelerator}"]
        command += ["-cpu", "host" if self.accelerator == "kvm" else "max"]
        command += ["-m", str(self.memory_mib), "-smp", str(self.cpus)]
        command += ["-chardev", f"file,id=console,path={folder / 'console'}", "-serial", "chardev:console"]
        command += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
        command += [
            "-chardev",
            f"socket,id=qmp,path={folder / 'qmp'},server=on,wait=off",
            "-mon",
            "qmp,mode=control",
        ]
        command += self._boot() + self._tpm(folder) + self._network()
        for at, disk in enumerate(self.disks):
            command += ["-drive", f"file={disk},format=raw,if=none,id=disk{at},readonly=on"]
            command += ["-device", f"virtio-blk-pci,drive=disk{at}"]
        return command

    def _boot(self) -> list[str]:
        if self.direct is not None:
            one = self.direct
            return ["-kernel", str(one.kernel), "-initrd", str(one.initrd), "-append", one.command_line]
        code = FIRMWARE / _CODE[self.secure_boot]
        found = ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
        if self.secure_boot:
            found += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        if self.variables is not None:
            found += ["-drive", f"if=pflash,format=raw,unit=1,file={self.variables}"]
        return found

    def _tpm(self, folder: Path) -> list[str]:
        if self.tpm_state is None:
            return []
        chardev = f"socket,id=tpm,path={folder / 'tpm'}"
        return [
            "-chardev",
            chardev,
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm0",
        ]

    def _network(self) -> list[str]:
        user = "user,id=net"
        if self.forward is not None:
            user += f",hostfwd=tcp:127.0.0.1:{self.forward[0]}-:{self.forward[1]}"
        return ["-netdev", user, "-device", "virtio-net-pci,netdev=net,romfile="]


@dataclass(slots=True, kw_only=True)
class Booted:
    """A machine that runs, and what it wrote to its console."""

    process: subprocess.Popen[bytes]
    folder: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def console(self) -> str:
        """What stands on the console so far."""
        try:
            raw = (self.folder / "console").read_bytes()
        except FileNotFoundError:
            return ""
        return raw.decode(errors="replace").replace("\r", "")

    @property
    def running(self) -> bool:
        """Whether the machine has not ended."""
        return self.process.poll() is None

    def wait_for(self, text: str, seconds: float) -> float:
        """Return how many seconds after its start the console showed `text`.

        Raises:
            UnavailableError: `guest-ended` without it, or `guest-timeout`; with the console's last lines.
        """
        ends = time.monotonic() + seconds
        while text not in self.console:
            if not self.running and text not in self.console:
                raise UnavailableError(
                    f"the guest ended without {text!r}: {self.last_lines()}", code="guest-ended", stage=STAGE
                )
            if time.monotonic() > ends:
                raise _late(f"the guest has not shown {text!r}: {self.last_lines()}")
            time.sleep(_POLL_S)
        return time.monotonic() - self.started

    def wait(self, seconds: float) -> int:
        """Wait for the machine's end and return QEMU's exit code. Raises UnavailableError: `guest-timeout`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise _late(f"the guest has not ended: {self.last_lines()}") from None

    def press_power_button(self) -> None:
        """Ask the machine to end, as clouds do. QEMU Machine Protocol."""
        with closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.settimeout(_SOCKET_S)
            monitor.connect(str(self.folder / "qmp"))
            with monitor.makefile("rwb", buffering=0) as lines:
                for command in ("qmp_capabilities", "system_powerdown"):
                    lines.readline()
                    lines.write(json.dumps({"execute": command}).encode() + b"\n")
                lines.readline()

    def last_lines(self, count: int = 8) -> str:
        """Return the console's last lines as one."""
        return " | ".join(line for line in self.console.splitlines()[-count:] if line.strip())


@contextmanager
def booted(machine: Machine) -> Iterator[Booted]:
    """Boot a machine; at the end of the block it is killed, and its TPM with it.

    Raises:
        UnavailableError: `qemu-missing`, `swtpm-missing`, `swtpm-failed`.
    """
    require(tpm=machine.tpm_state is not None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealwright-vm-")))
        if machine.tpm_state is not None:
            stack.enter_context(_tpm(machine.tpm_state, folder / "tpm"))
        log = stack.enter_context((folder / "qemu.log").open("wb"))
        process = subprocess.Popen(
            machine.command(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(_kill, process)
        yield Booted(process=process, folder=folder)


def require(*, tpm: bool = True) -> None:
    """Check that the programs are here. Raises UnavailableError: `qemu-missing`, `swtpm-missing`."""
    if shutil.which(QEMU) is None or not (FIRMWARE / NO_KEYS).exists():
        raise UnavailableError(
            "QEMU or its firmware is not installed: apt-get install qemu-system-x86 ovmf",
            code="qemu-missing",
            stage=STAGE,
        )
    if tpm and shutil.which(SWTPM) is None:
        raise UnavailableError(
            "swtpm is not installed: apt-get install swtpm swtpm-tools", code="swtpm-missing", stage=STAGE
        )


@cache
def accelerator() -> Accelerator:
    """Return `kvm` if a machine really comes up under it, `tcg` (emulation) if not: an open /dev/kvm is no proof."""
    try:
        Path("/dev/kvm").open("rb+", buffering=0).close()
    except OSError:
        return "tcg"
    with booted(Machine(disks=(), accelerator="kvm", secure_boot=False, memory_mib=256, cpus=1)) as probe:
        ends = time.monotonic() + _PROBE_S
        while probe.running and time.monotonic() < ends:
            if _PROBE_SAYS.decode() in probe.console:
                return "kvm"
            time.sleep(_POLL_S)
    return "tcg"


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return int(one.getsockname()[1])


@contextmanager
def _tpm(state: Path, control: Path) -> Iterator[None]:
    command = [SWTPM, "socket", "--tpm2", f"--tpmstate=dir={state}", f"--ctrl=type=unixio,path={control}"]
    process = subprocess.Popen(
        [*command, "--terminate"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + _SOCKET_S
        while not control.exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise UnavailableError("swtpm did not start", code="swtpm-failed", stage=STAGE)
            time.sleep(0.01)
        yield
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _late(text: str) -> UnavailableError:
    return UnavailableError(text, code="guest-timeout", stage=STAGE)
