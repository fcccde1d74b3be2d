"""Evidence, and files that pass for it, made to be believed for more than they prove, or to cost more than they may."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError
from tests.audit.support import Audited
from tests.nvidia import support as nvidia
from tests.snp import support as snp
from tests.tpm import support as tpm

from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.nvgpu import GpuRules
from sealwright.appraisal.platform import Appraisal, Platforms, appraise, together
from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.snp import SnpRules
from sealwright.appraisal.tdx import TdxRules
from sealwright.audit.detect import detect
from sealwright.audit.evidence import check_evidence
from sealwright.audit.given import Given
from sealwright.audit.report import check_bundle
from sealwright.cli import _verdict, main
from sealwright.crypto.der import OID, Element
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import load_crl
from sealwright.errors import EvidenceFormatError, FormatError, SealwrightError
from sealwright.evidence.envelope import EvidenceEnvelope, VtpmEvidence
from sealwright.evidence.nitro import NitroDocument
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.snp import SnpReport
from sealwright.evidence.tdx import TdxQuote
from sealwright.testing.eventlog import BootLogBuilder
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.nitro import NitroTestPlatform
from sealwright.testing.snp import PSS_SHA384, SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.verify.chain import signed_crl
from sealwright.verify.context import Context, Tolerance, WorkCache
from sealwright.verify.evidence import verify_evidence
from sealwright.verify.nitro import verify_nitro
from sealwright.verify.sgx import verify_sgx
from sealwright.verify.snp import verify_snp
from sealwright.verify.tdx import verify_tdx
from sealwright.verify.verified import Verified

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DATA = bytes(range(64))


@pytest.fixture
def tdx() -> TdxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return TdxTestPlatform(NOW)


@pytest.mark.parametrize(
    "raw",
    [
        b"A" + b" " * (1 << 20) + b"!",
        b"A" * 200 + b"\n" * (1 << 20) + b"!",
        b" " * (1 << 20) + b"!",
        b"ab" * 100 + b" " * (1 << 20) + b"!",
        b"0x" + b"ab " * (1 << 19) + b"!",
    ],
)
def test_what_a_file_is_costs_no_more_than_reading_it(raw: bytes) -> None:
    # A regular expression with two ways to match a blank took hours for these: it ends here, or at the time limit.
    with pytest.raises(EvidenceFormatError):
        detect(raw)


@pytest.mark.parametrize(
    "raw", [b'{"evidence":1}', b'{"evidence":null}', b'{"evidence":["attestation_report"]}']
)
def test_json_that_is_no_evidence_is_refused_and_no_crash(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        detect(raw)


def test_a_type_that_is_not_known_is_a_wrong_parameter(tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(b"x" * 2000)
    assert main(["verify", str(path), "--type", "hcl"]) == 2
    assert main(["verify", str(path), "--type", "nonsense"]) == 2


def test_an_endless_object_identifier_is_malformed() -> None:
    # The PCK certificate of a quote is read before anybody signed for it; Python refuses to print such a number.
    with pytest.raises(EvidenceFormatError):
        Element(OID, b"\x2a" + b"\xff" * 3000 + b"\x01").oid()


def test_endorsements_that_nobody_needs_do_not_fill_the_memory(tdx: TdxTestPlatform) -> None:
    # What "<" begins is kept for a RIM. An envelope of 1 MB may bring as much of it, each time something else.
    raw, blobs = tdx.evidence(DATA)
    quote, needed = TdxQuote.parse(raw), Endorsements.detect(blobs)
    context = Context(at=NOW, roots=frozenset({tdx.root_fingerprint}), work=WorkCache(size=1 << 20))
    tracemalloc.start()
    try:
        for number in range(64):
            junk = Endorsements.detect([b"<%d" % number + bytes(1 << 18)])
            verify_tdx(quote, needed + junk, expected_report_data=DATA, context=context)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 << 20


@pytest.mark.parametrize(
    "said",
    [
        {"reference": {"signers": {"keys": [b64url(bytes(32))]}, "values": [{"no": "one reads this"}]}},
        {"config_register": "pcr8"},
    ],
)
def test_rules_of_devices_that_nobody_would_apply_are_refused(said: dict[str, Any]) -> None:
    # They were read and passed over: such a policy looked strict and admitted any device.
    rules = {"architectures": ["HOPPER"], "driver": {"any": True}, "vbios": {"any": True}}
    GpuRules.model_validate(rules)
    with pytest.raises(ValidationError):
        GpuRules.model_validate(rules | said)


def test_a_policy_that_names_no_code_of_a_guest_admits_none() -> None:
    # The host starts what it likes, with the config digest of somebody else as HOST_DATA: all that was listed.
    fake = snp.platform("Genoa")
    host_data = b"\x07" * 32
    found = snp.verify_fake(fake, fake.report(DATA, host_data=host_data))
    said: dict[str, Any] = {
        "roots": [fake.root_fingerprint.hex()],
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
        "config_register": "host_data",
    }
    for registers in ({}, {"host_data": [host_data.hex()]}):
        rules = SnpRules.model_validate(said | {"registers": registers})
        judged = appraise(found, rules, require_hardware=False)
        assert [one.code for one in judged.failures] == ["no-code-named"]
        assert judged.vector["executables"] == 33
    named = SnpRules.model_validate(said | {"registers": {"measurement": ["00" * 48]}})
    judged = appraise(found, named, require_hardware=False)
    assert (judged.failures, judged.vector["executables"]) == ((), 2)


def test_a_policy_that_names_no_code_of_a_td_admits_none(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    context = Context(at=NOW, roots=frozenset({tdx.root_fingerprint}))
    found = verify_tdx(
        TdxQuote.parse(raw), Endorsements.detect(blobs), expected_report_data=DATA, context=context
    )
    said: dict[str, Any] = {"minimum_tcb_evaluation": 1, "roots": [tdx.root_fingerprint.hex()]}
    zero = ["00" * 48]
    for registers, codes, executables in (
        ({}, ["no-code-named", *["register-not-listed"] * 3], 33),
        ({"mrconfigid": zero, "rtmr3": zero}, ["no-code-named", *["register-not-listed"] * 3], 33),
        ({"mrtd": zero}, ["register-not-listed"] * 3, 33),
        ({"mrtd": zero, "rtmr1": zero, "rtmr2": zero}, ["register-not-listed"], 2),
        ({"mrtd": zero, "rtmr0": zero, "rtmr1": zero, "rtmr2": zero}, [], 2),
    ):
        rules = TdxRules.model_validate(said | {"registers": registers})
        judged = appraise(found, rules, require_hardware=False)
        assert [one.code for one in judged.failures] == codes
        assert judged.vector["executables"] == executables
    loose = TdxRules.model_validate(
        said | {"registers": {"mrtd": zero}, "unchecked": ["rtmr0", "rtmr1", "rtmr2"]}
    )
    judged = appraise(found, loose, require_hardware=False)
    assert (judged.failures, judged.vector["executables"]) == ((), 33)


def looked_at(fake: SnpTestPlatform, policy: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """Return what `verify` prints of a report, by a policy whose rules of SEV-SNP are met."""
    snp_rules = {
        "roots": [fake.root_fingerprint.hex()],
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
        "registers": {"measurement": ["00" * 48]},
        "config_register": "host_data",
    }
    said = {
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(snp.NOW),
        "expires": rfc3339(snp.NOW + timedelta(hours=24)),
    }
    rules = (
        None if policy is None else {**said, **policy, "platforms": {"snp": snp_rules | policy["platforms"]}}
    )
    report = check_evidence(
        fake.report(DATA, **fields),
        rules=None if rules is None else KeyPolicy.from_json(rules),
        at=snp.AT,
        given=Given(collateral=Endorsements.detect(fake.endorsements())),
    )
    return _verdict.result(report, report.failures)


CONFIG = b"\x07" * 32
BY_RULES = {"brokers": [b64url(bytes(32))], "log_keys": ["log+key"]}


def test_a_result_is_not_allowed_where_the_verdict_is_refused() -> None:
    fake = snp.platform("Genoa")
    listed: dict[str, Any] = {"platforms": {}, "config": {"digests": [CONFIG.hex()]}}
    said = looked_at(fake, listed, host_data=CONFIG)
    assert (said["verdict"], said["not_checked"][1:]) == ("allowed", [])
    assert said["ear"]["submods"]["cpu0"]["sealwright"]["allowed"] is True
    said = looked_at(fake, listed, host_data=bytes(32))
    assert (said["verdict"], [one["code"] for one in said["failures"]]) == ("refused", ["config-not-allowed"])
    own = said["ear"]["submods"]["cpu0"]["sealwright"]
    assert (own["allowed"], own["failures"]) == (False, ["config-not-allowed"])


def test_a_config_that_was_not_judged_is_said_to_be_so() -> None:
    fake = snp.platform("Genoa")
    said = looked_at(fake, {"platforms": {}, "config": BY_RULES}, host_data=CONFIG)
    assert (said["verdict"], said["not_checked"][1][:6]) == ("allowed", "config")
    nowhere = {"platforms": {"config_register": ""}, "config": {"digests": [CONFIG.hex()]}}
    assert looked_at(fake, nowhere, host_data=CONFIG)["not_checked"][1][:6] == "config"


def test_without_a_policy_a_result_does_not_say_allowed() -> None:
    with pytest.warns(FakePlatformWarning):
        machine = SoftwareTestPlatform(NOW)
    envelope = machine.quote(DATA, (CONFIG, CONFIG), None)
    report = check_evidence(envelope.encode(), rules=None, at=NOW, given=Given())
    said: Any = _verdict.result(report, report.failures)
    assert said["allowed"] is None
    assert said["ear"]["submods"]["cpu0"]["sealwright"]["allowed"] is None


def test_parts_of_a_bundle_that_nobody_looked_at_are_said_to_be_so() -> None:
    audited = Audited()
    looked = check_bundle(audited.bundle.encode(), rules=None, nonce=None, at=audited.clock())
    assert not any("devices" in one for one in looked.not_checked)
    forged = {"type": "nvgpu", "evidence": b64url(b"made up"), "endorsements": []}
    evidence = audited.bundle.evidence | {"devices": [forged], "vtpm": forged | {"type": "tpm"}}
    bundle = audited.bundle.model_copy(update={"evidence": evidence})
    looked = check_bundle(bundle.encode(), rules=None, nonce=None, at=audited.clock())
    assert any("devices" in one for one in looked.not_checked)


def as_the_vendors(found: Verified) -> Appraisal:
    """Appraise what a fake signed as if its root were the vendor's."""
    return appraise(replace(found, vendor_root=True), None, require_hardware=False)


