"""What register 0 depends on, and what it does not."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from tests.software.support import install

from sealwright.attester.quoter import image
from sealwright.attester.quoter.elf import parse_elf, system_directories
from sealwright.attester.quoter.image import measure
from sealwright.errors import UnavailableError

ENTRY = "probe:wait"


def test_measuring_twice_gives_the_same(probes: Path) -> None:
    first = measure(b"{}", entry=ENTRY, distributions=["probe"])
    assert measure(b"{}", entry=ENTRY, distributions=["probe"]) == first
    assert first.register1 == hashlib.sha256(b"{}").digest()


def test_two_environments_with_the_same_distributions_measure_the_same(
    probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(b"{}", entry=ENTRY, distributions=["probe"])
    shutil.move(probes, tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert measure(b"{}", entry=ENTRY, distributions=["probe"]).register0 == first.register0


def test_a_changed_line_changes_register_0(probes: Path) -> None:
    before = measure(b"{}", entry=ENTRY, distributions=["probe"])
    (probes / "probe.py").write_text((probes / "probe.py").read_text() + "\nLOGGED = True\n")
    after = measure(b"{}", entry=ENTRY, distributions=["probe"])
    assert after.register0 != before.register0
    changed = set(after.files) ^ set(before.files)
    assert {path for path, _, _ in changed} == {f"{image.SITE}/probe.py"}


def test_a_changed_line_of_our_own_package_changes_register_0(
    probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sealwright

    before = measure(b"{}", entry=ENTRY, distributions=["probe"])
    copy = tmp_path / "copy/sealwright"
    shutil.copytree(Path(sealwright.__file__).parent, copy)
    monkeypatch.setattr(sealwright, "__file__", str(copy / "__init__.py"))
    assert measure(b"{}", entry=ENTRY, distributions=["probe"]).register0 == before.register0
    with (copy / "attester/quoter/bootstrap.py").open("a") as file:
        file.write("# one more line\n")
    assert measure(b"{}", entry=ENTRY, distributions=["probe"]).register0 != before.register0


def test_another_entry_changes_register_0(probes: Path) -> None:
    first = measure(b"{}", entry=ENTRY, distributions=["probe"])
    assert measure(b"{}", entry="probe:hello", distributions=["probe"]).register0 != first.register0


def test_another_config_changes_register_1_alone(probes: Path) -> None:
    first = measure(b"{}", entry=ENTRY, distributions=["probe"])
    other = measure(b'{"a":1}', entry=ENTRY, distributions=["probe"])
    assert other.register0 == first.register0
    assert other.register1 != first.register1


def test_pth_files_hooks_and_stray_modules_are_no_part_of_it(probes: Path) -> None:
    before = measure(b"{}", entry=ENTRY, distributions=["probe"])
    (probes / "evil.pth").write_text("import outside\n")
    (probes / "sitecustomize.py").write_text("import outside\n")
    (probes / "outside.py").write_text("raise SystemExit\n")
    with (probes / "probe-1.0.dist-info/RECORD").open("a") as file:
        file.write("evil.pth,,\n../../bin/probe,,\n__pycache__/probe.cpython-311.pyc,,\n")
    assert measure(b"{}", entry=ENTRY, distributions=["probe"]) == before


def test_requirements_belong_to_it(probes: Path) -> None:
    install(probes, {"other.py": "X = 1\n"}, name="other")
    install(probes, {}, name="needy", requires="other; python_version > '3'")
    files = {path for path, _, _ in measure(b"{}", entry=ENTRY, distributions=["needy"]).files}
    assert f"{image.SITE}/other.py" in files


def test_extras_belong_to_it_only_when_asked(probes: Path) -> None:
    install(probes, {"other.py": "X = 1\n"}, name="other")
    install(probes, {}, name="needy", requires='other; extra == "more"')

    def has_other(requirement: str) -> bool:
        files = measure(b"{}", entry=ENTRY, distributions=[requirement]).files
        return f"{image.SITE}/other.py" in {path for path, _, _ in files}

    assert not has_other("needy")
    assert has_other("needy[more]")


def test_a_missing_distribution_is_refused(probes: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        measure(b"{}", entry=ENTRY, distributions=["no-such-distribution-of-ours"])
    assert caught.value.code == "missing-distribution"


def test_two_distributions_may_not_claim_one_path(
    probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = install(tmp_path / "other", {"probe.py": "X = 1\n"}, name="rival")
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(UnavailableError) as caught:
        measure(b"{}", entry=ENTRY, distributions=["probe", "rival"])
    assert caught.value.code == "image-conflict"


@pytest.mark.parametrize("entry", ["probe", "probe:", ":wait", "probe:wait\n", "os:system('x')", "a b:c"])
def test_an_entry_is_a_module_and_a_function(probes: Path, entry: str) -> None:
    with pytest.raises(ValueError, match="module:function"):
        measure(b"{}", entry=entry, distributions=[])


def test_paths_do_not_name_this_machine(probes: Path) -> None:
    measurement = measure(b"{}", entry=ENTRY, distributions=["probe", "cryptography"])
    tops = ("/usr/bin/python3", "/usr/lib", "/lib/", "/lib64/ld.so", "/etc/sealwright/entry")
    assert all(path.startswith(tops) for path, _, _ in measurement.files)
    paths = [path for path, _, _ in measurement.files]
    assert paths == sorted(paths)
    assert "/lib/libc.so.6" in paths


def test_only_the_loader_is_unreadable(probes: Path) -> None:
    modes = {path: mode for path, mode, _ in measure(b"{}", entry=ENTRY, distributions=[]).files}
    assert modes.pop("/lib64/ld.so") == "0111"
    assert modes.pop("/usr/bin/python3") == "0555"
    assert set(modes.values()) == {"0444"}


def test_a_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from sealwright.attester.quoter.elf import Elf, closure

    library = next(
        path.resolve()
        for directory in system_directories()
        for path in Path(directory).glob("libpthread.so.0")
    )
    assert isinstance(parse_elf(library.read_bytes()), Elf)
    broken = library.read_bytes().replace(b"libc.so.6\0", b"libq.so.6\0")
    with pytest.raises(UnavailableError) as caught:
        closure({tmp_path / "x.so": broken}, Path.read_bytes, skip=frozenset())
    assert caught.value.code == "missing-library"
