"""The enclave of a guest: what the config disk holds for it, and the process that serves."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from sealwright.attester.azure import machine_report
from sealwright.attester.detect import detect
from sealwright.attester.local import MACHINE_TPM, AttesterSpec
from sealwright.attester.quoter.launch import Running, launch
from sealwright.enclave.image import DISTRIBUTIONS
from sealwright.errors import UnavailableError
from sealwright.evidence.envelope import PlatformType
from sealwright.image.guest import configdisk, devicemapper
from sealwright.image.guest.blocks import reading
from sealwright.image.guest.configdisk import ARTEFACTS, Member
from sealwright.image.guest.devicemapper import Target
from sealwright.image.guest.handover import Handover
from sealwright.image.guest.network import GuestNetwork
from sealwright.protocol.enclave_config import EnclaveConfig

STATE = Path("/run/sealwright/state")
BACKLOG = 1024  # connections
_TEES = {"HOST_DATA": "snp", "MRCONFIGID": "tdx", "RTMR3": "tdx", "PCR16": "nitro"}
_TPM = "PCR8"


def host_file(found: Handover, name: str) -> bytes:
    """Return a file of the config disk other than the config; empty if it has none of that name.

    Raises:
        FormatError: `malformed-config-disk`.
    """
    member = next((one for one in found.members if one.name == name), None)
    if member is None:
        return b""
    with reading(Path(found.disk)) as read:
        return configdisk.content(read, member)


def attester_spec(
    found: Handover, certificates: bytes, *, exists: Callable[[str], bool] = os.path.exists
) -> AttesterSpec:
    """Return where quotes come from: the TEE whose register holds the config; else the machine behind the TPM.

    Raises:
        UnavailableError: `no-attester`, as `detect`.
    """
    tee = next((_TEES[name] for name in found.registers if name in _TEES), None)
    if tee is None:
        tee = "snp" if exists("/dev/sev-guest") else "tdx" if exists("/dev/tdx_guest") else None
    if tee is None:
        name = detect(hcl=lambda: machine_report(MACHINE_TPM)).choose()
        (chosen,) = (one for one in get_args(PlatformType) if one == name)
        blobs = (certificates,) if certificates and chosen == "tpm" else ()
        return AttesterSpec(platform=chosen, endorsements=blobs)
    (chosen,) = (one for one in get_args(PlatformType) if one == tee)
    vtpm = _TPM in found.registers
    return AttesterSpec(
        platform=chosen, vtpm=vtpm, endorsements=(certificates,) if vtpm and certificates else ()
    )


def artefact_target(disk: str, member: Member) -> Target:
    """Return the device-mapper target that shows one artefact of the disk, and nothing else of it."""
    sectors = -(-member.size // 512)
    return Target(sectors=sectors, kind="linear", parameters=f"{disk} {member.offset // 512}")


def open_artefacts(found: Handover) -> dict[str, int]:
    """Return a descriptor for each artefact, by kid. It is read where it lies: no copy, no file system."""
    fds: dict[str, int] = {}
    for member in found.members:
        if member.name.startswith(ARTEFACTS):
            device = devicemapper.create(
                f"sealwright-artefact-{len(fds)}", artefact_target(found.disk, member)
            )
            fds[member.name.removeprefix(ARTEFACTS)] = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    return fds


def listener(network: GuestNetwork) -> socket.socket:
    """Return the socket that clients reach, on every address of this machine.

    Raises:
        UnavailableError: `cannot-listen`.
    """
    try:
        if any(":" in address for address in network.addresses):
            return socket.create_server(
                ("::", network.listen), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
            )
        return socket.create_server(("0.0.0.0", network.listen), backlog=BACKLOG)  # noqa: S104 - the firewall's
    except OSError as exc:
        raise UnavailableError(
            f"cannot listen on port {network.listen}: {exc.strerror}", code="cannot-listen", stage="enclave"
        ) from exc


def start(
    found: Handover,
    payload: bytes,
    spec: AttesterSpec,
    fds: Mapping[str, int],
    listen: socket.socket,
) -> Running:
    """Start the enclave: sealed, confined, and quoting by this machine. Raises as `launch`."""
    STATE.mkdir(mode=0o700)
    return launch(
        found.config,
        entry=EnclaveConfig.parse(found.config).workload.entry,
        distributions=DISTRIBUTIONS,
        listen=listen,
        extra_fds=fds,
        state_dir=STATE,
        payload=payload,
        attester=spec,
    )


def serve(running: Running) -> int:
    """Wait for the enclave's end, which SIGTERM asks for; return its exit code."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        return running.wait()
    except KeyboardInterrupt:
        return running.terminate()
