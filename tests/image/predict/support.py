"""Made-up images for the tests of predictions: small, and written here so that every byte is known."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID
from tests.tpm.support import NOW

from sealwright.evidence.uefi import EFI_CERT_SHA256, EFI_CERT_X509
from sealwright.image.predict.secureboot import SecureBoot
from sealwright.image.predict.stub import Uki

OWNER = UUID("00000000-1111-2222-3333-444444444444")
FILE_ALIGNMENT, SECTION_ALIGNMENT = 512, 4096
CMDLINE = b"  console=ttyS0\troothash=" + b"ab" * 32 + b" "
SBAT = b"sbat,1,SBAT Version\n"
MAGIC = b"#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####\0"


def pe(sections: Sequence[tuple[str, bytes]], *, certificates: bytes = b"") -> bytes:
    """Return a PE32+ image of these sections. Args: certificates: a certificate table."""
    headers = _up(64 + 24 + 240 + 40 * len(sections), FILE_ALIGNMENT)
    table, body, address = b"", b"", SECTION_ALIGNMENT
    for name, data in sections:
        raw = data + bytes(-len(data) % FILE_ALIGNMENT)
        table += struct.pack("<8sIIII", name.encode(), len(data), address, len(raw), headers + len(body))
        table += struct.pack("<IIHHI", 0, 0, 0, 0, 0x40000040)
        body += raw
        address += _up(len(data), SECTION_ALIGNMENT)
    security = (headers + len(body), len(certificates)) if certificates else (0, 0)
    optional = struct.pack("<H58xI", 0x20B, headers).ljust(108, b"\0") + struct.pack("<I", 16)
    optional = optional.ljust(144, b"\0") + struct.pack("<II", *security)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 240, 0x22E)
    return (dos + coff + optional.ljust(240, b"\0") + table).ljust(headers, b"\0") + body + certificates


def kernel(text: bytes = b"kernel") -> bytes:
    return pe([(".text", text)])


def uki(
    changes: Mapping[str, bytes | None] | None = None, *, magic: bytes = MAGIC, certificates: bytes = b""
) -> bytes:
    """Return a unified kernel image; `changes` replaces sections, adds some, or leaves some out (None)."""
    sections: dict[str, bytes | None] = {
        ".text": b"the stub's code",
        ".sbat": SBAT,
        ".sdmagic": magic,
        ".osrel": b"ID=test\n",
        ".cmdline": CMDLINE,
        ".initrd": b"an initrd",
        ".uname": b"6.12",
        ".linux": kernel(),
    }
    sections |= changes or {}
    kept = [(name, data) for name, data in sections.items() if data is not None]
    return pe(kept, certificates=certificates)


def parsed(changes: Mapping[str, bytes | None] | None = None) -> Uki:
    return Uki.parse(uki(changes))


@cache
def issuer(name: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    """Return a self-signed certificate and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return _certificate(name, key.public_key(), name, key), key


@cache
def leaf(name: str, by: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    """Return a certificate that `issuer(by)` issued, and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return _certificate(name, key.public_key(), by, issuer(by)[1]), key


def _certificate(subject: str, key: rsa.RSAPublicKey, by: str, signer: rsa.RSAPrivateKey) -> x509.Certificate:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, by)]
    builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key)
    dated = builder.not_valid_before(NOW.replace(year=2020)).not_valid_after(NOW.replace(year=2090))
    return dated.serial_number(1 + len(subject)).sign(signer, hashes.SHA256())


def certificate_table(
    certificate: x509.Certificate, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> bytes:
    """Return a table with a PKCS #7 signature. It is over nothing: who checks it is the firmware."""
    der = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(b"")
        .add_signer(certificate, key, hashes.SHA256())
        .sign(Encoding.DER, [])
    )
    padded = der + bytes(-(len(der) + 8) % 8)
    return struct.pack("<IHH", len(der) + 8, 0x0200, 0x0002) + padded


def signature_list(*entries: x509.Certificate | bytes, owner: UUID = OWNER) -> bytes:
    """Return a database: one list an entry, a certificate or a SHA-256 digest."""
    found = b""
    for entry in entries:
        data = entry if isinstance(entry, bytes) else entry.public_bytes(Encoding.DER)
        kind = EFI_CERT_SHA256 if isinstance(entry, bytes) else EFI_CERT_X509
        each = 16 + len(data)
        found += kind.bytes_le + struct.pack("<III", 28 + each, 0, each) + owner.bytes_le + data
    return found