@pytest.mark.parametrize(
    ("attributes", "confidential"),
    [
        ("0000001000000000", True),
        ("0100001000000000", False),  # DEBUG
        ("1000001000000000", False),  # HGS_PLUS_PROF
        ("2000001000000000", False),  # PERF_PROF
        ("8000001000000000", False),  # a bit of the group TUD that has no name yet
    ],
)
def test_a_td_that_is_open_to_its_host_is_not_confidential(
    tdx: TdxTestPlatform, attributes: str, confidential: bool
) -> None:
    raw, blobs = tdx.evidence(DATA, td_attributes=bytes.fromhex(attributes))
    context = Context(at=NOW, roots=frozenset({tdx.root_fingerprint}))
    found = verify_tdx(
        TdxQuote.parse(raw), Endorsements.detect(blobs), expected_report_data=DATA, context=context
    )
    judged = as_the_vendors(found)
    assert (judged.confidential, judged.vector["runtime-opaque"]) == (confidential, 2 if confidential else 96)


def test_an_enclave_in_debug_mode_is_not_opaque() -> None:
    with pytest.warns(FakePlatformWarning):
        sgx = SgxTestPlatform(NOW)
    raw, blobs = sgx.evidence(DATA, attributes=b"\x07" + bytes(15))
    context = Context(at=NOW, roots=frozenset({sgx.root_fingerprint}))
    found = verify_sgx(
        SgxQuote.parse(raw), Endorsements.detect(blobs), expected_report_data=DATA, context=context
    )
    judged = as_the_vendors(found)
    assert (judged.confidential, judged.vector["runtime-opaque"]) == (False, 96)


