"""SPDM 1.1 GET_MEASUREMENTS with its MEASUREMENTS answer, as NVIDIA devices report: bytes in, frozen record out.

Layout: DMTF DSP0274 1.1, sections 10.11.1 and 10.11.2; opaque data as NVIDIA lays it out (type u16, size u16, data,
little-endian). No signature check, clock or network here; see `sealwright.verify.nvgpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn, Self

from sealwright.errors import EvidenceFormatError

MAX_REPORT = 8192  # bytes: what NVML has room for
REQUEST_SIZE = 37  # bytes
NONCE_SIZE = 32
SIGNATURE_SIZE = 96  # r and s of P-384
MAX_VALUE = 64  # bytes of one measurement
_VERSION, _GET_MEASUREMENTS, _MEASUREMENTS = 0x11, 0xE0, 0x60
_WITH_SIGNATURE, _ALL = 0x01, 0xFF
_MAX_SLOT = 7
_DMTF = 1
_LAST_VALUE_TYPE = 4  # measurement manifest; bit 7: raw instead of a digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One DMTF measurement block."""

    index: int  # 1 is the first
    value_type: int  # DMTFSpecMeasurementValueType
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdmReport:
    """A request with a device's signed answer. Integers are little-endian; byte fields are as sent."""

    request_nonce: bytes  # 32 bytes, chosen by the verifier
    slot_id: int
    measurements: tuple[Measurement, ...]  # by ascending index
    response_nonce: bytes  # 32 bytes, chosen by the device
    opaque: Mapping[int, bytes]  # OpaqueData by its type
    signature: bytes  # 96 bytes, r and s, big-endian
    signed: bytes  # request and answer up to the signature, as received
    padding: int  # zero bytes after the signature

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a report.

        Raises:
            EvidenceFormatError: `wrong-length`, `malformed-report`.
        """
        if not REQUEST_SIZE < len(raw) <= MAX_REPORT:
            raise EvidenceFormatError(f"an SPDM report of {len(raw)} bytes", code="wrong-length")
        reader = _Reader(raw)
        nonce, slot = _request(reader)
        blocks, record = _response_head(reader, slot)
        measurements = _measurements(record, blocks)
        response_nonce = reader.take(NONCE_SIZE)
        opaque = _opaque(_Reader(reader.take(reader.number(2))))
        signed = raw[: reader.at]
        signature = reader.take(SIGNATURE_SIZE)
        padding = reader.rest()
        if any(padding):
            _refuse("bytes after the signature")
        return cls(
            request_nonce=nonce,
            slot_id=slot,
            measurements=measurements,
            response_nonce=response_nonce,
            opaque=MappingProxyType(opaque),
            signature=signature,
            signed=signed,
            padding=len(padding),
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        return self.signed + self.signature + bytes(self.padding)


class _Reader:
    """Takes bytes from the front, never more than there are."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if size > self.left:
            _refuse(f"cut off: {size} bytes are wanted at offset {self.at}")
        self.at += size
        return self._raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        """Return the next little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._raw) - self.at

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(self.left)


def _request(reader: _Reader) -> tuple[bytes, int]:
    if reader.take(4) != bytes((_VERSION, _GET_MEASUREMENTS, _WITH_SIGNATURE, _ALL)):
        _refuse("the request is not SPDM 1.1 GET_MEASUREMENTS of everything, signed")
    nonce = reader.take(NONCE_SIZE)
    slot = reader.number(1)
    if slot > _MAX_SLOT:
        _refuse("the request has reserved bits set in SlotIDParam")
    return nonce, slot


def _response_head(reader: _Reader, slot: int) -> tuple[int, _Reader]:
    if reader.take(4) != bytes((_VERSION, _MEASUREMENTS, 0, slot)):
        _refuse("the answer is not SPDM 1.1 MEASUREMENTS from the slot that was asked")
    blocks = reader.number(1)
    return blocks, _Reader(reader.take(reader.number(3)))


def _measurements(record: _Reader, blocks: int) -> tuple[Measurement, ...]:
    found: list[Measurement] = []
    for _ in range(blocks):
        block = _measurement(record)
        if block.index <= (found[-1].index if found else 0):
            _refuse(f"measurement block {block.index} is out of order")
        found.append(block)
    if not found or record.rest():
        _refuse("MeasurementRecord holds another number of blocks than NumberOfBlocks")
    return tuple(found)


def _measurement(record: _Reader) -> Measurement:
    index, specification = record.number(1), record.number(1)
    block = _Reader(record.take(record.number(2)))
    value_type = block.number(1)
    value = block.take(block.number(2))
    known = value_type & 0x7F <= _LAST_VALUE_TYPE
    if specification != _DMTF or not known or not 0 < len(value) <= MAX_VALUE or block.rest():
        _refuse(f"measurement block {index} is not in DMTF's form")
    return Measurement(index=index, value_type=value_type, value=value)


def _opaque(reader: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while reader.left:
        kind = reader.number(2)
        value = reader.take(reader.number(2))
        if kind in found:
            _refuse(f"opaque field {kind} stands twice")
        found[kind] = value
    return found


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-report")
