"""What the broker stops, really booted, one after the other: `make test-image-long`, some ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.image.boot.changes import changed_command_line, changed_initrd, stranger
from tests.image.boot.support import BOOT_S, Stage, quietly

from sealwright.testing.qemu import with_boot_file

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
REFUSED = "  [measurement-not-allowed]\nstage: broker\n"


def test_a_changed_command_line_boots_and_gets_no_key(made: Stage, tmp_path: Path) -> None:
    uki = changed_command_line(made, tmp_path)
    assert REFUSED in ended(made, uki, "long-cmdline")


def test_a_changed_initrd_is_started_by_the_firmware_and_gets_no_key(made: Stage, tmp_path: Path) -> None:
    """It is signed. This change spoils its compression, so the kernel has no initrd; its registers are others besides."""
    said = ended(made, changed_initrd(made, tmp_path), "long-initrd")
    assert "Kernel panic" in said
    assert "sealwright: " not in said


def test_somebody_elses_secure_boot_keys_boot_and_get_no_key(made: Stage, tmp_path: Path) -> None:
    uki, variables = stranger(made, tmp_path)
    assert REFUSED in ended(made, uki, "long-keys", variables=variables)


def test_another_config_boots_and_gets_no_key(made: Stage, tmp_path: Path) -> None:
    """One host more to send data to: measured as it should be, and not allowed."""
    other = made.config_disk(tmp_path / "config", egress=["192.0.2.1:443"])
    said = ended(made, made.uki, "long-config", config_disks=(other,))
    assert "  [egress-host-not-allowed]\nstage: broker\n" in said


def ended(made: Stage, uki: Path, name: str, **changes: object) -> str:
    """Boot an image until its machine ends by itself; return its console."""
    disk = with_boot_file(made.image, uki, made.folder / f"{name}.raw")
    with quietly(made.machine(name, disk=disk, **changes).booted) as guest:
        guest.wait(BOOT_S)
        return guest.console
