"""The commands that write a config disk and boot a guest; QEMU is a script here, which tests/image/boot does not need."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
from tests.enclave.support import KID, World

from sealwright.cli import main
from sealwright.image import qemu
from sealwright.image.guest.blocks import reading
from sealwright.image.guest.configdisk import content, index
from sealwright.image.guest.network import GuestNetwork
from sealwright.testing.software import FakePlatformWarning


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        made = World(tmp_path / "world")
    with made.broker():
        (tmp_path / "enclave.json").write_bytes(made.config().encode())
        (tmp_path / "enclave.tenant.json").write_bytes(made.openings[0].encode())
        return made


def written(world: World, folder: Path, *more: str) -> int:
    command = [
        "image",
        "config-disk",
        str(folder / "disk"),
        "--config",
        str(folder / "enclave.json"),
        "--json",
    ]
    command += ["--model", f"{KID}={world.artefact}", "--address", "10.0.2.15/24"]
    return main([*command, *more])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    code: str = json.loads(capsys.readouterr().out)["error"]["code"]
    return code


def test_a_disk_holds_what_the_options_say(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = ["--host", "broker.test=192.0.2.7", "--host", "broker.test=2001:db8::7", "--gateway", "10.0.2.2"]
    assert written(world, tmp_path, *hosts, "--listen", "9443") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["config_digest"] == world.config().digest().hex()
    with reading(tmp_path / "disk") as read:
        members = {one.name: one for one in index(read)}
        network = GuestNetwork.parse(content(read, members["network.json"]))
    assert set(members) == {"config.json", "network.json", "payload.json", f"artefacts/{KID}"}
    assert (network.listen, network.gateways, network.mtu) == (9443, ["10.0.2.2"], 1500)
    assert network.hosts[0].addresses == ["192.0.2.7", "2001:db8::7"]


@pytest.mark.parametrize(
    ("more", "exit_code", "code"),
    [
        (["--host", "broker.test"], 2, "usage"),
        (["--host", "broker.test=elsewhere"], 65, "malformed-document"),
        (["--gateway", "fe80::1%x accept"], 65, "malformed-document"),
        (["--mtu", "5"], 65, "malformed-document"),
        (["--model", "other=enclave.json"], 69, "input-unreadable"),
    ],
)
def test_a_disk_that_no_guest_would_take_is_not_written(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    exit_code: int,
    code: str,
) -> None:
    assert written(world, tmp_path, *more) == exit_code
    assert refused(capsys) == code
    assert not (tmp_path / "disk").exists()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand in for QEMU and swtpm: the console says what a test wants, and the machine ends."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / qemu.QEMU).write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in file,id=console,path=*) console=${word#file,id=console,path=};; esac; done\n'
        f'echo "$@" > {tmp_path}/command\ncat {tmp_path}/says > "$console"\n'
        'case "$*" in *accel=kvm*) exec sleep 60;; esac\n'
    )
    (programs / qemu.SWTPM).write_text(
        '#!/bin/sh\nfor word; do case "$word" in --ctrl=*) : > "${word#--ctrl=type=unixio,path=}";; esac; done\n'
        "exec sleep 60\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(qemu, "FIRMWARE", tmp_path)
    for name in (qemu.NO_KEYS, "image", "config", "variables"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "tpm").mkdir()
    return tmp_path


def boot(folder: Path, says: str, *more: str) -> int:
    (folder / "says").write_text(says)
    command = [
        "image",
        "boot",
        str(folder / "image"),
        "--config-disk",
        str(folder / "config"),
        "--accel",
        "tcg",
    ]
    return main([*command, "--tpm", str(folder / "tpm"), *more])


def test_a_guest_is_booted_and_its_end_is_told(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = "sealwright: enclave: ended with exit code {}\n"
    assert boot(machine, "first\n" + ended.format(0), "--forward", "18443:8443") == 0
    told = capsys.readouterr()
    assert "first\n" in told.out
    assert "not confidential" in told.err
    command = (machine / "command").read_text()
    assert "hostfwd=tcp:127.0.0.1:18443-:8443" in command
    assert "driver=cfi.pflash01,property=secure,value=on" in command
    assert command.count("readonly=on") == 3  # firmware and both disks
    assert boot(machine, ended.format(11), "--json") == 11
    said = json.loads(capsys.readouterr().out)
    assert (said["confidential"], said["exit_code"]) == (False, 11)


def test_a_guest_that_did_not_serve_is_a_failure(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert boot(machine, "sealwright: disk: no-root-disk: no disk has it\nreboot: Power down\n") == 69
    assert "disk: no-root-disk" in capsys.readouterr().err
    for wrong in (["--forward", "8443"], ["--accel", "xen"]):
        assert boot(machine, "", *wrong) == 2


def test_what_is_not_installed_is_named(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(machine / "bin"))
    (machine / "bin" / qemu.SWTPM).unlink()
    assert boot(machine, "") == 69
    assert "swtpm-missing" in capsys.readouterr().err
    (machine / qemu.NO_KEYS).unlink()
    assert boot(machine, "") == 69
    assert "qemu-missing" in capsys.readouterr().err


def test_emulation_is_chosen_where_kvm_does_not_bring_a_machine_up(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open /dev/kvm is no proof: the probe is a boot, and this machine says nothing."""
    monkeypatch.setattr(qemu, "_PROBE_S", 0.5)
    (machine / "says").write_text("nothing of the firmware\n")
    assert qemu.accelerator.__wrapped__() == "tcg"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        (machine / "says").write_text("BdsDxe: No bootable option or device was found.\n")
        assert qemu.accelerator.__wrapped__() == "kvm"
