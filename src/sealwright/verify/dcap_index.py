"""Intel's part of a bag of endorsements, sorted once: what a verification looks for again with each quote."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import EnclaveIdentity, TcbInfo, parse_intel_json
from sealwright.endorsement.intel_pck import PCK_NAME, PckExtension, common_name
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import VerificationError
from sealwright.verify.context import Context, Same

ROOT_NAME = "Intel SGX Root CA"
CA_NAMES = ("Intel SGX PCK Processor CA", "Intel SGX PCK Platform CA")
SIGNING_NAME = "Intel SGX TCB Signing"
_LIMITS = {PCK_NAME: 64, SIGNING_NAME: 8, ROOT_NAME: 8, **dict.fromkeys(CA_NAMES, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelEndorsements:
    """Certificates by their names, and collateral parsed. Nothing here is verified."""

    pcks: tuple[tuple[x509.Certificate, PckExtension], ...]
    cas: tuple[x509.Certificate, ...]
    roots: tuple[tuple[bytes, x509.Certificate], ...]  # with SHA-256 of each
    signers: tuple[x509.Certificate, ...]
    tcb_infos: tuple[TcbInfo, ...]
    identities: tuple[EnclaveIdentity, ...]


def intel_part(endorsements: Endorsements, context: Context) -> IntelEndorsements:
    """Return what concerns Intel's platforms.

    Raises:
        EvidenceFormatError: a PCK certificate, TCB info or identity among them is malformed.
        VerificationError: `bad-certificate`: more certificates of one name than anybody needs.
    """
    size = sum(map(len, endorsements.intel_json)) + 4096 * len(endorsements.certificates)
    return context.remember(
        ("intel-part", Same(endorsements)), lambda: _sorted(endorsements, context), size=size
    )


def digest_of(certificate: x509.Certificate, context: Context) -> bytes:
    """Return SHA-256 of a certificate (32 bytes)."""
    return context.remember(("fingerprint", Same(certificate)), lambda: fingerprint(certificate))


def _sorted(endorsements: Endorsements, context: Context) -> IntelEndorsements:
    named: dict[str, dict[bytes, x509.Certificate]] = {name: {} for name in _LIMITS}
    for one in endorsements.certificates:
        name = common_name(one.subject)
        if name in named:
            named[name][fingerprint(one)] = one
    for name, found in named.items():
        if len(found) > _LIMITS[name]:
            raise VerificationError(
                f"{len(found)} certificates {name!r} are over the limit of {_LIMITS[name]}",
                code="bad-certificate",
                stage="endorsements",
            )
    parsed = [context.parse(parse_intel_json, raw) for raw in endorsements.intel_json]
    return IntelEndorsements(
        pcks=tuple((one, PckExtension.of(one)) for one in named[PCK_NAME].values()),
        cas=tuple(one for name in CA_NAMES for one in named[name].values()),
        roots=tuple(named[ROOT_NAME].items()),
        signers=tuple(named[SIGNING_NAME].values()),
        tcb_infos=tuple(one for one in parsed if isinstance(one, TcbInfo)),
        identities=tuple(one for one in parsed if isinstance(one, EnclaveIdentity)),
    )
