"""Azure evidence as Trustee carries it, in its three spellings, to ours. Nothing is verified."""

from __future__ import annotations

from typing import Any, NoReturn

from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url_decode, hex_decode
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.azure import MAX_HCL_REPORT, AzureEvidence, HclReport
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import Scheme, TpmtSignature

MAX_TRUSTEE = 256 * 1024  # bytes: version 0 writes every byte as a number
MAX_PART = 64 * 1024  # bytes
_PCRS = 24
_VERSIONS = (0, 1, 2)  # 0: the member is not there


def parse_trustee(raw: bytes) -> tuple[AzureEvidence, tuple[bytes, ...]]:
    """Return the evidence in Trustee's JSON, and the endorsements that came along: the VCEK.

    Raises:
        EvidenceFormatError: `malformed-trustee-evidence`, or a part of it is not in its format.
    """
    said = parse_json(raw, limit=MAX_TRUSTEE, error=EvidenceFormatError)
    if not isinstance(said, dict):
        _malformed("an object")
    version = said.get("version", 0)
    if version not in _VERSIONS or isinstance(version, bool):
        _malformed("version 0, 1 or 2")
    quote = _member(said, "tpm_quote", "quote")
    vcek = said.get("vcek")
    evidence = AzureEvidence(
        hcl=HclReport.parse(_bytes(_member(said, "hcl_report", "report"), MAX_HCL_REPORT)),
        quote=_quote(quote),
        td_quote=_bytes(said["td_quote"], MAX_PART) if "td_quote" in said else None,
    )
    return evidence, () if vcek is None else (_certificate(vcek),)


def _quote(said: Any) -> TpmQuote:
    match said:
        case {"message": message, "signature": signature, "pcrs": list(pcrs)} if len(pcrs) == _PCRS:
            values = {number: _bytes(value, 32, of_hex=True) for number, value in enumerate(pcrs)}
        case _:
            _malformed("a quote with message, signature and 24 PCRs")
    if any(len(value) != 32 for value in values.values()):
        _malformed("PCRs of 32 bytes")
    return TpmQuote(
        attest=TpmsAttest.parse(_bytes(message, MAX_PART, of_hex=True)),
        signature=TpmtSignature(
            scheme=Scheme(name="rsassa", hash="sha256"), values=(_bytes(signature, 512, of_hex=True),)
        ),
        pcrs={"sha256": values},
    )


def _member(said: dict[str, Any], *names: str) -> Any:
    found = [said[name] for name in names if name in said]
    if len(found) != 1:
        _malformed(f"one of {', '.join(names)}")
    return found[0]


def _bytes(value: object, limit: int, *, of_hex: bool = False) -> bytes:
    """Return bytes as version 0 writes them, a list of numbers, or the others: hex or base64url."""
    if isinstance(value, list) and len(value) <= limit and all(_is_byte(one) for one in value):
        return bytes(value)
    if not isinstance(value, str) or len(value) > 2 * limit:
        _malformed("bytes")
    if of_hex:
        return hex_decode(value, error=EvidenceFormatError)
    unpadded = value.rstrip("=")
    if value != unpadded + "=" * (-len(unpadded) % 4):  # Trustee writes base64url with its padding
        _malformed("base64url")
    return b64url_decode(unpadded, error=EvidenceFormatError)


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _certificate(value: object) -> bytes:
    """Return PEM as version 0 has it, or DER."""
    if isinstance(value, str) and value.startswith("-----BEGIN "):
        return value.encode()
    return _bytes(value, MAX_PART)


def _malformed(wanted: str) -> NoReturn:
    raise EvidenceFormatError(f"Trustee's evidence: {wanted} is wanted", code="malformed-trustee-evidence")
