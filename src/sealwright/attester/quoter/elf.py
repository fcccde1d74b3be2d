"""The shared libraries that an image needs: the closure of DT_NEEDED, resolved as the dynamic loader would,
with the Python environment's own libraries first.

Files are read through the caller's reader, so that each is read once.
"""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from sealwright.errors import UnavailableError

_DEFAULT = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_LD_CONF = Path("/etc/ld.so.conf")

Reader = Callable[[Path], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """What the dynamic loader reads of a file."""

    machine: tuple[str, int]  # e_machine and class, which libraries must share
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]  # RUNPATH or RPATH, $ORIGIN not expanded
    interpreter: str  # of a program: its dynamic loader


def parse_elf(content: bytes) -> Elf | None:
    """Return what the loader reads of an ELF file, None of any other file."""
    if not content.startswith(b"\x7fELF"):
        return None
    try:
        file = ELFFile(io.BytesIO(content))
        section = next((s for s in file.iter_sections() if isinstance(s, DynamicSection)), None)
        tags: list[Any] = list(section.iter_tags()) if section else []
        interpreter = next((s for s in file.iter_segments() if isinstance(s, InterpSegment)), None)
        return Elf(
            machine=(file["e_machine"], file.elfclass),
            soname=next((t.soname for t in tags if t.entry.d_tag == "DT_SONAME"), ""),
            needed=tuple(t.needed for t in tags if t.entry.d_tag == "DT_NEEDED"),
            search=_search(tags),
            interpreter=interpreter.get_interp_name() if interpreter else "",
        )
    except (ELFError, KeyError, ValueError) as exc:
        raise UnavailableError("a shared library is broken", code="missing-library", stage="image") from exc


def _search(tags: list[Any]) -> tuple[str, ...]:
    for attribute in ("runpath", "rpath"):
        found = [getattr(tag, attribute) for tag in tags if hasattr(tag, attribute)]
        if found:
            return tuple(part for text in found for part in text.split(":") if part)
    return ()


def closure(start: dict[Path, bytes], read: Reader, *, skip: frozenset[str]) -> dict[str, bytes]:
    """Return name -> content of every library that the files in `start` need and do not hold themselves.

    Args:
        start: real path -> content of programs and libraries that keep their place in the image.
        read: returns a file's content.
        skip: names that are provided already (the loader itself).

    Raises:
        UnavailableError: `missing-library`.
    """
    held = set(start)
    found: dict[str, bytes] = {}
    pending = list(start.items())
    directories = tuple(system_directories())
    while pending:
        path, content = pending.pop()
        elf = parse_elf(content)
        for name in elf.needed if elf else ():
            if name in found or name in skip or elf is None:
                continue
            library = _resolve(name, path, elf, directories, partial(_matches, read, elf.machine))
            if library in held:
                continue
            found[name] = read(library)
            pending.append((library, found[name]))
    return found


def system_directories() -> Iterator[str]:
    """Yield where libraries are looked for: the Python environment's `lib`, then where the loader looks.

    The loader looks in /etc/ld.so.conf with its includes, then in its defaults. A virtual environment may
    bring a library that its machine lacks, for users who cannot install one. It is found through sys.path,
    which the launcher has from its caller; the launcher runs outside the environment.
    """
    yield from (str(Path(p).parents[1]) for p in sys.path if p.endswith("/site-packages"))
    yield from _configured(_LD_CONF)
    yield from _DEFAULT


def find_library(name: str, like: Elf, read: Reader) -> Path | None:
    """Return the path of a library that needs no search path of its own, for programs like `like`."""
    candidates = (Path(directory, name) for directory in system_directories())
    return next((c.resolve() for c in candidates if _matches(read, like.machine, c)), None)


def _configured(conf: Path) -> Iterator[str]:
    if not conf.is_file():
        return
    for line in conf.read_text(errors="replace").splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["include"]:
            for included in sorted(glob.glob(os.path.join(conf.parent, words[1]))):
                yield from _configured(Path(included))
        elif words:
            yield words[0]


def _resolve(
    name: str, path: Path, elf: Elf, directories: tuple[str, ...], fits: Callable[[Path], bool]
) -> Path:
    origin = str(path.parent)
    own = (part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in elf.search)
    for directory in (*own, *directories):
        candidate = Path(directory, name)
        if fits(candidate):
            return candidate.resolve()
    raise UnavailableError(
        f"{path.name} needs the shared library {name}, which is not on this machine",
        code="missing-library",
        stage="image",
    )


def _matches(read: Reader, machine: tuple[str, int], candidate: Path) -> bool:
    if not candidate.is_file():
        return False
    elf = parse_elf(read(candidate.resolve()))
    return elf is not None and elf.machine == machine
