"""An initrd: a cpio archive in format `newc`, which depends on its files alone (Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat

from sealwright.image.ocitar import Node, Tree, whole

_MAGIC = "070701"
_END = "TRAILER!!!"


def cpio(tree: Tree) -> bytes:
    """Return the archive: sorted, owned by root, all times zero.

    Raises:
        SettingsError: `image-path`.
    """
    out = bytearray()
    for number, (path, node) in enumerate(whole(tree).items(), 1):
        _member(out, number, path, _mode(node), _content(node))
    _member(out, 0, _END, 0, b"")
    out += bytes(-len(out) % 512)
    return bytes(out)


def _member(out: bytearray, number: int, path: str, mode: int, content: bytes) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, time, size, device of the file and of the node (major, minor), name, checksum
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
    out += (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name
    out += bytes(-len(out) % 4)
    out += content
    out += bytes(-len(out) % 4)


def _mode(node: Node) -> int:
    if node.is_directory:
        return stat.S_IFDIR | (node.mode & 0o1777)
    return (stat.S_IFLNK | 0o777) if node.target else stat.S_IFREG | (node.mode & 0o777)


def _content(node: Node) -> bytes:
    return node.target.encode() if node.target else node.content or b""
