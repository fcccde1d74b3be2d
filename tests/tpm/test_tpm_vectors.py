"""Real quotes and certificates published by others: Google's vTPM, Azure's vTPM, trustee's TPM."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from tests.tpm.support import NO_CRL
from tests.vector_files import vector

from sealwright.attester.tpm.attester import AK_TEMPLATE
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.tpm import certificate_key
from sealwright.errors import CollateralError, EvidenceFormatError, VerificationError
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import CURVE_IDS, PublicKey, Scheme, TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import ALG_ECC, ALG_RSA, HASHES, Bank
from sealwright.verify.context import Context
from sealwright.verify.tpm import check_ak, verify_ak, verify_tpm
from sealwright.verify.tpmek import verify_ek
from sealwright.verify.tpmquote import check_quote

RSASSA = Scheme(name="rsassa", hash="sha256")
AZURE = "tpm/trustee-az/test_data__az-"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def padded(nonce: bytes) -> bytes:
    return nonce.ljust(64, b"\0")


def refused(quote: TpmQuote, key: PublicKey, nonce: bytes) -> str:
    with pytest.raises(VerificationError) as error:
        check_quote(quote, key, expected_report_data=padded(nonce))
    return error.value.code


# Google: protobuf messages of go-tpm-tools (attest.proto), read no further than these tests need.


def varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not raw[at - 1] & 0x80:
            return value, at


def fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(raw):
        key, at = varint(raw, at)
        value, at = varint(raw, at)
        if key & 7 == 0:
            yield key >> 3, value
        else:
            assert key & 7 == 2
            yield key >> 3, raw[at : at + value]
            at += value


def google(name: str) -> tuple[TpmtPublic, dict[Bank, TpmQuote]]:
    message = list(fields(vector(f"tpm/go-tpm-tools/test__attestations__{name}.pb")))
    ak = TpmtPublic.parse(next(value for number, value in message if number == 1))
    found = {}
    for quote in (dict(fields(value)) for number, value in message if number == 2):
        pcrs = list(fields(quote[3]))
        bank = HASHES[next(value for number, value in pcrs if number == 1)]
        values = [dict(fields(value)) for number, value in pcrs if number == 2]
        found[bank] = TpmQuote(
            attest=TpmsAttest.parse(quote[1]),
            signature=TpmtSignature.parse(quote[2]),
            ak_public=ak,
            pcrs={bank: {one.get(1, 0): one[2] for one in values}},
        )
    return ak, found


def test_google_with_nonce() -> None:
    ak, quotes = google("gce-cos-85-nonce9009")
    check_ak(ak)
    assert set(quotes) >= {"sha1", "sha256"}
    for bank, quote in quotes.items():
        assert TpmtPublic.parse(ak.encode()) == ak
        assert quote.attest.encode() == quote.attest.signed
        conditions = check_quote(quote, ak.key(), expected_report_data=padded(b"\x90\x09"))
        assert [one.code for one in conditions] == (["sha1"] if bank == "sha1" else [])
        assert refused(quote, ak.key(), b"\x90\x08") == "report-data-mismatch"
        assert refused(quote, ak.key(), b"") == "report-data-mismatch"


def test_google_without_nonce_answers_nobody() -> None:
    ak, quotes = google("gce-cos-85-no-nonce")
    for quote in quotes.values():
        assert quote.attest.extraData == b""
        assert refused(quote, ak.key(), b"") == "report-data-mismatch"


def test_google_bank_in_place_of_another() -> None:
    ak, quotes = google("gce-cos-85-nonce9009")
    mixed = replace(quotes["sha256"], pcrs=quotes["sha1"].pcrs)
    assert refused(mixed, ak.key(), b"\x90\x09") == "pcr-selection-mismatch"


def test_google_quote_needs_a_certificate() -> None:
    _, quotes = google("gce-cos-85-nonce9009")
    quote = TpmQuote.parse(quotes["sha256"].encode())
    assert quote == quotes["sha256"]
    with pytest.raises(VerificationError) as error:
        verify_tpm(quote, Endorsements(), expected_report_data=padded(b"\x90\x09"), context=Context(at=AT))
    assert error.value.code == "ak-not-certified"


def test_every_byte_of_a_google_quote() -> None:
    """Every byte of attest and signature; none is outside what is signed or checked."""
    ak, quotes = google("gce-cos-85-nonce9009")
    quote, expected = quotes["sha256"], padded(b"\x90\x09")
    key = ak.key()
    signature = quote.signature.encode()
    for at in range(len(quote.attest.signed)):
        raw = bytearray(quote.attest.signed)
        raw[at] ^= 0x10
        with pytest.raises((EvidenceFormatError, VerificationError)):
            check_quote(
                replace(quote, attest=TpmsAttest.parse(bytes(raw))), key, expected_report_data=expected
            )
    for at in range(len(signature)):
        raw = bytearray(signature)
        raw[at] ^= 0x10
        with pytest.raises((EvidenceFormatError, VerificationError)):
            check_quote(
                replace(quote, signature=TpmtSignature.parse(bytes(raw))), key, expected_report_data=expected
            )


CERTIFICATES = [f"{ca}_tpm_{kind}" for ca in ("pca", "uca") for kind in ("ecc", "rsa")]


def certified(name: str) -> tuple[Endorsements, PublicKey]:
    bag = Endorsements.detect([vector(f"tpm/go-tpm-tools/test__certificates__{name}_cert.pem")])
    key = certificate_key(bag.certificates[0])
    assert key is not None
    return bag, key


def as_ak(key: PublicKey) -> TpmtPublic:
    """Return the public area that a vTPM's attestation key has; the vectors are certificates alone."""
    numbers = key.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        unique = (numbers.n.to_bytes(256, "big"),)
        return replace(AK_TEMPLATE, type=ALG_RSA, scheme=RSASSA, keyBits=2048, curveID=0, unique=unique)
    point = (numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))
    return replace(AK_TEMPLATE, type=ALG_ECC, curveID=CURVE_IDS["secp256r1"], unique=point)


