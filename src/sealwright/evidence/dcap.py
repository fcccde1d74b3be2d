"""What SGX and TDX quotes share: header, enclave report, signature data, certification data. Bytes in, records out.

Layout: Intel SGX ECDSA QuoteLibReference, appendix A, and Intel TDX DCAP Quoting Library API, appendix A.3.
No signature check, clock or network here; see `sealwright.verify.dcap`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from sealwright.errors import EvidenceFormatError

MAX_QUOTE = 64 * 1024  # bytes, padding included
HEADER_SIZE = 48  # bytes
ENCLAVE_REPORT_SIZE = 384  # bytes
ECDSA_P256 = 2  # attestation key type
TEE_SGX = 0x00000000
TEE_TDX = 0x00000081
PCK_CHAIN = 5  # certification data: PEM of PCK certificate, its CA and root
_QE_REPORT = 6  # certification data: QE report, its signature, and certification data of its own
_PCK_LEAF = 4
_PPID_SIZES = {1: 16, 2: 256, 3: 384}  # bytes of PPID: in clear text, RSA-2048 OAEP, RSA-3072 OAEP


class Reader:
    """Takes bytes from the front; what is not there is an error."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises EvidenceFormatError `truncated-quote`."""
        taken = self._raw[self.at : self.at + size]
        if len(taken) != size:
            raise EvidenceFormatError(
                f"the quote ends after {len(self._raw)} bytes, within a field", code="truncated-quote"
            )
        self.at += size
        return taken

    def number(self, size: int) -> int:
        """Return the next `size` bytes as a little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    def zeros(self, size: int, name: str) -> None:
        """Pass over `size` reserved bytes. Raises EvidenceFormatError `reserved-not-zero`."""
        if any(self.take(size)):
            raise EvidenceFormatError(f"reserved bytes in {name} are not zero", code="reserved-not-zero")

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._raw) - self.at

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(self.left)

    def end(self, name: str) -> None:
        """Raise EvidenceFormatError `wrong-length` unless everything was taken."""
        if self.left:
            raise EvidenceFormatError(f"{self.left} bytes too many in {name}", code="wrong-length")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteHeader:
    """The first 48 bytes."""

    version: int
    att_key_type: int
    tee_type: int
    qe_svn: int  # version 3 only, as the host says; the QE report has the signed one
    pce_svn: int  # version 3 only, as the host says; the PCK certificate has the signed one
    qe_vendor_id: bytes  # 16 bytes
    user_data: bytes  # 20 bytes; the first 16 name the QE's platform

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Raises EvidenceFormatError: `unsupported-quote`, `reserved-not-zero`, `truncated-quote`."""
        version, att_key_type, tee_type = reader.number(2), reader.number(2), reader.number(4)
        if (version, tee_type) not in {(3, TEE_SGX), (4, TEE_TDX), (5, TEE_TDX)}:
            raise EvidenceFormatError(
                f"quote version {version} for TEE type {tee_type:#x}; "
                "known are 3 for SGX (0x0), 4 and 5 for TDX (0x81)",
                code="unsupported-quote",
            )
        if att_key_type != ECDSA_P256:
            raise EvidenceFormatError(
                f"attestation key type {att_key_type}; only 2 (ECDSA P-256) is known",
                code="unsupported-quote",
            )
        if version > 3:
            reader.zeros(4, "the header")
        qe_svn, pce_svn = (reader.number(2), reader.number(2)) if version == 3 else (0, 0)
        return cls(
            version=version,
            att_key_type=att_key_type,
            tee_type=tee_type,
            qe_svn=qe_svn,
            pce_svn=pce_svn,
            qe_vendor_id=reader.take(16),
            user_data=reader.take(20),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """The report of an SGX enclave: of the one that is attested, or of the quoting enclave (QE)."""

    cpu_svn: bytes  # 16 bytes
    misc_select: int
    isv_ext_prod_id: bytes  # 16 bytes
    attributes: bytes  # 16 bytes: flags and XFRM
    mr_enclave: bytes  # 32 bytes
    mr_signer: bytes  # 32 bytes
    config_id: bytes  # 64 bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes  # 16 bytes
    report_data: bytes  # 64 bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse 384 bytes. Raises EvidenceFormatError: length, reserved bytes."""
        reader = Reader(raw)
        cpu_svn, misc_select = reader.take(16), reader.number(4)
        reader.zeros(12, "the enclave report")
        isv_ext_prod_id, attributes, mr_enclave = reader.take(16), reader.take(16), reader.take(32)
        reader.zeros(32, "the enclave report")
        mr_signer = reader.take(32)
        reader.zeros(32, "the enclave report")
        config_id = reader.take(64)
        isv_prod_id, isv_svn, config_svn = reader.number(2), reader.number(2), reader.number(2)
        reader.zeros(42, "the enclave report")
        isv_family_id, report_data = reader.take(16), reader.take(64)
        reader.end("the enclave report")
        return cls(
            cpu_svn=cpu_svn,
            misc_select=misc_select,
            isv_ext_prod_id=isv_ext_prod_id,
            attributes=attributes,
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            config_id=config_id,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            config_svn=config_svn,
            isv_family_id=isv_family_id,
            report_data=report_data,
        )

    @property
    def debug(self) -> bool:
        """Attribute bit 1: everybody can read the enclave's memory."""
        return bool(self.attributes[0] & 0x02)


@dataclass(frozen=True, slots=True, kw_only=True)
class PckIdentifier:
    """Certification data 1 to 3: which PCK certificate is meant, for those who have it."""

    type: int
    ppid: bytes  # 16 bytes; types 2 and 3: encrypted, 256 or 384 bytes
    cpu_svn: bytes  # 16 bytes
    pce_svn: int
    pce_id: bytes  # 2 bytes; empty where the quoting library left it out, as early ones did


@dataclass(frozen=True, slots=True, kw_only=True)
class PckCertificates:
    """Certification data 4 and 5: the PCK certificate, with its chain (5), as PEM. Not parsed here."""

    type: int
    pem: bytes


CertificationData = PckIdentifier | PckCertificates


def parse_certification_data(kind: int, raw: bytes) -> CertificationData:
    """Return certification data of type 1 to 5.

    Raises:
        EvidenceFormatError: `unsupported-certification-data`, `wrong-length`, `truncated-quote`.
    """
    if kind in (_PCK_LEAF, PCK_CHAIN):
        return PckCertificates(type=kind, pem=raw)
    if kind not in _PPID_SIZES:
        raise EvidenceFormatError(
            f"certification data of type {kind}; known are 1 to 5 here, and 6 around them in TDX quotes",
            code="unsupported-certification-data",
        )
    reader = Reader(raw)
    found = PckIdentifier(
        type=kind,
        ppid=reader.take(_PPID_SIZES[kind]),
        cpu_svn=reader.take(16),
        pce_svn=reader.number(2),
        pce_id=reader.take(2) if reader.left else b"",
    )
    reader.end("the certification data")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteSignature:
    """Signature, attestation key, and what certifies that key. Nothing in it is believed yet."""

    signature: bytes  # 64 bytes, r and s, by the attestation key over header and body
    attestation_key: bytes  # 64 bytes, x and y on P-256
    qe_report_raw: bytes  # 384 bytes, as signed
    qe_report: EnclaveReport
    qe_report_signature: bytes  # 64 bytes, by the PCK
    qe_auth_data: bytes
    certification: CertificationData

    @classmethod
    def parse(cls, raw: bytes, *, nested: bool) -> Self:
        """Parse all bytes of the signature data.

        Args:
            nested: the QE report stands in certification data of type 6 (versions 4 and 5).

        Raises:
            EvidenceFormatError: lengths, reserved bytes, or an unknown type of certification data.
        """
        reader = Reader(raw)
        signature, key = reader.take(64), reader.take(64)
        if nested:
            kind, size = reader.number(2), reader.number(4)
            if kind != _QE_REPORT:
                raise EvidenceFormatError(
                    f"certification data of type {kind} where 6 is wanted",
                    code="unsupported-certification-data",
                )
            inner = Reader(reader.take(size))
            reader.end("the signature data")
            reader = inner
        report, report_signature = reader.take(ENCLAVE_REPORT_SIZE), reader.take(64)
        auth_data = reader.take(reader.number(2))
        kind, size = reader.number(2), reader.number(4)
        data = reader.take(size)
        reader.end("the signature data")
        return cls(
            signature=signature,
            attestation_key=key,
            qe_report_raw=report,
            qe_report=EnclaveReport.parse(report),
            qe_report_signature=report_signature,
            qe_auth_data=auth_data,
            certification=parse_certification_data(kind, data),
        )


def open_quote(raw: bytes) -> tuple[Reader, QuoteHeader]:
    """Return a reader behind the header, and the header.

    Raises:
        EvidenceFormatError: `too-large`, or as `QuoteHeader.read`.
    """
    if len(raw) > MAX_QUOTE:
        raise EvidenceFormatError(f"a quote of {len(raw)} bytes is over {MAX_QUOTE}", code="too-large")
    reader = Reader(raw)
    return reader, QuoteHeader.read(reader)


def end_quote(reader: Reader, *, nested: bool) -> tuple[QuoteSignature, int]:
    """Return the signature data behind the body, and how many zero bytes follow: real quotes come in larger buffers.

    Raises:
        EvidenceFormatError: `trailing-data`: not all of them are zero; or as `QuoteSignature.parse`.
    """
    signature = QuoteSignature.parse(reader.take(reader.number(4)), nested=nested)
    rest = reader.rest()
    if any(rest):
        raise EvidenceFormatError(f"{len(rest)} bytes after the quote are not all zero", code="trailing-data")
    return signature, len(rest)


def bit_names(value: int, names: Mapping[int, str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the bits that are set, in order, and the numbers of those without a name."""
    bits = [bit for bit in range(value.bit_length()) if value >> bit & 1]
    return tuple(names[bit] for bit in bits if bit in names), tuple(bit for bit in bits if bit not in names)
