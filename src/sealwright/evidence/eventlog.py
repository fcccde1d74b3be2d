"""Logs of what firmware and boot loaders measured: bytes in, frozen records out. Nothing here is believed.

Layouts: TCG PC Client Platform Firmware Profile 1.06, sections 5.2 and 10.2 (crypto-agile, and SHA-1 alone as in TCG
1.2); the ACPI table CCEL of UEFI 2.10, section 38.4. What a log says counts only as far as `sealwright.verify.eventlog`
has replayed it to signed registers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, Self

from sealwright.errors import EvidenceFormatError

MAX_LOG = 4 * 1024 * 1024  # bytes
MAX_EVENTS = 16 * 1024
MAX_EVENT_DATA = 1024 * 1024  # bytes
MAX_REGISTER = 23  # PCRs; the indexes of a CCEL are smaller

Bank = Literal["sha1", "sha256", "sha384", "sha512", "sm3"]
ALGORITHMS: Mapping[int, tuple[Bank, int]] = {  # TPM_ALG_ID to name and digest size
    0x0004: ("sha1", 20),
    0x000B: ("sha256", 32),
    0x000C: ("sha384", 48),
    0x000D: ("sha512", 64),
    0x0012: ("sm3", 32),
}
_IDS = {name: number for number, (name, _) in ALGORITHMS.items()}

EV_NO_ACTION = 0x00000003
_AGILE = b"Spec ID Event03\0"
_SHA1_HEAD = struct.Struct("<II20sI")  # pcrIndex, eventType, digest, eventSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One record. `type` and `data` are what the log says: only a digest was ever measured."""

    index: int  # pcrIndex, or measurement register of a CCEL
    type: int
    digests: tuple[tuple[Bank, bytes], ...]  # in the order of the log
    data: bytes

    def digest(self, bank: Bank) -> bytes | None:
        """Return the digest for `bank`, or None where the log has none."""
        return dict(self.digests).get(bank)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecId:
    """The first record of a crypto-agile log (TCG_EfiSpecIdEvent)."""

    index: int  # pcrIndex of the record: 0, or 1 in some CCELs
    platform_class: int
    spec_version_minor: int
    spec_version_major: int
    spec_errata: int
    uintn_size: int
    algorithms: tuple[Bank, ...]
    vendor_info: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole log. An area of fixed size is filled up with 0x00 or 0xff: `padding` tells what came after."""

    spec_id: SpecId | None  # None: TCG 1.2, SHA-1 alone
    events: tuple[Event, ...]
    padding: bytes  # all 0x00 or all 0xff; mostly empty

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the log in `raw`.

        Raises:
            EvidenceFormatError: `too-large`, `malformed-event-log`.
        """
        if len(raw) > MAX_LOG:
            raise EvidenceFormatError(f"an event log of {len(raw)} bytes", code="too-large")
        reader = _Reader(raw)
        spec_id = _spec_id(reader)
        events = tuple(_events(reader, spec_id))
        if not events:
            _malformed("an event log without an event")
        return cls(spec_id=spec_id, events=events, padding=raw[reader.offset :])

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        head = b"" if self.spec_id is None else _encode_spec_id(self.spec_id)
        encode = _encode_sha1 if self.spec_id is None else _encode_agile
        return head + b"".join(map(encode, self.events)) + self.padding

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The hash algorithms of which every event has a digest."""
        return ("sha1",) if self.spec_id is None else self.spec_id.algorithms


@dataclass(frozen=True, slots=True, kw_only=True)
class CcelTable:
    """The ACPI table that tells where the log of a confidential VM lies. The host's word, and of little use."""

    cc_type: int  # 1: SEV, 2: TDX
    cc_subtype: int
    log_area_minimum_length: int  # bytes
    log_area_start_address: int

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the table in `raw`, 56 bytes. Raises EvidenceFormatError `malformed-ccel-table`."""
        if len(raw) != 56 or raw[:4] != b"CCEL" or raw[4:8] != struct.pack("<I", 56):
            raise EvidenceFormatError("a CCEL table has 56 bytes", code="malformed-ccel-table")
        if sum(raw) % 256 or raw[38:40] != bytes(2) or raw[36] not in (1, 2):
            raise EvidenceFormatError("checksum, type or reserved bytes", code="malformed-ccel-table")
        length, address = struct.unpack_from("<QQ", raw, 40)
        return cls(
            cc_type=raw[36],
            cc_subtype=raw[37],
            log_area_minimum_length=length,
            log_area_start_address=address,
        )


class _Reader:
    """Reads forward through `raw`; never past its end."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.offset = 0
        # Where the padding can begin at the earliest, for either filler.
        self._filled_from = min(len(raw.rstrip(b"\0")), len(raw.rstrip(b"\xff")))

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self.offset + size
        if end > len(self.raw):
            _malformed("an event log that ends inside an event")
        taken = self.raw[self.offset : end]
        self.offset = end
        return taken

    def u32(self) -> int:
        """Return the next four bytes as a little-endian integer."""
        return int.from_bytes(self.take(4), "little")

    def u16(self) -> int:
        """Return the next two bytes as a little-endian integer."""
        return int.from_bytes(self.take(2), "little")

    def at_end(self) -> bool:
        """Say whether nothing but padding is left."""
        return self.offset >= self._filled_from

    def data(self) -> bytes:
        """Return event data with its length before it."""
        size = self.u32()
        if size > MAX_EVENT_DATA:
            _malformed(f"an event of {size} bytes")
        return self.take(size)


