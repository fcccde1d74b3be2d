"""The cache: ages, damage, bounds, and two processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.collateral.support import milan_chain, milan_crl

from sealwright.collateral.cache import Cache, default_folder
from sealwright.collateral.need import Need
from sealwright.collateral.record import Piece
from sealwright.errors import UnavailableError

NOW = datetime(2025, 6, 20, tzinfo=UTC)


def rim(number: int, *, size: int = 100, **more: object) -> Piece:
    """Return a piece that the cache, which does not read blobs, takes for a RIM."""
    blob = number.to_bytes(4, "big") * (size // 4)
    need = Need("nvidia-rim", f"NV_GPU_DRIVER_GH100_{number}")
    return Piece(need=need, blobs=(blob,), fetched=NOW, **more)  # type: ignore[arg-type]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_put_is_got_with_its_dates(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    need, crl = milan_crl()
    piece = Piece(
        need=need,
        blobs=(crl, milan_chain()[1]),
        fetched=NOW,
        issued=datetime(2025, 5, 6, 12, 39, 6, tzinfo=UTC),
        next_update=datetime(2026, 5, 12, tzinfo=UTC),
    )
    assert cache.get(need) is None
    assert cache.put(piece)
    assert Cache(tmp_path / "c").get(need) == piece
    assert [entry.need() for entry in cache.entries()] == [need]
    cache.remove(need)
    assert (cache.get(need), list(cache.entries())) == (None, [])


def test_states() -> None:
    dated = rim(1, issued=NOW, next_update=NOW + timedelta(days=40))
    assert [dated.state(NOW + timedelta(days=day)) for day in (0, 29, 30, 39, 40, 90)] == [
        "fresh",
        "fresh",
        "due",
        "due",
        "stale",
        "stale",
    ]
    assert dated.age(NOW + timedelta(days=2)) == timedelta(days=2)
    assert dated.stale(NOW + timedelta(days=41)) == timedelta(days=1)
    undated = rim(1)
    assert [undated.state(NOW + timedelta(days=day)) for day in (29, 30, 900)] == ["fresh", "due", "due"]
    chip = Piece(need=Need("amd-vcek", f"Milan:{'1' * 128}:1:2:3:4"), blobs=(b"x",), fetched=NOW)
    assert chip.state(NOW + timedelta(days=9000)) == "fresh", "a VCEK never changes"
    crl = Piece(
        need=Need("amd-crl", "vcek:Milan"),
        blobs=(b"x",),
        fetched=NOW,
        issued=NOW,
        next_update=NOW + timedelta(days=365),
    )
    assert crl.state(NOW + timedelta(days=1)) == "due", "a CRL for a year is asked for every day"
    backwards = rim(1, issued=NOW, next_update=NOW - timedelta(days=1))
    assert backwards.state(NOW) == "stale"


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    os.umask(0o022)
    Cache(folder).put(rim(1))
    assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()] if path.is_dir()} == {0o700}
    folder.chmod(0o777)
    with pytest.raises(UnavailableError) as caught:
        Cache(folder)
    assert caught.value.code == "cache-unusable"


def test_damage_is_found_and_counts_as_not_there(tmp_path: Path) -> None:
    for number, damage in enumerate(
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
            lambda path: path.write_bytes(b""),
            lambda path: path.unlink(),
            lambda path: path.write_bytes(path.read_bytes() + b" "),
        ]
    ):
        for part in ("blobs", "entries"):
            folder = tmp_path / f"{number}{part}"
            cache = Cache(folder)
            piece = rim(1)
            cache.put(piece)
            (path,) = files(folder / part)
            damage(path)
            assert cache.get(piece.need) is None
            assert list(cache.entries()) == []
            assert cache.damaged == (0 if part == "entries" and number == 2 else 1)
            assert cache.put(piece)
            assert cache.get(piece.need) == piece


def test_an_entry_under_another_name_is_damage(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(rim(1))
    (path,) = files(tmp_path / "entries")
    cache.put(rim(2))
    (other,) = set(files(tmp_path / "entries")) - {path}
    path.write_bytes(other.read_bytes())
    assert cache.get(rim(1).need) is None
    assert cache.get(rim(2).need) == rim(2)


def test_what_a_vendor_replaced_does_not_come_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    older, newer = rim(1, issued=NOW - timedelta(days=2)), rim(1, issued=NOW - timedelta(days=1))
    assert cache.put(newer)
    assert not cache.put(older)
    assert cache.get(newer.need) == newer
    assert cache.put(older, replace=True)
    assert cache.get(newer.need) == older


def test_a_date_after_it_was_fetched_keeps_nothing_out(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    forged = rim(1, issued=NOW + timedelta(days=900), next_update=NOW + timedelta(days=990))
    true = rim(1, issued=NOW - timedelta(hours=1), next_update=NOW + timedelta(days=1))
    cache.put(forged)
    assert cache.put(true)
    assert cache.get(true.need) == true


def test_it_is_bounded_and_keeps_what_was_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=10_000)
    for number in range(9):
        cache.put(rim(number, size=1000))
        path = max(files(tmp_path / "entries"), key=lambda one: one.stat().st_mtime_ns)
        os.utime(path, (1000 + number, 1000 + number))
    assert cache.get(rim(0).need) is not None  # a use
    cache.put(rim(100, size=2000))
    left = {entry.key.rpartition("_")[2] for entry in cache.entries()}
    assert {"0", "100"} <= left
    assert "1" not in left
    assert sum(path.stat().st_size for path in files(tmp_path / "blobs")) <= 10_000


def test_entries_are_bounded_in_number(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_entries=10)
    for number in range(25):
        cache.put(rim(number))
    assert len(list(cache.entries())) <= 10
    assert cache.get(rim(24).need) is not None
    assert len(files(tmp_path / "blobs")) <= 10


def test_blobs_are_shared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(3):
        piece = rim(number)
        cache.put(Piece(need=piece.need, blobs=(b"same",), fetched=NOW))
    assert len(files(tmp_path / "blobs")) == 1


def test_what_nobody_uses_is_told_apart(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(rim(1))
    os.utime(files(tmp_path / "entries")[0], (1000, 1000))
    assert list(cache.entries(used_since=NOW)) == []
    assert cache.get(rim(1).need, used=False) is not None
    assert list(cache.entries(used_since=NOW)) == []
    assert cache.put(rim(1))
    assert list(cache.entries(used_since=NOW)) == [], "to be fetched again is no use"
    cache.get(rim(1).need)
    assert len(list(cache.entries(used_since=NOW))) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError) as caught:
        Cache(tmp_path / "file" / "c")
    assert caught.value.code == "cache-unusable"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALWRIGHT_COLLATERAL", "/srv/c")
    assert default_folder() == Path("/srv/c")
    monkeypatch.delenv("SEALWRIGHT_COLLATERAL")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LOCALAPPDATA", "/x")
    assert default_folder() == Path("/x/sealwright/collateral")


WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sealwright.collateral.cache import Cache
from sealwright.collateral.need import Need
from sealwright.collateral.record import Piece

cache, who = Cache(Path(sys.argv[1]), max_bytes=60_000, max_entries=20), int(sys.argv[2])
now = datetime(2025, 6, 20, tzinfo=UTC)
for turn in range(25):
    for number in range(3):
        need = Need("nvidia-rim", f"NV_GPU_DRIVER_GH100_{(turn + number) % 12}")
        blob = bytes([who, turn]) * 1500
        cache.put(Piece(need=need, blobs=(blob, b"shared"), fetched=now, issued=now))
        piece = cache.get(need)
        assert piece is None or (len(piece.blobs[0]) == 3000 and piece.blobs[1] == b"shared")
assert cache.damaged == 0, cache.damaged
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "c")]
    writers = [subprocess.Popen([*command, str(number)]) for number in (1, 2)]
    cache = Cache(tmp_path / "c", max_bytes=60_000, max_entries=20)
    while any(writer.poll() is None for writer in writers):
        for entry in cache.entries():
            piece = cache.get(entry.need())
            assert piece is None or len(piece.blobs) == 2
    assert [writer.wait() for writer in writers] == [0, 0]
    assert cache.damaged == 0
    assert all(not path.name.startswith(".") for path in files(tmp_path / "c"))
    assert sum(path.stat().st_size for path in files(tmp_path / "c" / "blobs")) <= 60_000
