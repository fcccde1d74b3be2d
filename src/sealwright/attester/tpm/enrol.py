"""The machine's side of enrolment: its endorsement keys and their certificates, and the answer to a challenge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sealwright.attester.tpm.attester import AK_TEMPLATE, certificate_in_nv
from sealwright.attester.tpm.codec import EMPTY_PASSWORD, Auth
from sealwright.attester.tpm.commands import RH_ENDORSEMENT, CreatedKey, LoadedKey, Tpm, TpmRefusal
from sealwright.endorsement.tpm import EK_TEMPLATES, EkTemplate, certificate_key, spki
from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import EvidenceFormatError, UnavailableError, VerificationError
from sealwright.protocol.tpm_enrol import SECRET_SIZE, EnrolAnswer, EnrolChallenge, EnrolRequest


@contextmanager
def endorsement_key(tpm: Tpm, template: EkTemplate) -> Iterator[LoadedKey]:
    """Make an endorsement key, and flush it at the end."""
    key = tpm.create_primary(RH_ENDORSEMENT, template.public)
    try:
        yield key
    finally:
        tpm.flush(key.handle)


@contextmanager
def endorsement_auth(tpm: Tpm, template: EkTemplate) -> Iterator[Auth]:
    """Authorize one command with an endorsement key; a session that the command did not end is flushed."""
    if not template.by_policy:
        yield EMPTY_PASSWORD
        return
    auth = tpm.endorsement_session()
    try:
        yield auth
    except TpmRefusal:
        tpm.flush(auth.session)
        raise


def endorsement_certificates(tpm: Tpm) -> list[tuple[EkTemplate, bytes]]:
    """Return the templates whose certificate (DER) is in the TPM, the strongest key first."""
    found = ((template, certificate_in_nv(tpm, template.certificate_index)) for template in EK_TEMPLATES)
    return [(template, certificate) for template, certificate in found if certificate is not None]


def enrol_request(
    tpm: Tpm, ak: LoadedKey, *, ek: EkTemplate | None = None, ek_chain: Sequence[bytes] = ()
) -> EnrolRequest:
    """Return what to ask an attestation CA with.

    Args:
        ek: which endorsement key; None: the strongest that has a certificate in the TPM.
        ek_chain: the maker's intermediates and CRLs, DER or PEM.

    Raises:
        UnavailableError: `no-ek-certificate`, and those of `Tpm`.
        VerificationError: `ek-mismatch`: the TPM's key is not the one that its certificate names.
    """
    for template, certificate in endorsement_certificates(tpm):
        if ek is None or template == ek:
            _check_own(tpm, template, certificate)
            return EnrolRequest(
                ek_certificate=certificate, ek_chain=tuple(ek_chain), ak_public=ak.public.encode()
            )
    raise UnavailableError(
        "the TPM holds no certificate of such an endorsement key; ask its maker for one",
        code="no-ek-certificate",
    )


def activate(tpm: Tpm, ak: LoadedKey, challenge: EnrolChallenge, *, ek: EkTemplate) -> EnrolAnswer:
    """Return the secret of a challenge, which the TPM gives out for `ak` alone.

    Args:
        ek: the endorsement key of the request.

    Raises:
        VerificationError: `wrong-credential`: the challenge is for another TPM or key.
        UnavailableError: as `Tpm`.
    """
    blob, encrypted = challenge.credential_blob, challenge.encrypted_secret
    with endorsement_key(tpm, ek) as key:
        try:
            with endorsement_auth(tpm, ek) as auth:
                secret = tpm.activate_credential(ak, key, auth, blob, encrypted)
        except TpmRefusal as exc:
            raise _wrong(f"the challenge is not for this TPM and attestation key: {exc}") from exc
    if len(secret) != SECRET_SIZE:
        raise _wrong(f"the challenge holds a secret of {len(secret)} bytes, not {SECRET_SIZE}")
    return EnrolAnswer(secret=secret)


def _wrong(message: str) -> VerificationError:
    return VerificationError(message, code="wrong-credential", stage="activation")


def create_ak(tpm: Tpm, ek: EkTemplate) -> CreatedKey:
    """Return a fresh attestation key under an endorsement key, to be stored and loaded again."""
    with endorsement_key(tpm, ek) as parent, endorsement_auth(tpm, ek) as auth:
        return tpm.create(parent, auth, AK_TEMPLATE)


def load_ak(tpm: Tpm, ek: EkTemplate, key: CreatedKey) -> LoadedKey:
    """Return an attestation key that `create_ak` made."""
    with endorsement_key(tpm, ek) as parent, endorsement_auth(tpm, ek) as auth:
        return tpm.load(parent, auth, key)


def _check_own(tpm: Tpm, template: EkTemplate, certificate: bytes) -> None:
    with endorsement_key(tpm, template) as key:
        found = key.public.key()
    try:
        named = certificate_key(load_certificate(certificate))
    except EvidenceFormatError:
        named = None
    if named is None or spki(named) != spki(found):
        raise VerificationError(
            "the TPM's endorsement key is not the one that its certificate names",
            code="ek-mismatch",
            stage="ek-certificate",
        )
