"""Search for secrets where none may be: in files, on the wire, in logs, in whatever form they were written."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

SHORTEST = 16  # bytes; a shorter secret would be found by chance


def search(planted: Mapping[str, bytes], places: Iterator[tuple[str, bytes]]) -> list[str]:
    """Return where a planted secret stands, as `secret (form) in place`.

    Args:
        planted: what it is -> its bytes, at least SHORTEST.
        places: name and content of everything that is searched.
    """
    needles = [(f"{name} ({how})", coded) for name, raw in planted.items() for how, coded in forms(raw)]
    return [f"{name} in {place}" for place, raw in places for name, coded in needles if coded in raw]


def forms(secret: bytes) -> list[tuple[str, bytes]]:
    """Return the forms a secret may have: raw, hex, base64 at each alignment, both alphabets, JSON.

    Raises:
        ValueError: it is shorter than SHORTEST.
    """
    if len(secret) < SHORTEST:
        raise ValueError("too short to search for")
    found = [("raw", secret), ("hex", secret.hex().encode()), ("HEX", secret.hex().upper().encode())]
    for shift in range(3):
        coded = _base64_within(secret, shift)
        found += [(f"base64+{shift}", coded), (f"base64url+{shift}", coded.translate(_URL))]
    found.append(("JSON", json.dumps(secret.decode("utf-8", "replace"))[1:-1].encode()))
    return list({coded: (how, coded) for how, coded in reversed(found)}.values())


def files(folder: Path, *, but: Collection[Path] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file below `folder`, except those that are, or lie below, one of `but`."""
    passed = set(but)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and passed.isdisjoint([path, *path.parents]):
            yield str(path.relative_to(folder)), path.read_bytes()


_URL = bytes.maketrans(b"+/", b"-_")


def _base64_within(secret: bytes, shift: int) -> bytes:
    """Return the base64 that must occur where `secret` starts `shift` bytes after a multiple of three."""
    coded = base64.b64encode(bytes(shift) + secret)
    first = -(-shift * 8 // 6)  # what the bytes before decide too is left out, at the end likewise
    return coded[first : (shift + len(secret)) * 8 // 6]
