"""Debian packages and wheels as trees of files. They are unpacked, never configured: no script of theirs runs."""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Collection

from sealwright.errors import SettingsError
from sealwright.image.ocitar import Node

SITE = "usr/local/lib/python3.13/dist-packages"  # where Debian's Python looks for what is not Debian's
PYTHON = "usr/bin/python3.13"
_PROGRAMS = ("usr/bin/", "usr/sbin/")
MAX_UNPACKED = 2 << 30  # bytes of one package
_MERGED = ("bin", "sbin", "lib", "lib64")  # links to their namesakes below usr/
# Not needed to run: documentation but the licences, translations, tests, and what only a shell would read.
_LEFT_OUT = re.compile(
    r"usr/share/(man|info|locale|lintian|bug|doc-base|bash-completion|applications|pixmaps|perl5|binfmts|reportbug)(/|$)"
    r"|usr/share/doc/(?!.*/copyright$)|usr/lib/x86_64-linux-gnu/gconv(/|$)|etc/python3\.13(/|$)"
    r"|usr/lib/python3\.13/(test|lib2to3|idlelib|tkinter|turtledemo|ensurepip)(/|$)"
    r"|etc/ca-certificates|usr/share/python3?(/|$)|usr/lib/valgrind"
)
_AR, _MEMBER = b"!<arch>\n", 60


def deb_tree(raw: bytes, programs: Collection[str] = (PYTHON,)) -> tuple[dict[str, Node], bytes]:
    """Return a Debian package's files, and its control file.

    Args:
        programs: what is kept of usr/bin and usr/sbin.

    Raises:
        SettingsError: `package-malformed`.
    """
    try:
        members = _ar(raw)
        control = _tar(members["control.tar"])["control"].content or b""
        tree = {_merged(path): node for path, node in _tar(members["data.tar"]).items()}
    except (KeyError, ValueError, EOFError, OSError, tarfile.TarError, lzma.LZMAError) as exc:
        raise _malformed(f"no Debian package ({type(exc).__name__})") from exc
    kept = {
        path: node
        for path, node in tree.items()
        if not _LEFT_OUT.match(path) and (not path.startswith(_PROGRAMS) or path in programs)
    }
    return kept, control


def wheel_tree(raw: bytes) -> dict[str, Node]:
    """Return a wheel's files, where Python finds them. Programs that it would install are left out.

    Raises:
        SettingsError: `package-malformed`.
    """
    tree = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_UNPACKED:
                raise _malformed("a wheel of more than two GiB")
            for info in archive.infolist():
                place = _placed(info.filename)
                if place and not info.is_dir():
                    tree[f"{SITE}/{place}"] = Node(mode=0o644, content=archive.read(info))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as exc:
        raise _malformed(f"no wheel ({type(exc).__name__})") from exc
    return tree


def _placed(name: str) -> str:
    """Return where a file of a wheel goes below the site folder (binary distribution format); empty: nowhere."""
    top, _, rest = name.partition("/")
    if not top.endswith(".data"):
        return name
    kind, _, inside = rest.partition("/")
    return inside if kind in ("purelib", "platlib") else ""


def _ar(raw: bytes) -> dict[str, bytes]:
    """Return the members of an ar archive, unpacked, by their names without the compression's."""
    if not raw.startswith(_AR):
        raise ValueError("no ar archive")
    members, at = {}, len(_AR)
    while at < len(raw):
        head = raw[at : at + _MEMBER]
        size = int(head[48:58])
        if len(head) != _MEMBER or head[58:] != b"`\n" or not 0 <= size <= len(raw) - at - _MEMBER:
            raise ValueError("no ar member")
        name = head[:16].decode("ascii").strip().rstrip("/")
        content = raw[at + _MEMBER : at + _MEMBER + size]
        if name.endswith(".tar.xz"):
            members[name.removesuffix(".xz")] = _bounded(content)
        at += _MEMBER + size + size % 2
    return members


def _bounded(packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)
    content = unpacker.decompress(packed, MAX_UNPACKED)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("not one whole xz stream, or too large")
    return content


def _tar(raw: bytes) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        for info in archive:
            path = info.name.removeprefix("./").strip("/")
            if path in ("", "."):
                continue
            nodes[path] = _node(archive, info, nodes)
    return nodes


def _node(archive: tarfile.TarFile, info: tarfile.TarInfo, before: dict[str, Node]) -> Node:
    if info.isdir():
        return Node(mode=0o755)
    if info.issym():
        return Node(mode=0o777, target=info.linkname)
    if info.islnk():
        return before[info.linkname.removeprefix("./")]
    file = archive.extractfile(info)
    if not info.isreg() or file is None:
        raise ValueError("neither file, link nor folder")
    return Node(mode=0o755 if info.mode & 0o111 else 0o644, content=file.read())


def _merged(path: str) -> str:
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def _malformed(why: str) -> SettingsError:
    return SettingsError(why, code="package-malformed", stage="packages")
