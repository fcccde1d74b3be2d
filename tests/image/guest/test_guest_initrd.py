"""The initrd's steps on a machine of files, and the initrd itself where Python has its standard library alone."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.image.guest.disks import entry, table
from tests.image.guest.test_guest_configdisk import CONFIG, KEY, disk

import sealwright
from sealwright.errors import FormatError, SealwrightError, UnavailableError, VerificationError
from sealwright.image.guest import INITRD_FILES, blocks, ending, handover, initrd
from sealwright.image.guest.blocks import Disk
from sealwright.image.guest.configdisk import Member
from sealwright.image.guest.handover import Handover

PACKAGE = Path(sealwright.__file__).parent
ROOT, TREE = entry("sealwright-root", 64, 1063), entry("sealwright-verity", 1064, 1100)


class FakeMachine:
    """Disks as files, with the part of sysfs that is looked at."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys, self.dev = folder / "sys", folder / "dev"
        self.sys.mkdir()
        self.dev.mkdir()
        disks, path = blocks.disks, blocks.partition_path
        monkeypatch.setattr(blocks, "disks", lambda: disks(self.sys, self.dev))
        monkeypatch.setattr(blocks, "partition_path", lambda a, b: path(a, b, self.sys, self.dev))

    def disk(self, name: str, raw: bytes, *partitions: tuple[int, int], sectors: int = 4096) -> None:
        (self.dev / name).write_bytes(raw)
        (self.sys / name).mkdir()
        (self.sys / name / "size").write_text(f"{sectors}\n")
        for number, (start, size) in enumerate(partitions, 1):
            part = self.sys / name / f"{name}{number}"
            part.mkdir()
            (part / "partition").write_text(f"{number}\n")
            (part / "start").write_text(f"{start}\n")
            (part / "size").write_text(f"{size}\n")
            shutil.copytree(part, self.sys / f"{name}{number}")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    return FakeMachine(tmp_path, monkeypatch)


def refused(error: pytest.ExceptionInfo[SealwrightError]) -> tuple[str, str]:
    return error.value.stage, error.value.code


def test_the_root_is_found_by_name(machine: FakeMachine) -> None:
    machine.disk("loop0", table([ROOT, TREE]), (64, 1000), (1064, 37))
    machine.disk("sr0", b"", sectors=0)
    machine.disk("vda", table([entry("esp", 40, 50), ROOT, TREE]), (40, 11), (64, 1000), (1064, 37))
    machine.disk("vdb", disk(CONFIG))
    found, data, tree = initrd.find_root()
    assert (found.name, data, tree) == ("vda", machine.dev / "vda2", machine.dev / "vda3")


@pytest.mark.parametrize(
    ("disks", "code", "kind"),
    [
        ([], "no-root-disk", UnavailableError),
        ([[entry("other", 64, 70)]], "no-root-disk", UnavailableError),
        ([[ROOT]], "ambiguous-disk", FormatError),
        ([[TREE]], "ambiguous-disk", FormatError),
        ([[ROOT], [TREE]], "ambiguous-disk", FormatError),
        ([[ROOT, TREE], [ROOT, TREE]], "ambiguous-disk", FormatError),
        ([[ROOT, TREE, entry("sealwright-root", 2000, 2999)]], "ambiguous-disk", FormatError),
        ([[ROOT, TREE], [entry("a", 1, 1)]], "malformed-gpt", FormatError),
    ],
)
def test_what_is_ambiguous_is_refused(
    machine: FakeMachine, disks: list[list[bytes]], code: str, kind: type[SealwrightError]
) -> None:
    for at, entries in enumerate(disks):
        machine.disk(f"vd{'abc'[at]}", table(entries), (64, 1000), (1064, 37))
    with pytest.raises(kind) as caught:
        initrd.find_root()
    assert refused(caught) == ("disk", code)