@pytest.mark.parametrize("name", CERTIFICATES)
def test_google_attestation_key_certificates(name: str) -> None:
    bag, key = certified(f"{name}_sign")
    chain, used = verify_ak(as_ak(key), bag, context=Context(at=AT, outage=NO_CRL))
    assert chain.vendor
    assert len(chain.certificates) == 3
    assert [use.kind for use in used] == ["tpm-crl"] * (1 if name.startswith("pca") else 2)
    with pytest.raises(CollateralError) as error:  # Google says where its CRLs are; none is public here
        verify_ak(as_ak(key), bag, context=Context(at=AT))
    assert error.value.code == "collateral-missing"
    with pytest.raises(VerificationError) as late:
        verify_ak(as_ak(key), bag, context=Context(at=datetime(2053, 1, 1, tzinfo=UTC), outage=NO_CRL))
    assert late.value.code == "certificate-expired"


@pytest.mark.parametrize("name", CERTIFICATES)
def test_google_endorsement_keys_do_not_attest(name: str) -> None:
    bag, key = certified(f"{name}_enc")
    with pytest.raises(VerificationError) as error:
        verify_ak(as_ak(key), bag, context=Context(at=AT, outage=NO_CRL))
    assert (error.value.stage, error.value.code) == ("chain", "bad-certificate")


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("use", ["sign", "enc"])
def test_google_endorsement_keys_for_enrolment(name: str, use: str) -> None:
    """Its older CA's are in the TCG's profile; the newer's name neither purpose nor maker."""
    bag, _ = certified(f"{name}_{use}")
    root = bytes.fromhex("9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf")
    newer = bytes.fromhex("594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2")
    context = Context(at=AT, roots=frozenset({root, newer}), outage=NO_CRL)
    if name.startswith("uca") and use == "enc":
        ek = verify_ek(bag.certificates[0], bag, context=context)
        assert (ek.manufacturer, ek.model, ek.root) == ("id:474F4F47", "vTPM", root)
        return
    with pytest.raises(VerificationError) as error:
        verify_ek(bag.certificates[0], bag, context=context)
    assert error.value.code == "bad-certificate"


@pytest.mark.parametrize("name", CERTIFICATES)
def test_google_certificate_of_another_key(name: str) -> None:
    bag, key = certified(f"{name}_sign")
    ak = as_ak(key)
    other = replace(ak, unique=as_ak(certified(f"{name}_enc")[1]).unique)
    with pytest.raises(VerificationError) as error:
        verify_ak(other, bag, context=Context(at=AT, outage=NO_CRL))
    assert error.value.code == "ak-not-certified"


# trustee's own TPM evidence


def trustee() -> tuple[TpmQuote, PublicKey]:
    said = json.loads(vector("tpm/trustee/tpm_evidence.json"))
    quote = said["tpm_quote"]
    key = load_der_public_key(base64.b64decode(said["ak_public"]))
    assert isinstance(key, rsa.RSAPublicKey)
    return (
        TpmQuote(
            attest=TpmsAttest.parse(base64.b64decode(quote["message"])),
            signature=TpmtSignature.parse(base64.b64decode(quote["signature"])),
            pcrs={"sha256": {number: bytes.fromhex(one) for number, one in enumerate(quote["pcrs"])}},
        ),
        key,
    )


