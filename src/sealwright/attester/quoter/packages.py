"""Which Python files belong to an image: the standard library, our package, and named distributions."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import sealwright
from sealwright.errors import UnavailableError

_NOT_SHIPPED = frozenset(
    {"__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"}
) | {
    "lib2to3",
    "site-packages",
    "dist-packages",
    "pydoc_data",
}
_HOOKS = frozenset({"sitecustomize.py", "usercustomize.py"})
# Extensions for terminals, windows, old databases and CPython's own tests: each would drag in libraries.
_NO_EXTENSIONS = (
    "_tkinter.",
    "readline.",
    "_curses",
    "_dbm.",
    "_gdbm.",
    "nis.",
    "_test",
    "_ctypes_test.",
    "xx",
)
_METADATA = frozenset({"METADATA", "entry_points.txt"})
_DROPPED = frozenset({".pyc", ".pyi", ".pth"})

Located = Iterator[tuple[str, Path]]  # path relative to its place in the image, file on this machine


def standard_library() -> Located:
    """Yield the files of the running interpreter's standard library."""
    top = Path(sysconfig.get_path("stdlib")).resolve()
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = sorted(set(subfolders) - _NOT_SHIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith((".py", ".so")) and name not in _HOOKS and not _unwanted(path):
                yield path.relative_to(top).as_posix(), path


def _unwanted(path: Path) -> bool:
    return path.suffix == ".so" and path.name.startswith(_NO_EXTENSIONS)


def own_package() -> Located:
    """Yield the files of package `sealwright`, wherever it was imported from."""
    top = Path(sealwright.__file__).resolve().parent
    for path in sorted(top.rglob("*")):
        relative = path.relative_to(top)
        if path.is_file() and "__pycache__" not in relative.parts and path.suffix not in _DROPPED:
            yield f"sealwright/{relative.as_posix()}", path


def required(distributions: Sequence[str]) -> list[metadata.Distribution]:
    """Return the named distributions and all they require on this machine, sorted by name.

    Args:
        distributions: requirement texts such as `xllamacpp` or `uvicorn[standard]`.

    Raises:
        UnavailableError: `missing-distribution`.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    pending = [(_requirement(text), "") for text in distributions]
    while pending:
        requirement, _ = pending.pop()
        name = canonicalize_name(requirement.name)
        if name == "sealwright":
            continue
        distribution = found.setdefault(name, _distribution(name))
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            pending += [(r, extra) for r in _requires(distribution, extra)]
    return [found[name] for name in sorted(found)]


def files_of(distribution: metadata.Distribution) -> Located:
    """Yield the files in a distribution's RECORD that lie in site-packages and are code or data."""
    for file in distribution.files or ():
        path = PurePosixPath(str(file))
        if path.is_absolute() or ".." in path.parts or "__pycache__" in path.parts:
            continue  # scripts and manuals of the environment, and what pip compiled
        if path.suffix in _DROPPED or not _wanted_metadata(path):
            continue
        yield path.as_posix(), Path(str(distribution.locate_file(file)))


def _wanted_metadata(path: PurePosixPath) -> bool:
    return not path.parts[0].endswith(".dist-info") or path.name in _METADATA


def _requires(distribution: metadata.Distribution, extra: str) -> Iterator[Requirement]:
    for text in distribution.requires or ():
        requirement = _requirement(text)
        if requirement.marker is None:
            if not extra:
                yield requirement
        elif requirement.marker.evaluate({"extra": extra}) and (
            not extra or not requirement.marker.evaluate({"extra": ""})
        ):
            yield requirement


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as exc:
        raise UnavailableError(
            f"{text!r} is not a requirement", code="missing-distribution", stage="image"
        ) from exc


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as exc:
        raise UnavailableError(
            f"{name} belongs to the image but is not installed", code="missing-distribution", stage="image"
        ) from exc
