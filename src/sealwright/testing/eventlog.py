"""Event logs that nobody measured: a boot of whatever a test asks for, with the registers it would end in."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Sequence
from uuid import UUID

from sealwright.evidence.eventlog import EV_NO_ACTION, Bank, Event, EventLog, SpecId
from sealwright.evidence.uefi import EFI_GLOBAL_VARIABLE, EFI_IMAGE_SECURITY_DATABASE
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.eventlog import Layout, replay
from sealwright.verify.measured import (
    EV_EFI_ACTION,
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_IPL,
    EV_SEPARATOR,
)

SEPARATOR = bytes(4)
_VARIABLES = (
    (EFI_GLOBAL_VARIABLE, "SecureBoot"),
    (EFI_GLOBAL_VARIABLE, "PK"),
    (EFI_GLOBAL_VARIABLE, "KEK"),
    (EFI_IMAGE_SECURITY_DATABASE, "db"),
    (EFI_IMAGE_SECURITY_DATABASE, "dbx"),
)


def variable(guid: UUID, name: str, value: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA."""
    head = guid.bytes_le + struct.pack("<QQ", len(name), len(value))
    return head + name.encode("utf-16-le") + value


class BootLogBuilder:
    """Writes a log event by event. Indexes are PCRs, or those of a CCEL (1 to 4) for layout `rtmr`."""

    def __init__(self, layout: Layout = "pcr", banks: Sequence[Bank] = ("sha1", "sha256")) -> None:
        warnings.warn("BootLogBuilder measures nothing", FakePlatformWarning, stacklevel=2)
        self.layout = layout
        self.banks: tuple[Bank, ...] = tuple(banks)
        self.events: list[Event] = []

    def add(self, index: int, kind: int, data: bytes, content: bytes | None = None) -> None:
        """Add an event. Args: content: what was hashed, where it is not `data`."""
        hashed = data if content is None else content
        digests = tuple((bank, hashlib.new(bank, hashed).digest()) for bank in self.banks)
        if kind == EV_NO_ACTION:
            digests = tuple((bank, bytes(len(digest))) for bank, digest in digests)
        self.events.append(Event(index=index, type=kind, digests=digests, data=data))

    def boot(self, *, secure: bytes = b"\x01", sections: Sequence[tuple[str, bytes]] = ()) -> None:
        """Add a whole boot of a unified kernel image. Args: secure: value of the variable SecureBoot."""
        state, images, loader = (7, 4, 11) if self.layout == "pcr" else (1, 2, 3)
        for guid, name in _VARIABLES:
            value = secure if name == "SecureBoot" else b""
            self.add(state, EV_EFI_VARIABLE_DRIVER_CONFIG, variable(guid, name, value))
        self.add(state, EV_SEPARATOR, SEPARATOR)
        for index in range(7) if self.layout == "pcr" else (2,):
            self.add(index, EV_SEPARATOR, SEPARATOR)
        self.add(images, EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"a boot loader's image")
        for name, content in sections:
            label = f"{name}\0".encode("utf-16-le")
            self.add(loader, EV_IPL, label, f"{name}\0".encode())
            self.add(loader, EV_IPL, label, content)
        self.add(5 if self.layout == "pcr" else 2, EV_EFI_ACTION, b"Exit Boot Services Returned with Success")

    def log(self) -> EventLog:
        """Return the log as a record."""
        spec_id = SpecId(
            index=0,
            platform_class=0,
            spec_version_minor=0,
            spec_version_major=2,
            spec_errata=0,
            uintn_size=2,
            algorithms=self.banks,
            vendor_info=b"",
        )
        return EventLog(spec_id=spec_id, events=tuple(self.events), padding=b"")

    def registers(self, bank: Bank = "sha256") -> dict[str, bytes]:
        """Return what the registers would hold."""
        return replay(self.log(), layout=self.layout, bank=bank)
