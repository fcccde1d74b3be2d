"""Linux IMA's list of measured files, as text and as binary: bytes in, frozen records out. Nothing here is believed.

Layout: kernel documentation, `Documentation/security/IMA-templates.rst`, and the two files under
`/sys/kernel/security/ima/`. Read are the templates ima-ng, ima-sig and ima-buf, and version 2 of the first two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sealwright.errors import EvidenceFormatError

MAX_LIST = 16 * 1024 * 1024  # bytes
MAX_RECORDS = 128 * 1024
MAX_TEMPLATE_DATA = 1024 * 1024  # bytes
# Number of fields: digest, name, and what the third one is.
_THIRD = {"ima-ng": "", "ima-ngv2": "", "ima-sig": "signature", "ima-sigv2": "signature", "ima-buf": "buffer"}
_HASHES = {"md5": 16, "sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}  # of files
_RECORD_HASHES = frozenset({20, 32, 48, 64})  # bytes; those of PCR banks


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaRecord:
    """One measured file or buffer. `template_data` is what its extend was made of."""

    pcr: int
    template_hash: bytes  # in the list's own hash, mostly SHA-1; zero: a violation
    template: str
    template_data: bytes
    file_digest: str  # "sha256:…"
    file_name: str
    third: bytes  # signature of the file, or the buffer itself; empty for ima-ng


def parse_ima_list(raw: bytes) -> tuple[ImaRecord, ...]:
    """Return the records of a list, of which text and binary form are told apart by their beginning.

    Raises:
        EvidenceFormatError: `too-large`, `malformed-ima-list`.
    """
    if len(raw) > MAX_LIST:
        raise EvidenceFormatError(f"an IMA list of {len(raw)} bytes", code="too-large")
    records = []
    for record in _binary(raw) if raw[1:4] == bytes(3) else _ascii(raw):
        records.append(record)
        if len(records) > MAX_RECORDS:
            raise _malformed(f"over {MAX_RECORDS} records")
    return tuple(records)


def _ascii(raw: bytes) -> Iterator[ImaRecord]:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _malformed("a list that is not UTF-8") from None
    for line in text.removesuffix("\n").split("\n"):
        parts = line.split(" ", 4)
        if len(parts) != 5 or parts[2] not in _THIRD or not parts[0].isdecimal() or len(parts[0]) > 2:
            raise _malformed("a line that is not `<pcr> <hash> <template> <digest> <name>`")
        name, third = parts[4], b""
        if _THIRD[parts[2]]:
            name, _, last = parts[4].rpartition(" ")
            third = _unhex(last)
        algorithm, _, digest = parts[3].rpartition(":")
        fields = [algorithm.encode() + b":\0" + _unhex(digest), name.encode() + b"\0"]
        fields += [third] if _THIRD[parts[2]] else []
        data = b"".join(struct.pack("<I", len(field)) + field for field in fields)
        yield _record(int(parts[0]), _unhex(parts[1]), parts[2], data)


def _binary(raw: bytes) -> Iterator[ImaRecord]:
    offset = 0

    def take(size: int) -> bytes:
        nonlocal offset
        offset += size
        if size > MAX_TEMPLATE_DATA or offset > len(raw):
            raise _malformed("a list that ends inside a record")
        return raw[offset - size : offset]

    def number() -> int:
        return int.from_bytes(take(4), "little")

    while offset < len(raw):
        pcr, template_hash = number(), take(20)
        template = take(min(number(), 64)).decode("ascii", "replace")
        yield _record(pcr, template_hash, template, take(number()))


def _record(pcr: int, template_hash: bytes, template: str, data: bytes) -> ImaRecord:
    if pcr > 23 or len(template_hash) not in _RECORD_HASHES or template not in _THIRD:
        raise _malformed(f"PCR {pcr}, template {template[:16]!r}")
    fields = _fields(data)
    if len(fields) != (3 if _THIRD[template] else 2) or fields[1][-1:] != b"\0":
        raise _malformed("a record with other fields than its template has")
    algorithm, found, digest = fields[0].partition(b":\0")
    hash_name = algorithm.decode("ascii", "replace")
    if not found or len(digest) != _HASHES.get(hash_name.rpartition(":")[2]):
        raise _malformed("a file digest of another length than its hash has")
    return ImaRecord(
        pcr=pcr,
        template_hash=template_hash,
        template=template,
        template_data=data,
        file_digest=f"{hash_name}:{digest.hex()}",
        file_name=fields[1][:-1].decode("utf-8", "backslashreplace"),
        third=fields[2] if len(fields) == 3 else b"",
    )


def _fields(data: bytes) -> list[bytes]:
    fields: list[bytes] = []
    while data:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 + size or len(fields) == 3:
            raise _malformed("a record whose fields do not fill it")
        fields.append(data[4 : 4 + size])
        data = data[4 + size :]
    return fields


def _unhex(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise _malformed("a digest that is not hex") from None
    if raw.hex() != text:
        raise _malformed("a digest that is not lower-case hex")
    return raw


def _malformed(message: str) -> EvidenceFormatError:
    return EvidenceFormatError(message, code="malformed-ima-list")
