"""Guests of tests: images booted in QEMU under Secure Boot keys and TPMs that a test made. No TEE is anywhere near."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sealwright.errors import UnavailableError
from sealwright.image import qemu
from sealwright.image.guest import blocks, gpt
from sealwright.image.guestimage import resigned_disk
from sealwright.testing.software import FakePlatformWarning

_OWNER = "5ea1a771-9117-4b0a-9d5e-0123456789ab"  # GUID that signatures of ours carry
_LIFE = timedelta(days=30)


def missing_programs() -> list[str]:
    """Return what is not installed of what booting under Secure Boot takes; empty: all is there."""
    wanted = {
        qemu.QEMU: "qemu-system-x86",
        qemu.SWTPM: "swtpm",
        "swtpm_setup": "swtpm-tools",
        "sbsign": "sbsigntool",
    }
    found = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not (qemu.FIRMWARE / qemu.NO_KEYS).exists():
        found.append("ovmf")
    return found + ([] if _virt_fw_vars() else ["virt-firmware (a wheel)"])


class SecureBootKeys:
    """A key of its owner for all of PK, KEK and db, made in a folder."""

    def __init__(self, folder: Path, name: str = "Sealwright test Secure Boot") -> None:
        warnings.warn("SecureBootKeys lie open in a folder", FakePlatformWarning, stacklevel=2)
        folder.mkdir()
        self.key, self.certificate = folder / "key.pem", folder / "certificate.pem"
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key.write_bytes(private.private_bytes(*form))
        self.certificate.write_bytes(_certificate(private, name).public_bytes(Encoding.PEM))

    def variables(self, out: Path) -> Path:
        """Write UEFI variables that boot only what this key signed; return `out`."""
        keys = [part for option in ("--set-pk", "--add-kek", "--add-db") for part in self._option(option)]
        source = qemu.FIRMWARE / qemu.NO_KEYS
        _run([_virt_fw_vars(), "-i", str(source), "-o", str(out), *keys, "--secure-boot"])
        return out

    def sign(self, uki: Path, out: Path) -> Path:
        """Write a signed copy of a unified kernel image; return `out`."""
        _run(
            [
                "sbsign",
                "--key",
                str(self.key),
                "--cert",
                str(self.certificate),
                "--output",
                str(out),
                str(uki),
            ]
        )
        return out

    def _option(self, name: str) -> tuple[str, str, str]:
        return name, _OWNER, str(self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestMachine:
    """What a test boots. Files are used as they are, but for `variables`, which are copied by whoever makes this."""

    __test__ = False  # no test of pytest's

    disk: Path  # with the boot file in its ESP
    config_disks: Sequence[Path]
    variables: Path
    tpm_state: Path
    port: int  # of this machine's loopback, that leads to `guest_port`
    guest_port: int = 8443
    memory_mib: int = 2048

    def booted(self) -> AbstractContextManager[qemu.Booted]:
        """Boot it, under KVM where that works, else emulated; killed at the end of the block."""
        warnings.warn("a machine in QEMU is no TEE", FakePlatformWarning, stacklevel=2)
        return qemu.booted(
            qemu.Machine(
                disks=(self.disk, *self.config_disks),
                variables=self.variables,
                tpm_state=self.tpm_state,
                forward=(self.port, self.guest_port),
                memory_mib=self.memory_mib,
                accelerator=qemu.accelerator(),
            )
        )


def with_boot_file(image: Path, uki: Path, out: Path) -> Path:
    """Write the disk of a built image with `uki` as its boot file; return `out`."""
    with out.open("w+b") as file:
        resigned_disk(image, uki.read_bytes(), file)
    return out


def partitions(disk: Path) -> tuple[gpt.Partition, ...]:
    """Return the partitions of a disk image."""
    with blocks.reading(disk) as read:
        return gpt.read_gpt(read, disk.stat().st_size // gpt.SECTOR)


def _certificate(key: rsa.RSAPrivateKey, name: str) -> x509.Certificate:
    subject, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _virt_fw_vars() -> str:
    beside = Path(sys.executable).with_name("virt-fw-vars")
    return str(beside) if beside.exists() else shutil.which("virt-fw-vars") or ""


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()[-300:]
        raise UnavailableError(
            f"{Path(command[0]).name} failed: {said}", code="image-tool-failed", stage="boot"
        )
