"""A wheel that is the same bytes wherever it is built. Spec: docs/spec/release.md, Wheel."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sealwright.crypto.encoding import rfc3339
from sealwright.errors import UnavailableError, VerificationError
from sealwright.ops.release.lock import pins

BUILD_LOCK = "requirements/build.txt"
_TIMEOUT_S = 600
_MODE = 0o100644 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One commit of a git repository."""

    root: Path
    commit: str
    date: datetime

    @classmethod
    def of(cls, root: Path) -> Source:
        """Return the commit that is checked out at `root`.

        Raises:
            UnavailableError: `git-failed`. VerificationError: `source-modified`: files differ from the commit.
        """
        changes = git(root, "status", "--porcelain", "--untracked-files=no").decode("utf-8", "replace")
        if changes:
            raise VerificationError(
                f"{len(changes.splitlines())} files differ from the commit: {changes.splitlines()[0][3:]}",
                code="source-modified",
                stage="source",
            )
        commit, seconds = git(root, "log", "-1", "--format=%H %ct").decode("ascii").split()
        return cls(root=root, commit=commit, date=datetime.fromtimestamp(int(seconds), UTC))

    def export(self, folder: Path) -> None:
        """Write the files of the commit, and no others, to `folder`."""
        raw = git(self.root, "archive", "--format=tar", self.commit)
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            archive.extractall(folder, filter="data")

    def file(self, path: str) -> bytes:
        """Return a file of the commit. Raises UnavailableError `git-failed`."""
        return git(self.root, "show", f"{self.commit}:{path}")

    def files(self, *paths: str) -> list[str]:
        """Return the names of the files below `paths` in the commit."""
        names = git(self.root, "ls-tree", "-r", "-z", "--name-only", self.commit, "--", *paths)
        return [name.decode() for name in names.split(b"\0") if name]

    @property
    def dated(self) -> str:
        """The commit's time, RFC 3339."""
        return rfc3339(self.date)


def git(root: Path, *arguments: str) -> bytes:
    """Return what git prints. Raises UnavailableError `git-failed`."""
    # What this machine's user prefers must not change a byte of an archive.
    plain = ("tar.umask=0022", "core.autocrlf=false", "core.eol=lf", f"core.attributesFile={os.devnull}")
    command = ["git", "-C", str(root), *[word for one in plain for word in ("-c", one)], *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        raise UnavailableError(
            f"`git {arguments[0]}` failed in {root}; is it a checkout, and git installed?",
            code="git-failed",
            stage="source",
        ) from exc
    return done.stdout


def build_wheel(source: Source) -> tuple[str, bytes]:
    """Return name and bytes of the wheel of a commit.

    Raises:
        UnavailableError: `build-tool-missing`, `build-failed`, `git-failed`.
    """
    _check_tools(source)
    with tempfile.TemporaryDirectory() as scratch:
        tree, out = Path(scratch, "source"), Path(scratch, "out")
        source.export(tree)
        _hatchling(tree, out, int(source.date.timestamp()))
        (wheel,) = out.glob("*.whl")
        return wheel.name, stored(wheel.read_bytes(), source.date)


def stored(raw: bytes, date: datetime) -> bytes:
    """Return the wheel `raw` with members stored and dated `date`: deflate's bytes depend on the machine's zlib."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            member = zipfile.ZipInfo(name, max(date, datetime(1980, 1, 1, tzinfo=UTC)).timetuple()[:6])
            member.create_system, member.external_attr = 3, _MODE
            new.writestr(member, old.read(name), zipfile.ZIP_STORED)
    return out.getvalue()


def _check_tools(source: Source) -> None:
    """Check that this environment builds with the versions of the commit's lock file."""
    for name, pin in pins(source.file(BUILD_LOCK).decode()).items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != pin.version:
            raise UnavailableError(
                f"the lock builds with {name} {pin.version}, and here is {found}: pip install -r {BUILD_LOCK}",
                code="build-tool-missing",
                stage="wheel",
            )


def _hatchling(tree: Path, out: Path, epoch_s: int) -> None:
    command = [sys.executable, "-I", "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    environment = {"SOURCE_DATE_EPOCH": str(epoch_s), "PATH": "", "LC_ALL": "C.UTF-8"}
    try:
        subprocess.run(
            command, cwd=tree, env=environment, check=True, capture_output=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", None) or b""
        raise UnavailableError(
            f"hatchling failed: {said.decode('utf-8', 'replace').strip().splitlines()[-1:]}",
            code="build-failed",
            stage="wheel",
        ) from exc