def test_a_nitrotpm_hides_no_memory() -> None:
    with pytest.warns(FakePlatformWarning):
        nitro = NitroTestPlatform(NOW)
    context = Context(at=NOW, roots=frozenset({nitro.root_fingerprint}))
    for kind, confidential in (("enclave", True), ("nitrotpm", False)):
        document = NitroDocument.parse(nitro.document(DATA, kind))  # type: ignore[arg-type]
        found = verify_nitro(document, Endorsements(), expected_report_data=DATA, context=context)
        judged = as_the_vendors(found)
        assert (judged.confidential, judged.vector["runtime-opaque"]) == (
            confidential,
            2 if confidential else 96,
        )


BOOT = {name: ["00" * 32] for name in ("pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11")}
TPM = {"tpm": "provider", "vendor_roots": True, "minimum_firmware": "00" * 8, "registers": BOOT}


@pytest.mark.parametrize("register", ["pcr8", "pcr16", "pcr23"])
@pytest.mark.parametrize("platform", ["tpm", "vtpm", "nitrotpm", "enclave", "snp"])
def test_a_register_that_can_be_reset_does_not_hold_the_config(platform: str, register: str) -> None:
    # Whoever gets at the TPM resets PCR 16 or 23 and extends the digest of a config that has more keys.
    snp_rules = {
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
        "config_register": f"vtpm.{register}",
    }
    said = {
        "tpm": {"tpm": TPM | {"config_register": register}},
        "vtpm": {"vtpm": TPM | {"config_register": register}},
        "nitrotpm": {"nitro": {"document": "nitrotpm", "config_register": register}},
        "enclave": {"nitro": {"config_register": register}},  # its registers cannot be reset
        "snp": {"snp": snp_rules},
    }[platform]
    if register == "pcr8" or platform == "enclave":
        Platforms.model_validate(said)
        return
    with pytest.raises(ValidationError):
        Platforms.model_validate(said)


