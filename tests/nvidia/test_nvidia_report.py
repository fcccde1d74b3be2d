"""SPDM reports and their containers: exact, bounded, and no byte of them can change unseen."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.nvidia import support
from tests.nvidia.support import NONCE, OUTAGE, RIM_TIME, nvidia
from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia import device_certificates
from sealwright.errors import EvidenceFormatError, SealwrightError
from sealwright.evidence import nvopaque
from sealwright.evidence.nvgpu import GpuDocument, GpuEvidence, parse_devices
from sealwright.evidence.nvopaque import OpaqueData
from sealwright.evidence.spdm import REQUEST_SIZE, SpdmReport
from sealwright.testing.nvgpu import ON
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.nvgpu import verify_nvgpu
from sealwright.verify.p384 import p384_key, verify_p384

HEAD = REQUEST_SIZE  # where the answer starts


def raw(architecture: str = "HOPPER") -> bytearray:
    """Return a report of a fake device."""
    return bytearray(nvidia().device(architecture).report(NONCE))


def refused(report: bytes) -> str:
    """Return the code with which a report is refused."""
    with pytest.raises(EvidenceFormatError) as caught:
        SpdmReport.parse(bytes(report))
    return caught.value.code


@pytest.mark.parametrize("architecture", ["HOPPER", "BLACKWELL", "LS10"])
def test_a_report_is_read_and_written_as_it_is(architecture: str) -> None:
    report = bytes(raw(architecture))
    parsed = SpdmReport.parse(report + bytes(3))
    assert parsed.request_nonce == NONCE
    assert parsed.padding == 3
    assert parsed.encode() == report + bytes(3)
    assert parsed.signed + parsed.signature == report


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(0, 0x12, id="another SPDM version"),
        pytest.param(1, 0xE1, id="another request"),
        pytest.param(2, 0x00, id="without signature"),
        pytest.param(3, 0x01, id="one measurement only"),
        pytest.param(36, 0x08, id="reserved bits of the slot"),
        pytest.param(36, 0x01, id="answered from another slot"),
        pytest.param(HEAD, 0x12, id="answer of another version"),
        pytest.param(HEAD + 1, 0x7F, id="an error instead of an answer"),
        pytest.param(HEAD + 2, 0x01, id="Param1"),
        pytest.param(HEAD + 3, 0x10, id="Param2"),
        pytest.param(HEAD + 4, 0, id="no blocks"),
        pytest.param(HEAD + 4, 63, id="fewer blocks than the record holds"),
        pytest.param(HEAD + 4, 65, id="more blocks than the record holds"),
        pytest.param(HEAD + 5, 0xFF, id="a longer record"),
        pytest.param(HEAD + 7, 0xFF, id="a record longer than the report"),
        pytest.param(HEAD + 8, 2, id="an index twice"),
        pytest.param(HEAD + 8, 0, id="index 0"),
        pytest.param(HEAD + 9, 2, id="another measurement specification"),
        pytest.param(HEAD + 10, 52, id="a block longer than its value"),
        pytest.param(HEAD + 12, 5, id="an unknown value type"),
        pytest.param(HEAD + 13, 49, id="a value longer than its block"),
    ],
)
def test_a_malformed_report(offset: int, value: int) -> None:
    report = raw()
    report[offset] = value
    assert refused(report) == "malformed-report"


def test_a_report_that_is_cut_off_anywhere_is_refused() -> None:
    report = bytes(raw("LS10"))
    for size in range(len(report)):
        with pytest.raises(EvidenceFormatError):
            SpdmReport.parse(report[:size])


def test_truncated_opaque_data_is_refused() -> None:
    device = nvidia().device()
    whole = device.report(NONCE)
    opaque = sum(4 + len(value) for value in device.opaque.values())
    at = len(whole) - 96 - opaque - 2  # where OpaqueLength stands
    whole_fields = list(accumulate((4 + len(value) for value in device.opaque.values()), initial=0))
    for left_out in range(1, opaque):
        said = (
            whole[:at]
            + (opaque - left_out).to_bytes(2, "little")
            + whole[at + 2 : at + 2 + opaque - left_out]
        )
        if opaque - left_out in whole_fields:  # cut between two fields: a shorter list, and signed as such
            assert len(SpdmReport.parse(device.sign(said)).opaque) == whole_fields.index(opaque - left_out)
        else:
            assert refused(device.sign(said)) == "malformed-report"


def test_an_opaque_field_that_stands_twice_and_bytes_behind_the_signature_are_refused() -> None:
    device = nvidia().device()
    twice = device.report(NONCE)
    opaque = sum(4 + len(value) for value in device.opaque.values())
    at = len(twice) - 96 - opaque - 2
    field = b"\x03\0\x01\x001"
    said = twice[:at] + (opaque + 5).to_bytes(2, "little") + twice[at + 2 : -96] + field
    assert refused(device.sign(said)) == "malformed-report"
    assert refused(twice + b"\0\1") == "malformed-report"
    assert refused(b"") == "wrong-length"
    assert refused(twice + bytes(8192)) == "wrong-length"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (nvopaque.DRIVER_VERSION, b"550.90\n\0"),
        (nvopaque.DRIVER_VERSION, b"latest"),
        (nvopaque.VBIOS_VERSION, bytes(7)),
        (nvopaque.VBIOS_VERSION, b"\0\x9f\0\x96\1\1\0\0"),
        (nvopaque.FWID, bytes(47)),
        (nvopaque.NVDEC0_STATUS, b"\x54"),
        (nvopaque.PROTECTED_PCIE_STATUS, b"\xaa\xaa"),
        (nvopaque.FEATURE_FLAG, b""),
        (nvopaque.FEATURE_FLAG, bytes(9)),
        (nvopaque.MSRSCNT, bytes(6)),
        (nvopaque.PDI, bytes(15)),
        (nvopaque.PROJECT, b"\xff"),
        (nvopaque.CHIP_INFO, b"x" * 64),
    ],
)
def test_a_malformed_opaque_field(kind: int, value: bytes) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        OpaqueData.parse({**nvidia().device().opaque, kind: value}, switch=False)
    assert caught.value.code == "malformed-report"


@pytest.mark.parametrize(
    ("flag", "status", "mode"),
    [
        (None, None, "unstated"),
        (None, b"\x55", "spt"),
        (None, ON, "ppcie"),
        (b"\0\0", b"\x55", "spt"),
        (b"\1\0", b"\x55", "mpt"),
        (b"\1", None, "mpt"),
        (b"\2\0", ON, "ppcie"),
        (b"\2\0", b"\x55", None),
        (b"\0\0", ON, None),
        (b"\3\0", None, None),
    ],
)
def test_the_mode(flag: bytes | None, status: bytes | None, mode: str | None) -> None:
    fields = {**nvidia().device().opaque, nvopaque.FEATURE_FLAG: flag, nvopaque.PROTECTED_PCIE_STATUS: status}
    said = {kind: value for kind, value in fields.items() if value is not None}
    assert OpaqueData.parse(said, switch=False).mode == mode


def _flips(report: bytes, accept: Callable[[bytes], object]) -> list[int]:
    """Return the offsets whose change is accepted."""
    accepted = []
    for offset in range(len(report)):
        flipped = bytearray(report)
        flipped[offset] ^= 1 << offset % 8
        try:
            accept(bytes(flipped))
        except (SealwrightError, InvalidSignature):
            continue
        accepted.append(offset)
    return accepted


def test_no_byte_of_a_hopper_report_can_change() -> None:
    """Every byte is in the request, the signed answer or the signature: none lies outside."""
    evidence, endorsements = support.bare(support.HOPPER_REPORT, support.HOPPER_CHAIN)
    key = p384_key(device_certificates(evidence, endorsements)[0], stage="signature")

    def accept(report: bytes) -> None:
        parsed = SpdmReport.parse(report)
        verify_p384(key, parsed.signature, parsed.signed)

    assert _flips(evidence.report.encode(), accept) == []


def test_no_byte_of_a_switch_report_can_change() -> None:
    (evidence,) = parse_devices(vector(support.SWITCH))
    context = Context(at=RIM_TIME, outage=OUTAGE, work=WorkCache())

    def accept(report: bytes) -> None:
        changed = GpuEvidence(
            unverified_arch="LS10", report=SpdmReport.parse(report), certificates=evidence.certificates
        )
        nonce = evidence.report.request_nonce
        verify_nvgpu(changed, Endorsements(), expected_nonce=nonce, context=context)

    assert _flips(evidence.report.encode(), accept) == []


def test_no_byte_of_the_chain_can_change_but_the_roots() -> None:
    """The root that comes along is passed over: the pinned one counts. Its bytes are the only ones outside."""
    (evidence,) = parse_devices(vector(support.SWITCH))
    chain = Endorsements.detect(evidence.certificates).certificates
    ders = [one.public_bytes(Encoding.DER) for one in chain]
    context = Context(at=RIM_TIME, outage=OUTAGE, work=WorkCache())

    def accept(number: int) -> Callable[[bytes], object]:
        def with_changed(der: bytes) -> None:
            changed = GpuEvidence(
                unverified_arch="LS10",
                report=evidence.report,
                certificates=(*ders[:number], der, *ders[number + 1 :]),
            )
            nonce = evidence.report.request_nonce
            verify_nvgpu(changed, Endorsements(), expected_nonce=nonce, context=context)

        return with_changed

    for number in range(4):
        assert _flips(ders[number], accept(number)) == []
    assert _flips(ders[4], accept(4))  # outside


@given(st.binary(max_size=300))
def test_parsers_raise_their_own_error_only(data: bytes) -> None:
    for start in (b"", bytes(raw("LS10")[:HEAD]), bytes(raw("LS10")[: HEAD + 8]), b"[", b"{"):
        with pytest.raises(EvidenceFormatError):
            parse_devices(start + data)


@given(st.dictionaries(st.integers(0, 40), st.binary(max_size=70), max_size=12), st.booleans())
def test_opaque_data_raises_its_own_error_only(fields: dict[int, bytes], switch: bool) -> None:
    with suppress(EvidenceFormatError):
        OpaqueData.parse({**nvidia().device().opaque, **fields}, switch=switch)


@given(st.integers(0, 40), st.binary(max_size=20), st.integers(1, 64))
def test_a_report_with_any_opaque_field_and_number_of_blocks(kind: int, value: bytes, blocks: int) -> None:
    device = nvidia().device()
    device.opaque[kind] = value
    device.measurements = {index: bytes([index]) * 48 for index in range(blocks)}
    report = device.report(NONCE)
    parsed = SpdmReport.parse(report)
    assert parsed.encode() == report
    assert parsed.opaque[kind] == value
    assert [one.index for one in parsed.measurements] == list(range(1, blocks + 1))


def test_our_document_and_the_sdk_list_and_bare_reports_hold_the_same() -> None:
    device = nvidia().device()
    report = device.report(NONCE)
    chain = tuple(one.public_bytes(Encoding.DER) for one in device.entity.chain)
    document = GpuDocument(arch="HOPPER", report=report, certificates=chain)
    assert GpuEvidence.parse(document.encode()).certificates == chain
    forms = [document.encode(), report, report.hex().encode() + b"\n", base64.b64encode(report)]
    assert {GpuEvidence.parse(form).report.encode() for form in forms} == {report}
    (listed,) = parse_devices(json.dumps([device.sdk(NONCE)]).encode())
    assert listed.unverified_arch == "HOPPER"
    assert x509.load_pem_x509_certificates(listed.certificates[0]) == device.entity.chain


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"arch": "AMPERE"}, "malformed-evidence"),
        ({"arch": ["HOPPER"]}, "malformed-evidence"),
        ({"nonce": "00" * 32}, "malformed-evidence"),
        ({"nonce": None}, "malformed-evidence"),
        ({"evidence": "*"}, "malformed-base64"),
        ({"evidence": ""}, "wrong-length"),
        ({"certificate": base64.b64encode(bytes(16385)).decode()}, "wrong-length"),
    ],
)
def test_a_malformed_list(changes: dict[str, object], code: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_devices(json.dumps([nvidia().device().sdk(NONCE) | changes]).encode())
    assert caught.value.code == code


def test_lists_of_no_device_too_many_or_more_than_one_where_one_is_wanted() -> None:
    one = nvidia().device().sdk(NONCE)
    for said, read in (([], parse_devices), ([one] * 33, parse_devices), ([one, one], GpuEvidence.parse)):
        with pytest.raises(EvidenceFormatError) as caught:
            read(json.dumps(said).encode())
        assert caught.value.code == "count-of-devices"
    for said in ([{}], ["x"], [{**one, "nonce": 1}]):
        with pytest.raises(EvidenceFormatError) as caught:
            parse_devices(json.dumps(said).encode())
        assert caught.value.code == "malformed-evidence"