def test_a_kernel_that_reads_the_table_in_another_way_is_refused(machine: FakeMachine) -> None:
    machine.disk("vda", table([ROOT, TREE]), (64, 999), (1064, 37))
    with pytest.raises(UnavailableError) as caught:
        initrd.find_root()
    assert refused(caught) == ("disk", "partition-missing")


def test_too_many_disks_are_refused(machine: FakeMachine) -> None:
    for at in range(257):
        (machine.sys / f"vd{at}").mkdir()
    with pytest.raises(UnavailableError) as caught:
        initrd.find_root()
    assert refused(caught) == ("disk", "too-many-disks")


def test_a_size_that_is_no_number_is_refused(machine: FakeMachine) -> None:
    machine.disk("vda", b"")
    (machine.sys / "vda" / "size").write_text("-1")
    with pytest.raises(UnavailableError):
        initrd.find_root()


def test_the_config_is_found_and_read_once(machine: FakeMachine) -> None:
    machine.disk("vda", disk(CONFIG))  # the root's own disk is not looked at
    machine.disk("vdb", bytes(4096))
    root = Disk(name="vda", path=machine.dev / "vda", sectors=8)
    with pytest.raises(UnavailableError) as caught:
        initrd.find_config(root)
    assert refused(caught) == ("config-disk", "no-config-disk")
    machine.disk("vdc", disk(CONFIG, KEY))
    found, members, config = initrd.find_config(root)
    assert (found.name, [one.name for one in members], config) == (
        "vdc",
        ["config.json", "artefacts/k1"],
        CONFIG[1],
    )
    machine.disk("vdd", disk(("config.json", b"another")))
    with pytest.raises(FormatError) as twice:
        initrd.find_config(root)
    assert refused(twice) == ("config-disk", "ambiguous-disk")


def test_a_second_config_on_one_disk_is_refused(machine: FakeMachine) -> None:
    machine.disk("vdb", disk(CONFIG, CONFIG))
    with pytest.raises(FormatError) as caught:
        initrd.find_config(Disk(name="vda", path=machine.dev / "vda", sectors=8))
    assert refused(caught) == ("config-disk", "malformed-config-disk")


def test_what_is_missing_may_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initrd, "_PAUSE_S", 0)
    answers = [UnavailableError("not yet", code="no-root-disk", stage="disk")] * 3

    def look() -> str:
        if answers:
            raise answers.pop()
        return "found"

    assert initrd.wait_for(look) == "found"
    monkeypatch.setattr(initrd, "WAIT_S", -1)
    answers.append(UnavailableError("never", code="no-root-disk", stage="disk"))
    with pytest.raises(UnavailableError, match="never"):
        initrd.wait_for(look)


def test_what_is_handed_over_is_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    left = Handover(
        config=b"{}",
        registers=("HOST_DATA", "PCR8"),
        disk="/dev/vdb",
        members=(Member(name="config.json", offset=512, size=2),),
    )
    handover.leave(tmp_path, left)
    assert handover.take(tmp_path) == left
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in (tmp_path / "run/sealwright").iterdir())
    with pytest.raises(FileExistsError):
        handover.leave(tmp_path, left)


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (VerificationError("text", code="c", stage="inner"), "outer: c: text"),
        (FormatError("text", code="c"), "outer: c: text"),
        (
            FileNotFoundError(2, "no", "/dev/x"),
            "outer: guest-step-failed: the kernel answers ENOENT (/dev/x)",
        ),
        (OSError(5, "io"), "outer: guest-step-failed: the kernel answers EIO"),
    ],
)
def test_every_failure_names_its_step(exc: Exception, line: str) -> None:
    with pytest.raises(SealwrightError) as caught, ending.step("outer"):
        raise exc
    assert ending.last_words(caught.value) == line


def test_our_bugs_are_named_without_their_text() -> None:
    with pytest.raises(ValueError, match="secret") as caught, ending.step("outer"):
        raise ValueError("secret")
    words = ending.last_words(caught.value)
    assert words.startswith("start: internal-error: ValueError at test_guest_initrd.py:")
    assert "secret" not in words


