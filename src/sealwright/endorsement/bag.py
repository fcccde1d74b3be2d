"""Endorsements as vendors serve them, sorted by what they are: the files of `--endorsements DIR`, the list in an
envelope, a collateral pack. Sorting proves nothing. No I/O.

Read: certificates and CRLs (DER, or PEM with any number of blocks), Intel's TCB info and identities (JSON as served;
issuer chains come as PEM), collateral JSON as dcap-qvl writes it, Azure's THIM JSON of AMD's certificates, NVIDIA RIM
files (XML), OCSP responses (DER), AMD certificate tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import hex_decode
from sealwright.endorsement.x509 import load_certificate, load_crl, pem_blocks, serial_number
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.snp_certs import CertificateTable, is_table, may_be_table

MAX_BLOBS = 256
MAX_BLOB = 2 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """What came with evidence, or was fetched for it. Nothing here is verified."""

    certificates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    intel_json: tuple[bytes, ...] = ()  # {"tcbInfo"|"enclaveIdentity"|…: {…}, "signature": hex}, as served
    rims: tuple[bytes, ...] = ()  # XML, as served
    ocsp: tuple[bytes, ...] = ()  # DER OCSPResponse

    @classmethod
    def detect(cls, blobs: Iterable[bytes]) -> Self:
        """Sort `blobs` by their content.

        Raises:
            EvidenceFormatError: `unknown-endorsement`, `too-large`, or one of them is malformed.
        """
        sorter = _Sorter()
        for number, blob in enumerate(blobs):
            if number >= MAX_BLOBS or len(blob) > MAX_BLOB:
                raise EvidenceFormatError(
                    f"over {MAX_BLOBS} endorsements, or one over {MAX_BLOB} bytes", code="too-large"
                )
            sorter.add(blob)
        return cls(
            certificates=tuple(sorter.certificates),
            crls=tuple(sorter.crls),
            intel_json=tuple(sorter.intel_json),
            rims=tuple(sorter.rims),
            ocsp=tuple(sorter.ocsp),
        )

    def __add__(self, other: Endorsements) -> Endorsements:
        """Return both together."""
        return Endorsements(
            certificates=self.certificates + other.certificates,
            crls=self.crls + other.crls,
            intel_json=self.intel_json + other.intel_json,
            rims=self.rims + other.rims,
            ocsp=self.ocsp + other.ocsp,
        )


@dataclass(slots=True)
class _Sorter:
    certificates: list[x509.Certificate] = field(default_factory=list)
    crls: list[x509.CertificateRevocationList] = field(default_factory=list)
    intel_json: list[bytes] = field(default_factory=list)
    rims: list[bytes] = field(default_factory=list)
    ocsp: list[bytes] = field(default_factory=list)

    def add(self, blob: bytes) -> None:
        """Sort one blob."""
        start = blob.lstrip()[:1]
        if is_table(blob):
            self._table(blob)
        elif start == b"{":
            self._json(blob)
        elif b"-----BEGIN " in blob[:4096]:
            self._pem(blob)
        elif start == b"<":
            self.rims.append(blob)
        elif start == b"\x30":
            self._der(blob)
        elif may_be_table(blob):
            self._table(blob)
        else:
            raise _unknown()

    def _table(self, blob: bytes) -> None:
        for part in CertificateTable.parse(blob).endorsements():
            if may_be_table(part):
                raise _unknown()  # a table in a table
            self.add(part)

    def _pem(self, blob: bytes) -> None:
        for label, der in pem_blocks(blob):
            match label:
                case "CERTIFICATE":
                    self._certificate(der)
                case "X509 CRL":
                    self.crls.append(load_crl(der))
                case _:
                    raise _unknown()

    def _der(self, blob: bytes) -> None:
        match _tags(blob):
            case (0x0A, _):
                self.ocsp.append(blob)
            case (0x30, 0xA0):  # [0] version of a certificate
                self._certificate(blob)
            case (0x30, 0x02 | 0x30):  # version, or algorithm, of a CRL
                self.crls.append(load_crl(blob))
            case _:
                raise _unknown()

    def _certificate(self, der: bytes) -> None:
        certificate = load_certificate(der, serial_zero=True)
        if serial_number(certificate) == 0 and not _is_amd(certificate):
            raise EvidenceFormatError(
                "a certificate without a positive serial number", code="malformed-chain"
            )
        self.certificates.append(certificate)

    def _json(self, blob: bytes) -> None:
        match parse_json(blob, limit=MAX_BLOB, error=EvidenceFormatError):
            case {"tcbInfo": {}, "signature": str()} | {"enclaveIdentity": {}, "signature": str()}:
                self.intel_json.append(blob)
            case {"tcb_info": str(), "qe_identity": str()} as collateral:
                self._dcap_qvl(collateral)
            case {"vcekCert": str(vcek), "certificateChain": str(chain)}:  # Azure's THIM
                self._pem(vcek.encode())
                self._pem(chain.encode())
            case _:
                raise _unknown()

    def _dcap_qvl(self, said: Mapping[str, object]) -> None:
        """Collateral of one quote as dcap-qvl writes it: JSON texts with hex signatures, PEM chains, hex CRLs."""
        for name, member in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
            body, signature = said.get(name), said.get(f"{name}_signature")
            if not (isinstance(body, str) and isinstance(signature, str)):
                raise EvidenceFormatError("collateral JSON lacks a signature", code="unknown-endorsement")
            self.intel_json.append(f'{{"{member}":{body},"signature":"{signature}"}}'.encode())
            # What was put together has to be one JSON text again.
            parse_json(self.intel_json[-1], limit=MAX_BLOB, error=EvidenceFormatError)
        for name in ("root_ca_crl", "pck_crl"):
            crl = said.get(name)
            if isinstance(crl, str):
                self.crls.append(load_crl(hex_decode(crl, error=EvidenceFormatError)))
        for name, text in said.items():
            if name.endswith("chain") and isinstance(text, str):
                self._pem(text.encode())


def _tags(der: bytes) -> tuple[int, int]:
    """Return the tags of the first element of an outer SEQUENCE, and of the first element in that; -1: none."""
    first = _content(der, 0)
    if first >= len(der):
        return -1, -1
    second = _content(der, first)
    return der[first], der[second] if second < len(der) else -1


def _content(der: bytes, start: int) -> int:
    """Return where the content of the element at `start` begins."""
    if start + 1 >= len(der):
        return len(der)
    length = der[start + 1]
    return start + 2 + (length & 0x7F if length & 0x80 else 0)


def _is_amd(certificate: x509.Certificate) -> bool:
    names = certificate.issuer.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return [name.value for name in names] == ["Advanced Micro Devices"]


def _unknown() -> EvidenceFormatError:
    return EvidenceFormatError(
        "an endorsement that is neither certificate, CRL, AMD table, Intel JSON, RIM nor OCSP response",
        code="unknown-endorsement",
    )
