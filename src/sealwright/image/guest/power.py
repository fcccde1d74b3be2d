"""The power button, by which a host asks a guest to end. uapi/linux/input.h.

It asks for nothing that the host could not do by force, so nobody has to be believed; but asked like this the enclave
ends its requests and logs its receipts.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

SYS_INPUT = Path("/sys/class/input")
DEV_INPUT = Path("/dev/input")
_NAME = "Power Button"
_EVENT = struct.Struct("=qqHHi")  # time (s, µs), type, code, value
_PRESSED = (1, 116, 1)  # EV_KEY, KEY_POWER, down


def buttons(sys_input: Path = SYS_INPUT, dev_input: Path = DEV_INPUT) -> list[Path]:
    """Return the devices of the machine's power buttons; none where its drivers are not there."""
    if not sys_input.is_dir():
        return []
    events = sorted(one for one in sys_input.iterdir() if one.name.startswith("event"))
    return [dev_input / one.name for one in events if _name(one) == _NAME]


def watch(devices: Iterable[Path], pressed: Callable[[], None]) -> None:
    """Call `pressed` once when a button is pressed, and return; return at once without buttons."""
    fds = [os.open(device, os.O_RDONLY | os.O_CLOEXEC) for device in devices]
    try:
        waiting = select.poll()
        for fd in fds:
            waiting.register(fd, select.POLLIN)
        while fds:
            for fd, _ in waiting.poll():
                raw = os.read(fd, _EVENT.size)
                if len(raw) != _EVENT.size:
                    return
                if _EVENT.unpack(raw)[2:] == _PRESSED:
                    pressed()
                    return
    finally:
        for fd in fds:
            os.close(fd)


def _name(event: Path) -> str:
    try:
        return (event / "device" / "name").read_text().strip()
    except OSError:
        return ""
