"""Refusals of `verify_tpm`: one test a stage and code, on quotes that no real TPM would give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.tpm.support import NO_CRL, NOW, REPORT_DATA, platform, verify

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.tpm import AK_EKU, EK_EKU
from sealwright.endorsement.x509 import key_usage
from sealwright.errors import (
    CollateralError,
    EvidenceFormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence import tpmkey
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import Scheme, TpmtSignature
from sealwright.evidence.tpmwire import PcrSelection
from sealwright.protocol.tpm_ca import new_attestation_ca
from sealwright.testing.tpm import TpmTestPlatform, certify_ak
from sealwright.verify.context import Context
from sealwright.verify.tpm import verify_tpm
from sealwright.verify.tpmquote import check_quote


@pytest.fixture(scope="module")
def tpm() -> TpmTestPlatform:
    return platform()


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def refusal(run: Callable[[], object], kind: type[SealwrightError] = VerificationError) -> tuple[str, str]:
    with pytest.raises(kind) as refused:
        run()
    return refused.value.stage, refused.value.code


def of(tpm: TpmTestPlatform, certificate: x509.Certificate) -> Endorsements:
    """Return the platform's endorsements with another certificate of its key."""
    right = Endorsements.detect(tpm.endorsements())
    return replace(right, certificates=(certificate, tpm.ca.root))


def test_what_is_right_is_verified(tpm: TpmTestPlatform) -> None:
    verified = verify(tpm, tpm.quote(REPORT_DATA, pcrs={8: b"\x08" * 32}))
    assert verified.platform == "tpm"
    assert verified.registers["pcr8"] == b"\x08" * 32
    assert verified.registers["pcr9"] == bytes(32)
    assert verified.facts["banks"] == {"sha256": list(range(24))}
    assert verified.facts["tpm"] == verified.tpm == "provider"
    assert verified.conditions == ()
    assert [use.kind for use in verified.collateral] == ["tpm-crl"]
    assert verified.until is not None
    assert verified.until <= NOW + timedelta(days=7)
    assert [proof.by for proof in verified.proofs][1:] == [
        "Sealwright test attestation CA",
        "named by the policy",
    ]


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        ("rsa", Scheme(name="rsassa", hash="sha256")),
        ("rsa", Scheme(name="rsapss", hash="sha384")),
        ("p256", Scheme(name="ecdsa", hash="sha256")),
        ("p384", Scheme(name="ecdsa", hash="sha384")),
    ],
)
def test_every_kind_of_key_and_every_mutated_signature(key: str, scheme: Scheme) -> None:
    made = {
        "rsa": rsa_key,
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    }
    tpm = platform(made[key]())
    tpm.public = replace(tpm.public, scheme=scheme)
    quote = TpmQuote.parse(tpm.quote(REPORT_DATA).encode())
    assert verify(tpm, quote).facts["signature_scheme"] == f"{scheme.name}-{scheme.hash}"
    for number, value in enumerate(quote.signature.values):
        for at in range(len(value)):
            broken = value[:at] + bytes([value[at] ^ 0x40]) + value[at + 1 :]
            values = tuple(broken if i == number else one for i, one in enumerate(quote.signature.values))
            changed = replace(quote, signature=TpmtSignature(scheme=scheme, values=values))
            assert refusal(
                lambda changed=changed: check_quote(
                    changed, tpm.public.key(), expected_report_data=REPORT_DATA
                )
            ) == ("quote", "bad-signature")


def test_another_key_did_not_sign(tpm: TpmTestPlatform) -> None:
    other = replace(platform().quote(REPORT_DATA), ak_public=tpm.public)
    assert refusal(lambda: verify(tpm, other)) == ("quote", "bad-signature")