def secure(*entries: x509.Certificate | bytes, dbx: bytes = b"") -> SecureBoot:
    """Return Secure Boot, on, with these entries in db."""
    root = signature_list(issuer("platform")[0])
    return SecureBoot(enabled=True, pk=root, kek=root, db=signature_list(*entries), dbx=dbx)


def variable(guid: UUID, name: str, value: bytes, *, state: int = 0x3F) -> bytes:
    """Return one record of a variable store."""
    raw = (name + "\0").encode("utf-16-le")
    head = struct.pack("<HBBIQ16xI", 0x55AA, state, 0, 7, 0, 0) + struct.pack("<II", len(raw), len(value))
    record = head + guid.bytes_le + raw + value
    return record + b"\xff" * (-len(record) % 4)


def store(*variables: bytes, size: int = 0x4000) -> bytes:
    """Return a flash volume of variables."""
    head = bytes(16) + UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    head += struct.pack("<Q4sIHHHBB", size, b"_FVH", 0, 72, 0, 0, 0, 2) + struct.pack("<IIII", 1, size, 0, 0)
    body = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    body += struct.pack("<IBBHI", size - 72, 0x5A, 0xFE, 0, 0) + b"".join(variables)
    return (head + body).ljust(size, b"\xff")


SNP_SECTIONS = (
    (0x800000, 0x9000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x810000, 0x1000, 0x10),
    (0x811000, 0x2000, 1),
)
SIZE = 0x10000
# Code, extended; variables, added alone (kind 1); memory without data.
TDX_SECTIONS = (
    (0x2000, 0xD000, 0xFFFF2000, 0xD000, 0, 1),
    (0x0000, 0x2000, 0xFFFF0000, 0x2000, 1, 0),
    (0, 0, 0x810000, 0x2000, 3, 0),
    (0, 0, 0x809000, 0x1000, 2, 0),
    (0, 0, 0x820000, 0x1000, 3, 2),
)


def firmware(
    *,
    snp: Sequence[tuple[int, ...]] = SNP_SECTIONS,
    tdx: Sequence[tuple[int, ...]] = TDX_SECTIONS,
    hashes_at: int = 0x810C00,
    without: Sequence[str] = (),
) -> bytes:
    """Return made-up firmware of 64 KiB with SEV and TDX metadata in its last page."""
    raw = bytearray(hashlib.shake_128(b"firmware").digest(SIZE))
    sev = b"ASEV" + struct.pack("<III", 16 + 12 * len(snp), 1, len(snp))
    sev += b"".join(struct.pack("<III", *section) for section in snp)
    tdvf = b"TDVF" + struct.pack("<III", 16 + 32 * len(tdx), 1, len(tdx))
    tdvf += b"".join(struct.pack("<IIQQII", *section) for section in tdx)
    raw[-4096 : -4096 + len(sev)], raw[-3072 : -3072 + len(tdvf)] = sev, tdvf
    entries = {
        "dc886566-984a-4798-a75e-5585a7bf67cc": struct.pack("<I", 4096),
        "e47a6535-984a-4798-865e-4685a7bf8ec2": struct.pack("<I", 3072),
        "7255371f-3a3b-4b04-927b-1da6efa8d454": struct.pack("<II", hashes_at, 0x400),
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e": struct.pack("<I", 0x0080B004),
    }
    table = b"".join(entry(guid, data) for guid, data in entries.items() if guid[:8] not in without)
    table += struct.pack("<H", len(table) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    raw[-32 - len(table) : -32] = table
    return bytes(raw)


def entry(guid: str, data: bytes) -> bytes:
    """Return an entry of the table of GUIDs."""
    return data + struct.pack("<H", len(data) + 18) + UUID(guid).bytes_le


def gpt(partitions: int = 2) -> bytes:
    """Return the beginning of a disk."""
    entries = b"".join(bytes([number + 1]) * 128 for number in range(partitions)).ljust(128 * 128, b"\0")
    head = b"EFI PART" + struct.pack("<IIII", 0x10000, 92, 0, 0) + bytes(48)
    head += struct.pack("<QIII", 2, 128, 128, zlib.crc32(entries))
    head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
    return bytes(512) + head.ljust(512, b"\0") + entries


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
