"""`sealwright image config-disk` and `image boot`: what a guest is given, and a try in QEMU."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._files import read_input
from sealwright.cli._group import Json
from sealwright.cli._output import emit, note
from sealwright.crypto.document import validated
from sealwright.errors import SettingsError, UnavailableError
from sealwright.image import qemu
from sealwright.image.config_disk import ConfigDisk
from sealwright.image.guest.network import GuestNetwork
from sealwright.protocol.enclave_config import TenantList

_ENDED = re.compile(r"sealwright: enclave: ended with exit code (\d{1,3})\n")
_POLL_S = 0.2


def config_disk(
    out: Annotated[Path, typer.Argument(help="Where to write the disk; it must not exist.")],
    config: Annotated[
        Path, typer.Option(help="The enclave config, from `enclave config new`.", exists=True, dir_okay=False)
    ],
    model: Annotated[
        list[str], typer.Option(metavar="KID=PATH.sealed", help="A sealed model; repeat it for several.")
    ],
    address: Annotated[
        list[str], typer.Option(metavar="IP/BITS", help="Of the guest, with its prefix length; repeat it.")
    ],
    tenant_list: Annotated[
        list[Path] | None,
        typer.Option(help="A tenant's list; default: CONFIG beside it, `.tenant.json`.", exists=True),
    ] = None,
    gateway: Annotated[list[str] | None, typer.Option(metavar="IP", help="The way out; repeat it.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=IP", help="Where a broker or egress host of the config is; repeat it."),
    ] = None,
    listen: Annotated[int, typer.Option(help="Port that clients reach.")] = 8443,
    mtu: Annotated[int, typer.Option(help="Largest packet, bytes.")] = 1500,
    mac: Annotated[str, typer.Option(help="Of the interface to use; default: the only one.")] = "",
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="From `tpm enrol`: goes along with each quote of a TPM.", exists=True, dir_okay=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the disk with all that a guest takes from its host. Nothing on it is secret.

    The config is measured by the guest before anything reads it; the rest the enclave holds against the config.
    """
    raw = read_input(config)
    lists = [
        TenantList.parse(read_input(path), error=SettingsError)
        for path in tenant_list or [config.with_suffix(".tenant.json")]
    ]
    network = _network(address, gateway or [], host or [], listen=listen, mtu=mtu, mac=mac)
    artefacts = dict(_pair(text, "--model") for text in model)
    disk = ConfigDisk.of(
        raw,
        network,
        lists,
        {kid: Path(path) for kid, path in artefacts.items()},
        b"" if certificate is None else read_input(certificate),
    )
    disk.write(out)
    digest = disk.config_digest.hex()
    result: dict[str, object] = {"disk": str(out), "bytes": out.stat().st_size, "config_digest": digest}
    emit(
        result,
        as_json=as_json,
        lines=[
            f"disk           {out}  ({out.stat().st_size} bytes)",
            f"config_digest  {digest}  (PCR 8, HOST_DATA or MRCONFIGID, as the platform has it)",
        ],
    )


def boot(
    image: Annotated[Path, typer.Argument(help="The disk of `image build`.", exists=True, dir_okay=False)],
    config: Annotated[
        Path, typer.Option("--config-disk", help="From `image config-disk`.", exists=True, dir_okay=False)
    ],
    tpm: Annotated[
        Path,
        typer.Option(
            help="Folder of a software TPM's state, from `swtpm_setup`; it is used as it is.", exists=True
        ),
    ],
    variables: Annotated[
        Path | None,
        typer.Option(
            help="UEFI variables with your Secure Boot keys; default: none, and Secure Boot off.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    forward: Annotated[
        str, typer.Option(metavar="PORT:GUEST", help="Port of this machine's loopback, and of the guest.")
    ] = "8443:8443",
    memory: Annotated[int, typer.Option(help="MiB.", min=512)] = 2048,
    cpus: Annotated[int, typer.Option(min=1, max=64)] = 2,
    accel: Annotated[str, typer.Option(help="auto, kvm or tcg (emulation).")] = "auto",
    as_json: Json = False,
) -> None:
    """Boot an image in QEMU, with UEFI and a software TPM, until it ends or is interrupted.

    This is no TEE: whoever runs it can read the guest's memory, and its evidence says `tpm: provider`.
    """
    if accel not in ("auto", "kvm", "tcg"):
        raise typer.BadParameter("it is auto, kvm or tcg", param_hint="--accel")
    qemu.require()
    chosen = qemu.accelerator() if accel == "auto" else accel
    note(f"not confidential: a QEMU guest ({chosen}) can be read by this machine's administrators")
    with _own_variables(variables) as writable:
        machine = qemu.Machine(
            disks=(image, config),
            variables=writable,
            tpm_state=tpm,
            forward=_ports(forward),
            memory_mib=memory,
            cpus=cpus,
            accelerator="kvm" if chosen == "kvm" else "tcg",
        )
        with qemu.booted(machine) as guest:
            shown = _follow(guest, quiet=as_json)
            seconds = time.monotonic() - guest.started
    ended = _ENDED.search(shown)
    code = int(ended[1]) if ended else None
    emit(
        {"confidential": False, "accelerator": chosen, "seconds": round(seconds, 1), "exit_code": code},
        as_json=as_json,
        lines=[],
    )
    if code is None:
        last = next(
            (line for line in reversed(shown.splitlines()) if line.startswith("sealwright: ")), "nothing"
        )
        raise UnavailableError(f"the guest did not serve; it said: {last}", code="guest-ended", stage="boot")
    if code:
        raise typer.Exit(code)


def _follow(guest: qemu.Booted, *, quiet: bool) -> str:
    """Show the console until the guest ends or the user interrupts; return all of it."""
    shown = ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            running, console = guest.running, guest.console
            if not quiet:
                sys.stdout.write(console[len(shown) :])
                sys.stdout.flush()
            shown = console
            if not running:
                break
            time.sleep(_POLL_S)
    return shown


@contextlib.contextmanager
def _own_variables(given: Path | None) -> Iterator[Path]:
    """Yield a copy that the firmware may write to."""
    source = given or qemu.FIRMWARE / qemu.NO_KEYS
    with tempfile.TemporaryDirectory(prefix="sealwright-vars-") as folder:
        copy = Path(folder) / "variables"
        shutil.copyfile(source, copy)
        yield copy


def _network(
    addresses: list[str], gateways: list[str], hosts: list[str], *, listen: int, mtu: int, mac: str
) -> GuestNetwork:
    named: dict[str, list[str]] = {}
    for text in hosts:
        name, address = _pair(text, "--host")
        named.setdefault(name, []).append(address)
    said = {
        "format": "sealwright-guest-network/v1",
        "addresses": addresses,
        "gateways": gateways,
        "hosts": [{"name": name, "addresses": found} for name, found in sorted(named.items())],
        "listen": listen,
        "mtu": mtu,
        "mac": mac,
    }
    return validated(GuestNetwork, said, SettingsError)


def _ports(text: str) -> tuple[int, int]:
    here, _, there = text.partition(":")
    if not all(one.isascii() and one.isdigit() and 0 < int(one) < 1 << 16 for one in (here, there)):
        raise typer.BadParameter("it takes PORT:PORT", param_hint="--forward")
    return int(here), int(there)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise typer.BadParameter("it takes NAME=VALUE", param_hint=option)
    return name, value
