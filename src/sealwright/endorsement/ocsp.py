"""OCSP responses as they are served: strict DER in, pyca's object out. No I/O and no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NoReturn, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import EvidenceFormatError

MAX_OCSP = 16 * 1024  # bytes
MAX_ANSWERS = 128  # about one certificate: more than an envelope carries
_NOT_DER = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspAnswer:
    """One successful answer about one certificate. Nothing in it is believed before it was verified."""

    response: ocsp.OCSPResponse
    responders: tuple[x509.Certificate, ...]
    this_update: datetime
    next_update: datetime
    nonce: bytes | None
    digest: bytes  # SHA-256 of the DER, 32 bytes

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Parse a response.

        Raises:
            EvidenceFormatError: `malformed-ocsp`: not strict DER, not successful, about several certificates,
                or without a next update, which alone bounds its life.
        """
        if len(der) > MAX_OCSP:
            raise EvidenceFormatError(f"an OCSP response of {len(der)} bytes", code="too-large")
        try:
            response = ocsp.load_der_ocsp_response(der)
            if response.public_bytes(Encoding.DER) != der:
                _refuse("not a DER OCSP response")
            if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                _refuse("the responder gave no answer")
            if b"\0" + response.signature not in der:  # no bits are left unused in the signature
                _refuse("not a DER OCSP response")
            next_update = response.next_update_utc
            if next_update is None:
                _refuse("an OCSP response without a next update")
            _ = (response.extensions, response.single_extensions, response.signature, response.serial_number)
            _ = (response.certificate_status, response.revocation_reason, response.issuer_key_hash)
            _ = (response.produced_at_utc, response.hash_algorithm, response.signature_hash_algorithm)
            return cls(
                response=response,
                responders=tuple(
                    load_certificate(one.public_bytes(Encoding.DER)) for one in response.certificates
                ),
                this_update=response.this_update_utc,
                next_update=next_update,
                nonce=_nonce(response),
                digest=sha256(der).digest(),
            )
        except _NOT_DER as exc:
            raise EvidenceFormatError("not a DER OCSP response", code="malformed-ocsp") from exc


def matching_answers(
    responses: Iterable[bytes],
    certificate: x509.Certificate,
    *,
    parse: Callable[[bytes], OcspAnswer] = OcspAnswer.parse,
) -> list[OcspAnswer]:
    """Return the answers about a serial number, newest first; a response that cannot be read is passed over.

    None is left out for their number: that could be the one that tells of a revocation.

    Args:
        parse: `OcspAnswer.parse`, or what remembers its results.

    Raises:
        EvidenceFormatError: `too-large`.
    """
    serial = certificate.serial_number
    as_der = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    about = dict.fromkeys(one for one in responses if as_der in one)
    if len(about) > MAX_ANSWERS:
        raise EvidenceFormatError(f"{len(about)} OCSP responses about one certificate", code="too-large")
    found = []
    for der in about:
        try:
            answer = parse(der)
        except EvidenceFormatError:
            continue
        if answer.response.serial_number == serial:
            found.append(answer)
    return sorted(found, key=lambda one: one.this_update, reverse=True)


def _nonce(response: ocsp.OCSPResponse) -> bytes | None:
    try:
        return response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-ocsp")
