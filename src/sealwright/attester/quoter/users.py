"""User ids without accounts, one for each workload and one for each quoter that root starts."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

_FAR = 0x70000000  # no account and no container range lies here
_PIDS = 1 << 22  # pids are smaller (kernel limit), so ids made from one are unique among live processes
_NEAR = 61_500  # for containers that map 65536 ids: between Debian's dynamic ids and nobody


def own_ids() -> tuple[int, int]:
    """Return two user ids, for the workload and the quoter, that no account and no process has.

    Both are the starter's own id when it is not root.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.geteuid()
    pid = os.getpid()
    if _mapped(_FAR + 2 * _PIDS):
        return _FAR + pid, _FAR + _PIDS + pid
    taken = set(_in_use())
    free = [uid for uid in range(_NEAR, 65_000) if uid not in taken and not _has_account(uid)]
    start = pid % (len(free) // 2) * 2  # pairs that do not overlap: a quoter's id is no workload's
    return free[start], free[start + 1]


def _mapped(uid: int) -> bool:
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= uid < first + count:
            return True
    return False


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _in_use() -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue  # it has just ended
        yield from (int(line.split()[1]) for line in lines if line.startswith("Uid:"))
