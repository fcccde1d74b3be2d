"""End to end against a real software TPM: endorsement certificates, enrolment, quotes, appraisal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.tpm.support import REPORT_DATA

from sealwright.appraisal.tpm import TpmRules
from sealwright.attester.tpm import Tpm, TpmAttester, activate, connect, enrol_request
from sealwright.attester.tpm.attester import AK_TEMPLATE, primary_ak
from sealwright.attester.tpm.commands import RH_ENDORSEMENT, RH_OWNER, LoadedKey, TpmRefusal
from sealwright.attester.tpm.enrol import create_ak, endorsement_certificates, endorsement_key, load_ak
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.tpm import EK_TEMPLATES, EkTemplate, certificate_key, spki
from sealwright.endorsement.x509 import fingerprint, load_certificate
from sealwright.errors import UnavailableError, VerificationError
from sealwright.evidence import tpmkey
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpm import TpmQuote
from sealwright.evidence.tpmwire import PcrSelection
from sealwright.protocol.tpm_ca import AttestationCa, new_attestation_ca
from sealwright.protocol.tpm_enrol import EnrolChallenge, EnrolRequest, Pending, challenge, finish
from sealwright.testing.tpm import SwTpm
from sealwright.verify.context import Context
from sealwright.verify.tpm import VerifiedTpm, verify_tpm

BY_NAME = {template.name: template for template in EK_TEMPLATES}
MADE = ("H-3", "L-1")  # what swtpm_setup makes: P-384 and RSA-2048


@pytest.fixture(scope="module")
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def ca(now: datetime) -> AttestationCa:
    return new_attestation_ca("Owner's attestation CA", at=now)


@contextmanager
def opened(swtpm: SwTpm) -> Iterator[Tpm]:
    with Tpm(connect(swtpm.address)) as tpm:
        yield tpm


def challenged(swtpm: SwTpm, request: EnrolRequest, at: datetime) -> tuple[EnrolChallenge, Pending]:
    context = Context(at=at, roots=swtpm.roots())
    return challenge(request, Endorsements(), context=context, random=os.urandom)


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """An attester with what its attestation CA gave it."""

    swtpm: SwTpm
    ca: AttestationCa
    now: datetime
    endorsements: tuple[bytes, ...]

    def attester(self, **options: Any) -> TpmAttester:
        return TpmAttester.open(self.swtpm.address, endorsements=self.endorsements, **options)

    def verify(self, envelope: EvidenceEnvelope, expected: bytes = REPORT_DATA) -> VerifiedTpm:
        return verify_tpm(
            TpmQuote.parse(envelope.evidence),
            Endorsements.detect(envelope.endorsements),
            expected_report_data=expected,
            context=Context(at=self.now, roots=frozenset({fingerprint(self.ca.root)})),
        )


def enrol(swtpm: SwTpm, ca: AttestationCa, now: datetime, ek: EkTemplate) -> Enrolled:
    with opened(swtpm) as tpm:
        ak = primary_ak(tpm)
        request = enrol_request(tpm, ak, ek=ek, ek_chain=swtpm.ek_chain())
        asked, pending = challenged(swtpm, EnrolRequest.parse(request.encode()), now)
        answer = activate(tpm, ak, EnrolChallenge.parse(asked.encode()), ek=ek)
        tpm.flush(ak.handle)
    certificate = ca.certify(finish(pending, answer, at=now), machine="worker-1", at=now)
    documents = (certificate, ca.root, ca.crl([], at=now))
    blobs = tuple(one.public_bytes(Encoding.DER) for one in documents)
    return Enrolled(swtpm=swtpm, ca=ca, now=now, endorsements=blobs)


@pytest.fixture
def enrolled(swtpm: SwTpm, ca: AttestationCa, now: datetime) -> Enrolled:
    return enrol(swtpm, ca, now, BY_NAME["H-3"])


def test_endorsement_keys_are_those_of_their_certificates(swtpm: SwTpm) -> None:
    with opened(swtpm) as tpm:
        found = endorsement_certificates(tpm)
        assert tuple(template.name for template, _ in found) == MADE
        for template, certificate in found:
            with endorsement_key(tpm, template) as key:
                named = certificate_key(load_certificate(certificate))
                assert named is not None
                assert spki(named) == spki(key.public.key())
                assert tpm.read_public(key.handle) == key.public


@pytest.mark.parametrize("name", MADE)
def test_enrol_quote_verify(swtpm: SwTpm, ca: AttestationCa, now: datetime, name: str) -> None:
    machine = enrol(swtpm, ca, now, BY_NAME[name])
    with machine.attester() as attester:
        envelope = EvidenceEnvelope.parse(attester.quote(REPORT_DATA).encode())
    verified = machine.verify(envelope)
    assert envelope.type == verified.platform == "tpm"
    assert verified.facts["tpm"] == "provider"
    assert verified.facts["firmwareVersion"] == f"{verified.quote.attest.firmwareVersion:016x}"
    assert len(verified.registers) == 24
    assert verified.root == fingerprint(ca.root)
    assert not verified.vendor_root
    assert verified.report_data == REPORT_DATA[:48]
    assert "CN=worker-1" in str(verified.facts["ak_subject"])


def test_an_extended_pcr_shows_and_is_refused(enrolled: Enrolled) -> None:
    with enrolled.attester() as attester:
        before = enrolled.verify(attester.quote(REPORT_DATA))
        attester.tpm.pcr_extend(12, {"sha256": b"\x01" * 32})
        after = enrolled.verify(attester.quote(REPORT_DATA))
    changed = {name for name in before.registers if before.registers[name] != after.registers[name]}
    assert changed == {"pcr12"}
    rules = TpmRules.model_validate(
        {
            "tpm": "provider",
            "minimum_firmware": "2019000000000000",
            "unchecked": ["pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11"],
            "roots": [before.root.hex()],
        }
    )
    for verified, wanted in ((before, []), (after, ["pcr-extended"])):
        failures = [*rules.refusals(verified), *rules.shared_refusals(verified)]
        assert [failure.code for failure in failures] == wanted


def test_another_nonce_is_refused(enrolled: Enrolled) -> None:
    with enrolled.attester() as attester:
        envelope = attester.quote(REPORT_DATA)
    with pytest.raises(VerificationError) as refused:
        enrolled.verify(envelope, expected=b"\x01" * 64)
    assert refused.value.code == "report-data-mismatch"


def test_pcrs_cannot_be_exchanged(enrolled: Enrolled) -> None:
    with enrolled.attester() as attester:
        quote = TpmQuote.parse(attester.quote(REPORT_DATA).evidence)
    values = quote.pcrs["sha256"] | {8: b"\x01" * 32}
    changed = replace(quote, pcrs={"sha256": values}).encode()
    envelope = EvidenceEnvelope(type="tpm", evidence=changed, endorsements=enrolled.endorsements)
    with pytest.raises(VerificationError) as refused:
        enrolled.verify(envelope)
    assert (refused.value.stage, refused.value.code) == ("quote", "pcr-digest-mismatch")


def test_two_banks(enrolled: Enrolled) -> None:
    with enrolled.attester(banks=("sha384", "sha256")) as attester:
        attester.tpm.pcr_extend(8, {"sha256": b"\x01" * 32, "sha384": b"\x02" * 48})
        verified = enrolled.verify(attester.quote(REPORT_DATA))
    assert set(verified.quote.pcrs) == {"sha256", "sha384"}
    assert len(verified.registers["pcr8"]) == 32
    assert any(verified.quote.pcrs["sha384"][8])


def test_a_bank_that_is_not_allocated(enrolled: Enrolled) -> None:
    with enrolled.attester(banks=("sha512",)) as attester, pytest.raises(UnavailableError) as refused:
        attester.quote(REPORT_DATA)
    assert refused.value.code == "tpm-pcr-missing"


def test_a_reset_shows_in_the_clock(enrolled: Enrolled) -> None:
    with enrolled.attester() as attester:
        before = enrolled.verify(attester.quote(REPORT_DATA))
    enrolled.swtpm.restart()
    with enrolled.attester() as attester:
        after = enrolled.verify(attester.quote(REPORT_DATA))
    assert after.quote.attest.resetCount == before.quote.attest.resetCount + 1
    assert after.quote.attest.clock >= before.quote.attest.clock
    assert after.facts["ak_name"] == before.facts["ak_name"]  # the primary key is the same after each boot


def test_the_event_log_goes_along(enrolled: Enrolled, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"what the firmware says")
    with enrolled.attester(event_log=log) as attester:
        assert attester.quote(REPORT_DATA).event_log == b"what the firmware says"
        log.unlink()
        with pytest.raises(UnavailableError) as refused:
            attester.quote(REPORT_DATA)
    assert refused.value.code == "event-log-unreadable"


@pytest.mark.parametrize("name", MADE)
def test_a_credential_for_another_key_is_refused(swtpm: SwTpm, now: datetime, name: str) -> None:
    """The TPM gives the secret out for the key of that Name alone, with its attributes."""
    ek = BY_NAME[name]
    with opened(swtpm) as tpm:
        ak = primary_ak(tpm)
        other = tpm.create_primary(RH_OWNER, AK_TEMPLATE)
        request = enrol_request(tpm, other, ek=ek, ek_chain=swtpm.ek_chain())
        asked, _ = challenged(swtpm, request, now)
        for _ in range(4):  # no session is left behind by a refusal: a TPM has room for three
            with pytest.raises(VerificationError) as refused:
                activate(tpm, ak, asked, ek=ek)
            assert (refused.value.stage, refused.value.code) == ("activation", "wrong-credential")
        assert len(activate(tpm, other, asked, ek=ek).secret) == 32


def test_a_credential_for_another_tpm_is_refused(swtpm: SwTpm, now: datetime, tmp_path: Path) -> None:
    ek = BY_NAME["H-3"]
    with opened(swtpm) as tpm:
        ak = primary_ak(tpm)
        asked, _ = challenged(swtpm, enrol_request(tpm, ak, ek=ek, ek_chain=swtpm.ek_chain()), now)
        blob = bytearray(asked.credential_blob)
        blob[-1] ^= 1
        for changed in (
            EnrolChallenge(credential_blob=bytes(blob), encrypted_secret=asked.encrypted_secret),
            EnrolChallenge(credential_blob=asked.credential_blob, encrypted_secret=bytes(98)),
        ):
            with pytest.raises(VerificationError) as refused:
                activate(tpm, ak, changed, ek=ek)
            assert refused.value.code == "wrong-credential"


def test_a_key_that_signs_anything_is_not_enrolled(swtpm: SwTpm, now: datetime) -> None:
    template = replace(AK_TEMPLATE, objectAttributes=AK_TEMPLATE.objectAttributes & ~tpmkey.RESTRICTED)
    with opened(swtpm) as tpm:
        loose = tpm.create_primary(RH_ENDORSEMENT, template)
        request = enrol_request(tpm, loose, ek_chain=swtpm.ek_chain())
        with pytest.raises(VerificationError) as refused:
            challenged(swtpm, request, now)
    assert (refused.value.stage, refused.value.code) == ("attestation-key", "ak-not-restricted")


def test_a_maker_that_is_not_named_is_refused(swtpm: SwTpm, now: datetime) -> None:
    with opened(swtpm) as tpm:
        request = enrol_request(tpm, primary_ak(tpm), ek_chain=swtpm.ek_chain())
    with pytest.raises(VerificationError) as refused:
        challenge(request, Endorsements(), context=Context(at=now), random=os.urandom)
    assert (refused.value.stage, refused.value.code) == ("ek-certificate", "unknown-root")


def test_an_ek_without_a_certificate(swtpm: SwTpm) -> None:
    with opened(swtpm) as tpm, pytest.raises(UnavailableError) as refused:
        enrol_request(tpm, primary_ak(tpm), ek=BY_NAME["H-2"])
    assert refused.value.code == "no-ek-certificate"


@pytest.mark.parametrize("name", MADE)
def test_an_attestation_key_under_an_endorsement_key(swtpm: SwTpm, name: str) -> None:
    with opened(swtpm) as tpm:
        stored = create_ak(tpm, BY_NAME[name])
        first = load_ak(tpm, BY_NAME[name], stored)
        attest, _ = tpm.quote(first, b"n", (PcrSelection(bank="sha256", pcrs=(0,)),))
        tpm.flush(first.handle)
        assert attest.extraData == b"n"
        again = load_ak(tpm, BY_NAME[name], stored)
        assert tpm.read_public(again.handle) == stored.public


def test_a_key_can_be_made_persistent(swtpm: SwTpm) -> None:
    with opened(swtpm) as tpm:
        ak = tpm.create_primary(RH_OWNER, AK_TEMPLATE)
        tpm.evict_control(ak.handle, 0x81000100)
        tpm.flush(ak.handle)
        kept = LoadedKey(handle=0x81000100, public=tpm.read_public(0x81000100))
        assert kept.public == ak.public
        tpm.evict_control(kept.handle, kept.handle)
        with pytest.raises(TpmRefusal) as refused:
            tpm.read_public(kept.handle)
    assert "handle 1" in str(refused.value)


def test_nothing_is_left_in_the_tpm(enrolled: Enrolled) -> None:
    """Transient objects and sessions: a TPM has room for three of each."""
    for _ in range(5):
        with enrolled.attester() as attester:
            attester.quote(REPORT_DATA)
        enrol(enrolled.swtpm, enrolled.ca, enrolled.now, BY_NAME["L-1"])


def test_orderly_stops_do_not_lock_out(enrolled: Enrolled) -> None:
    for _ in range(3):
        enrolled.swtpm.restart()
        with enrolled.attester() as attester:
            assert not enrolled.verify(attester.quote(REPORT_DATA)).conditions


def test_startup_is_harmless_when_it_was_sent(swtpm: SwTpm) -> None:
    with opened(swtpm) as tpm:
        tpm.startup()
        assert set(tpm.pcr_banks()) == {"sha256", "sha384"}


def test_report_data_of_64_bytes(enrolled: Enrolled) -> None:
    """swtpm knows SHA-512 and takes them all; what is all zeros answers nobody."""
    with enrolled.attester() as attester:
        whole = bytes(range(1, 65))
        assert enrolled.verify(attester.quote(whole), expected=whole).report_data == whole
        for wrong in (bytes(64), b"short"):
            with pytest.raises(ValueError, match="64 bytes"):
                attester.quote(wrong)


def test_threads_share_an_attester(enrolled: Enrolled) -> None:
    """One attests for each connection of a TLS server, say: no answer may go to another thread's question."""
    asked = [bytes([number]) * 48 for number in range(1, 17)]
    with enrolled.attester() as attester, ThreadPoolExecutor(8) as pool:
        for wanted, envelope in zip(
            asked, pool.map(lambda one: attester.quote(one + bytes(16)), asked), strict=True
        ):
            assert enrolled.verify(envelope, expected=wanted + bytes(16)).report_data == wanted
