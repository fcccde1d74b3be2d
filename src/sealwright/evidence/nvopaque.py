"""What NVIDIA's opaque data says: fields by NVIDIA's numbers, typed and bounded (docs/spec/nvidia.md, "Opaque data").

The meaning of some numbers differs between GPUs and switches, which only the certificate tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, Self

from sealwright.errors import EvidenceFormatError

Mode = Literal["spt", "mpt", "ppcie", "unstated"]
DRIVER_VERSION, GPU_INFO, VBIOS_VERSION, NVDEC0_STATUS, MSRSCNT, CPRINFO = 3, 4, 6, 11, 12, 13
BOARD_ID, CHIP_SKU, CHIP_SKU_MOD, PROJECT, PROJECT_SKU, PROJECT_SKU_MOD = 14, 15, 16, 17, 18, 19
FWID, PROTECTED_PCIE_STATUS, PDI, DISABLED_PORTS, POSITION_ID, LOCK_STATUS, GPU_PDIS = (
    20,
    21,
    22,
    23,
    24,
    25,
    26,
)
SYS_ENABLE_STATUS, OPAQUE_DATA_VERSION, CHIP_INFO, FEATURE_FLAG = 33, 34, 35, 36
_KNOWN = frozenset({*range(1, 27), 32, 33, 34, 35, 36})
_MODES: Mapping[int, Mode] = {0: "spt", 1: "mpt", 2: "ppcie"}
_ENABLED, _DISABLED = 0xAA, 0x55
_PDI_SIZE = 8
_SWITCH_GPUS = 8
_TEXT = re.compile(rb"[ -~]{0,63}")
_DRIVER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
_VBIOS = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueData:
    """One device's opaque data. Texts are without their zero bytes; empty means: not there."""

    driver_version: str  # "550.90.07"
    vbios_version: str  # "96.00.9F.00.01", upper case
    nvdec0_enabled: bool  # else measurement 35 means nothing
    measurement_counts: tuple[int, ...]  # MSRSCNT: how often each measurement was extended
    board_id: bytes
    chip_sku: str
    project: str
    project_sku: str
    chip_info: str
    fwid: bytes  # 48 bytes or none
    protected_pcie: bool | None
    feature_flag: int | None
    unknown: tuple[int, ...]  # numbers without a known meaning
    switch_pdis: tuple[bytes, ...]  # GPU: the switch at the end of each link; zero: none
    device_pdi: bytes  # switch: its own, 8 bytes
    gpu_pdis: tuple[bytes, ...]  # switch: the GPUs it sees; zero: none
    disabled_ports: bytes
    position_id: int | None
    lock_status: int | None

    @classmethod
    def parse(cls, fields: Mapping[int, bytes], *, switch: bool) -> Self:
        """Read the fields of a report.

        Raises:
            EvidenceFormatError: `malformed-report`.
        """
        links = fields.get(PDI, b"")
        return cls(
            driver_version=_matching(_text(fields, DRIVER_VERSION), _DRIVER, optional=True),
            vbios_version=_matching(_vbios(fields.get(VBIOS_VERSION, b""), switch), _VBIOS),
            nvdec0_enabled=_status(fields, NVDEC0_STATUS) is not False,
            measurement_counts=_numbers(fields.get(MSRSCNT, b"")),
            board_id=fields.get(BOARD_ID, b""),
            chip_sku=_text(fields, CHIP_SKU),
            project=_text(fields, PROJECT),
            project_sku=_text(fields, PROJECT_SKU),
            chip_info=_text(fields, CHIP_INFO),
            fwid=_sized(fields, FWID, 48),
            protected_pcie=_status(fields, PROTECTED_PCIE_STATUS),
            feature_flag=_number(fields, FEATURE_FLAG),
            unknown=tuple(sorted(fields.keys() - _KNOWN)),
            switch_pdis=() if switch else tuple(pdi[::-1] for pdi in _pdis(links)),
            device_pdi=_sized(fields, PDI, _PDI_SIZE) if switch else b"",
            gpu_pdis=_pdis(fields.get(GPU_PDIS, b"")[: _SWITCH_GPUS * _PDI_SIZE]) if switch else (),
            disabled_ports=fields.get(DISABLED_PORTS, b""),
            position_id=_number(fields, POSITION_ID),
            lock_status=_number(fields, LOCK_STATUS),
        )

    @property
    def mode(self) -> Mode | None:
        """The mode as signed; None: fields that contradict each other, or a flag without a known meaning."""
        if self.feature_flag is None:
            return {None: "unstated", False: "spt", True: "ppcie"}[self.protected_pcie]  # type: ignore[return-value]
        mode = _MODES.get(self.feature_flag)
        if self.protected_pcie is not None and self.protected_pcie != (mode == "ppcie"):
            return None
        return mode


def _text(fields: Mapping[int, bytes], kind: int) -> str:
    raw = fields.get(kind, b"").rstrip(b"\0")
    if not _TEXT.fullmatch(raw):
        _refuse(f"opaque field {kind} is not a short text")
    return raw.decode("ascii").strip()


def _vbios(raw: bytes, switch: bool) -> str:
    """Return the version as it is written in RIM files. A GPU has two little-endian u32: 96009F00, then 01."""
    if switch:
        return raw.rstrip(b"\0").decode("ascii", "replace").upper()
    if len(raw) != 8 or any(raw[5:]):
        _refuse("the VBIOS version is not 8 bytes, or has more than five parts")
    return ".".join(f"{byte:02X}" for byte in (*raw[3::-1], raw[4]))


def _matching(text: str, form: re.Pattern[str], *, optional: bool = False) -> str:
    if not form.fullmatch(text) and not (optional and not text):
        _refuse("a version is not in its form")
    return text


def _status(fields: Mapping[int, bytes], kind: int) -> bool | None:
    """Return what a status byte says: 0xAA on, 0x55 off, chosen by NVIDIA so that one bit makes neither of the other."""
    raw = fields.get(kind)
    if raw is None:
        return None
    if raw not in (bytes([_ENABLED]), bytes([_DISABLED])):
        _refuse(f"opaque field {kind} is neither on nor off")
    return raw[0] == _ENABLED


def _number(fields: Mapping[int, bytes], kind: int) -> int | None:
    raw = fields.get(kind)
    if raw is None:
        return None
    if not 0 < len(raw) <= 8:
        _refuse(f"opaque field {kind} is not a number")
    return int.from_bytes(raw, "little")


def _numbers(raw: bytes) -> tuple[int, ...]:
    if len(raw) % 4:
        _refuse("MSRSCNT is not a list of u32")
    return tuple(int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4))


def _sized(fields: Mapping[int, bytes], kind: int, size: int) -> bytes:
    raw = fields.get(kind, b"")
    if len(raw) not in (0, size):
        _refuse(f"opaque field {kind} has {len(raw)} bytes where {size} are wanted")
    return raw


def _pdis(raw: bytes) -> tuple[bytes, ...]:
    if len(raw) % _PDI_SIZE:
        _refuse("a list of device identities (PDI) is cut off")
    return tuple(raw[at : at + _PDI_SIZE] for at in range(0, len(raw), _PDI_SIZE))


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-report")
