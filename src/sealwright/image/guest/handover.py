"""What the initrd leaves for process 1 of the root: the config it measured, and where the rest lies on the disk.

It lies in /run, a tmpfs that the initrd made: nobody but the initrd wrote there. The disk is the host's, which can
change it at any time, so the config is never read from it a second time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealwright.image.guest.configdisk import Member

FOLDER = "run/sealwright"
_CONFIG, _REST = "config.json", "handover.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What was found and done before the root was entered."""

    config: bytes  # as measured
    registers: tuple[str, ...]  # that hold its digest
    disk: str  # device of the config disk
    members: tuple[Member, ...]


def leave(root: Path, found: Handover) -> None:
    """Write it below `root`, readable by nobody but root."""
    folder = root / FOLDER
    folder.mkdir(mode=0o700)
    rest = {
        "registers": found.registers,
        "disk": found.disk,
        "members": [[one.name, one.offset, one.size] for one in found.members],
    }
    _write(folder / _CONFIG, found.config)
    _write(folder / _REST, json.dumps(rest).encode())


def take(root: Path = Path("/")) -> Handover:
    """Read what `leave` wrote."""
    folder = root / FOLDER
    rest = json.loads((folder / _REST).read_bytes())
    members: Sequence[tuple[str, int, int]] = rest["members"]
    return Handover(
        config=(folder / _CONFIG).read_bytes(),
        registers=tuple(rest["registers"]),
        disk=rest["disk"],
        members=tuple(Member(name=name, offset=offset, size=size) for name, offset, size in members),
    )


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(content)