@pytest.mark.parametrize(
    "extra", [b"", REPORT_DATA[:47], REPORT_DATA[:47] + b"\x00\x01", b"\0" + REPORT_DATA[:48]]
)
def test_report_data(tpm: TpmTestPlatform, extra: bytes) -> None:
    quote = tpm.quote(REPORT_DATA, extraData=extra)
    assert refusal(lambda: verify(tpm, quote)) == ("quote", "report-data-mismatch")


def test_no_report_data_answers_nobody(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA, extraData=b"")
    assert refusal(lambda: verify(tpm, quote, expected=bytes(64))) == ("quote", "report-data-mismatch")


@pytest.mark.parametrize("size", [0, 48, 65])
def test_expected_report_data_has_64_bytes(tpm: TpmTestPlatform, size: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        verify(tpm, expected=bytes(size))


def test_the_selection_is_what_came_along(tpm: TpmTestPlatform) -> None:
    """PCR 16 in place of 17 with the same values: the digest holds, the bitmap does not."""
    quote = tpm.quote(REPORT_DATA)
    values = dict(quote.pcrs["sha256"])
    some = {number: values[number] for number in range(17)}
    moved = replace(quote.attest, pcrSelect=(PcrSelection(bank="sha256", pcrs=(*range(16), 17)),))
    assert tpm.public.scheme is not None
    signed = tpm.signed(moved, {"sha256": some}, tpm.public.scheme)
    assert refusal(lambda: verify(tpm, signed)) == ("quote", "pcr-selection-mismatch")
    del values[23]
    assert refusal(lambda: verify(tpm, replace(quote, pcrs={"sha256": values}))) == (
        "quote",
        "pcr-selection-mismatch",
    )


def test_a_bank_more_than_was_quoted(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA)
    more = replace(quote, pcrs={**quote.pcrs, "sha384": {0: bytes(48)}})
    assert refusal(lambda: verify(tpm, more)) == ("quote", "pcr-selection-mismatch")


def test_a_quote_of_nothing(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA, pcrSelect=())
    assert refusal(lambda: verify(tpm, quote)) == ("quote", "pcr-selection-mismatch")


def test_a_quote_of_nothing_with_nothing(tpm: TpmTestPlatform) -> None:
    """Our document cannot say so; a caller of `check_quote` could."""
    attest = replace(tpm.quote(REPORT_DATA).attest, pcrSelect=(), pcrDigest=hashlib.sha256(b"").digest())
    assert tpm.public.scheme is not None
    quote = tpm.signed(attest, {}, tpm.public.scheme)
    assert refusal(lambda: check_quote(quote, tpm.public.key(), expected_report_data=REPORT_DATA)) == (
        "quote",
        "pcr-selection-mismatch",
    )


def test_signatures_are_no_longer_than_their_curve(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA)
    longer = tuple(b"\0" + value for value in quote.signature.values)
    quote = replace(quote, signature=replace(quote.signature, values=longer))
    assert refusal(lambda: verify(tpm, quote)) == ("quote", "bad-signature")


def test_a_bank_that_the_tpm_lacks_is_echoed_empty(tpm: TpmTestPlatform) -> None:
    echoed = (PcrSelection(bank="sha384", pcrs=()), PcrSelection(bank="sha256", pcrs=tuple(range(24))))
    assert set(verify(tpm, tpm.quote(REPORT_DATA, pcrSelect=echoed)).quote.pcrs) == {"sha256"}


def test_pcr_values_are_those_that_were_quoted(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA)
    swapped = {**quote.pcrs["sha256"], 17: b"\x01" * 32}
    assert refusal(lambda: verify(tpm, replace(quote, pcrs={"sha256": swapped}))) == (
        "quote",
        "pcr-digest-mismatch",
    )


@pytest.mark.parametrize(
    "bit",
    [tpmkey.RESTRICTED, tpmkey.SIGN, tpmkey.FIXED_TPM, tpmkey.FIXED_PARENT, tpmkey.SENSITIVE_DATA_ORIGIN],
)
def test_a_key_that_is_no_attestation_key(bit: int) -> None:
    tpm = platform()
    tpm.public = replace(tpm.public, objectAttributes=tpm.public.objectAttributes & ~bit)
    assert refusal(lambda: verify(tpm)) == ("attestation-key", "ak-not-restricted")


@pytest.mark.parametrize(
    "changes",
    [
        {"objectAttributes": platform().public.objectAttributes | tpmkey.DECRYPT},
        {"scheme": None},
        {"symmetric_bits": 128},
        {"nameAlg": "sha1"},
    ],
)
def test_a_key_that_does_more_than_attest(changes: dict[str, object]) -> None:
    tpm = platform()
    quote = tpm.quote(REPORT_DATA)
    quote = replace(quote, ak_public=replace(tpm.public, **changes))
    assert refusal(lambda: verify(tpm, quote)) == ("attestation-key", "ak-not-restricted")


def test_a_quote_without_a_key(tpm: TpmTestPlatform) -> None:
    quote = replace(tpm.quote(REPORT_DATA), ak_public=None)
    assert refusal(lambda: verify(tpm, quote)) == ("attestation-key", "ak-missing")


def test_the_scheme_is_the_keys_own(tpm: TpmTestPlatform) -> None:
    quote = tpm.quote(REPORT_DATA, scheme=Scheme(name="ecdsa", hash="sha384"))
    assert refusal(lambda: verify(tpm, quote)) == ("quote", "signature-scheme")


def test_a_scheme_of_another_kind_of_key(tpm: TpmTestPlatform) -> None:
    quote = replace(
        tpm.quote(REPORT_DATA),
        signature=TpmtSignature(scheme=Scheme(name="rsassa", hash="sha256"), values=(bytes(256),)),
    )
    assert refusal(lambda: check_quote(quote, tpm.public.key(), expected_report_data=REPORT_DATA)) == (
        "quote",
        "signature-scheme",
    )


def test_weak_keys_are_refused_even_if_trusted(tpm: TpmTestPlatform) -> None:
    """What the caller of `check_quote` trusts may come from elsewhere: size, exponent and curve are checked."""
    ecdsa = tpm.quote(REPORT_DATA)
    rsassa = replace(
        ecdsa, signature=TpmtSignature(scheme=Scheme(name="rsassa", hash="sha256"), values=(bytes(256),))
    )
    number = rsa_key().public_key().public_numbers().n
    for quote, key in (
        (ecdsa, ec.generate_private_key(ec.SECP256K1()).public_key()),
        (rsassa, rsa.RSAPublicNumbers(3, number).public_key()),
        (rsassa, rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()),
    ):
        assert refusal(
            lambda quote=quote, key=key: check_quote(quote, key, expected_report_data=REPORT_DATA)
        ) == ("quote", "signature-scheme")


def test_no_certificate_of_this_key(tpm: TpmTestPlatform) -> None:
    other = Endorsements.detect(platform().endorsements())
    assert refusal(lambda: verify(tpm, endorsements=other)) == ("attestation-key", "ak-not-certified")


def test_a_root_that_nobody_named(tpm: TpmTestPlatform) -> None:
    assert refusal(lambda: verify(tpm, context=Context(at=NOW))) == ("chain", "unknown-root")


def test_a_ca_of_the_same_name(tpm: TpmTestPlatform) -> None:
    forger = new_attestation_ca("Sealwright test attestation CA", at=NOW)
    forged = certify_ak(forger, tpm.key.public_key(), NOW, None)
    assert refusal(lambda: verify(tpm, endorsements=of(tpm, forged))) == ("chain", "bad-certificate")


@pytest.mark.parametrize("seconds", [-10, 31 * 24 * 3600])
def test_a_certificate_outside_its_time(tpm: TpmTestPlatform, seconds: int) -> None:
    context = Context(
        at=NOW + timedelta(seconds=seconds), roots=frozenset({tpm.root_fingerprint}), outage=NO_CRL
    )
    assert refusal(lambda: verify(tpm, context=context)) == ("chain", "certificate-expired")


def test_of_two_certificates_the_one_in_force_is_taken(tpm: TpmTestPlatform) -> None:
    later = certify_ak(tpm.ca, tpm.key.public_key(), NOW + timedelta(days=20), None)
    right = Endorsements.detect(tpm.endorsements())
    both = replace(right, certificates=(later, *right.certificates))
    assert verify(tpm, endorsements=both).proofs[1].until == tpm.certificate.not_valid_after_utc


def test_a_certificate_that_leads_nowhere_beside_one_that_does(tpm: TpmTestPlatform) -> None:
    elsewhere = new_attestation_ca("Another owner", at=NOW)
    newer = certify_ak(elsewhere, tpm.key.public_key(), NOW, None)
    right = Endorsements.detect(tpm.endorsements())
    for certificates in ((newer, *right.certificates), (*right.certificates, newer)):
        assert (
            verify(tpm, endorsements=replace(right, certificates=certificates)).root == tpm.root_fingerprint
        )


CA_FALSE = (x509.BasicConstraints(ca=False, path_length=None), True)
SIGNS = (key_usage(digital_signature=True), True)
AK = (x509.ExtendedKeyUsage([AK_EKU]), True)
BAD_CERTIFICATES = {
    "an endorsement key's purpose": [CA_FALSE, SIGNS, (x509.ExtendedKeyUsage([EK_EKU]), True)],
    "both purposes": [CA_FALSE, SIGNS, (x509.ExtendedKeyUsage([AK_EKU, EK_EKU]), True)],
    "a server's purpose": [CA_FALSE, SIGNS, (x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False)],
    "no purpose": [CA_FALSE, SIGNS],
    "no usage": [CA_FALSE, AK],
    "no constraints": [SIGNS, AK],
    "a key that encrypts": [CA_FALSE, (key_usage(key_encipherment=True), True), AK],
    "a key that agrees": [CA_FALSE, (key_usage(digital_signature=True, key_agreement=True), True), AK],
    "a key that certifies": [CA_FALSE, (key_usage(digital_signature=True, key_cert_sign=True), True), AK],
    "a CA": [(x509.BasicConstraints(ca=True, path_length=0), True), SIGNS, AK],
    "an unknown critical extension": [
        CA_FALSE,
        SIGNS,
        AK,
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    ],
}


@pytest.mark.parametrize("what", BAD_CERTIFICATES)
def test_a_certificate_of_another_purpose(tpm: TpmTestPlatform, what: str) -> None:
    certificate = tpm.certify(BAD_CERTIFICATES[what])
    assert refusal(lambda: verify(tpm, endorsements=of(tpm, certificate))) == ("chain", "bad-certificate")


def test_a_revoked_attestation_key() -> None:
    tpm = platform()
    tpm.revoked.append(tpm.certificate.serial_number)
    assert refusal(lambda: verify(tpm), RevokedError) == ("revocation", "certificate-revoked")


def test_a_crl_is_needed_unless_the_policy_says_otherwise(tpm: TpmTestPlatform) -> None:
    without = replace(Endorsements.detect(tpm.endorsements()), crls=())
    assert refusal(lambda: verify(tpm, endorsements=without), CollateralError)[1] == "collateral-missing"
    context = Context(at=NOW, roots=frozenset({tpm.root_fingerprint}), outage=NO_CRL)
    (use,) = verify(tpm, endorsements=without, context=context).collateral
    assert (use.kind, use.digest) == ("tpm-crl", b"")


def test_a_crl_of_another_time(tpm: TpmTestPlatform) -> None:
    roots = frozenset({tpm.root_fingerprint})
    later = Context(at=NOW + timedelta(days=8), roots=roots)
    assert refusal(lambda: verify(tpm, context=later), CollateralError)[1] == "collateral-stale"
    right = Endorsements.detect(tpm.endorsements())
    future = replace(right, crls=(tpm.ca.crl([], at=NOW + timedelta(days=1)),))
    assert refusal(lambda: verify(tpm, endorsements=future), CollateralError)[1] == "collateral-not-yet"


def test_a_forged_crl(tpm: TpmTestPlatform) -> None:
    forger = new_attestation_ca("Sealwright test attestation CA", at=NOW)
    forged = replace(Endorsements.detect(tpm.endorsements()), crls=(forger.crl([], at=NOW),))
    assert refusal(lambda: verify(tpm, endorsements=forged)) == ("revocation", "bad-crl")


def test_conditions(tpm: TpmTestPlatform) -> None:
    clock = verify(tpm, tpm.quote(REPORT_DATA, safe=False)).conditions
    assert [one.code for one in clock] == ["clock-not-safe"]
    old_bank = verify(tpm, tpm.quote(REPORT_DATA, bank="sha1"))
    assert [one.code for one in old_bank.conditions] == ["sha1"]
    assert len(old_bank.registers["pcr0"]) == 20


def test_a_sha1_signature_is_a_condition() -> None:
    tpm = platform(rsa_key())
    tpm.public = replace(tpm.public, scheme=Scheme(name="rsassa", hash="sha1"))
    assert [one.code for one in verify(tpm).conditions] == ["sha1"]


def test_made_by_verify_alone(tpm: TpmTestPlatform) -> None:
    verified = verify(tpm)
    with pytest.raises(TypeError, match=r"sealwright\.verify alone"):
        replace(verified, _made_by=object())


def flips(raw: bytes) -> list[bytes]:
    return [raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :] for at in range(len(raw))]


