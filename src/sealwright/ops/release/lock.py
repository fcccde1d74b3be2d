"""Lock files of pip (`name==version --hash=sha256:…`): what they pin. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sealwright.errors import SettingsError

_PIN = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[A-Za-z0-9.!+_-]+)(?: ;[^\\]*)?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a lock file."""

    version: str
    sha256: tuple[str, ...]  # of every file that may be installed, hex, in order


def pins(text: str) -> Mapping[str, Pin]:
    """Return the packages that a lock file pins, by normalised name.

    Raises:
        SettingsError: `malformed-lock`: a line that is no pin with hashes, or a package twice.
    """
    found: dict[str, Pin] = {}
    for line in _logical(text):
        head = line.partition(" --hash")[0]
        pin = _PIN.fullmatch(head.strip())
        hashes = _HASH.findall(line)
        if pin is None or not hashes or pin["name"] in found or line.count("--hash") != len(hashes):
            raise SettingsError(f"not a pin with hashes: {head[:60]!r}", code="malformed-lock", stage="lock")
        found[pin["name"]] = Pin(version=pin["version"], sha256=tuple(sorted(set(hashes))))
    return found


def _logical(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return joined.splitlines()
