"""Process 1 of the initrd: find the root and the config, prove the one, measure the other, and go over.

Spec: docs/spec/guest.md, stages `mounts` to `switch-root`. Every failure ends the machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from sealwright.errors import FormatError, UnavailableError
from sealwright.image.guest import blocks, configdisk, devicemapper, gpt, handover, linux, pcr, registers
from sealwright.image.guest.blocks import Disk
from sealwright.image.guest.ending import last_words, say, step
from sealwright.image.guest.handover import Handover
from sealwright.image.guest.verity import VerityRoot

ROOT, TREE = "sealwright-root", "sealwright-verity"
MODULES = "/lib/modules/sealwright.list"
SYSROOT = "/sysroot"
INTERPRETER = "/usr/bin/python3"
NEXT = (INTERPRETER, "-I", "-m", "sealwright.image.guest.init")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/"}
Found = TypeVar("Found")
WAIT_S = 60.0  # for disks to appear
_PAUSE_S = 0.1
_BARE = linux.MS_NOSUID | linux.MS_NOEXEC
_KERNEL = (
    ("proc", "/proc", _BARE | linux.MS_NODEV, ""),
    ("sysfs", "/sys", _BARE | linux.MS_NODEV, ""),
    ("devtmpfs", "/dev", _BARE, "mode=0755"),
    ("tmpfs", "/run", _BARE | linux.MS_NODEV, "mode=0755,size=16m"),
)


def main() -> NoReturn:
    """Run all steps; does not return."""
    try:
        _start()
    except BaseException as exc:  # noqa: BLE001 - whatever it is, this machine does not start
        say(last_words(exc))
    linux.power_off()
    raise SystemExit(1)


def _start() -> None:
    with step("mounts"):
        mount_kernel()
    with step("modules"):
        load_modules(Path(MODULES))
        mount_configfs()
    with step("command-line"):
        root = VerityRoot.parse(Path("/proc/cmdline").read_text(encoding="ascii"))
    with step("disk"):
        disk, data, tree = wait_for(find_root)
    with step("verity"):
        device = devicemapper.create("sealwright-root", root.target(str(data), str(tree)))
    with step("root"):
        mount_root(str(device))
        say(f"root: {root.root_hash} verified as it is read")
    with step("config-disk"):
        found, members, config = wait_for(lambda: find_config(disk))
    with step("config-register"):
        bound = measure(config)
        say(f"config-register: {hashlib.sha256(config).hexdigest()} in {' '.join(bound)}")
    with step("switch-root"):
        handover.leave(
            Path("/"), Handover(config=config, registers=bound, disk=str(found.path), members=members)
        )
        switch_root()


def mount_kernel() -> None:
    """Mount the kernel's file systems, and speak on the console."""
    for kind, target, flags, options in _KERNEL:
        os.makedirs(target, exist_ok=True)
        linux.mount(kind, target, kind, flags, options)
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(console, number)
    if console > 2:
        os.close(console)


def load_modules(listed: Path, load: Callable[[str], None] = linux.finit_module) -> None:
    """Load the kernel's modules in order, as a list names them beside itself.

    A driver whose device is not here says so, and that is no failure; nor is it one that what builds upon it then
    misses its symbols. What cannot be done without is missed by a later step.
    """
    absent = False
    for name in listed.read_text(encoding="ascii").split():
        try:
            load(str(listed.parent / name))
        except OSError as exc:
            symbols = exc.errno == errno.ENOENT and exc.filename is None
            if exc.errno not in (errno.ENODEV, errno.EOPNOTSUPP) and not (absent and symbols):
                raise OSError(exc.errno, exc.strerror, name) from exc
            absent = True


def mount_configfs() -> None:
    """Mount configfs, where TEEs report, if this kernel has it."""
    if os.path.isdir("/sys/kernel/config"):
        linux.mount("configfs", "/sys/kernel/config", "configfs", _BARE | linux.MS_NODEV)


