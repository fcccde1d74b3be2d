"""Intel's signed collateral proved: TCB info and QE identity, by Intel's TCB signing key, current at the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import (
    EnclaveIdentity,
    IdentityId,
    TcbInfo,
    Tee,
    choose_identity,
    choose_tcb_info,
)
from sealwright.endorsement.roots import anchors
from sealwright.errors import CollateralError, VerificationError
from sealwright.verify.chain import Chain, build_chain, extension
from sealwright.verify.context import CollateralKind, Context, Same
from sealwright.verify.dcap_index import SIGNING_NAME, digest_of, intel_part
from sealwright.verify.dcap_pck import PckChain, check_p256, key_of
from sealwright.verify.verified import CollateralUse

_STAGE = "collateral"
_FETCH = "fetch it from Intel's provisioning certification service, or a cache of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCollateral:
    """TCB info and QE identity whose signatures hold, and that are current."""

    tcb_info: TcbInfo
    identity: EnclaveIdentity
    chains: tuple[Chain, ...]  # of their signing certificates
    uses: tuple[CollateralUse, CollateralUse]

    @property
    def signers(self) -> tuple[x509.Certificate, ...]:
        """The signing certificates."""
        return tuple(chain.leaf for chain in self.chains)


def check_collateral(
    endorsements: Endorsements, pck: PckChain, context: Context, *, tee: Tee, identity: IdentityId
) -> SignedCollateral:
    """Choose and prove the TCB info of the platform and the identity of its quoting enclave.

    An outage policy cannot make up for either: without them nobody knows whose enclave signed the quote.

    Raises:
        CollateralError: `collateral-missing`, `collateral-stale`, `collateral-not-yet`.
        VerificationError: `bad-collateral-signature`, `bad-certificate`, `certificate-expired`, `unknown-root`.
        EvidenceFormatError: collateral is malformed.
    """
    part = intel_part(endorsements, context)
    said = pck.extension
    info = choose_tcb_info(part.tcb_infos, tee=tee, fmspc=said.fmspc, pce_id=said.pce_id, at=context.at)
    if info is None:
        _missing(f"the TCB info of {tee} platforms with FMSPC {said.fmspc.hex()}")
    found = choose_identity(part.identities, identity=identity, at=context.at)
    if found is None:
        _missing(f"the identity of Intel's enclave {identity}")
    if not part.signers:
        _missing(f"the certificate {SIGNING_NAME!r}")
    uses = _use("intel-tcb-info", info, context), _use("intel-qe-identity", found, context)
    # Those valid at the time first.
    signers = sorted(
        part.signers, key=lambda one: not one.not_valid_before_utc <= context.at <= one.not_valid_after_utc
    )
    by = tuple(_signer(one, signers, context) for one in (info, found))
    chains = tuple(_chain(one, pck, context) for one in (by[:1] if by[0] == by[1] else by))
    return SignedCollateral(tcb_info=info, identity=found, chains=chains, uses=uses)


def _use(kind: CollateralKind, found: TcbInfo | EnclaveIdentity, context: Context) -> CollateralUse:
    return context.use(
        kind,
        found.digest,
        issued=found.issue_date,
        next_update=found.next_update,
        fix=_FETCH,
    )


def _signer(
    found: TcbInfo | EnclaveIdentity, signers: Sequence[x509.Certificate], context: Context
) -> x509.Certificate:
    """Return the one among `signers` whose key signed `found`."""
    signer = next((one for one in signers if _holds(found, one, context)), None)
    if signer is None:
        _refuse(f"Intel's signature over the {found.id} collateral does not hold", "bad-collateral-signature")
    return signer


def _chain(signer: x509.Certificate, pck: PckChain, context: Context) -> Chain:
    """Prove that `signer` signs collateral, under the very root of the PCK's chain, so that nothing is mixed."""
    root = pck.chain.root
    chain = build_chain(signer, [root], anchors("intel"), context=context, stage=_STAGE, longest=2)
    if chain.root != root:
        _refuse("the collateral was signed under another root than the PCK certificate", "unknown-root")
    context.remember(("signing", Same(chain)), lambda: _check_purpose(signer))
    return chain


def _check_purpose(signer: x509.Certificate) -> None:
    constraints = extension(signer, x509.BasicConstraints, stage=_STAGE)
    usage = extension(signer, x509.KeyUsage, stage=_STAGE)
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign:
        _refuse("the signing certificate may not sign collateral", "bad-certificate")


def _holds(found: TcbInfo | EnclaveIdentity, signer: x509.Certificate, context: Context) -> bool:
    key = sha256(found.digest + found.signature + digest_of(signer, context)).digest()
    try:
        context.check_signature(key, lambda: check_p256(key_of(signer), found.signature, found.signed))
    except InvalidSignature:
        return False
    return True


def _missing(what: str) -> NoReturn:
    raise CollateralError(f"{what} is missing: {_FETCH}", code="collateral-missing", stage=_STAGE)


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=_STAGE)
