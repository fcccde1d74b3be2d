"""What is asked of whom, and how real answers are read. Nothing here needs a network."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st
from tests.collateral.support import (
    intel,
    milan_chain,
    milan_crl,
    milan_vcek,
    ocsp_response,
    rim,
    rim_json,
    thim_json,
    vcek_need,
)
from tests.vector_files import vector

from sealwright.collateral.need import KINDS, Need
from sealwright.collateral.needs import (
    dcap_needs,
    google_needs,
    gpu_needs,
    merged,
    ocsp_needs,
    snp_needs,
    thim_needs,
)
from sealwright.collateral.peek import needs_of
from sealwright.collateral.record import Piece
from sealwright.collateral.sources import Answer, Hosts, examine, read_answer, request_for
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import load_certificate, pem_blocks
from sealwright.errors import CollateralError, EvidenceFormatError, FormatError, MessageFormatError
from sealwright.evidence.envelope import DeviceEvidence, EvidenceEnvelope

NOW = datetime(2025, 6, 20, tzinfo=UTC)
VENDORS = Hosts()
PCCS = Hosts(intel_pccs="https://pccs.example:8081")


def read(need: Need, body: bytes, hosts: Hosts = VENDORS, **headers: str) -> Piece:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_answer(need, request_for(need, hosts), Answer(body=body, headers=named), now=NOW)


def test_amd() -> None:
    need, blob = milan_vcek()
    hwid, *spl = need.parts[1:]
    assert request_for(need, VENDORS).url(VENDORS) == (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{hwid}"
        f"?blSPL={spl[0]}&teeSPL={spl[1]}&snpSPL={spl[2]}&ucodeSPL={spl[3]}"
    )
    assert read(need, blob).blobs == (blob,)
    assert read(need, blob).refresh_at() is None
    need, blob = milan_chain()
    assert request_for(need, VENDORS).url(VENDORS) == "https://kdsintf.amd.com/vcek/v1/Milan/cert_chain"
    assert read(need, blob).blobs == (blob,)
    assert read(Need("amd-chain", "vlek:Milan"), vector("roots/amd/ask_ark_milan_vlek.pem")).blobs
    need, blob = milan_crl()
    assert request_for(need, VENDORS).url(VENDORS) == "https://kdsintf.amd.com/vcek/v1/Milan/crl"
    assert read(need, blob).next_update == datetime(2026, 5, 12, tzinfo=UTC)


def test_turin_has_a_short_id_and_a_fifth_level() -> None:
    blob = vector("sev-snp/virtee-sev/vcek_turin.der")
    need = vcek_need(blob, "Turin", levels=5)
    assert re.fullmatch(
        r"https://kdsintf\.amd\.com/vcek/v1/Turin/[0-9a-f]{16}"
        r"\?blSPL=\d+&teeSPL=\d+&snpSPL=\d+&ucodeSPL=\d+&fmcSPL=\d+",
        request_for(need, VENDORS).url(VENDORS),
    )
    assert read(need, blob).need == need


def test_thim() -> None:
    (need,) = thim_needs()
    request = request_for(need, VENDORS)
    assert request.url(VENDORS) == "http://169.254.169.254/metadata/THIM/amd/certification"
    assert request.headers == (("Metadata", "true"),)
    found = Endorsements.detect(read(need, thim_json()).blobs)
    assert len(found.certificates) == 3


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_intel(tee: str) -> None:
    given_ = intel(tee)
    ca = {"sgx": "processor", "tdx": "platform"}[tee]
    tcb, identity, crl, root = dcap_needs(bytes.fromhex(given_.fmspc), ca, tee)  # type: ignore[arg-type]
    base = "https://api.trustedservices.intel.com"
    urls = [request_for(need, VENDORS).url(VENDORS) for need in (tcb, identity, crl, root)]
    assert urls == [
        f"{base}/{tee}/certification/v4/tcb?fmspc={given_.fmspc}&update=standard",
        f"{base}/{tee}/certification/v4/qe/identity?update=standard",
        f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    ]
    pieces = [
        read(tcb, given_.tcb_info, tcb_info_issuer_chain=given_.tcb_info_chain),
        read(identity, given_.identity, sgx_enclave_identity_issuer_chain=given_.identity_chain),
        read(crl, given_.pck_crl, sgx_pck_crl_issuer_chain=given_.pck_crl_chain),
        read(root, given_.root_crl),
    ]
    assert pieces[0].blobs[0] == given_.tcb_info, "verbatim: the signature is over these bytes"
    assert pieces[0].next_update is not None
    assert f"{pieces[0].next_update:%Y-%m-%d}" == "2025-07-19"
    found = Endorsements.detect(blob for piece in pieces for blob in piece.blobs)
    assert (len(found.intel_json), len(found.crls)) == (2, 2)


def test_a_caching_service_sends_hex_and_has_the_root_crl_too() -> None:
    given_ = intel("tdx")
    root, crl = Need("intel-root-crl", "root"), Need("intel-pck-crl", "platform")
    assert request_for(root, PCCS).url(PCCS) == "https://pccs.example:8081/sgx/certification/v4/rootcacrl"
    assert read(root, given_.root_crl.hex().encode(), PCCS).blobs == (given_.root_crl,)
    chain = {"sgx_pck_crl_issuer_chain": given_.pck_crl_chain}
    assert read(crl, given_.pck_crl.hex().upper().encode() + b"\n", PCCS, **chain).blobs[0] == given_.pck_crl
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(given_.pck_crl) + b"-----END X509 CRL-----\n"
    assert read(crl, pem, **chain).blobs[0] == given_.pck_crl


def test_updates_of_intel() -> None:
    early, numbered = Need("intel-qe-identity", "tdx:early"), Need("intel-tcb-info", "tdx:00806f050000:17")
    assert request_for(early, VENDORS).query == (("update", "early"),)
    assert request_for(numbered, VENDORS).query == (
        ("fmspc", "00806f050000"),
        ("tcbEvaluationDataNumber", "17"),
    )
    given_ = intel("tdx")
    number = json.loads(given_.tcb_info)["tcbInfo"]["tcbEvaluationDataNumber"]
    chain = {"tcb_info_issuer_chain": given_.tcb_info_chain}
    assert read(Need("intel-tcb-info", f"tdx:{given_.fmspc}:{number}"), given_.tcb_info, **chain)
    with pytest.raises(EvidenceFormatError, match="data number"):
        read(Need("intel-tcb-info", f"tdx:{given_.fmspc}:{number + 1}"), given_.tcb_info, **chain)
    assert request_for(Need("intel-tcb-numbers", "sgx"), VENDORS).path.endswith("tcbevaluationdatanumbers")


def test_nvidia() -> None:
    need, blob = rim()
    url = "https://rim.attestation.nvidia.com/v1/rim/NV_GPU_DRIVER_GH100_550.90.07"
    assert request_for(need, VENDORS).url(VENDORS) == url
    assert read(need, rim_json(need.key, blob)).blobs == (blob,)
    vbios = "NV_GPU_VBIOS_1010_0200_882_96009F0001"
    other = vector(f"nvidia/go-nvattest/testdata__rim__{vbios}.xml")
    assert read(Need("nvidia-rim", vbios), rim_json(vbios, other)).blobs == (other,)


def test_ocsp_requests_of_a_chain_are_those_that_the_responder_answers() -> None:
    text = vector("nvidia/nvtrust/hopperCertChain.txt")
    chain = [
        load_certificate(der) for _, der in pem_blocks(base64.b64decode(text) if b"--" not in text else text)
    ]
    needs = gpu_needs("GH100", "550.90.07", "1010_0200_882_96009F0001", chain)
    assert [need.kind for need in needs] == ["nvidia-rim"] * 2 + ["nvidia-ocsp"] * 3
    issuers = {need.parts[2]: need for need in needs[2:]}
    response = ocsp.load_der_ocsp_response(ocsp_response())
    # The response is about GH100's provisioner in the same hierarchy: its issuer's names digest alike.
    assert {need.parts[0] for need in issuers.values()} >= {response.issuer_name_hash.hex()}
    assert {need.parts[1] for need in issuers.values()} >= {response.issuer_key_hash.hex()}
    request = request_for(needs[-1], VENDORS)
    parsed = ocsp.load_der_ocsp_request(request.body or b"")
    assert (parsed.serial_number, parsed.hash_algorithm.name) == (chain[3].serial_number, "sha384")
    assert dict(request.headers)["Content-Type"] == "application/ocsp-request"


def test_an_ocsp_response() -> None:
    blob = ocsp_response()
    said = ocsp.load_der_ocsp_response(blob)
    key = f"{said.issuer_name_hash.hex()}:{said.issuer_key_hash.hex()}:{said.serial_number:x}"
    piece = read(Need("nvidia-ocsp", key), blob)
    assert (piece.issued, piece.next_update) == (said.this_update_utc, said.next_update_utc)
    assert Endorsements.detect(piece.blobs).ocsp == (blob,)
    with pytest.raises(EvidenceFormatError, match="another certificate"):
        read(Need("nvidia-ocsp", key[:-1] + ("0" if key[-1] != "0" else "1")), blob)


def test_google() -> None:
    need, root = google_needs("tdx", bytes(48))
    url = f"https://storage.googleapis.com/gce_tcb_integrity/ovmf_x64_csm/tdx/{'00' * 48}.binarypb"
    assert request_for(need, VENDORS).url(VENDORS) == url
    assert request_for(root, VENDORS).url(VENDORS) == (
        "https://pki.goog/cloud_integrity/GCE-cc-tcb-root_1.crt"
    )


def test_a_broker_is_asked_in_place_of_all_vendors_but_not_of_this_machines_own() -> None:
    hosts = Hosts(service="https://broker.example")
    crl = Need("amd-crl", "vcek:Milan")
    url = "https://broker.example/sealwright/v1/collateral/amd-crl/vcek:Milan"
    assert request_for(crl, hosts).url(hosts) == url
    assert request_for(Need("azure-thim", "this-vm"), hosts).host == "azure_imds"
    piece = Piece(need=crl, blobs=(milan_crl()[1],), fetched=NOW)
    taken = read(crl, piece.served().encode(), hosts)
    assert taken.next_update == datetime(2026, 5, 12, tzinfo=UTC), "dates are read from the blob"
    with pytest.raises(EvidenceFormatError, match="something else"):
        read(Need("amd-crl", "vcek:Genoa"), piece.served().encode(), hosts)


def _wrong() -> list[tuple[str, Need, bytes, dict[str, str]]]:
    vcek, vcek_blob = milan_vcek()
    chip = vcek.key.split(":")
    flipped = ":".join([chip[0], chip[1][:-1] + ("0" if chip[1][-1] != "0" else "1"), *chip[2:]])
    level = ":".join([*chip[:-1], str((int(chip[-1]) + 1) % 256)])
    tdx, sgx = intel("tdx"), intel("sgx")
    rim_need, rim_blob = rim()
    tcb = Need("intel-tcb-info", f"tdx:{tdx.fmspc}")
    chain = {"tcb-info-issuer-chain": tdx.tcb_info_chain}
    pck = {"sgx-pck-crl-issuer-chain": tdx.pck_crl_chain}
    identity = {"sgx-enclave-identity-issuer-chain": sgx.identity_chain}
    return [
        ("another chip", Need("amd-vcek", flipped), vcek_blob, {}),
        ("another level", Need("amd-vcek", level), vcek_blob, {}),
        ("a page of HTML", vcek, b"<html>busy</html>", {}),
        ("cut off", vcek, vcek_blob[:-1], {}),
        ("longer", vcek, vcek_blob + b"\0", {}),
        ("empty", vcek, b"", {}),
        ("the VLEK's chain", Need("amd-chain", "vlek:Milan"), milan_chain()[1], {}),
        ("another product's chain", Need("amd-chain", "vcek:Genoa"), milan_chain()[1], {}),
        ("another product's CRL", Need("amd-crl", "vcek:Genoa"), milan_crl()[1], {}),
        ("a certificate as CRL", Need("amd-crl", "vcek:Milan"), vcek_blob, {}),
        ("THIM without chain", Need("azure-thim", "this-vm"), b'{"vcekCert":""}', {}),
        ("SGX for TDX", Need("intel-tcb-info", f"tdx:{sgx.fmspc}"), sgx.tcb_info, chain),
        ("another FMSPC", Need("intel-tcb-info", "tdx:000000000000"), tdx.tcb_info, chain),
        ("QE for TD_QE", Need("intel-qe-identity", "tdx"), sgx.identity, identity),
        ("identity for TCB info", tcb, tdx.identity, chain),
        ("no issuer chain", tcb, tdx.tcb_info, {}),
        ("an issuer chain in plain text", tcb, tdx.tcb_info, {"tcb-info-issuer-chain": "none"}),
        ("two members beside the signature", tcb, tdx.tcb_info[:-1] + b',"x":1}', chain),
        ("the other CA's CRL", Need("intel-pck-crl", "processor"), tdx.pck_crl, pck),
        ("the root's CRL for a PCK CRL", Need("intel-pck-crl", "platform"), tdx.root_crl, pck),
        ("a CRL in no form", Need("intel-root-crl", "root"), b"\xff", {}),
        (
            "RIM of another id",
            Need("nvidia-rim", "NV_GPU_DRIVER_GH100_1"),
            rim_json(rim_need.key, rim_blob),
            {},
        ),
        (
            "RIM of another version",
            Need("nvidia-rim", "NV_GPU_DRIVER_GH100_1.0"),
            rim_json("NV_GPU_DRIVER_GH100_1.0", rim_blob),
            {},
        ),
        ("RIM that is not base64", rim_need, b'{"id":"%s","rim":"*"}' % rim_need.key.encode(), {}),
        ("RIM in CBOR", rim_need, rim_json(rim_need.key, b"\xd9\x01\xf4"), {}),
        (
            "RIM with another digest",
            rim_need,
            json.dumps({**json.loads(rim_json(rim_need.key, rim_blob)), "sha256": "00"}).encode(),
            {},
        ),
        ("no OCSP", Need("nvidia-ocsp", f"{'0' * 96}:{'0' * 96}:1"), b"0\x03\x0a\x01\x06", {}),
        ("no endorsement", Need("google-endorsement", f"tdx:{'00' * 48}"), b"\x0a\x00", {}),
        ("no root", Need("google-root", "1"), b"<?xml?>", {}),
    ]


def test_answers_about_something_else_are_refused() -> None:
    for name, need, body, headers in _wrong():
        with pytest.raises(EvidenceFormatError):
            pytest.fail(
                f"{name}: {read_answer(need, request_for(need, VENDORS), Answer(body=body, headers=headers), now=NOW)}"
            )


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=200))
def test_nothing_but_a_format_error_comes_from_garbage(kind: str, body: bytes) -> None:
    keys = {
        "amd-vcek": f"Milan:{'a' * 128}:1:2:3:4",
        "amd-chain": "vcek:Milan",
        "amd-crl": "vlek:Milan",
        "azure-thim": "this-vm",
        "intel-tcb-info": "tdx:00806f050000",
        "intel-qe-identity": "sgx",
        "intel-pck-crl": "platform",
        "intel-root-crl": "root",
        "intel-tcb-numbers": "sgx",
        "nvidia-rim": "NV_GPU_DRIVER_GH100_1",
        "nvidia-ocsp": f"{'0' * 96}:{'0' * 96}:1",
        "google-endorsement": f"tdx:{'00' * 48}",
        "google-root": "1",
    }
    need = Need.named(kind, keys[kind])
    chain = {name: quote(body) for name in request_for(need, VENDORS).keep}
    for answer in (Answer(body=body, headers=chain), Answer(body=b"{" + body, headers=chain)):
        with pytest.raises(EvidenceFormatError):
            read_answer(need, request_for(need, VENDORS), answer, now=NOW)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("amd-crl", "vcek:../../x"),
        ("amd-crl", "vcek:Milan\n"),
        ("amd-crl", ""),
        ("amd-vcek", f"Milan:{'a' * 128}:256:0:0:0"),
        ("amd-vcek", f"Milan:{'a' * 128}:01:0:0:0"),
        ("amd-vcek", f"Turin:{'a' * 16}:1:0:0:0"),
        ("intel-tcb-info", "tdx:00806F050000"),
        ("intel-tcb-info", "tdx:00806f050000:standard"),
        ("intel-pck-crl", "root"),
        ("nvidia-rim", "NV_GPU_DRIVER_/../ids"),
        ("nvidia-rim", "ids"),
        ("nvidia-ocsp", f"{'0' * 96}:{'0' * 96}:0"),
        ("software-crl", "x"),
        ("amd-crl", "vcek:Mílan"),
    ],
)
def test_names_from_outside_are_exact(kind: str, key: str) -> None:
    with pytest.raises(MessageFormatError) as caught:
        Need.named(kind, key)
    assert caught.value.code == "unknown-collateral"
    with pytest.raises(ValueError, match="not a kind"):
        Need(kind, key)  # type: ignore[arg-type]


class Levels:
    boot_loader, tee, snp, microcode, fmc = 3, 0, 8, 115, None


def test_needs_of_snp() -> None:
    needs = snp_needs("Milan", b"\x01" * 64, Levels())
    assert [str(need)[:30] for need in needs] == [
        f"amd-vcek Milan:{'01' * 7}0",
        "amd-chain vcek:Milan",
        "amd-crl vcek:Milan",
    ]
    assert snp_needs("Turin", b"\x01" * 8 + bytes(56), Levels())[0].key == f"Turin:{'01' * 8}:3:0:8:115:0"
    assert [need.key for need in snp_needs("Genoa", bytes(64), Levels(), vek="vlek")] == ["vlek:Genoa"] * 2
    with pytest.raises(CollateralError) as caught:
        snp_needs("Milan", bytes(64), Levels())
    assert caught.value.code == "chip-not-named"
    with pytest.raises(MessageFormatError):
        snp_needs("mil an", b"\x01" * 64, Levels())
    assert merged([*needs[1:], needs[0], needs[0]])[0] == needs[0], "what waits longest is asked for first"
    assert ocsp_needs([]) == ()


@pytest.mark.parametrize(
    ("file", "product", "wanted"),
    [
        ("sev-snp/ms-tee-av/tests__test_data__turin_attestation_report.bin", None, "amd-vcek Turin:59790fb1"),
        ("sev-snp/ms-tee-av/tests__test_data__genoa_attestation_report.bin", None, "amd-vcek Genoa:b1e24a27"),
        ("sev-snp/trustee/test-report.bin", "Milan", "amd-vcek Milan:"),
        ("sev-snp/trustee/test-vlek-report.bin", None, "amd-chain vlek:Milan"),
        ("tpm/azure-cvm-tooling/hcl-report-snp.bin", "Milan", "amd-vcek Milan:"),
        ("sgx/dcap-qvl/sgx_quote", None, "intel-tcb-info sgx:00a067110000"),
        ("tdx/dcap-qvl/tdx_quote", None, "intel-tcb-info tdx:b0c06f000000"),
        ("tdx/openenclave/host_verify__data__tdx_quote_v5.bin", None, "intel-tcb-info tdx:00806f050000"),
    ],
)
def test_what_a_file_needs(file: str, product: str | None, wanted: str) -> None:
    assert str(needs_of(vector(file), product=product)[0]).startswith(wanted)


def test_what_an_envelope_needs() -> None:
    quote, need = vector("tdx/dcap-qvl/tdx_quote"), Need("nvidia-rim", "NV_GPU_DRIVER_GH100_1")
    device = DeviceEvidence(type="nvgpu", evidence=b"spdm", endorsements=(b"chain",))
    envelope = EvidenceEnvelope(type="tdx", evidence=quote, endorsements=(), devices=(device, device))
    seen: list[tuple[bytes, tuple[bytes, ...]]] = []

    def reader(evidence: bytes, endorsements: tuple[bytes, ...]) -> tuple[Need, ...]:
        seen.append((evidence, endorsements))
        return (need,)

    assert needs_of(envelope.encode()) == needs_of(envelope) == needs_of(quote)
    assert needs_of(envelope, readers={"nvgpu": reader}) == (*needs_of(quote), need)  # type: ignore[dict-item]
    assert seen == [(b"spdm", (b"chain",))] * 2
    assert needs_of(envelope, readers={"tdx": reader}) == (need,)  # type: ignore[dict-item]
    came_along = vector("sev-snp/trustee/test-vcek.der")
    report = vector("sev-snp/trustee/test-report.bin")
    envelope = EvidenceEnvelope(type="snp", evidence=report, endorsements=(came_along,))
    assert [str(one) for one in needs_of(envelope)] == ["amd-chain vcek:Milan", "amd-crl vcek:Milan"]
    with pytest.raises(EvidenceFormatError, match="neither"):
        needs_of(b"\x04\0\x02\0\x81" + bytes(70_000))


@pytest.mark.parametrize("product", ["Turin", "Genoa"])
def test_the_vcek_of_a_report_is_the_one_that_is_asked_for(product: str) -> None:
    folder = "sev-snp/ms-tee-av/tests__test_data__"
    report, pem = (
        vector(f"{folder}{product.lower()}_{name}") for name in ("attestation_report.bin", "vcek.pem")
    )
    ((_, der),) = pem_blocks(pem)
    examine(needs_of(report)[0], [der])


@given(st.binary(max_size=1300))
def test_peeking_raises_no_more_than_it_says(raw: bytes) -> None:
    for one in (raw, b"\x04\0\x02\0\x81" + raw, (b"\x03\0\0\0" + raw).ljust(1184, b"\0")[:1184]):
        with contextlib.suppress(FormatError, CollateralError):
            assert isinstance(needs_of(one), tuple)


def test_hosts_are_https_or_near() -> None:
    for url in (
        "http://kds.example",
        "ftp://127.0.0.1",
        "https://user@x",
        "https://x?y=1",
        "//x",
        "http://10.0.0.1",
    ):
        with pytest.raises(ValueError):
            Hosts(amd_kds=url)
    assert Hosts(amd_kds="http://127.0.0.1:1/").amd_kds == "http://127.0.0.1:1"
    assert all(
        getattr(VENDORS, name).startswith("https://")
        for name in Hosts.model_fields
        if name not in ("azure_imds", "intel_pccs", "service")
    )
    with pytest.raises(ValueError):
        Hosts(kds="https://x")  # type: ignore[call-arg]
