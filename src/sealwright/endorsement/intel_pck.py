"""PCK certificates: the chain as quotes carry it, and what Intel says of the platform in the SGX extension.

Format: Intel SGX PCK Certificate and CRL Profile, section 1.3.4.3. No I/O and no clock.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from cryptography import x509

from sealwright.crypto.der import ENUMERATED, Element, read_der
from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import EvidenceFormatError

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
PCK_NAME = "Intel SGX PCK Certificate"
SgxType = Literal["standard", "scalable", "scalable-with-integrity"]
_TYPES: tuple[SgxType, ...] = ("standard", "scalable", "scalable-with-integrity")
_OID = SGX_EXTENSION.dotted_string
_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,76}\r?\n)+)-----END CERTIFICATE-----"
)
_BETWEEN = re.compile(rb"(?:\r?\n)*\0*")  # what may stand between and behind blocks
_MAX_PEM = 32 * 1024  # bytes
_MAX_CHAIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """What the PCK certificate says of the platform; as signed by Intel once the chain holds."""

    ppid: bytes  # 16 bytes: names the processor package, or the platform
    tcb: bytes  # 16 bytes: SGX TCB component SVNs
    pce_svn: int
    cpu_svn: bytes  # 16 bytes
    pce_id: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes
    sgx_type: SgxType
    platform_instance_id: bytes | None  # 16 bytes; multi-package platforms only
    dynamic_platform: bool | None  # packages can be added later
    cached_keys: bool | None  # Intel keeps the platform's root keys
    smt_enabled: bool | None

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Return the SGX extension of `certificate`.

        Raises:
            EvidenceFormatError: `malformed-pck`: it has none, or one of another form; `malformed-der`.
        """
        try:
            found = certificate.extensions.get_extension_for_oid(SGX_EXTENSION).value
        except x509.ExtensionNotFound:
            raise _malformed("the certificate has no SGX extension") from None
        members = _members(read_der(found.public_bytes()), _OID)
        tcb = _members(_need(members, 2), f"{_OID}.2")
        configuration = _members(members[7], f"{_OID}.7") if 7 in members else {}
        sgx_type = _need(members, 5).integer(tag=ENUMERATED)
        if sgx_type >= len(_TYPES):
            raise _malformed(f"SGX type {sgx_type} is not known")
        instance = members.get(6)
        return cls(
            ppid=_need(members, 1).octets(16),
            tcb=bytes(_svn(tcb, number, 0xFF) for number in range(1, 17)),
            pce_svn=_svn(tcb, 17, 0xFFFF),
            cpu_svn=_need(tcb, 18).octets(16),
            pce_id=_need(members, 3).octets(2),
            fmspc=_need(members, 4).octets(6),
            sgx_type=_TYPES[sgx_type],
            platform_instance_id=instance.octets(16) if instance is not None else None,
            dynamic_platform=_flag(configuration, 1),
            cached_keys=_flag(configuration, 2),
            smt_enabled=_flag(configuration, 3),
        )


def parse_pck_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of certification data 4 or 5: PCK certificate, its CA, the root.

    Between and after them stand line ends at most, and zero bytes at the end.

    Raises:
        EvidenceFormatError: `malformed-pem`, `malformed-chain`, `too-large`.
    """
    if len(pem) > _MAX_PEM:
        raise EvidenceFormatError(f"a PCK chain of {len(pem)} bytes is over {_MAX_PEM}", code="too-large")
    blocks = [match[1] for match in _BLOCK.finditer(pem)]
    if not blocks or not _BETWEEN.fullmatch(_BLOCK.sub(b"", pem)):
        raise EvidenceFormatError("a PCK chain is PEM of certificates and nothing else", code="malformed-pem")
    if len(blocks) > _MAX_CHAIN:
        raise EvidenceFormatError(f"a PCK chain is over {_MAX_CHAIN} certificates", code="malformed-chain")
    return tuple(load_certificate(_decoded(block)) for block in blocks)


def common_name(name: x509.Name) -> str:
    """Return the one common name in `name`; empty if it has none, or several."""
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _decoded(block: bytes) -> bytes:
    """Return the bytes of a PEM block in the one base64 spelling they have."""
    text = b"".join(block.split())
    try:
        der = base64.b64decode(text, validate=True)
    except binascii.Error:
        der = b""
    if base64.b64encode(der) != text:
        raise EvidenceFormatError("a PEM block is not base64", code="malformed-pem")
    return der


def _members(element: Element, prefix: str) -> Mapping[int, Element]:
    """Return the members of a SEQUENCE of (OID, value) by the last arc of their OID under `prefix`."""
    found: dict[int, Element] = {}
    for pair in element.children():
        match pair.children():
            case [name, value]:
                start, _, arc = name.oid().rpartition(".")
            case _:
                raise _malformed("a member that is not a pair")
        if start != prefix or int(arc) in found:
            raise _malformed("a member of another family, or one that comes twice")
        found[int(arc)] = value
    return found


def _need(members: Mapping[int, Element], arc: int) -> Element:
    if arc not in members:
        raise _malformed(f"member {arc} is missing")
    return members[arc]


def _svn(members: Mapping[int, Element], arc: int, largest: int) -> int:
    value = _need(members, arc).integer()
    if value > largest:
        raise _malformed(f"an SVN of {value} is over {largest}")
    return value


def _flag(members: Mapping[int, Element], arc: int) -> bool | None:
    return members[arc].boolean() if arc in members else None


def _malformed(message: str) -> EvidenceFormatError:
    return EvidenceFormatError(f"PCK certificate: {message}", code="malformed-pck")
