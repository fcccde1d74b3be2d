"""`sealwright doctor`: it looks, changes nothing, and names what mends a lack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sealwright.attester.detect import detect
from sealwright.cli import _probes, doctor, main
from sealwright.cli.doctor import _lines
from sealwright.testing.machines import MACHINES, lay_out

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are Linux only")


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
@pytest.mark.filterwarnings("ignore::sealwright.testing.software.FakePlatformWarning")
@pytest.mark.parametrize(
    ("name", "closed", "finding", "ok"),
    [
        ("gcp snp", (), "AMD SEV-SNP guest", True),
        ("gcp snp", ("sys/kernel/config/tsm/report",), "AMD SEV-SNP guest", False),
        ("gcp tdx", (), "Intel TDX guest", True),
        ("nitro enclave", (), "AWS Nitro enclave", True),
        ("nitro enclave", ("dev/nsm",), "AWS Nitro enclave", False),
        ("gramine", (), "Intel SGX (Gramine)", True),
        ("laptop", (), "TPM", True),
        ("plain vm", (), "AMD SEV-SNP guest", None),
        ("gpu box", (), "NVIDIA driver", False),
        ("snp host", (), "hint", None),
    ],
)
def test_hardware_is_found_only_where_it_can_be_used(
    tmp_path: Path, name: str, closed: tuple[str, ...], finding: str, ok: bool | None
) -> None:
    found = detect(lay_out(tmp_path, MACHINES[name], closed=closed))
    (row,) = [row for row in _probes.hardware(found) if row.name == finding]
    assert row.ok is ok
    assert bool(row.mend) is (ok is False or finding == "hint")


@linux
@pytest.mark.filterwarnings("ignore::sealwright.testing.software.FakePlatformWarning")
def test_the_verdict_names_the_protection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = lay_out(tmp_path, MACHINES["gcp tdx"])
    monkeypatch.setattr(doctor, "detect", lambda: detect(machine))
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tee"] == ["Intel TDX guest"]
    assert (result["hardware"]["cloud"], result["hardware"]["virtual"]) == ("gcp", True)
    platforms = [(each["platform"], each["ready"]) for each in result["hardware"]["platforms"]]
    assert platforms == [("tdx", True), ("tpm", True)]


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