def test_no_flipped_byte_is_accepted(tpm: TpmTestPlatform) -> None:
    """Every byte of attest, signature and key, and of the document around them. None is outside the checks.

    The key's attributes are not signed by the quote: a bit that nobody asks about changes the key's Name alone, which
    the certificate does not hold. These bytes are in `unsigned`.
    """
    quote = tpm.quote(REPORT_DATA)
    parts = {
        "attest": (quote.attest.signed, TpmsAttest.parse),
        "signature": (quote.signature.encode(), TpmtSignature.parse),
    }
    for name, (raw, parse) in parts.items():
        for changed in flips(raw):
            with pytest.raises((EvidenceFormatError, VerificationError)):
                verify(tpm, replace(quote, **{name: parse(changed)}))
    raw = tpm.public.encode()
    unsigned = {*range(2, 10)}  # nameAlg, objectAttributes, authPolicy's size: in the Name alone
    accepted = set()
    for at, changed in enumerate(flips(raw)):
        try:
            verify(tpm, replace(quote, ak_public=tpmkey.TpmtPublic.parse(changed)))
        except (EvidenceFormatError, VerificationError):
            continue
        accepted.add(at)
    assert accepted <= unsigned


def test_the_document_is_exact(tpm: TpmTestPlatform) -> None:
    raw = tpm.quote(REPORT_DATA).encode()
    endorsements = Endorsements.detect(tpm.endorsements())
    context = Context(at=NOW, roots=frozenset({tpm.root_fingerprint}))
    key = raw.index(b'"ak_public"')
    for at, changed in enumerate(flips(raw)):
        if key <= at < raw.index(b'"attest"'):
            continue  # see above
        with pytest.raises((EvidenceFormatError, VerificationError)):
            verify_tpm(
                TpmQuote.parse(changed), endorsements, expected_report_data=REPORT_DATA, context=context
            )


def test_endorsements_travel_as_blobs(tpm: TpmTestPlatform) -> None:
    envelope = tpm.envelope(REPORT_DATA)
    found = Endorsements.detect(envelope.endorsements)
    assert found.certificates[0].public_bytes(Encoding.DER) == envelope.endorsements[0]
    assert verify(tpm, TpmQuote.parse(envelope.evidence), endorsements=found).platform == "tpm"