def test_a_line_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(ending, "CONSOLE", write)
    ending.say("a\nsealwright: b\x1b[2J" + "x" * 1000)
    os.close(write)
    ending.say("nobody reads this")
    with open(read, "rb") as file:
        told = file.read()
    assert told.count(b"\n") == 1
    assert told.startswith(b"sealwright: a\\nsealwright: b\\x1b[2Jx")
    assert len(told) < 700


def test_only_the_initrds_own_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "proc").symlink_to("/proc")
    initrd._forget(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert Path("/proc/self").exists()


def copied(folder: Path) -> Path:
    for name in INITRD_FILES:
        (folder / "sealwright" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, folder / "sealwright" / name)
    return folder


def bare(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as the initrd's interpreter would: isolated, without site-packages, from one path."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start], capture_output=True, text=True, check=False
    )


def test_the_initrd_needs_the_standard_library_and_its_own_files(tmp_path: Path) -> None:
    code = (
        "import sealwright.image.guest.initrd;"
        "print(*sorted(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'sealwright'), sep='\\n')"
    )
    done = bare(copied(tmp_path), code)
    assert done.returncode == 0, done.stderr
    loaded = {Path(line).relative_to(tmp_path / "sealwright").as_posix() for line in done.stdout.split()}
    assert loaded == set(INITRD_FILES)


@pytest.mark.skipif(os.geteuid() == 0, reason="as root it could mount")
def test_an_initrd_that_is_not_process_1_ends_with_its_line(tmp_path: Path) -> None:
    done = bare(copied(tmp_path), "from sealwright.image.guest.initrd import main; main()")
    assert done.returncode != 0
    assert "sealwright: mounts: guest-step-failed: " in done.stderr


def loaded(folder: Path, answers: dict[str, OSError]) -> list[str]:
    """Return which modules of a list were asked for, in order, on a kernel that answers so."""
    (folder / "sealwright.list").write_text("a.ko\nb.ko.xz\nc.ko\n")
    asked: list[str] = []

    def load(path: str) -> None:
        asked.append(Path(path).relative_to(folder).as_posix())
        if asked[-1] in answers:
            raise answers[asked[-1]]

    with ending.step("modules"):
        initrd.load_modules(folder / "sealwright.list", load)
    return asked


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"a.ko": OSError(errno.ENODEV, "no device")},
        {"a.ko": OSError(errno.ENODEV, "no device"), "b.ko.xz": OSError(errno.ENOENT, "unknown symbol")},
    ],
)
def test_modules_are_loaded_in_order(tmp_path: Path, answers: dict[str, OSError]) -> None:
    assert loaded(tmp_path, answers) == ["a.ko", "b.ko.xz", "c.ko"]


@pytest.mark.parametrize(
    "answers",
    [
        {"a.ko": OSError(errno.EKEYREJECTED, "not signed")},
        {"a.ko": OSError(errno.ENOENT, "unknown symbol")},
        {
            "a.ko": OSError(errno.ENODEV, "no device"),
            "b.ko.xz": FileNotFoundError(errno.ENOENT, "no file", "b.ko.xz"),
        },
    ],
)
def test_a_module_that_is_refused_stops_the_start(tmp_path: Path, answers: dict[str, OSError]) -> None:
    with pytest.raises(UnavailableError) as caught:
        loaded(tmp_path, answers)
    assert refused(caught) == ("modules", "guest-step-failed")
    assert ".ko" in str(caught.value)


def test_the_digest_is_that_of_the_bytes() -> None:
    """`measure` hashes before anything reads: a config that is no JSON has a digest too."""
    seen: list[bytes] = []
    original = initrd.registers.bind_config
    try:
        initrd.registers.bind_config = lambda digest, machine: (seen.append(digest), ("X",))[1]  # type: ignore[assignment]
        assert initrd.measure(b"\xff no JSON") == ("X",)
    finally:
        initrd.registers.bind_config = original  # type: ignore[assignment]
    assert seen == [hashlib.sha256(b"\xff no JSON").digest()]