def test_reference_values_name_no_register_that_can_be_reset() -> None:
    said = {
        "name": "guest",
        "version": 1,
        "created": rfc3339(NOW),
        "expires": rfc3339(NOW + timedelta(days=1)),
        "platform": "tpm",
        "registers": {"pcr4": ["aa" * 32]},
    }
    ReferenceValues.from_json(said | {"config_register": "pcr8"})
    for register in ("pcr16", "pcr23", "vtpm.pcr16"):
        with pytest.raises(FormatError):
            ReferenceValues.from_json(said | {"config_register": register})


def crl_of(fake: SnpTestPlatform, issuer: x509.Certificate, role: str, *reasons: x509.ReasonFlags) -> bytes:
    """Return a CRL in the name of `issuer` by the key of `role`: one entry of the ASK for each reason."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    builder = builder.last_update(snp.NOW).next_update(snp.NOW + timedelta(days=1))
    for reason in reasons:
        entry = x509.RevokedCertificateBuilder().serial_number(fake.amd.signers["vcek"].serial_number)
        entry = entry.revocation_date(snp.NOW).add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(fake.amd._keys[role], SHA384(), rsa_padding=PSS_SHA384)
    return signed.public_bytes(Encoding.DER)


@pytest.mark.parametrize("later", [(), (x509.ReasonFlags.key_compromise,)])
def test_an_entry_that_says_removed_does_not_hide_a_revocation(later: tuple[x509.ReasonFlags, ...]) -> None:
    fake = snp.platform("Genoa")
    fake.crl = crl_of(fake, fake.amd.ark, "ark", x509.ReasonFlags.remove_from_crl, *later)
    with snp.refused("crl", "certificate-revoked"):
        snp.verify_fake(fake)


def test_a_crl_is_signed_by_who_may_sign_crls() -> None:
    fake = snp.platform("Genoa")
    ask = fake.amd.signers["vcek"]  # it may sign certificates alone
    crl = load_crl(crl_of(fake, ask, "vcek"))
    with snp.refused("crl", "bad-crl"):
        signed_crl(crl, ask, context=Context(at=snp.AT), stage="crl")


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("bundle", "--report-data", "00" * 64),
        ("bundle", "--outage", "amd-crl=missing"),
        ("bundle", "--type", "snp"),
        ("receipt", "--report-data", "00" * 64),
        ("receipt", "--nonce", "00" * 32),
    ],
)
def test_what_was_asked_to_be_checked_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, option: str, value: str
) -> None:
    # The file says what it is. One that is no evidence was "genuine" whatever report data or nonce was asked for.
    audited = Audited()
    path = tmp_path / "file"
    path.write_bytes(audited.bundle.encode() if kind == "bundle" else audited.file().encode())
    assert main(["verify", str(path), option, value]) == 2
    assert option in capsys.readouterr().err


def test_an_event_log_is_no_evidence_where_evidence_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.warns(FakePlatformWarning):
        built = BootLogBuilder()
    built.boot()
    path.write_bytes(built.log().encode())
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(path), "--report-data", "00" * 64]) == 65


def test_a_device_alone_is_not_allowed_by_a_policy_of_machines() -> None:
    fake, device = nvidia.nvidia(), nvidia.nvidia().device()
    evidence = fake.evidence(device, bytes(32))
    gpus: dict[str, Any] = {
        "architectures": ["HOPPER"],
        "driver": {"any": True},
        "vbios": {"any": True},
        "roots": [root.hex() for root in sorted(fake.roots)],
        "rim_roots": [root.hex() for root in sorted(fake.roots)],
    }
    said = {
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(nvidia.NOW),
        "expires": rfc3339(nvidia.NOW + timedelta(hours=24)),
        "config": {"digests": ["00" * 32]},
    }
    given = Given(collateral=Endorsements.detect(evidence.endorsements))
    for platforms, codes in (
        ({"nvgpu": gpus}, []),
        ({"nvgpu": gpus, "tpm": TPM}, ["platform-not-allowed"]),
    ):
        rules = KeyPolicy.from_json({**said, "platforms": platforms})
        report = check_evidence(evidence.evidence, rules=rules, at=nvidia.NOW, given=given)
        assert [failure.code for failure in report.failures] == codes
        assert report.allowed is (not codes)


@pytest.mark.parametrize("expected", [b"", bytes(32), bytes(63), bytes(65)])
def test_report_data_of_another_length_is_a_mismatch_on_every_platform(expected: bytes) -> None:
    quote = tpm.platform().quote(tpm.REPORT_DATA).encode()
    for raw, kind in ((snp.platform("Genoa").report(DATA), "snp"), (quote, "tpm")):
        with snp.refused("report-data", "report-data-mismatch"):
            check_evidence(raw, rules=None, at=NOW, given=Given(), expected=expected, kind=kind)


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx"])
def test_what_one_policy_takes_as_given_another_does_not_get_from_the_cache(kind: str) -> None:
    """One broker keeps one cache for all tenants: roots, time and outage policy of one are not those of the next."""
    with pytest.warns(FakePlatformWarning):
        made: Any = {"snp": SnpTestPlatform, "tdx": TdxTestPlatform, "sgx": SgxTestPlatform}[kind](NOW)
    parse = {"snp": SnpReport.parse, "tdx": TdxQuote.parse, "sgx": SgxQuote.parse}[kind]
    verify = {"snp": verify_snp, "tdx": verify_tdx, "sgx": verify_sgx}[kind]
    raw, blobs = made.evidence(DATA)
    bag = Endorsements.detect(blobs)
    without = Endorsements(certificates=bag.certificates, intel_json=bag.intel_json)
    kinds = ("amd-crl", "intel-root-crl", "intel-pck-crl")
    generous = Context(
        at=NOW,
        roots=frozenset({made.root_fingerprint}),
        outage={one: Tolerance(missing=True, stale=timedelta(days=9000)) for one in kinds},
        work=WorkCache(),
    )
    strict = replace(generous, outage={})

    def check(context: Context, endorsements: Endorsements) -> Any:
        return verify(parse(raw), endorsements, expected_report_data=DATA, context=context)  # type: ignore[operator]

    for _ in range(2):
        assert not check(generous, bag).vendor_root
        assert check(generous, without)
        for wrong, endorsements, code in (
            (replace(strict, roots=frozenset()), bag, "unknown-root"),
            (replace(strict, roots=frozenset({bytes(32)})), bag, "unknown-root"),
            (strict, without, "collateral-missing"),
            (replace(strict, at=NOW + timedelta(days=4000)), bag, "certificate-expired"),
            (replace(strict, at=NOW - timedelta(days=4000)), bag, "certificate-expired"),
        ):
            with pytest.raises(SealwrightError) as caught:
                check(wrong, endorsements)
            assert caught.value.code in (code, "collateral-stale", "collateral-not-yet")


def test_the_result_for_several_policies_is_that_of_the_strictest() -> None:
    # An enclave chooses the order of its tenants; the first one's policy spoke for all that the result lists.
    fake = snp.platform("Genoa")
    found = snp.verify_fake(fake)
    said: dict[str, Any] = {
        "roots": [fake.root_fingerprint.hex()],
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
    }
    by_code = SnpRules.model_validate(said | {"registers": {"measurement": ["00" * 48]}})
    by_key = SnpRules.model_validate(said | {"id_keys": ["00" * 48]})
    both = [appraise(found, one, require_hardware=False) for one in (by_code, by_key)]
    assert [one.vector["executables"] for one in both] == [2, 33]
    assert all(not one.failures for one in both)
    parted = [replace(one, parts={"vtpm0": one}) for one in both]
    for order in (parted, parted[::-1]):
        judged = together(order)
        assert judged.vector["executables"] == judged.parts["vtpm0"].vector["executables"] == 33


@pytest.mark.parametrize(("register", "replays"), [("pcr8", False), ("vtpm.pcr8", True)])
def test_the_config_of_one_tpm_does_not_excuse_what_is_not_logged_in_the_other(
    register: str, replays: bool
) -> None:
    with pytest.warns(FakePlatformWarning):
        built = BootLogBuilder(banks=("sha256",))
    built.boot()
    held = sha256(bytes(32) + CONFIG).digest()
    pcrs = {number: bytes(32) for number in range(16)}
    pcrs |= {int(name[3:]): value for name, value in built.registers().items()}
    machine = tpm.platform()
    quote = machine.quote(DATA, pcrs=pcrs | {8: held}).encode()
    endorsements = tuple(machine.endorsements())
    beside = VtpmEvidence(evidence=quote, event_log=built.log().encode(), endorsements=endorsements)
    envelope = EvidenceEnvelope(type="tpm", evidence=quote, endorsements=endorsements, vtpm=beside)
    own: dict[str, Any] = TPM | {"roots": [machine.root_fingerprint.hex()]}
    own |= {"registers": {}, "unchecked": list(BOOT), "admit": ["secure-boot-off"]}
    said = {
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(tpm.NOW),
        "expires": rfc3339(tpm.NOW + timedelta(hours=24)),
        "config": {"digests": [CONFIG.hex()]},
        "platforms": {"tpm": own | {"config_register": register}, "vtpm": own},
    }
    rules = KeyPolicy.from_json(said)
    logged = EvidenceEnvelope(
        type="tpm", evidence=quote, event_log=built.log().encode(), endorsements=endorsements
    )
    alone = KeyPolicy.from_json(said | {"platforms": {"tpm": own | {"config_register": "pcr8"}}})
    report = check_evidence(logged.encode(), rules=alone, at=tpm.NOW, given=Given(), expected=DATA)
    assert (report.allowed, report.not_checked) == (True, ())

    def judge() -> Appraisal:
        return appraise_evidence(envelope, rules, expected_report_data=DATA, at=tpm.NOW)

    if replays:
        judge().config.check(CONFIG, stage="config")
        return
    with snp.refused("event-log", "event-log-mismatch"):
        judge()


def test_reference_values_that_were_not_opened_are_not_passed_over() -> None:
    fake = snp.platform("Genoa")
    said = {
        "roots": [fake.root_fingerprint.hex()],
        "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
        "registers": {"measurement": ["00" * 48]},
        "reference": {"signers": {"keys": [b64url(bytes(32))]}, "values": [{"not": "opened"}]},
    }
    rules = SnpRules.model_validate(said)
    with pytest.raises(RuntimeError, match="prepared"):
        appraise(snp.verify_fake(fake), rules, require_hardware=False)


@pytest.mark.parametrize("padding", [0, 1, 2912])
def test_padding_behind_a_report_is_told(padding: int) -> None:
    fake = snp.platform("Genoa")
    raw = fake.report(DATA) + bytes(padding)
    envelope = EvidenceEnvelope(type="snp", evidence=raw, endorsements=tuple(fake.endorsements()))
    context = Context(at=snp.AT, roots=frozenset({fake.root_fingerprint}))
    found = verify_evidence(envelope, expected_report_data=DATA, context=context, collateral=Endorsements())
    assert found.facts["padding"] == padding
