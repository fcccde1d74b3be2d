"""The image of a workload: every file it may load, read once, under paths that no machine chooses.

Spec: docs/spec/software-platform.md, "Measurement".
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealwright.attester.quoter.elf import Elf, closure, find_library, parse_elf
from sealwright.attester.quoter.packages import files_of, own_package, required, standard_library
from sealwright.crypto.canonical import canonical_digest
from sealwright.errors import UnavailableError

LOADER = "/lib64/ld.so"
INTERPRETER = "/usr/bin/python3"
LIBRARIES = "/lib"
ENTRY = "/etc/sealwright/entry"
STDLIB = f"/usr/{sys.platlibdir}/python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"{STDLIB}/site-packages"

_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_LOADED_LATE = "libgcc_s.so.1"  # glibc opens it when a thread is cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One file of an image, with the bytes that are measured and copied."""

    path: str  # absolute, inside the image
    mode: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the quoter will find: both registers, and the list behind the first."""

    register0: bytes  # SHA-256 of the JCS list of files, 32 bytes
    register1: bytes  # config_digest, 32 bytes
    files: tuple[tuple[str, str, str], ...]  # path, mode in octal, SHA-256 in hex


def measure(config: bytes, *, entry: str, distributions: Sequence[str]) -> Measurement:
    """Predict both registers without starting anything.

    Args:
        config: the enclave config's canonical bytes.
        entry: what is called, `module:function`.
        distributions: requirement texts of what the workload needs besides package `sealwright`.

    Raises:
        UnavailableError: a distribution or library of the image is not on this machine.
        ValueError: `entry` is not of its form.
    """
    return measured(build_image(entry, distributions), config)


def measured(image: Sequence[ImageFile], config: bytes) -> Measurement:
    """Return both registers of an image that was read already."""
    files = tuple((f.path, f"{f.mode:04o}", hashlib.sha256(f.content).hexdigest()) for f in image)
    listing = [list(file) for file in files]
    register1 = hashlib.sha256(config).digest()
    return Measurement(register0=canonical_digest(listing), register1=register1, files=files)


def build_image(entry: str, distributions: Sequence[str]) -> tuple[ImageFile, ...]:
    """Read the image of a workload from this machine, sorted by path. Arguments as `measure`."""
    if not _ENTRY.fullmatch(entry):
        raise ValueError("an entry is module:function")
    reader = _Reader()
    placed = _placed(reader, distributions)
    placed[ENTRY] = f"{entry}\n".encode()
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    program = parse_elf(reader(interpreter))
    if program is None or not program.interpreter:
        raise UnavailableError(
            "the interpreter names no dynamic loader", code="unusual-interpreter", stage="image"
        )
    loader = Path(program.interpreter).resolve()
    programs = {INTERPRETER: reader(interpreter), LOADER: reader(loader)}
    libraries = _libraries(reader, program, parse_elf(reader(loader)), loader)
    files = placed | programs | {f"{LIBRARIES}/{name}": content for name, content in libraries.items()}
    modes = {LOADER: 0o111, INTERPRETER: 0o555}
    return tuple(
        ImageFile(path=path, mode=modes.get(path, 0o444), content=files[path])
        for path in sorted(files, key=os.fsencode)
    )


class _Reader:
    """Reads each file once, and remembers which of them keep their place in the image."""

    def __init__(self) -> None:
        self.held: dict[Path, bytes] = {}
        self._content: dict[Path, bytes] = {}

    def __call__(self, path: Path) -> bytes:
        if path not in self._content:
            self._content[path] = path.read_bytes()
        return self._content[path]

    def hold(self, path: Path) -> bytes:
        """Read a file that keeps its place; libraries beside it are found there."""
        real = path.resolve()
        self.held[real] = self(real)
        return self.held[real]


def _placed(reader: _Reader, distributions: Sequence[str]) -> dict[str, bytes]:
    """Return image path -> content of the standard library, our package and the distributions."""
    sources = [(STDLIB, standard_library()), (SITE, own_package())]
    sources += [(SITE, files_of(distribution)) for distribution in required(distributions)]
    placed: dict[str, bytes] = {}
    for top, located in sources:
        for relative, path in located:
            content = reader.hold(path)
            if placed.setdefault(f"{top}/{relative}", content) != content:
                raise UnavailableError(
                    f"two distributions have a different {relative}", code="image-conflict", stage="image"
                )
    return placed


def _libraries(reader: _Reader, program: Elf, loader: Elf | None, loader_path: Path) -> dict[str, bytes]:
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    start = {interpreter: reader(interpreter)}
    start |= {path: content for path, content in reader.held.items() if content.startswith(b"\x7fELF")}
    late = find_library(_LOADED_LATE, program, reader)
    found = {_LOADED_LATE: reader(late)} if late else {}
    names = {loader_path.name, Path(program.interpreter).name, *((loader.soname,) if loader else ())}
    return found | closure(start | ({late: reader(late)} if late else {}), reader, skip=frozenset(names))