def _spec_id(reader: _Reader) -> SpecId | None:
    """Return the first record if it is the head of a crypto-agile log; else read nothing."""
    if len(reader.raw) < _SHA1_HEAD.size + 16 or reader.raw[32:48] != _AGILE:
        return None
    index, kind, digest = reader.u32(), reader.u32(), reader.take(20)
    if kind != EV_NO_ACTION or digest != bytes(20) or index > MAX_REGISTER:
        _malformed("the first record is no Spec ID event")
    body = _Reader(reader.data())
    body.take(16)
    platform_class, (minor, major, errata, uintn) = body.u32(), body.take(4)
    algorithms = tuple(_algorithm(body.u16(), body.u16()) for _ in range(_count(body)))
    vendor_info = body.take(body.take(1)[0])
    if body.offset != len(body.raw) or not algorithms or len(set(algorithms)) != len(algorithms):
        _malformed("the Spec ID event has a wrong length, or lists an algorithm twice or none")
    return SpecId(
        index=index,
        platform_class=platform_class,
        spec_version_minor=minor,
        spec_version_major=major,
        spec_errata=errata,
        uintn_size=uintn,
        algorithms=algorithms,
        vendor_info=vendor_info,
    )


def _count(reader: _Reader) -> int:
    count = reader.u32()
    if count > len(ALGORITHMS):
        _malformed(f"{count} digests an event")
    return count


def _algorithm(number: int, size: int) -> Bank:
    name, wanted = ALGORITHMS.get(number, (None, 0))
    if name is None or size != wanted:
        _malformed(f"digest algorithm {number:#06x} of {size} bytes")
    return name


def _events(reader: _Reader, spec_id: SpecId | None) -> Iterator[Event]:
    number = 0
    while not reader.at_end():
        number += 1
        if number > MAX_EVENTS:
            _malformed(f"over {MAX_EVENTS} events")
        index, kind = reader.u32(), reader.u32()
        if index > MAX_REGISTER:
            _malformed(f"event {number} is of register {index}")
        if spec_id is None:
            digests: tuple[tuple[Bank, bytes], ...] = (("sha1", reader.take(20)),)
        else:
            digests = _digests(reader, spec_id)
        yield Event(index=index, type=kind, digests=digests, data=reader.data())


def _digests(reader: _Reader, spec_id: SpecId) -> tuple[tuple[Bank, bytes], ...]:
    """Return an event's digests: one for each algorithm of the head, none twice, none more."""
    found: list[tuple[Bank, bytes]] = []
    for _ in range(_count(reader)):
        number = reader.u16()
        name, size = ALGORITHMS.get(number, (None, 0))
        if name is None:
            _malformed(f"digest algorithm {number:#06x}")
        found.append((name, reader.take(size)))
    if len(found) != len(spec_id.algorithms) or {name for name, _ in found} != set(spec_id.algorithms):
        _malformed("an event has other digests than the head of the log lists")
    return tuple(found)


def _encode_spec_id(spec_id: SpecId) -> bytes:
    data = _AGILE + struct.pack(
        "<I4BI",
        spec_id.platform_class,
        spec_id.spec_version_minor,
        spec_id.spec_version_major,
        spec_id.spec_errata,
        spec_id.uintn_size,
        len(spec_id.algorithms),
    )
    for name in spec_id.algorithms:
        data += struct.pack("<HH", _IDS[name], ALGORITHMS[_IDS[name]][1])
    data += bytes([len(spec_id.vendor_info)]) + spec_id.vendor_info
    return _SHA1_HEAD.pack(spec_id.index, EV_NO_ACTION, bytes(20), len(data)) + data


def _encode_agile(event: Event) -> bytes:
    head = struct.pack("<III", event.index, event.type, len(event.digests))
    digests = b"".join(struct.pack("<H", _IDS[name]) + digest for name, digest in event.digests)
    return head + digests + struct.pack("<I", len(event.data)) + event.data


def _encode_sha1(event: Event) -> bytes:
    return _SHA1_HEAD.pack(event.index, event.type, event.digests[0][1], len(event.data)) + event.data


def _malformed(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-event-log")