def wait_for(look: Callable[[], Found]) -> Found:
    """Return what `look` finds; drivers find disks when they like, so what is missing may still come."""
    ends = time.monotonic() + WAIT_S
    while True:
        try:
            return look()
        except UnavailableError:
            if time.monotonic() > ends:
                raise
            time.sleep(_PAUSE_S)


def find_root() -> tuple[Disk, Path, Path]:
    """Return the one disk with our partitions, and the devices of root and hash tree.

    Raises:
        UnavailableError: `no-root-disk`, `partition-missing`. FormatError: `malformed-gpt`, `ambiguous-disk`.
    """
    found = []
    for disk in blocks.disks():
        with blocks.reading(disk.path) as read:
            table = gpt.read_gpt(read, disk.sectors) if gpt.has_gpt(read) else ()
        found += [(disk, one) for one in table if one.name in (ROOT, TREE)]
    if not found:
        raise UnavailableError(f"no disk has partition {ROOT}", code="no-root-disk", stage="disk")
    if sorted(one.name for _, one in found) != [ROOT, TREE] or found[0][0] != found[1][0]:
        raise FormatError(
            f"partitions {ROOT} and {TREE} are not there once, on one disk",
            code="ambiguous-disk",
            stage="disk",
        )
    paths = {one.name: blocks.partition_path(disk, one) for disk, one in found}
    return found[0][0], paths[ROOT], paths[TREE]


def mount_root(device: str) -> None:
    """Mount the verified device read-only. Which of the two file systems it has is measured, as its content is."""
    os.makedirs(SYSROOT, exist_ok=True)
    flags = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID
    try:
        linux.mount(device, SYSROOT, "squashfs", flags)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        linux.mount(device, SYSROOT, "erofs", flags)


def find_config(root_disk: Disk) -> tuple[Disk, tuple[configdisk.Member, ...], bytes]:
    """Return the one config disk, its members, and the config's bytes, read once.

    Raises:
        UnavailableError: `no-config-disk`. FormatError: `malformed-config-disk`, `ambiguous-disk`.
    """
    found = []
    for disk in blocks.disks():
        if disk.name == root_disk.name:
            continue
        with blocks.reading(disk.path) as read:
            if configdisk.is_config_disk(read):
                found.append(disk)
    if not found:
        raise UnavailableError("no disk holds a config", code="no-config-disk", stage="config-disk")
    if len(found) > 1:
        raise FormatError("two disks hold a config", code="ambiguous-disk", stage="config-disk")
    with blocks.reading(found[0].path) as read:
        members = configdisk.index(read)
        return found[0], members, configdisk.content(read, members[0])


def measure(config: bytes) -> tuple[str, ...]:
    """Put the config's digest into this machine's registers; return their names. Raises as `bind_config`."""
    digest = hashlib.sha256(config).digest()
    device = next((one for one in pcr.DEVICES if os.path.exists(one)), None)
    if device is None:
        return registers.bind_config(digest, registers.found(None))
    with pcr.opened(device) as send:
        return registers.bind_config(digest, registers.found(send))


def switch_root() -> NoReturn:
    """Make the verified root the root, forget the initrd, and become its process 1."""
    for _, target, _, _ in _KERNEL:
        linux.mount(target, f"{SYSROOT}{target}", "", linux.MS_MOVE)
    os.chdir(SYSROOT)
    _forget("/")
    linux.mount(".", "/", "", linux.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    os.execve(INTERPRETER, NEXT, ENVIRONMENT)  # noqa: S606 - no shell is the point


def _forget(top: str) -> None:
    """Remove the initrd's files from memory, and nothing of another file system."""
    device = os.lstat(top).st_dev
    for entry in list(os.scandir(top)):
        if entry.stat(follow_symlinks=False).st_dev != device:
            continue
        if entry.is_dir(follow_symlinks=False):
            _forget(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


if __name__ == "__main__":
    main()
