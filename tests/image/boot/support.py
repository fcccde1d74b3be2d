"""A world around a guest image: broker, owner's CA, sealed toy model, TPM, Secure Boot keys, predicted registers."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from tests.enclave.support import KID, World

from sealwright.appraisal.policy import TrustFile
from sealwright.cli import main
from sealwright.client.httpx_transport import transport
from sealwright.crypto.encoding import b64url
from sealwright.image import qemu
from sealwright.image.config_disk import ConfigDisk
from sealwright.image.guest.network import GuestNetwork
from sealwright.protocol.enclave_config import EnclaveConfig
from sealwright.testing.gguf import toy_gguf
from sealwright.testing.qemu import SecureBootKeys, TestMachine, missing_programs, with_boot_file
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm, manufacture

BOOT_S = 420.0  # until a guest serves under emulation, on two busy cores
CODE = ("pcr4", "pcr7", "pcr9", "pcr11")
Made = TypeVar("Made")


def quietly(make: Callable[[], Made]) -> Made:
    """Make something of `sealwright.testing` without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return make()


def image_folder() -> Path:
    """Return what `image build` wrote, as SEALWRIGHT_IMAGE names it; without it the tests are skipped."""
    named = os.environ.get("SEALWRIGHT_IMAGE")
    if not named:
        pytest.skip("SEALWRIGHT_IMAGE names no built image: make test-image")
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return Path(named)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What an image measures to when it is booted from its disk under some variables."""

    registers: Mapping[str, str]  # hex, SHA-256 bank
    events: Mapping[int, list[bytes]]  # digests by PCR, in the order in which they are extended


def predicted(uki: Path, variables: Path) -> Predicted:
    """Return what `image predict` says of a signed image; nothing is booted for it."""
    from sealwright.image.predict.pcr import Digests, predict_pcrs
    from sealwright.image.predict.secureboot import SecureBoot
    from sealwright.image.predict.stub import Uki

    state = SecureBoot.from_variables(variables.read_bytes())
    said = predict_pcrs(Digests.of(Uki.parse(uki.read_bytes()), "sha256"), state, boot="disk")
    events: dict[int, list[bytes]] = {}
    for event in said.events:
        events.setdefault(int(event.register.removeprefix("pcr")), []).append(event.digest)
    return Predicted(registers={name: said.registers[name].hex() for name in CODE}, events=events)


class GuestWorld(World):
    """A world whose policies admit one TPM that booted one image."""

    registers: Mapping[str, str]
    ca_root = ""

    def policy(self, **changes: Any) -> dict[str, Any]:
        return super().policy(**{"platforms": {"tpm": self.rules()}, **changes})

    def rules(self) -> dict[str, Any]:
        return {
            "registers": {name: [value] for name, value in self.registers.items()},
            "unchecked": ["pcr0", "pcr2"],
            "config_register": "pcr8",
            "roots": [self.ca_root],
            "tpm": "provider",
            "minimum_firmware": "00" * 8,
        }

    def trust(self) -> TrustFile:
        """Return what clients trust: these registers, and exactly the configs of these tests."""
        digests = [self.guest_config().digest().hex(), self.config().digest().hex()]
        return TrustFile.from_json({**super().trust().to_json(), "config": {"digests": digests}})

    def guest_config(self, **changes: Any) -> EnclaveConfig:
        """Return a config for a guest, to whom this machine is QEMU's gateway."""
        broker = {"url": f"http://{qemu.GUEST_GATEWAY}:{self.peer[1]}", "root": b64url(self.broker_root)}
        engine = {"name": "llama.cpp", "context_tokens": 256, "slots": 1, "threads": 1}
        return self.config(**{"brokers": [broker], "engine": engine, **changes})


@dataclass(kw_only=True)
class Stage:
    """Everything that a boot needs, made once."""

    folder: Path
    image: Path
    keys: SecureBootKeys
    variables: Path
    uki: Path  # signed
    disk: Path  # with it
    tpm: Path  # folder of `manufacture`
    certificates: bytes
    world: GuestWorld

    def machine(self, name: str, **changes: Any) -> TestMachine:
        """Return a machine with variables and a TPM state of its own."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copyfile(changes.pop("variables", self.variables), folder / "variables")
        shutil.copytree(self.tpm / "state", folder / "tpm")
        given: dict[str, Any] = {"disk": self.disk, "config_disks": (self.config_disk(folder / "config"),)}
        return TestMachine(
            variables=folder / "variables", tpm_state=folder / "tpm", port=qemu.free_port(), **given | changes
        )

    def config_disk(self, out: Path, **changes: Any) -> Path:
        """Write a config disk. Args: changes: to the config."""
        network = GuestNetwork(
            addresses=[qemu.GUEST_ADDRESS],
            gateways=[qemu.GUEST_GATEWAY],
            hosts=[],
            listen=8443,
            mtu=1500,
            mac="",
        )
        config = self.world.guest_config(**changes).encode()
        artefacts = {KID: self.world.artefact}
        ConfigDisk.of(config, network, self.world.openings, artefacts, self.certificates).write(out)
        return out


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Make keys, TPM, owner's CA and world, and run the broker until the block ends."""
    image = image_folder()
    keys = quietly(lambda: SecureBootKeys(folder / "keys"))
    variables = keys.variables(folder / "variables")
    uki = keys.sign(image / "guest.efi", folder / "guest.signed.efi")
    disk = with_boot_file(image, uki, folder / "disk.raw")
    tpm = folder / "tpm"
    tpm.mkdir()
    manufacture(tpm)
    certificates, root = enrol(tpm, folder)
    (folder / "world").mkdir()
    world = GuestWorld(folder / "world", model=quietly(toy_gguf))
    world.registers, world.ca_root = predicted(uki, variables).registers, root
    with world.broker():
        yield Stage(
            folder=folder,
            image=image,
            keys=keys,
            variables=variables,
            uki=uki,
            disk=disk,
            tpm=tpm,
            certificates=certificates,
            world=world,
        )


def enrol(tpm: Path, folder: Path) -> tuple[bytes, str]:
    """Enrol a TPM with a CA of the owner; return its certificates, and the fingerprint of the CA's root.

    The attestation key is a primary: the guest makes the same one after each boot.
    """
    with quietly(lambda: SwTpm(tpm)) as running:
        chain = folder / "maker.pem"
        parts = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")
        chain.write_bytes(b"".join((running.folder / "ca" / name).read_bytes() for name in parts))
        root = run("tpm", "ca-new", str(folder / "ca"))["root"]
        (maker,) = running.roots()
        where = ["--tpm", running.address, "--machine", "guest-1", "--out", str(folder / "ak.pem")]
        run(
            "tpm",
            "enrol",
            "--ca",
            str(folder / "ca"),
            *where,
            "--ek-root",
            maker.hex(),
            "--ek-chain",
            str(chain),
        )
    return (folder / "ak.pem").read_bytes(), root


def run(*command: str) -> dict[str, Any]:
    """Run a command of ours; return what it prints as JSON."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([*command, "--json"])
    assert code == 0, out.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def client(world: World, port: int) -> httpx2.Client:
    """Return an attested client of a guest that serves."""
    url = f"http://127.0.0.1:{port}"
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            if httpx2.get(f"{url}/healthz", timeout=5).text == "serving\n":
                break
        except httpx2.HTTPError:
            time.sleep(0.2)
    headers = {"authorization": f"Bearer {world.credential}"}
    return httpx2.Client(transport=transport(trust=world.trust()), base_url=url, headers=headers, timeout=120)
