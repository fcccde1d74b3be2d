"""A container's layer as a tar archive that depends on its files alone: sorted, one owner, one time, no names of
users. Spec: docs/spec/container-image.md, Layers.

Layers are not compressed: what a compressor writes depends on its version, and a digest has to be the same elsewhere.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from sealwright.errors import SettingsError

MODE_BITS = 0o1777  # no setuid, no setgid: nothing in an image gains rights
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file (`content`), a symbolic link (`target`) or a directory (neither)."""

    mode: int = 0o755
    content: bytes | None = None
    target: str = ""
    owner: int = 0  # user and group id

    @property
    def is_directory(self) -> bool:
        """Whether it is neither file nor link."""
        return self.content is None and not self.target


Tree = Mapping[str, Node]  # path without leading slash -> node


def whole(tree: Tree) -> dict[str, Node]:
    """Return the tree with the directories that its paths imply, sorted by path.

    Raises:
        SettingsError: `image-path`: a path that is absolute, not normal, or leads through a file or link.
    """
    out: dict[str, Node] = {}
    for path, node in tree.items():
        _check(path, node)
        parents = path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            out.setdefault("/".join(parents[:depth]), Node())
        out[path] = node
    for path in out:
        parent = out.get(path.rpartition("/")[0])
        if parent is not None and not parent.is_directory:
            raise SettingsError(
                f"{path} leads through what is no directory", code="image-path", stage="layer"
            )
    return dict(sorted(out.items(), key=lambda item: item[0].encode()))


def write_layer(out: BinaryIO, tree: Tree, *, at: int) -> None:
    """Write the tree as a tar archive.

    Args:
        at: the time of every file, seconds since 1970.

    Raises:
        SettingsError: as `whole`.
    """
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, node in whole(tree).items():
            info = tarfile.TarInfo(path)
            info.mode, info.mtime = node.mode & MODE_BITS, at
            info.uid = info.gid = node.owner
            if node.content is not None:
                info.size = len(node.content)
                archive.addfile(info, io.BytesIO(node.content))
            else:
                info.type = tarfile.SYMTYPE if node.target else tarfile.DIRTYPE
                info.linkname = node.target
                archive.addfile(info)


def merged(trees: Iterable[Tree]) -> dict[str, Node]:
    """Return one tree of many; directories may stand in several, a file in one, or the same in each.

    Raises:
        SettingsError: `image-conflict`.
    """
    out: dict[str, Node] = {}
    for tree in trees:
        for path, node in tree.items():
            before = out.setdefault(path, node)
            if before != node and not (before.is_directory and node.is_directory):
                raise SettingsError(f"{path} stands in two packages", code="image-conflict", stage="layer")
    return out


def _check(path: str, node: Node) -> None:
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or _CONTROL.search(path):
        raise SettingsError(f"{path!r} is no path of an image", code="image-path", stage="layer")
    if node.content is not None and node.target:
        raise ValueError("a node is a file or a link")
