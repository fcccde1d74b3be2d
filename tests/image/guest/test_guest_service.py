"""Process 1 of the root: the kernel closed, the attester chosen, artefacts read where they lie."""

from __future__ import annotations

import os
import signal
import struct
import time
import warnings
from pathlib import Path

import pytest
from tests.enclave.support import KID, World
from tests.image.guest.test_guest_network import network

from sealwright.enclave.artefacts import EnclavePayload
from sealwright.errors import FormatError, SettingsError, UnavailableError, VerificationError
from sealwright.image.config_disk import ConfigDisk
from sealwright.image.guest import harden, init, power, service
from sealwright.image.guest.blocks import reading
from sealwright.image.guest.configdisk import Member, index
from sealwright.image.guest.handover import Handover
from sealwright.sealing import Manifest
from sealwright.sealing.files import FileReader
from sealwright.testing.software import FakePlatformWarning


def handed(*registers: str, disk: str = "/dev/vdb", members: tuple[Member, ...] = ()) -> Handover:
    return Handover(config=b"{}", registers=registers, disk=disk, members=members)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        made = World(tmp_path / "world")
    with made.broker():
        return made


def config_disk(world: World, **changes: object) -> ConfigDisk:
    arguments: dict[str, object] = {
        "config": world.config().encode(),
        "network": network(),
        "lists": world.openings,
        "artefacts": {KID: world.artefact},
        "certificates": b"PEM",
        **changes,
    }
    return ConfigDisk.of(**arguments)  # type: ignore[arg-type]


def test_a_disk_is_written_and_its_files_are_found_again(world: World, tmp_path: Path) -> None:
    path, again = tmp_path / "disk", tmp_path / "again"
    config_disk(world).write(path)
    config_disk(world).write(again)
    assert path.read_bytes() == again.read_bytes()
    assert path.stat().st_size % 4096 == 0
    with reading(path) as read:
        members = index(read)
    found = handed("PCR8", disk=str(path), members=members)
    assert service.host_file(found, "config.json") == world.config().encode()
    assert service.host_file(found, "certificates.pem") == b"PEM"
    assert EnclavePayload.parse(service.host_file(found, "payload.json")) == world.payload()
    assert service.host_file(found, "other") == b""
    artefact = members[-1]
    assert path.read_bytes()[artefact.offset :][: artefact.size] == world.artefact.read_bytes()
    target = service.artefact_target("/dev/vdb", artefact)
    assert target.line() == f"0 {-(-artefact.size // 512)} linear /dev/vdb {artefact.offset // 512}"
    with pytest.raises(UnavailableError) as caught:
        config_disk(world).write(path)
    assert caught.value.code == "output-failed"