def test_trustee() -> None:
    quote, key = trustee()
    nonce = quote.attest.extraData
    assert len(nonce) == 64  # of which the last 16 are padding
    assert check_quote(quote, key, expected_report_data=nonce) == ()
    assert refused(quote, key, nonce[:47]) == "report-data-mismatch"
    changed = replace(quote, pcrs={"sha256": {**quote.pcrs["sha256"], 23: b"\x01" * 32}})
    assert refused(changed, key, nonce) == "pcr-digest-mismatch"


# Azure: the key is vouched for by the HCL report, which is checked elsewhere


def hcl_ak(raw: bytes) -> rsa.RSAPublicKey:
    start = raw.index(b'{"keys"')
    said = json.loads(raw[start:].split(b"\0")[0])
    jwk: Mapping[str, str] = next(key for key in said["keys"] if key["kid"] == "HCLAkPub")
    e, n = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in "en")
    return rsa.RSAPublicNumbers(e, n).public_key()


def azure(message: bytes, signature: bytes, pcrs: list[bytes]) -> TpmQuote:
    return TpmQuote(
        attest=TpmsAttest.parse(message),
        signature=TpmtSignature(scheme=RSASSA, values=(signature,)),
        pcrs={"sha256": dict(enumerate(pcrs))},
    )


def sized(raw: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + size], raw[8 + size :]


def binary(raw: bytes) -> TpmQuote:
    """Return a quote as the az-cvm-vtpm crate stored it."""
    signature, raw = sized(raw)
    message, raw = sized(raw)
    values = raw[8:]
    return azure(message, signature, [values[at : at + 32] for at in range(0, len(values), 32)])


def text(raw: bytes) -> TpmQuote:
    said = json.loads(raw)
    message, signature, *pcrs = (
        bytes.fromhex(one) for one in (said["message"], said["signature"], *said["pcrs"])
    )
    return azure(message, signature, pcrs)


@pytest.mark.parametrize("tee", ["snp", "tdx"])
@pytest.mark.parametrize(("file", "read"), [("quote.bin", binary), ("tpm-quote-v1.json", text)])
def test_azure(tee: str, file: str, read: Any) -> None:
    quote = read(vector(f"{AZURE}{tee}-vtpm__{file}"))
    key = hcl_ak(vector(f"{AZURE}{tee}-vtpm__hcl-report.bin"))
    assert check_quote(quote, key, expected_report_data=padded(b"challenge")) == ()
    assert refused(quote, key, b"challengf") == "report-data-mismatch"
    cubed = rsa.RSAPublicNumbers(3, key.public_numbers().n).public_key()
    assert refused(quote, cubed, b"challenge") == "signature-scheme"
    less = {number: value for number, value in quote.pcrs["sha256"].items() if number != 16}
    assert refused(replace(quote, pcrs={"sha256": less}), key, b"challenge") == "pcr-selection-mismatch"


def test_azure_other_machines_key() -> None:
    quote = binary(vector(f"{AZURE}snp-vtpm__quote.bin"))
    other = hcl_ak(vector(f"{AZURE}tdx-vtpm__hcl-report.bin"))
    assert refused(quote, other, b"challenge") == "bad-signature"


def test_azure_message_and_signature() -> None:
    """A real message of nine PCRs; neither its key nor its PCRs are among the vectors."""
    message = vector(f"{AZURE}snp-vtpm__tpm-quote.msg")
    attest = TpmsAttest.parse(message)
    assert attest.encode() == message
    assert attest.selected() == {"sha256": frozenset({*range(8), 14})}
    signature = TpmtSignature(scheme=RSASSA, values=(vector(f"{AZURE}snp-vtpm__tpm-quote.sig"),))
    quote = TpmQuote(attest=attest, signature=signature, pcrs={"sha256": {0: bytes(32)}})
    for tee in ("snp", "tdx"):
        key = hcl_ak(vector(f"{AZURE}{tee}-vtpm__hcl-report.bin"))
        assert refused(quote, key, b"challenge") == "bad-signature"


def test_azure_cvm_tooling() -> None:
    folder = "tpm/azure-cvm-tooling"
    quote = binary(vector(f"{folder}/quote.bin"))
    key = load_pem_public_key(vector(f"{folder}/akpub.pem"))
    assert isinstance(key, rsa.RSAPublicKey)
    assert check_quote(quote, key, expected_report_data=padded(b"challenge")) == ()
    assert refused(quote, hcl_ak(vector(f"{folder}/var-data.bin")), b"challenge") == "bad-signature"
