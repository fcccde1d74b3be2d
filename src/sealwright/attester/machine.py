"""Looking at a machine through its pseudo-files, below a root that tests can lay out. It changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

_MAX_TEXT = 256 * 1024  # bytes; /proc/cpuinfo of a large machine is longer, and its first CPU is enough
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # of every VM on Azure, in its chassis


def may_use(path: Path) -> bool:
    """Return whether this user may read and write `path`."""
    return os.access(path, os.R_OK | os.W_OK)


class Machine:
    """What is to be seen of a machine. What its firmware says (DMI) is the host's word: good for hints only."""

    def __init__(self, root: Path = Path("/"), *, may: Callable[[Path], bool] = may_use) -> None:
        self._root = root
        self._may = may

    def text(self, path: str) -> str:
        """Return a file's text, without white space around it; empty if it cannot be read."""
        try:
            with (self._root / path.lstrip("/")).open("rb") as file:
                return file.read(_MAX_TEXT).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Return whether there is something at `path`."""
        try:
            return (self._root / path.lstrip("/")).exists()
        except OSError:
            return False

    def usable(self, path: str) -> bool:
        """Return whether this user may read and write what is at `path`."""
        return self._may(self._root / path.lstrip("/"))

    def names(self, path: str) -> list[str]:
        """Return what a folder holds, sorted; nothing if it cannot be read."""
        try:
            return sorted(entry.name for entry in (self._root / path.lstrip("/")).iterdir())
        except OSError:
            return []

    def flags(self) -> frozenset[str]:
        """Return the flags of the first CPU, as the kernel shows them."""
        found = re.search(r"^flags\s*:(.*)$", self.text("/proc/cpuinfo"), re.MULTILINE)
        return frozenset(found[1].split()) if found else frozenset()

    def kernel(self) -> tuple[int, int]:
        """Return the kernel's version, (0, 0) if it is not to be seen."""
        found = re.match(r"(\d{1,3})\.(\d{1,4})", self.text("/proc/sys/kernel/osrelease"))
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def virtual(self) -> bool:
        """Return whether a hypervisor says it is there."""
        return "hypervisor" in self.flags() or self.exists("/sys/hypervisor/type")

    def cloud(self) -> str:
        """Return `azure`, `gcp`, `aws` or nothing, by the firmware's word."""
        dmi = {
            name: self.text(f"/sys/class/dmi/id/{name}")
            for name in ("sys_vendor", "product_name", "chassis_asset_tag")
        }
        if dmi["sys_vendor"] == "Microsoft Corporation" and dmi["chassis_asset_tag"] == _AZURE_TAG:
            return "azure"
        if dmi["product_name"] == "Google Compute Engine":
            return "gcp"
        return "aws" if dmi["sys_vendor"] == "Amazon EC2" else ""