def test_what_does_not_belong_together_is_not_written(world: World, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        config_disk(world, artefacts={})
    assert caught.value.code == "artefact-missing"
    with pytest.raises(VerificationError) as other:
        config_disk(world, lists=[world.openings[0].model_copy(update={"salt": bytes(32)})])
    assert other.value.code == "tenant-list-mismatch"
    with pytest.raises(SettingsError):
        config_disk(world, config=world.config().encode() + b"\n")
    with pytest.raises(FormatError) as large:
        config_disk(world, certificates=bytes(256 * 1024 + 1)).write(tmp_path / "disk")
    assert large.value.code == "malformed-config-disk"


@pytest.mark.parametrize(
    ("registers", "there", "platform", "vtpm", "endorsed"),
    [
        (("HOST_DATA",), (), "snp", False, False),
        (("HOST_DATA", "PCR8"), (), "snp", True, True),
        (("PCR8",), ("/dev/sev-guest",), "snp", True, True),
        (("MRCONFIGID",), (), "tdx", False, False),
        (("RTMR3",), (), "tdx", False, False),
        (("RTMR3", "PCR8"), (), "tdx", True, True),
        (("PCR8",), ("/dev/tdx_guest",), "tdx", True, True),
        (("PCR16",), (), "nitro", False, False),
    ],
)
def test_quotes_come_from_where_the_config_is(
    registers: tuple[str, ...], there: tuple[str, ...], platform: str, vtpm: bool, endorsed: bool
) -> None:
    spec = service.attester_spec(handed(*registers), b"PEM", exists=lambda path: path in there)
    assert (spec.platform, spec.vtpm, spec.endorsements) == (platform, vtpm, (b"PEM",) if endorsed else ())


def test_a_machine_with_a_tpm_alone_quotes_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Detected:
        def choose(self) -> str:
            return "tpm"

    monkeypatch.setattr(service, "detect", lambda **_: Detected())
    spec = service.attester_spec(handed("PCR8"), b"PEM", exists=lambda _: False)
    assert (spec.platform, spec.endorsements, spec.address) == ("tpm", (b"PEM",), "")


def test_swap_is_refused(tmp_path: Path) -> None:
    head = "Filename Type Size Used Priority\n"
    (tmp_path / "swaps").write_text(head)
    harden.refuse_swap(tmp_path)
    (tmp_path / "swaps").write_text(head + "/dev/vdc partition 1 0 -2\n")
    with pytest.raises(UnavailableError) as caught:
        harden.refuse_swap(tmp_path)
    assert (caught.value.code, caught.value.stage) == ("swap-reachable", "memory")


def sysctls(folder: Path) -> None:
    for name, _, _ in (*harden.SETTINGS, ("kernel/modules_disabled", "", False)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("-1\n")


def test_every_setting_is_in_force_afterwards(tmp_path: Path) -> None:
    sysctls(tmp_path)
    harden.close_kernel(tmp_path)
    assert (tmp_path / "kernel/modules_disabled").read_text() == "1\n"
    for name, value, _ in harden.SETTINGS:
        assert (tmp_path / name).read_text().strip() == value
    for name, _, optional in harden.SETTINGS:
        if optional:
            (tmp_path / name).unlink()
    harden.close_kernel(tmp_path)


@pytest.mark.parametrize("name", ["kernel/core_pattern", "kernel/modules_disabled", "fs/suid_dumpable"])
def test_a_setting_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    sysctls(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UnavailableError) as caught:
        harden.close_kernel(tmp_path)
    assert (caught.value.code, caught.value.stage) == ("kernel-setting", "kernel")


def test_a_setting_that_the_kernel_does_not_keep_is_refused(tmp_path: Path) -> None:
    sysctls(tmp_path)
    path = tmp_path / "kernel/kexec_load_disabled"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(UnavailableError) as caught:
        harden.close_kernel(tmp_path)
    assert caught.value.code == "kernel-setting"


def test_process_1_reaps_and_hands_the_signal_on() -> None:
    parent = os.fork()
    if parent == 0:
        try:
            os._exit(supervised())
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 42


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal by now."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def supervised() -> int:
    """In a process of its own: one child ends at once, the other when it is told to."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
        signal.alarm(60)  # it outlives nobody
        os.write(write, b"+")
        signal.pause()
    other = os.fork()
    if other == 0:
        os._exit(1)
    os.read(read, 1)
    parent = os.getpid()
    sender = os.fork()
    if sender == 0:
        while not catches(parent, signal.SIGTERM):
            time.sleep(0.01)
        os.kill(parent, signal.SIGTERM)
        os._exit(0)
    return init._supervise(child)


def test_a_disk_of_whole_sectors_holds_an_artefact(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block device ends at a sector: what lies behind the artefact in it is not read."""
    manifest = Manifest.unverified_parse(world.artefact.with_name(world.artefact.name + ".json").read_bytes())
    assert manifest.kid == KID
    size = world.artefact.stat().st_size
    with FileReader(world.artefact) as file:
        assert file.holds(size)
        assert not file.holds(size - 1)
        assert not file.holds(size + 1)
        file._disk = True
        assert file.holds(size - 511)
        assert not file.holds(size - 512)
        assert not file.holds(size + 1)


def test_a_path_that_is_a_device_is_refused() -> None:
    with pytest.raises(UnavailableError):
        FileReader(Path("/dev/null"))


def event(*fields: int) -> bytes:
    return struct.pack("=qqHHi", 0, 0, *fields)


def test_the_power_button_is_found_and_heard(tmp_path: Path) -> None:
    for name, text in (("event0", "AT keyboard"), ("event1", "Power Button"), ("mouse0", "Power Button")):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device" / "name").write_text(f"{text}\n")
    (tmp_path / "event2").mkdir()
    assert power.buttons(tmp_path, Path("/dev/input")) == [Path("/dev/input/event1")]
    assert power.buttons(tmp_path / "nowhere") == []
    fifo = tmp_path / "button"
    os.mkfifo(fifo)
    heard: list[bool] = []
    keep = os.open(fifo, os.O_RDWR)
    os.write(keep, event(1, 30, 1) + event(1, 116, 0) + event(1, 116, 1))
    power.watch([fifo], lambda: heard.append(True))
    assert heard == [True]
    os.close(keep)
    power.watch([], lambda: heard.append(False))
    assert heard == [True]
