"""Does a TPM quote hold under a key that is trusted already? Spec: docs/spec/tpm.md, steps 1 to 3.

Shared by platform `tpm` and by Azure's vTPM, whose key is vouched for in another way.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sealwright.errors import VerificationError
from sealwright.evidence.tpm import Pcrs, TpmQuote
from sealwright.evidence.tpmkey import RSA_BITS, RSA_EXPONENT, PublicKey, TpmtSignature
from sealwright.verify.verified import Condition

REPORT_DATA_SIZE = 64  # bytes
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - condition `sha1`
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_BEST_BANK_FIRST = ("sha256", "sha384", "sha512", "sha1")  # policies are written for sha256


def check_quote(
    quote: TpmQuote, ak: PublicKey, *, expected_report_data: bytes, stage: str = "quote"
) -> tuple[Condition, ...]:
    """Prove that `ak` signed `quote` over the expected report data and over exactly the PCRs that came with it.

    Whether `ak` is a key of a TPM that signs nothing but what the TPM made is for the caller to know.

    Args:
        ak: RSA-2048 to 4096 with exponent 65537, P-256 or P-384.
        expected_report_data: 64 bytes; a quote holds them without their zero padding.

    Returns:
        Conditions: `sha1`, `clock-not-safe`.

    Raises:
        VerificationError: `report-data-mismatch`, `signature-scheme`, `bad-signature`, `pcr-selection-mismatch`,
            `pcr-digest-mismatch`.
    """
    # 1. Freshness. Nothing is cut: a quote without report data answers nobody.
    _check_report_data(quote.attest.extraData, expected_report_data, stage)
    # 2. The signature, over the bytes as received.
    _check_signature(quote.attest.signed, quote.signature, ak, stage)
    # 3. The PCRs: those that are covered are those that came along, no more and no fewer.
    came = {bank: frozenset(values) for bank, values in quote.pcrs.items()}
    if not came or quote.attest.selected() != came:
        _refuse("the quote covers other PCRs than came with it", "pcr-selection-mismatch", stage)
    digest = hashlib.new(quote.signature.scheme.hash, b"".join(_covered(quote))).digest()
    if not hmac.compare_digest(quote.attest.pcrDigest, digest):
        _refuse("the PCR values are not those that were quoted", "pcr-digest-mismatch", stage)
    return tuple(_conditions(quote))


def registers(pcrs: Pcrs) -> dict[str, bytes]:
    """Return `pcr0` … of the bank that policies are written for: sha256, else sha384, sha512, sha1."""
    bank = next(bank for bank in _BEST_BANK_FIRST if bank in pcrs)
    return {f"pcr{number}": value for number, value in sorted(pcrs[bank].items())}  # type: ignore[index]


def _check_report_data(extra_data: bytes, expected: bytes, stage: str) -> None:
    if len(expected) != REPORT_DATA_SIZE:
        raise ValueError(f"expected report data has {REPORT_DATA_SIZE} bytes")
    padded = extra_data.ljust(REPORT_DATA_SIZE, b"\0")
    if not extra_data or not hmac.compare_digest(padded, expected):
        _refuse("the quote's extraData is not the expected report data", "report-data-mismatch", stage)


def _check_signature(signed: bytes, signature: TpmtSignature, ak: PublicKey, stage: str) -> None:
    algorithm = _HASHES[signature.scheme.hash]
    try:
        match ak, signature.scheme.name:
            case ec.EllipticCurvePublicKey(), "ecdsa":
                _check_curve(ak, stage)
                r, s = (_coordinate(part, ak) for part in signature.values)
                ak.verify(encode_dss_signature(r, s), signed, ec.ECDSA(algorithm))
            case rsa.RSAPublicKey(), "rsassa" | "rsapss":
                _check_rsa(ak, stage)
                ak.verify(signature.values[0], signed, _padding(signature, algorithm), algorithm)
            case _:
                _refuse("the signature's scheme is not one of the key", "signature-scheme", stage)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        _refuse("the quote was not signed by its attestation key", "bad-signature", stage)


def _check_curve(ak: ec.EllipticCurvePublicKey, stage: str) -> None:
    if not isinstance(ak.curve, _CURVES):
        _refuse(f"an attestation key on {ak.curve.name}", "signature-scheme", stage)


def _coordinate(raw: bytes, ak: ec.EllipticCurvePublicKey) -> int:
    if len(raw) * 8 > ak.curve.key_size:  # shorter is allowed: older TPMs leave out leading zeros
        raise InvalidSignature
    return int.from_bytes(raw, "big")


def _check_rsa(ak: rsa.RSAPublicKey, stage: str) -> None:
    if ak.key_size not in RSA_BITS or ak.public_numbers().e != RSA_EXPONENT:
        _refuse("an RSA attestation key of another size or exponent", "signature-scheme", stage)


def _padding(signature: TpmtSignature, algorithm: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if signature.scheme.name == "rsassa":
        return padding.PKCS1v15()
    # TPMs take a salt as long as the digest, or as long as fits.
    return padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)


def _covered(quote: TpmQuote) -> Iterator[bytes]:
    """Yield the PCR values in the order in which the quote digests them."""
    for selection in quote.attest.pcrSelect:
        for number in selection.pcrs:
            yield quote.pcrs[selection.bank][number]


def _conditions(quote: TpmQuote) -> Iterator[Condition]:
    if quote.signature.scheme.hash == "sha1" or set(quote.pcrs) == {"sha1"}:
        yield Condition(
            code="sha1",
            text="the quote rests on SHA-1 alone, in its signature or its PCR bank: collisions can be made",
        )
    if not quote.attest.safe:
        yield Condition(
            code="clock-not-safe",
            text="the TPM was not shut down in order: its clock may have run backwards",
            claim="instance-identity",
            value=32,
        )


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
