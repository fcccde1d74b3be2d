"""Is this attestation document of Nitro genuine? Steps and codes as in docs/spec/nitro.md."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint, load_certificate
from sealwright.errors import VerificationError
from sealwright.evidence.nitro import MAX_CABUNDLE, SIGNATURE_SIZE, NitroDocument
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import Context
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Fact, Proof, Verified

SKEW = timedelta(minutes=5)  # how far the verifier's clock may be behind Nitro's
DEBUG_PCRS = (0, 1, 2)  # all zero in an enclave that was started with its console attached

_DEBUG = Condition(
    code="debug",
    text="the enclave runs in debug mode (PCR0, PCR1 and PCR2 are zero): its parent instance reads its console",
)
_UNBOUND = Condition(
    code="no-report-data",
    text="the document has no user_data: it answers nobody's question, and binds no key",
    claim="instance-identity",
)
_NOT_PROVED = (
    "that no certificate of the chain was revoked: Nitro's documents are verified without CRLs",
    "which AWS account runs it, unless PCR3 (role) or PCR4 (instance) is named",
)
_NOT_PROVED_TPM = (
    "what the instance does beyond its boot: PCR8 to PCR15 hold what its own software put there, and PCR16 and PCR23 "
    "can be reset by it",
    "that memory is encrypted: a NitroTPM attests what was booted, on any instance type",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedNitro(Verified):
    """A document whose signature, chain, times and report data hold."""

    document: NitroDocument
    age_s: int  # of the document at the time of verification, at least 0


def verify_nitro(
    document: NitroDocument, endorsements: Endorsements, *, expected_report_data: bytes, context: Context
) -> VerifiedNitro:
    """Check report data, the chain, the signature and the times, in this order.

    Args:
        endorsements: not needed; a document brings its whole chain, and only that is used.
        expected_report_data: what `user_data` must be, whole. Empty: the document must have none, and the result
            carries condition `no-report-data`.

    Raises:
        EvidenceFormatError: a certificate is not DER. VerificationError: not genuine.
    """
    del endorsements
    # 1. Freshness. A different length is a mismatch, never padded or cut.
    if not hmac.compare_digest(document.user_data or b"", expected_report_data):
        _refuse("user_data is not the expected report data", "report-data-mismatch", "report-data")
    # 2. The chain, in the order that Nitro sends it, to the pinned root.
    chain = _chain(document, context)
    # 3. The signature, over the bytes as received.
    _check_signature(_signing_key(chain.leaf), document)
    # 4. The time it was made: now or before, while its certificate was valid.
    made = _made(document, chain.leaf, context)
    return VerifiedNitro(
        platform="nitro",
        report_data=document.user_data or b"",
        registers={f"pcr{index}": value for index, value in document.pcrs.items()},
        facts=_facts(document, made, context),
        conditions=tuple(_conditions(document)),
        proofs=_proofs(document, made, chain),
        not_proved=_NOT_PROVED_TPM + _NOT_PROVED if document.kind == "nitrotpm" else _NOT_PROVED,
        root=fingerprint(chain.root),
        vendor_root=chain.vendor,
        until=chain.until,
        document=document,
        age_s=_age_s(made, context),
        _made_by=MADE_BY_VERIFY,
    )


def _chain(document: NitroDocument, context: Context) -> Chain:
    leaf = load_certificate(document.certificate)
    bundle = [load_certificate(der) for der in document.cabundle]
    subjects = {certificate.subject for certificate in (leaf, *bundle)}
    if len(subjects) <= len(bundle):
        _refuse("two certificates have one name", "bad-certificate", "chain")
    chain = build_chain(
        leaf, bundle, anchors("aws"), context=context, stage="chain", longest=MAX_CABUNDLE + 1
    )
    found = [certificate.public_bytes(Encoding.DER) for certificate in chain.certificates]
    if found != [document.certificate, *reversed(document.cabundle)]:
        _refuse("cabundle is not the chain of the certificate, root first", "bad-certificate", "chain")
    for certificate in chain.certificates:
        _p384(certificate)
    return chain


def _signing_key(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey:
    constraints = extension(leaf, x509.BasicConstraints, stage="chain")
    usage = extension(leaf, x509.KeyUsage, stage="chain")
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign:
        _refuse("the certificate is not one that signs documents", "bad-certificate", "chain")
    return _p384(leaf)


def _p384(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        _refuse("a certificate has no P-384 key", "bad-certificate", "chain")
    return key


def _check_signature(key: ec.EllipticCurvePublicKey, document: NitroDocument) -> None:
    half = SIGNATURE_SIZE // 2
    r, s = (int.from_bytes(part, "big") for part in (document.signature[:half], document.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), document.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        _refuse("the document's signature does not hold", "bad-signature", "signature")


def _made(document: NitroDocument, leaf: x509.Certificate, context: Context) -> datetime:
    made = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=document.timestamp)
    if made > context.at + SKEW:
        _refuse(
            f"the document is dated {rfc3339(made)}, after the time of verification",
            "document-not-yet",
            "time",
        )
    # Certificates count whole seconds.
    if not leaf.not_valid_before_utc <= made < leaf.not_valid_after_utc + timedelta(seconds=1):
        _refuse("the document was not made while its certificate was valid", "bad-certificate", "time")
    return made


def _age_s(made: datetime, context: Context) -> int:
    return max(0, int((context.at - made).total_seconds()))


def _facts(document: NitroDocument, made: datetime, context: Context) -> dict[str, Fact]:
    return {
        "document": document.kind,
        "module_id": document.module_id,
        "instance_id": document.instance_id,
        "timestamp": rfc3339(made),
        "age_s": _age_s(made, context),
        "digest": document.digest,
        "public_key": None if document.public_key is None else b64url(document.public_key),
        "nonce": None if document.nonce is None else b64url(document.nonce),
    }


def _conditions(document: NitroDocument) -> list[Condition]:
    found = []
    # A register that is not there proves nothing: it counts as zero.
    if document.kind == "enclave" and not any(any(document.pcrs.get(index, b"")) for index in DEBUG_PCRS):
        found.append(_DEBUG)
    if not document.user_data:
        found.append(_UNBOUND)
    return found


def _proofs(document: NitroDocument, made: datetime, chain: Chain) -> tuple[Proof, ...]:
    what = "Nitro enclave" if document.kind == "enclave" else "NitroTPM of instance"
    first = Proof(what=f"{what} {document.module_id}, {rfc3339(made)}", by=_name(chain.leaf))
    rest = (
        Proof(what=_name(certificate), by=_name(issuer), until=certificate.not_valid_after_utc)
        for certificate, issuer in zip(chain.certificates, [*chain.certificates[1:], chain.root], strict=True)
    )
    return (first, *rest)


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _refuse(message: str, code: str, stage: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=stage)
