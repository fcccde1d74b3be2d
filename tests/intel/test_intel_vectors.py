"""Real quotes of many projects, with Intel's real collateral, each at a time when both were valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest
from tests.intel.support import (
    caches,
    collateral,
    day,
    everything,
    missing,
    parse_quote,
    quote_bytes,
    quotes,
    stale,
    verify,
)
from tests.vector_files import manifest, vector

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import CollateralError, EvidenceFormatError, SealwrightError, VerificationError
from sealwright.verify.context import CollateralKind, Context, Tolerance
from sealwright.verify.dcap_pck import check_pck
from sealwright.verify.verified import MADE_BY_VERIFY

CACHES = caches()


@dataclass(frozen=True)
class Case:
    """A quote, a time, and what is to be found then."""

    file: str
    at: str
    status: str
    conditions: tuple[str, ...] = ()  # beside those of the status
    number: int = 0  # tcbEvaluationDataNumber
    outage: Mapping[CollateralKind, Tolerance] = field(default_factory=dict)


CASES = (
    Case("sgx/dcap-qvl/sgx_quote", "2025-06-25", "ConfigurationAndSWHardeningNeeded", number=17),
    # No root CRL of 2020 is public.
    Case(
        "sgx/fortanix-pcs/tests__data__quote.bin",
        "2020-05-25",
        "SWHardeningNeeded",
        ("debug",),
        8,
        missing("intel-root-crl"),
    ),
    Case("sgx/openenclave/intel_qve_thread_test__data__sgx_quote", "2025-06-25", "OutOfDate", ("debug",), 19),
    Case("sgx/trustee/occlum_quote.dat", "2025-02-20", "OutOfDate", ("debug",), 17),
    Case("sgx/trustee/occlum_quote.dat", "2025-06-25", "OutOfDate", ("debug",), 19),
    Case(
        "tdx/attestation-rs/attestation__test_data__tdx_quote_4.dat", "2023-06-20", "UpToDate", ("debug",), 15
    ),
    Case(
        "tdx/attestation-rs/attestation__test_data__tdx_quote_5.dat",
        "2026-03-20",
        "NotRecognised",
        ("migration",),
        18,
    ),
    # Its PCK certificate is of the afternoon of the last day of the TCB info.
    Case(
        "tdx/attestation-rs/attestation__test_data__tdx_quote_live.dat",
        "2026-04-01",
        "UpToDate",
        (),
        18,
        stale(1, "intel-tcb-info"),
    ),
    Case("tdx/automata-dcap-rs/quote_tdx_00806f050000.dat", "2025-02-20", "OutOfDate", number=17),
    Case("tdx/dcap-qvl/quote-from-tappd.hex", "2025-06-25", "NotRecognised", number=17),
    Case("tdx/dcap-qvl/tdx-quote.hex", "2025-06-25", "NotRecognised", number=17),
    Case("tdx/dcap-qvl/tdx_quote", "2025-06-25", "UpToDate", number=17),
    Case("tdx/dcap-qvl/tdx_quote", "2026-03-20", "UpToDate", number=18),
    Case("tdx/dcap-qvl/tdx_quote_outdated", "2026-03-01", "NotRecognised", number=18),
    Case("tdx/go-tdx-guest/testdata__ccel__cos-113-tdx-quote.dat", "2025-02-20", "UpToDate", number=17),
    Case("tdx/go-tdx-guest/testing__testdata__quote_v5_sample.dat", "2026-03-01", "UpToDate", number=18),
    Case(
        "tdx/openenclave/host_verify__data__tdx_quote-moduleupdate-seamldr5.dat",
        "2025-02-20",
        "UpToDate",
        number=17,
    ),
    Case(
        "tdx/openenclave/host_verify__data__tdx_quote-moduleupdate-seamldr5.dat",
        "2025-03-05",
        "TDRelaunchAdvised",
        number=18,
    ),
    Case(
        "tdx/openenclave/host_verify__data__tdx_quote.bin", "2023-06-20", "UpToDate", ("sept-ve-enabled",), 15
    ),
    Case(
        "tdx/openenclave/host_verify__data__tdx_quote.bin",
        "2026-03-20",
        "OutOfDate",
        ("sept-ve-enabled",),
        18,
    ),
    Case(
        "tdx/openenclave/host_verify__data__tdx_quote_v5.bin", "2025-02-20", "OutOfDate", ("migration",), 17
    ),
    Case(
        "tdx/openenclave/intel_qve_thread_test__data__tdx_quote",
        "2023-06-20",
        "UpToDate",
        ("sept-ve-enabled",),
        15,
    ),
    Case("tdx/openpcc/azure_tdx_report.txt", "2026-03-01", "UpToDate", number=18),
    Case("tdx/openpcc/gce_tdx_report.txt", "2025-03-05", "UpToDate", number=17),
    # The only TCB info of this FMSPC that is public ended a year before.
    Case("tdx/premai/quote.dat", "2026-03-01", "UpToDate", (), 17, stale(400, "intel-tcb-info")),
    Case("tdx/premai/quote.test", "2026-03-01", "UpToDate", (), 17, stale(400, "intel-tcb-info")),
    Case("tdx/premai/tdx_quote", "2025-06-25", "UpToDate", number=17),
    Case("tdx/trustee/tdx_quote_4.dat", "2023-06-20", "UpToDate", ("debug",), 15),
    Case("tdx/trustee/tdx_quote_4.dat", "2026-03-20", "OutOfDate", ("debug",), 18),
    Case("tdx/trustee/tdx_quote_5.dat", "2025-02-20", "NotRecognised", ("migration",), 17),
    # No PCK CRL of that autumn is public.
    Case("tdx/trustee/tdx_quote_6.dat", "2025-10-30", "OutOfDate", (), 17, stale(120, "intel-pck-crl")),
    Case("tdx/trustee/tdx_quote_6.dat", "2026-03-01", "OutOfDate", number=18),
    Case(
        "tpm/trustee-az/test_data__az-tdx-vtpm__td-quote.bin",
        "2025-02-20",
        "OutOfDate",
        ("sept-ve-enabled",),
        17,
    ),
)

STATUS_CONDITIONS = {
    "UpToDate": set(),
    "SWHardeningNeeded": {"tcb-sw-hardening-needed"},
    "ConfigurationAndSWHardeningNeeded": {"tcb-configuration-needed", "tcb-sw-hardening-needed"},
    "OutOfDate": {"tcb-out-of-date"},
    "NotRecognised": {"tcb-not-recognised"},
    "TDRelaunchAdvised": {"tcb-relaunch-advised"},
}

# Quotes of the manifest that are refused, or for which no collateral of their time is public; each has a test below.
OTHERS = {
    "sgx/intel-qvl/AttestationApp__sampleData__quote.dat",
    "sgx/openenclave/host_verify__data__sgx_report_bad.bin",
    "tdx/go-tdx-guest/testing__testdata__tdx_prod_quote_SPR_E4.dat",
    "tdx/intel-qvl/sampleData__tdx__quote.dat",
}


@cache
def endorsements(at: str) -> Endorsements:
    return everything(day(at))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}@{case.at}")
def test_real_quote(case: Case) -> None:
    raw = quote_bytes(case.file)
    verified = verify(raw, endorsements(case.at), day(case.at), case.outage, **CACHES)
    assert verified.tcb.status == case.status
    assert {one.code for one in verified.conditions} == STATUS_CONDITIONS[case.status] | set(case.conditions)
    assert verified.tcb_evaluation_data_number == case.number
    assert verified.vendor_root
    assert verified.root.hex().startswith("44a0196b2b99f889")
    assert verified._made_by is MADE_BY_VERIFY


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_every_quote_of_the_manifest_has_its_case(tee: str) -> None:
    found = set(quotes(manifest(tee)))
    if not found:
        pytest.skip("vectors not here: MANIFEST.tsv")
    assert found == {name for name in OTHERS | {case.file for case in CASES} if name.startswith(tee)}


def test_the_host_cannot_send_other_report_data() -> None:
    raw = quote_bytes("tdx/dcap-qvl/tdx_quote")
    quote = parse_quote(raw)
    changed = raw.replace(quote.report.report_data, bytes(64), 1)
    with pytest.raises(VerificationError) as caught:
        verify(changed, endorsements("2025-06-25"), day("2025-06-25"))
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_quotes_without_collateral_are_certified_by_intel(name: str) -> None:
    """PCK chain, names and QE report hold where they can; the rest names what is wrong."""
    expected = {
        "sgx/intel-qvl/AttestationApp__sampleData__quote.dat": "pck-certificate-missing",
        "sgx/openenclave/host_verify__data__sgx_report_bad.bin": "unknown-root",
        "tdx/intel-qvl/sampleData__tdx__quote.dat": "malformed-pem",
    }
    raw = quote_bytes(name)
    if name.endswith("SPR_E4.dat"):  # a text stands behind the quote
        with pytest.raises(EvidenceFormatError) as caught:
            parse_quote(raw)
        assert caught.value.code == "trailing-data"
        raw = raw[:-39]
    signature = parse_quote(raw).signature
    at = day("2025-06-25")
    found = everything(at)
    if name not in expected:
        assert check_pck(signature, found, Context(at=at)).chain.vendor
        return
    with pytest.raises(SealwrightError) as error:
        check_pck(signature, found, Context(at=at))
    assert error.value.code == expected[name]


def test_a_quote_with_text_behind_it_is_genuine_without() -> None:
    raw = quote_bytes("tdx/go-tdx-guest/testing__testdata__tdx_prod_quote_SPR_E4.dat")[:-39]
    verified = verify(raw, endorsements("2023-06-20"), day("2023-06-20"))
    codes = {one.code for one in verified.conditions}
    assert codes == {"tcb-not-recognised", "sept-ve-enabled", "supervisor-keys-enabled"}


@pytest.mark.parametrize("name", ["tdx/premai/quote.dat", "tdx/premai/quote.test"])
def test_collateral_that_is_too_old_is_refused(name: str) -> None:
    """The only TCB info of this FMSPC that is public ended a year before."""
    with pytest.raises(CollateralError) as caught:
        verify(quote_bytes(name), endorsements("2026-03-01"), day("2026-03-01"))
    assert caught.value.code == "collateral-stale"


def test_intels_own_sample_names_its_root() -> None:
    """Certification data of type 1; PCK certificate, chain and collateral are under a root of the sample's own."""
    names = (
        "pckCert.pem",
        "pckSignChain.pem",
        "tcbSignChain.pem",
        "tcbInfo.json",
        "qeIdentity.json",
        "rootCaCrl.der",
        "intermediateCaCrl.der",
    )
    folder = "sgx/intel-qvl/AttestationApp__sampleData__"
    found = Endorsements.detect(blob for name in names for blob in collateral(folder + name))
    raw, at = quote_bytes(f"{folder}quote.dat"), day("2020-01-01")
    with pytest.raises(VerificationError) as caught:
        verify(raw, found, at)
    assert caught.value.code == "unknown-root"
    (root,) = {one for one in map(fingerprint, found.certificates) if one.hex().startswith("842a5bcb")}
    verified = verify(raw, found, at, roots=frozenset({root}))
    assert not verified.vendor_root
    assert verified.root == root
    assert verified.tcb.status == "UpToDate"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sgx/fortanix-pcs/data__corrupted__00906ea10000.tcb", "collateral-not-yet"),
        ("sgx/fortanix-pcs/data__corrupted__qe3_identity.id", "collateral-not-yet"),
    ],
)
def test_changed_collateral(name: str, code: str) -> None:
    """Its issue date was changed to the year 3000; taken at that date, the signature fails."""
    at = day("2020-05-25")
    others = [one for one in everything(at).intel_json if _kind(one) != _kind(collateral(name)[-1])]
    found = everything(at) + Endorsements.detect(collateral(name))
    changed = Endorsements(
        certificates=found.certificates, crls=found.crls, intel_json=(*others, collateral(name)[-1])
    )
    raw = quote_bytes("sgx/fortanix-pcs/tests__data__quote.bin")
    with pytest.raises(CollateralError) as caught:
        verify(raw, changed, at, missing("intel-root-crl"))
    assert caught.value.code == code


def _kind(raw: bytes) -> bool:
    return b'"tcbInfo"' in raw[:20]


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_reformatted_collateral(tee: str) -> None:
    """Printed prettily, the very bytes are no longer those that Intel signed."""
    at = day("2019-01-01")
    pool = everything(at)
    name = f"tdx/openenclave/report__data_v3__tcbinfo_{tee}.json"
    found = Endorsements(certificates=pool.certificates, intel_json=tuple(collateral(name)))
    raw = quote_bytes("sgx/fortanix-pcs/tests__data__quote.bin")
    with pytest.raises(SealwrightError):
        verify(raw, found, at)


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_bad_certificates_of_open_enclave(kind: str) -> None:
    """RA-TLS certificates whose quote was made to fail."""
    raw = vector(f"sgx/openenclave/host_verify__data__sgx_cert_{kind}_bad.der")
    start = raw.index(b"\3\0\2\0\0\0\0\0")
    size = int.from_bytes(raw[start - 8 : start], "little")
    with pytest.raises(SealwrightError) as caught:
        verify(
            raw[start : start + size],
            everything(day("2020-05-25")),
            day("2020-05-25"),
            missing("intel-root-crl"),
        )
    assert caught.value.exit_code in (10, 12, 65)
