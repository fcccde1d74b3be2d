"""Programs of pinned packages, run where they are built with: by their own loader, whatever this machine's library is.

So the bytes that they write depend on the lock alone. Nothing of them is installed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from sealwright.errors import UnavailableError
from sealwright.image.ocitar import Tree, whole

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
LIMIT_S = 900.0
# Nothing of this machine: no locale, no time zone, no settings of Python's.
ENVIRONMENT: Mapping[str, str] = {
    "LANG": "C",
    "LC_ALL": "C",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PATH": "/nowhere",
}


class Toolbox:
    """A folder with the programs, for as long as it is open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="sealwright-tools-")
        self.root = Path(self._folder.name).resolve() / "root"
        unpack(self.root, self._tree)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def work(self) -> Path:
        """Return a fresh folder that goes with the toolbox."""
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def run(
        self,
        program: str,
        arguments: Iterable[str],
        *,
        stdin: BinaryIO | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run `program` (a path in the tree) and return what it wrote to its output.

        Raises:
            UnavailableError: `tool-failed`.
        """
        loader = [str(self.root / LOADER), "--library-path", str(self.root / LIBRARIES)]
        command = [*loader, str(self.root / program), *arguments]
        try:
            done = subprocess.run(
                command,
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                env={**ENVIRONMENT, **(environment or {})},
                timeout=LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise _failed(program, type(exc).__name__) from exc
        if done.returncode:
            raise _failed(program, _last_line(done.stderr))
        return done.stdout

    def python(self, code: str, arguments: Sequence[str] = ()) -> bytes:
        """Run `code` by the packages' Python, without site packages. Raises as `run`."""
        return self.run(
            "usr/bin/python3.13",
            ["-S", "-B", "-c", code, *arguments],
            environment={"PYTHONHOME": str(self.root / "usr")},
        )


def unpack(root: Path, tree: Tree) -> None:
    """Write a tree's files below `root`, a folder that does not exist.

    Raises:
        SettingsError: `image-path`: a path that would lead elsewhere.
    """
    root.mkdir(mode=0o700)
    for path, node in whole(tree).items():
        place = root / path
        if node.content is not None:
            place.write_bytes(node.content)
            place.chmod(0o700 if node.mode & 0o111 else 0o600)
        elif node.target:
            os.symlink(node.target, place)
        else:
            place.mkdir(mode=0o700)


def _failed(program: str, why: str) -> UnavailableError:
    return UnavailableError(f"{program} of the packages failed: {why}", code="tool-failed", stage="build")


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
