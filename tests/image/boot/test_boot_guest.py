"""A guest image booted for real: from firmware to an answer, and refused where something was changed.

Secure Boot with keys of the test's own, a software TPM that its owner enrolled, registers predicted from the image's
files. Under emulation the good boot takes one to two minutes; the two refusals run at the same time.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from tests.enclave.support import chat
from tests.image.boot.conftest import Good
from tests.image.boot.support import Stage, client, quietly

from sealwright.client.receipts import receipt_of
from sealwright.image.guest.gpt import SECTOR
from sealwright.testing.qemu import SecureBootKeys, TestMachine, partitions, with_boot_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REFUSED_S = 300.0  # until a machine that is not to start has ended, or shows why


def test_a_guest_is_verified_from_firmware_to_answer(made: Stage, good: Good) -> None:
    print(f"the guest serves after {good.seconds:.0f} s")
    digest = made.world.guest_config().digest().hex()
    assert f"sealwright: config-register: {digest} in PCR8\n" in good.guest.console
    with client(made.world, good.machine.port) as http:
        answer = http.post("/v1/chat/completions", json=chat("tulip", temperature=0, max_tokens=2))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 2
        predicate = receipt_of(answer).statement.predicate
        assert (predicate.platform, predicate.confidential) == ("tpm", False)


def test_a_client_with_other_reference_values_sends_nothing(made: Stage, good: Good) -> None:
    expected = made.world.registers
    made.world.registers = {**expected, "pcr4": "00" * 32}
    try:
        with client(made.world, good.machine.port) as http:
            answer = http.post("/v1/chat/completions", json=chat("tulip"))
    finally:
        made.world.registers = expected
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "measurement-not-allowed"


def test_the_console_offers_nothing_and_keeps_quiet(good: Good) -> None:
    """No prompt, no shell, and nothing of a request."""
    said = [line for line in good.guest.console.splitlines() if line.startswith("sealwright")]
    assert [line.split(":")[1].strip() for line in said[:4]] == [
        "root",
        "config-register",
        "network",
        "enclave",
    ]
    assert "tulip" not in good.guest.console
    assert not re.search(r"login:|[#$>] $", good.guest.console)


def refused(machine: TestMachine, *signs: str) -> str:
    """Boot a machine that must not start; return its console once it has ended, or shows one of the signs."""
    with quietly(machine.booted) as guest:
        for sign in signs:
            guest.wait_for(sign, REFUSED_S)
        return guest.console


def flipped(disk: Path, at: int, out: Path) -> Path:
    """Copy a disk with one bit changed."""
    shutil.copyfile(disk, out)
    with out.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return out


def test_what_firmware_or_verity_stops_does_not_start(made: Stage, good: Good, tmp_path: Path) -> None:
    """A changed root, an unsigned image, one of a stranger's key, two config disks: booted, two at a time."""
    (root,) = (one for one in partitions(made.disk) if one.name == "sealwright-root")
    stranger = quietly(lambda: SecureBootKeys(tmp_path / "stranger"))
    foreign = stranger.sign(made.image / "guest.efi", tmp_path / "foreign.efi")
    unsigned = with_boot_file(made.image, made.image / "guest.efi", tmp_path / "unsigned.raw")
    foreign_disk = with_boot_file(made.image, foreign, tmp_path / "foreign.raw")
    changed = flipped(made.disk, root.first * SECTOR + 8, tmp_path / "changed.raw")
    two = (made.config_disk(tmp_path / "one"), made.config_disk(tmp_path / "two"))
    cases = [
        (made.machine("changed", disk=changed), ("dm-verity device corrupted",)),
        (made.machine("unsigned", disk=unsigned), ("Access Denied",)),
        (made.machine("foreign", disk=foreign_disk), ("Access Denied",)),
        (made.machine("two", config_disks=two), ("sealwright: config-disk: ambiguous-disk: ", "Power down")),
    ]
    with ThreadPoolExecutor(2) as pool:
        changed_said, *firmware_said, two_said = pool.map(lambda case: refused(case[0], *case[1]), cases)
    assert "sealwright: config-register" not in changed_said
    for said in firmware_said:
        assert "sealwright" not in said
        assert "Linux" not in said
    assert "sealwright: config-register" not in two_said


def test_the_model_is_what_was_sealed(made: Stage) -> None:
    """Or the good boot would prove nothing: the artefact on the disk is ciphertext."""
    disk = (made.folder / "good" / "config").read_bytes()
    assert made.world.model[:1024] not in disk
    assert sha256(made.world.artefact.read_bytes()).digest() != sha256(made.world.model).digest()


def test_the_power_button_ends_it_in_order(good: Good) -> None:
    """Last of all: the enclave logs its receipts, and the machine goes off."""
    good.guest.press_power_button()
    good.guest.wait(REFUSED_S)
    assert "sealwright: enclave: ended with exit code 0\n" in good.guest.console
