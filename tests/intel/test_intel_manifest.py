"""Every other file of the manifest: certificates, CRLs, collateral, and what is none of these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from tests.intel.support import collateral, parse_quote, quotes
from tests.vector_files import manifest, vector

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.intel import EnclaveIdentity, TcbInfo, parse_intel_json
from sealwright.endorsement.intel_pck import PCK_NAME, PckExtension, common_name
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import EvidenceFormatError, SealwrightError
from sealwright.verify.dcap_index import SIGNING_NAME
from sealwright.verify.dcap_pck import check_p256, key_of

SIGNERS = (
    "tdx/automata-dcap-rs/tcb_signing_cert.pem",
    "tdx/attestation-rs/test_data__collateral__tcb_signing_chain.pem",
    "sgx/fortanix-pcs/tests__data__qe3_identity.id",
    "sgx/intel-qvl/AttestationApp__sampleData__tcbSignChain.pem",
    "tdx/intel-qvl/sampleData__tdx__tcbSignChain.pem",
)
# Collateral that nobody's key signed as it stands.
UNSIGNED = {
    "sgx/fortanix-pcs/data__corrupted__00906ea10000.tcb": "its date was changed",
    "sgx/fortanix-pcs/data__corrupted__qe3_identity.id": "its date was changed",
    "tdx/openenclave/report__data_v3__tcbinfo_sgx.json": "printed prettily, and changed for a test",
    "tdx/openenclave/report__data_v3__tcbinfo_tdx.json": "printed prettily, and changed for a test",
}
REFUSED = {
    "sgx/fortanix-pcs/data__eval-num-select-best__tcb_evaluation_data_numbers.numbers": "unknown-endorsement",
    "sgx/fortanix-pcs/tests__data__tcb_evaluation_data_numbers.numbers": "unknown-endorsement",
    "sgx/openenclave/host_verify__data__sgx_cert_ec_bad.der": "malformed-chain",
    "tdx/intel-qvl/sampleData__tdx__tcbInfo.json": "malformed-intel-json",  # SVNs of 16 bits
}
# That project made these for a test of its own: their signature is no ASN.1.
NO_SIGNATURE = {
    f"sgx/fortanix-pcs/data__eval-num-select-best__00606a000000-{number}.tcb" for number in (8, 13, 14)
}
NO_QUOTES = {
    "tdx/attestation-rs/attestation__test_data__tdx_tdreport_live.bin",
    "tdx/go-tdx-guest/testing__testdata__report.dat",
}


def _others() -> Iterator[tuple[str, str]]:
    for tee in ("sgx", "tdx", "roots"):
        tested = set(quotes(manifest(tee)))
        for row in manifest(tee):
            name = row["file"].removeprefix("open/")
            event_log = "ccel" in name.lower()
            if name not in tested and not event_log and (tee != "roots" or "/intel/" in name):
                yield name, row["expected"]


@pytest.mark.parametrize(("name", "expected"), list(_others()))
def test_file(name: str, expected: str) -> None:
    if name in NO_QUOTES:  # TD reports: their MAC can be checked on their own machine alone
        with pytest.raises(EvidenceFormatError):
            parse_quote(vector(name))
        return
    if name in NO_SIGNATURE:
        with pytest.raises(ValueError):
            collateral(name)
        return
    if name in REFUSED:
        with pytest.raises(SealwrightError) as caught:
            _read([vector(name)])
        assert caught.value.code == REFUSED[name]
        return
    found, parsed = _read(collateral(name))
    assert found.certificates or found.crls or parsed
    if expected == "TRUST ANCHOR":
        assert list(map(fingerprint, found.certificates)) == list(map(fingerprint, anchors("intel")))
    for one in found.certificates:
        if common_name(one.subject) == PCK_NAME:
            assert len(PckExtension.of(one).fmspc) == 6
    for one in parsed:
        assert any(_signed(one, key) for key in _signers()) == (name not in UNSIGNED)


def _read(blobs: list[bytes]) -> tuple[Endorsements, list[TcbInfo | EnclaveIdentity]]:
    found = Endorsements.detect(blobs)
    return found, [parse_intel_json(raw) for raw in found.intel_json]


def _signers() -> Iterator[x509.Certificate]:
    for name in SIGNERS:
        for one in Endorsements.detect(collateral(name)).certificates:
            if common_name(one.subject) == SIGNING_NAME:
                yield one


def _signed(found: TcbInfo | EnclaveIdentity, signer: x509.Certificate) -> bool:
    try:
        check_p256(key_of(signer), found.signature, found.signed)
    except InvalidSignature:
        return False
    return True
