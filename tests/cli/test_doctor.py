"""`sealwright doctor`: it looks, changes nothing, and names what mends a lack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sealwright.cli import _probes, main
from sealwright.cli.doctor import _lines

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="issue 2: enclaves are Linux only")


def test_json_says_whether_an_enclave_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in result["findings"]}
    lacks = [f for f in findings.values() if f["needed_by_enclave"] and f["ok"] is False]
    assert result["enclave"] is (not lacks)
    assert findings["python"]["ok"] is True


@linux
def test_each_lack_names_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probes, "_child", lambda *_: False)
    monkeypatch.setattr(_probes, "_read", lambda path: "head\n/dev/sda1\n" if path == "/proc/swaps" else "")
    monkeypatch.setattr(_probes, "landlock_abi", lambda: 0)
    monkeypatch.setattr(_probes.importlib.util, "find_spec", lambda name: None)
    lacks = {f.name: f.mend for f in _probes.examine() if f.ok is False}
    wanted = {"user namespaces", "landlock", "seccomp", "swap", "llama.cpp (xllamacpp)", "demo model"}
    assert wanted <= lacks.keys()
    assert all(lacks.values())
    assert lacks["swap"] == "sudo swapoff -a"


@linux
def test_a_device_is_found_only_where_it_can_be_opened(tmp_path: Path) -> None:
    assert _probes._device("d", str(tmp_path / "none"), tee=True).ok is None
    assert _probes._device("d", str(tmp_path), tee=True).ok is True


def test_another_system_is_told_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probes.sys, "platform", "darwin")
    findings = _probes.examine()
    assert [f.name for f in findings] == ["python", "linux"]
    missing = [f for f in findings if f.ok is False]
    assert any(
        "cannot run an enclave. Any machine can verify." in line for line in _lines(findings, missing, [])
    )


@linux
def test_probing_leaves_this_process_where_it_was() -> None:
    namespaces = [Path(f"/proc/self/ns/{kind}") for kind in ("user", "mnt")]
    before = [path.readlink() for path in namespaces]
    _probes.examine()
    assert [path.readlink() for path in namespaces] == before
