"""The units: what systemd itself says of them, and that each starts a command that exists."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from sealwright.cli._commands import COMMANDS, load

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
PROGRAM = "/opt/sealwright/bin/sealwright"
# Exposure as `systemd-analyze security` counts it, 0 to 100; what is left is the network and, for an enclave,
# the root and namespaces that its launcher needs to give the workload less than it has.
WORST = {
    "sealwright-broker.service": 11,
    "sealwright-collateral.service": 11,
    "sealwright-connect@.service": 12,
    "sealwright-enclave@.service": 47,
}


def settings(path: Path) -> dict[str, list[str]]:
    """Return all settings of [Service]; systemd allows a name to stand more than once."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def analyze() -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    return tool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with the units and a program where they look for it."""
    program = tmp_path / "root" / PROGRAM.lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/true\n")
    program.chmod(0o755)
    shutil.copytree(UNITS, tmp_path / "root/etc/systemd/system")
    return tmp_path / "root"


@pytest.mark.parametrize("unit", [*SERVICES, *UNITS.glob("*.timer")], ids=lambda path: path.name)
def test_systemd_accepts_it(unit: Path, analyze: str, root: Path) -> None:
    name = unit.name.replace("@.", "@one.")
    done = subprocess.run(
        [analyze, "verify", "--man=no", f"--root={root}", name], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "sealwright" in line]
    # Targets of the system do not stand in our small file system.
    assert [line for line in ours if "not found" not in line] == []


def test_systemd_refuses_a_bad_one(analyze: str, root: Path) -> None:
    unit = root / "etc/systemd/system/sealwright-broker.service"
    unit.write_text(unit.read_text().replace("Type=notify\n", "Type=notifies\nNoSuchSetting=yes\n"))
    command = [analyze, "verify", "--man=no", f"--root={root}", unit.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "NoSuchSetting" in done.stderr
    assert "notifies" in done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_its_exposure_does_not_grow(unit: Path, analyze: str, root: Path) -> None:
    command = [analyze, "security", "--offline=yes", f"--threshold={WORST[unit.name]}", f"--root={root}"]
    name = unit.name.replace("@.", "@one.")
    done = subprocess.run([*command, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_it_starts_a_command_that_exists(unit: Path) -> None:
    (line,) = settings(unit)["ExecStart"]
    program, *words = shlex.split(re.sub(r"\$\{?\w+\}?", "value", line))
    assert program == PROGRAM
    command = load(words[0])
    while isinstance(command, typer.core.TyperGroup):
        words = words[1:]
        command = command.commands[words[0]]  # type: ignore[assignment]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert set(COMMANDS) >= {"broker", "enclave", "connect", "collateral"}


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_no_secret_stands_in_a_unit_or_its_environment(unit: Path) -> None:
    found = settings(unit)
    for line in found.get("Environment", []):
        assert not re.search(r"token|secret|key|credential|password", line, re.IGNORECASE)
    for line in found["ExecStart"]:
        assert not re.search(r"sw[ak]_|--token[ =]|--password", line)


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_every_service_gives_up_what_no_service_needs(unit: Path) -> None:
    found = {name: values[-1] for name, values in settings(unit).items()}
    assert found["NoNewPrivileges"] == "yes"
    assert found["ProtectSystem"] == "strict"
    assert found["LimitCORE"] == "0"
    if found.get("Type") == "notify":
        assert found["NotifyAccess"] == "main"
        assert int(found["WatchdogSec"]) >= 30  # a probe may take five seconds
        assert found["MemorySwapMax"] == "0"


def test_users_and_folders_are_those_of_the_units(tmp_path: Path) -> None:
    users = {line.split()[1] for line in _lines("sealwright.sysusers")}
    wanted = {value for unit in SERVICES for value in settings(unit).get("User", [])}
    assert wanted - users <= {"%i"}
    folders = {line.split()[1]: line.split()[2:4] for line in _lines("sealwright.tmpfiles")}
    assert folders["/var/lib/sealwright-broker"] == ["0700", "sealwright-broker"]
    if tool := shutil.which("systemd-sysusers"):
        done = subprocess.run(
            [tool, "--dry-run", str(UNITS / "sealwright.sysusers")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    if (tool := shutil.which("systemd-tmpfiles")) and os.geteuid() == 0:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/passwd").write_text("root:x:0:0::/:\nsealwright-broker:x:7:7::/:\n")
        (tmp_path / "etc/group").write_text("root:x:0:\nsealwright-broker:x:7:\n")
        command = [tool, "--create", f"--root={tmp_path}", str(UNITS / "sealwright.tmpfiles")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        made = tmp_path / "var/lib/sealwright-broker"
        assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, 7), done.stderr


def test_a_timer_names_a_service_that_is_there() -> None:
    for timer in UNITS.glob("*.timer"):
        parser = configparser.ConfigParser()
        parser.read(timer)
        assert (UNITS / f"{timer.stem}.service").exists()
        assert parser["Install"]["WantedBy"] == "timers.target"


def _lines(name: str) -> list[str]:
    return [line for line in (UNITS / name).read_text().splitlines() if line and not line.startswith("#")]
