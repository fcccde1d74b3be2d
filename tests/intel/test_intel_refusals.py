"""Every refusal by stage and code, with platforms of a fake Intel."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.intel.support import NOW, caches, missing, stale, verify

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import (
    CollateralError,
    EvidenceFormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence.tdx import TdxQuote
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.intel_pki import IntelTestPki, pem
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, Tolerance
from sealwright.verify.tdx import verify_tdx

pytestmark = pytest.mark.filterwarnings("ignore::sealwright.testing.software.FakePlatformWarning")
DATA = bytes(range(64))


@pytest.fixture
def tdx() -> TdxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return TdxTestPlatform(NOW)


@pytest.fixture
def sgx() -> SgxTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return SgxTestPlatform(NOW)


def check(platform: Any, raw: bytes, blobs: list[bytes], at: Any = NOW, **context: Any) -> Any:
    roots = frozenset({platform.root_fingerprint})
    return verify(
        raw, Endorsements.detect(blobs), at, context.pop("outage", None), **{"roots": roots, **context}
    )


def refused(
    platform: Any, raw: bytes, blobs: list[bytes], error: type[SealwrightError], **context: Any
) -> tuple[str, str]:
    with pytest.raises(error) as caught:
        check(platform, raw, blobs, **context)
    return caught.value.stage, caught.value.code


def changed(raw: bytes, place: int, flip: int = 1) -> bytes:
    out = bytearray(raw)
    out[place] ^= flip
    return bytes(out)


def test_genuine(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    for version, body in ((4, None), (5, 2), (5, 3), (5, 4)):
        found = check(tdx, *tdx.evidence(DATA, mrtd=b"\1" * 48, version=version, body=body))
        assert found.registers["mrtd"] == b"\1" * 48
        assert found.conditions == ()
        assert not found.vendor_root
        assert found.until is not None
    found = check(sgx, *sgx.evidence(DATA, mrenclave=b"\2" * 32))
    assert found.registers["mrenclave"] == b"\2" * 32
    assert found.tcb.status == "UpToDate"
    assert found.platform == "sgx"
    assert [use.kind for use in found.collateral] == [
        "intel-tcb-info",
        "intel-qe-identity",
        "intel-root-crl",
        "intel-pck-crl",
    ]


def test_report_data_is_compared_whole(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    context = Context(at=NOW, roots=frozenset({tdx.root_fingerprint}))
    for expected in (b"", DATA[:32], bytes(64), DATA + b"\0"):
        with pytest.raises(VerificationError) as caught:
            verify_tdx(
                TdxQuote.parse(raw),
                Endorsements.detect(blobs),
                expected_report_data=expected,
                context=context,
            )
        assert (caught.value.stage, caught.value.code) == ("report-data", "report-data-mismatch")


def test_unpinned_root(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    assert refused(tdx, raw, blobs, VerificationError, roots=frozenset()) == (
        "pck-certificate",
        "unknown-root",
    )


def test_qe_vendor(tdx: TdxTestPlatform) -> None:
    tdx.qe_vendor_id = bytes(16)
    assert refused(tdx, *tdx.evidence(DATA), VerificationError) == ("qe-vendor", "unknown-qe-vendor")


@pytest.mark.parametrize(
    "change",
    [
        {"mr_signer": bytes(32)},
        {"isv_prod_id": 1},  # the identity of SGX's QE
        {"misc_select": 1},
        {"attributes": bytes([0x15, 1]) + bytes(14)},
        {"attributes": bytes([0x17]) + bytes(15)},  # debug
    ],
)
def test_qe_identity(tdx: TdxTestPlatform, change: dict[str, Any]) -> None:
    tdx.qe |= change
    assert refused(tdx, *tdx.evidence(DATA), VerificationError) == ("qe-identity", "qe-identity-mismatch")


def test_debug_qe_even_if_the_identity_does_not_mask_it(tdx: TdxTestPlatform) -> None:
    tdx.identity["attributesMask"] = "F9FFFFFFFFFFFFFF0000000000000000"
    tdx.qe["attributes"] = bytes([0x17]) + bytes(15)
    assert refused(tdx, *tdx.evidence(DATA), VerificationError) == ("qe-identity", "qe-identity-mismatch")


def test_identity_of_the_other_tee(tdx: TdxTestPlatform, sgx: SgxTestPlatform) -> None:
    """TDX takes TD_QE and SGX takes QE, whatever else fits; so it is with the TCB info."""
    tdx.identity["id"] = "QE"
    sgx.tcb_info |= {"id": "TDX", "tdxModule": tdx.tcb_info["tdxModule"]}
    for level in sgx.tcb_info["tcbLevels"]:
        level["tcb"]["tdxtcbcomponents"] = [{"svn": 0}] * 16
    for platform in (tdx, sgx):
        found = refused(platform, *platform.evidence(DATA), CollateralError)
        assert found == ("collateral", "collateral-missing")


@pytest.mark.parametrize("rest", [bytes(32), bytes(31) + b"\1"])
def test_attestation_key(tdx: TdxTestPlatform, rest: bytes) -> None:
    digest = sha256(tdx._attestation_point() + tdx.qe_auth_data).digest() if rest[-1] else bytes(32)
    tdx.qe["report_data"] = digest + rest
    found = refused(tdx, *tdx.evidence(DATA), VerificationError)
    assert found == ("attestation-key", "attestation-key-mismatch")


def test_attestation_key_off_the_curve(tdx: TdxTestPlatform) -> None:
    tdx._attestation_point = lambda: b"\1" * 64  # type: ignore[method-assign]
    assert refused(tdx, *tdx.evidence(DATA), VerificationError) == ("signature", "bad-signature")


def test_qe_report_signed_by_another_key(tdx: TdxTestPlatform) -> None:
    certificate = tdx.certificate()
    tdx.certification = 5, pem(certificate, tdx.pki.ca, tdx.pki.root)
    tdx.pck_key = ec.generate_private_key(ec.SECP256R1())
    found = refused(tdx, *tdx.evidence(DATA), VerificationError)
    assert found == ("pck-certificate", "bad-qe-report-signature")


def test_every_signature_is_checked(tdx: TdxTestPlatform) -> None:
    """One bit of each: quote, QE report, PCK, CA, root CRL, PCK CRL, TCB info, identity."""
    raw, blobs = tdx.evidence(DATA)
    at = 48 + 584 + 4
    assert refused(tdx, changed(raw, at), blobs, VerificationError) == ("signature", "bad-signature")
    at += 64 + 64 + 6 + 384
    found = refused(tdx, changed(raw, at), blobs, VerificationError)
    assert found == ("pck-certificate", "bad-qe-report-signature")
    for number, stage, code in (
        (0, "collateral", "bad-collateral-signature"),
        (1, "collateral", "bad-collateral-signature"),
    ):
        text = blobs[number]
        other = text[:-3] + (b"0" if text[-3:-2] != b"0" else b"1") + text[-2:]
        assert refused(tdx, raw, [*blobs[:number], other, *blobs[number + 1 :]], VerificationError) == (
            stage,
            code,
        )
    for number in (3, 4):
        other = changed(blobs[number], len(blobs[number]) - 1)
        found = refused(tdx, raw, [*blobs[:number], other, *blobs[number + 1 :]], VerificationError)
        assert found == ("revocation", "bad-crl")
    for position, one in enumerate((tdx.certificate(), tdx.pki.ca)):
        der = one.public_bytes(Encoding.DER)
        chain = [tdx.certificate(), tdx.pki.ca, tdx.pki.root]
        blocks = [pem(each) for each in chain]
        blocks[position] = _pem(changed(der, len(der) - 1))
        tdx.certification = 5, b"".join(blocks)
        found = refused(tdx, *tdx.evidence(DATA), VerificationError)
        assert found == ("pck-certificate", "bad-certificate")


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der).replace(b"\n", b"")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


@pytest.mark.parametrize("what", ["pck", "ca", "signer", "root"])
def test_revoked(tdx: TdxTestPlatform, what: str) -> None:
    certificate = tdx.certificate()
    tdx.certification = 5, pem(certificate, tdx.pki.ca, tdx.pki.root)
    tdx.pki.revoked = [
        {"pck": certificate, "ca": tdx.pki.ca, "signer": tdx.pki.signing, "root": tdx.pki.root}[what]
    ]
    assert refused(tdx, *tdx.evidence(DATA), RevokedError) == ("revocation", "certificate-revoked")


def test_revoked_with_warm_caches(tdx: TdxTestPlatform) -> None:
    """What the caches know of a platform is not that it is still trusted."""
    certificate = tdx.certificate()
    tdx.certification = 5, pem(certificate, tdx.pki.ca, tdx.pki.root)
    warm = caches()
    raw, blobs = tdx.evidence(DATA)
    check(tdx, raw, blobs, **warm)
    with pytest.raises(CollateralError):
        check(tdx, raw, blobs, at=NOW + timedelta(days=40), **warm)
    with pytest.raises(VerificationError) as caught:
        check(tdx, raw, blobs, roots=frozenset(), **warm)
    assert caught.value.code == "unknown-root"
    tdx.pki.revoked = [certificate]
    assert refused(tdx, raw, tdx.endorsements(), RevokedError, **warm)[1] == "certificate-revoked"
    with pytest.raises(VerificationError):
        check(tdx, changed(raw, 100), blobs, **warm)


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (timedelta(days=-2), "collateral-not-yet"),
        (timedelta(days=40), "collateral-stale"),
        (timedelta(days=400), "certificate-expired"),
        (timedelta(days=-40), "certificate-expired"),
    ],
)
def test_time(tdx: TdxTestPlatform, at: timedelta, code: str) -> None:
    raw, blobs = tdx.evidence(DATA)
    assert refused(tdx, raw, blobs, SealwrightError, at=NOW + at)[1] == code


@pytest.mark.parametrize(
    ("number", "kind"),
    [(0, "intel-tcb-info"), (1, "intel-qe-identity"), (3, "intel-root-crl"), (4, "intel-pck-crl")],
)
def test_missing_collateral(tdx: TdxTestPlatform, number: int, kind: Any) -> None:
    raw, blobs = tdx.evidence(DATA)
    del blobs[number]
    assert refused(tdx, raw, blobs, CollateralError) == ("collateral", "collateral-missing")
    if number < 2:  # no outage policy makes up for these
        assert refused(tdx, raw, blobs, CollateralError, outage=missing(kind))[1] == "collateral-missing"
    else:
        used = check(tdx, raw, blobs, outage=missing(kind)).collateral
        assert [use.kind for use in used if not use.digest] == [kind]


def test_missing_signing_certificate(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    del blobs[2]
    assert refused(tdx, raw, blobs, CollateralError) == ("collateral", "collateral-missing")


def test_stale_collateral_within_the_outage_policy(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    kinds = ("intel-tcb-info", "intel-qe-identity", "intel-root-crl", "intel-pck-crl")
    found = check(tdx, raw, blobs, at=NOW + timedelta(days=31), outage=stale(3, *kinds))
    assert {use.stale_s for use in found.collateral} == {2 * 24 * 3600}
    assert found.until < NOW + timedelta(days=31)
    less = {**stale(3, *kinds), "intel-pck-crl": Tolerance(stale=timedelta(days=1))}
    assert (
        refused(tdx, raw, blobs, CollateralError, at=NOW + timedelta(days=31), outage=less)[1]
        == "collateral-stale"
    )


def test_newest_current_collateral_is_chosen(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    for number, due in ((30, 29), (40, -1), (10, 29)):
        tdx.tcb_info |= {
            "tcbEvaluationDataNumber": number,
            "nextUpdate": (NOW + timedelta(days=due)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "issueDate": (NOW - timedelta(days=20)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        tdx.identity["tcbEvaluationDataNumber"] = 35
        blobs += tdx.endorsements()[:2]
    assert check(tdx, raw, blobs).tcb_evaluation_data_number == 30


def test_collateral_of_another_platform(tdx: TdxTestPlatform) -> None:
    for member, value in (("fmspc", "00" * 6), ("pceId", "0100")):
        raw, _ = tdx.evidence(DATA)
        before = tdx.tcb_info[member]
        tdx.tcb_info[member] = value
        assert refused(tdx, raw, tdx.endorsements(), CollateralError) == ("collateral", "collateral-missing")
        tdx.tcb_info[member] = before


def test_collateral_under_another_root(tdx: TdxTestPlatform) -> None:
    """Both roots are admitted; still one cannot speak for platforms of the other."""
    raw, blobs = tdx.evidence(DATA)
    other = IntelTestPki(NOW)
    mixed = [
        other.sign_json("tcbInfo", tdx.tcb_info),
        other.sign_json("enclaveIdentity", tdx.identity),
        pem(other.signing, other.root),
        *blobs[3:],
    ]
    roots = frozenset({tdx.root_fingerprint, other.root_fingerprint})
    assert refused(tdx, raw, mixed, VerificationError, roots=roots) == ("collateral", "unknown-root")


def test_certificates_of_another_purpose(tdx: TdxTestPlatform) -> None:
    """The TCB signing key signs no QE report; a PCK signs no collateral; a CA with another name is none."""
    raw, blobs = tdx.evidence(DATA)
    tdx.certification = 5, pem(tdx.pki.signing, tdx.pki.ca, tdx.pki.root)
    assert refused(tdx, *tdx.evidence(DATA), EvidenceFormatError)[1] == "malformed-pck"
    tdx.certification = 5, pem(tdx.certificate(), tdx.pki.signing, tdx.pki.root)
    assert refused(tdx, *tdx.evidence(DATA), VerificationError)[1] == "unknown-root"
    tdx.certification = None
    tdx.pki.signing_key = tdx.pck_key
    blobs = [*tdx.endorsements()[:2], pem(tdx.certificate(), tdx.pki.ca, tdx.pki.root), *blobs[3:]]
    assert refused(tdx, raw, blobs, CollateralError)[1] == "collateral-missing"


def test_certificates_that_play_no_part(tdx: TdxTestPlatform) -> None:
    other = IntelTestPki(NOW)
    for chain in ((tdx.certificate(), tdx.pki.ca, other.root), (tdx.certificate(), tdx.pki.ca, tdx.pki.ca)):
        tdx.certification = 5, pem(*chain)
        raw, blobs = tdx.evidence(DATA)
        blobs[2] += pem(tdx.pki.root)
        stage, code = refused(tdx, raw, blobs, SealwrightError)
        assert (stage, code) in {("pck-certificate", "bad-certificate"), ("pck-certificate", "unknown-root")}


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_pck_certificate_from_the_endorsements(tdx: TdxTestPlatform, kind: int) -> None:
    certificate = tdx.certificate()
    size = {1: 16, 2: 256, 3: 384}.get(kind, 0)
    identifier = bytes(size) + tdx.tcb + struct.pack("<H", tdx.pce_svn) + tdx.pce_id
    tdx.certification = kind, pem(certificate) if kind == 4 else identifier
    raw, blobs = tdx.evidence(DATA)
    if kind < 4:
        found = refused(tdx, raw, blobs, CollateralError)
        assert found == ("pck-certificate", "pck-certificate-missing")
        blobs.append(certificate.public_bytes(Encoding.DER))
    assert refused(tdx, raw, blobs, VerificationError)[1] == "unknown-root"
    blobs.append(pem(tdx.pki.ca))
    assert check(tdx, raw, blobs).tcb.status == "UpToDate"


def test_tdx_module(tdx: TdxTestPlatform) -> None:
    for fields in (
        {"mr_signer_seam": b"\1" * 48},
        {"seam_attributes": b"\1" + bytes(7)},
        {"tee_tcb_svn": bytes([5, 2, 5]) + bytes(13)},  # a version that the TCB info does not know
    ):
        assert refused(tdx, *tdx.evidence(DATA, **fields), VerificationError)[1] == "tdx-module-mismatch"
    tdx.tcb_info["tdxModule"]["mrsigner"] = "01" * 48  # counts for version 0 alone
    check(tdx, *tdx.evidence(DATA))
    zero = bytes([5, 0, 5]) + bytes(13)
    assert refused(tdx, *tdx.evidence(DATA, tee_tcb_svn=zero), VerificationError)[1] == "tdx-module-mismatch"
    del tdx.tcb_info["tdxModuleIdentities"]
    assert refused(tdx, *tdx.evidence(DATA), VerificationError)[1] == "tdx-module-mismatch"


def test_too_many_certificates_of_a_name(tdx: TdxTestPlatform) -> None:
    raw, blobs = tdx.evidence(DATA)
    blobs += [pem(IntelTestPki(NOW).signing) for _ in range(8)]
    assert refused(tdx, raw, blobs, VerificationError) == ("endorsements", "bad-certificate")


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("version", lambda info: info.update(version=4)),
    ("type", lambda info: info.update(tcbType=1)),
    ("id", lambda info: info.update(id="TPM")),
    ("levels", lambda info: info.update(tcbLevels=[])),
    ("twice", lambda info: info["tcbLevels"].append(info["tcbLevels"][0])),
    ("svn", lambda info: info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][0].update(svn=256)),
    ("components", lambda info: info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].pop()),
    ("fmspc", lambda info: info.update(fmspc="b0c06f0000 0")),
    ("date", lambda info: info.update(nextUpdate="tomorrow")),
    ("module", lambda info: info.pop("tdxModule")),
    ("bool", lambda info: info.update(tcbEvaluationDataNumber=True)),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_malformed_tcb_info(tdx: TdxTestPlatform, change: Callable[[dict[str, Any]], Any]) -> None:
    change(tdx.tcb_info)
    code = refused(tdx, *tdx.evidence(DATA), EvidenceFormatError)[1]
    assert code in {"malformed-intel-json", "malformed-time"}


def test_malformed_identity(tdx: TdxTestPlatform) -> None:
    for member, value in (("version", 1), ("id", "AE"), ("isvprodid", -1), ("miscselect", "00")):
        before = tdx.identity[member]
        tdx.identity[member] = value
        assert refused(tdx, *tdx.evidence(DATA), EvidenceFormatError)[1] == "malformed-intel-json"
        tdx.identity[member] = before
