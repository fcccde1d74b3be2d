"""Azure: the paravisor's report out of the virtual TPM, on real reports, with a stand-in for TPM and host."""

from __future__ import annotations

import base64
import functools
import json
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import pytest
from tests.vector_files import vector

from sealwright.appraisal.azure import AzSnpRules
from sealwright.appraisal.binding import ConfigBinding
from sealwright.attester import imds
from sealwright.attester.azure import AzureAttester
from sealwright.attester.base import BindsConfig
from sealwright.attester.tpm.attester import AK_TEMPLATE
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError, SealwrightError, UnavailableError, VerificationError
from sealwright.evidence.azure import AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpmkey import Scheme
from sealwright.evidence.tpmwire import ALG_RSA
from sealwright.testing.azure import AzureTestPlatform, AzureTestVtpm
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.azure import VerifiedAzure
from sealwright.verify.context import Context
from sealwright.verify.evidence import verify_evidence

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
OURS = bytes(range(64))
NOT_LISTED = ("measurement", "pcr0", "pcr2", "pcr7", "pcr9", "pcr11")
FOLDER = "tpm/trustee-az/test_data__"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


class Vtpm:
    """Holds a report of somebody's, and has a key that its runtime data name; what it signs nobody checks here."""

    platform: Literal["tpm"] = "tpm"

    def __init__(self, report: bytes | None) -> None:
        self.held = report
        self.read: list[tuple[int, bool]] = []

    def nv_read(self, index: int, *, owner: bool = False) -> bytes | None:
        self.read.append((index, owner))
        return self.held

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        said = RuntimeClaims.parse(HclReport.parse(self.held or b"").runtime_data)
        modulus = said.ak_modulus.to_bytes(256, "big")
        public = replace(
            AK_TEMPLATE,
            type=ALG_RSA,
            scheme=Scheme(name="rsassa", hash="sha256"),
            curveID=0,
            keyBits=2048,
            unique=(modulus,),
        )
        evidence = replace(machine().quote(report_data.rstrip(b"\0")), ak_public=public).encode()
        return EvidenceEnvelope(type="tpm", evidence=evidence, event_log=b"log", endorsements=(b"ak",))

    def bind_config(self, config_digest: bytes) -> None:
        raise AssertionError("not asked for")

    def describe(self) -> Mapping[str, object]:
        return {}

    def close(self) -> None:
        """Let go of nothing."""


class Host:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[str, bytes | None]] = []

    def __call__(self, path: str, body: bytes | None) -> bytes:
        self.asked.append((path, body))
        return self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()


def attester(report: bytes | None, answer: object = None) -> tuple[AzureAttester, Host]:
    vtpm, host = Vtpm(report), Host(answer)
    return AzureAttester(vtpm, vtpm, host), host


def code_of(call: Callable[[], object], kind: type[SealwrightError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.stage in {"collect", "parse"}
    return caught.value.code


def snp() -> bytes:
    return vector(f"{FOLDER}az-snp-vtpm__hcl-report.bin")


def tdx() -> bytes:
    return vector(f"{FOLDER}az-tdx-vtpm__hcl-report.bin")


def td_quote() -> bytes:
    return vector(f"{FOLDER}az-tdx-vtpm__td-quote.bin")


def test_snp_has_the_report_a_quote_by_the_vtpm_and_the_hosts_certificates() -> None:
    made, host = attester(snp(), {"vcekCert": PEM, "certificateChain": PEM * 2, "tcbm": "00"})
    envelope = made.quote(OURS)
    assert made.platform == envelope.type == "az-snp-vtpm"
    evidence = AzureEvidence.parse(envelope.evidence)
    assert (evidence.hcl.encode(), evidence.td_quote) == (snp(), None)
    assert (evidence.quote.attest.extraData, evidence.quote.ak_public) == (OURS, None)
    assert (envelope.event_log, envelope.vtpm) == (b"log", None)
    assert envelope.endorsements == (PEM.encode(), PEM.encode() * 2)
    assert host.asked == [("/metadata/THIM/amd/certification", None)]


def test_tdx_asks_the_host_for_a_quote_over_the_tdreport() -> None:
    made, host = attester(tdx(), {"quote": b64url(td_quote())})
    envelope = made.quote(OURS)
    assert made.platform == envelope.type == "az-tdx-vtpm"
    evidence = AzureEvidence.parse(envelope.evidence)
    assert (evidence.hcl.encode(), evidence.td_quote, envelope.endorsements) == (tdx(), td_quote(), ())
    ((path, body),) = host.asked
    assert path == "/acc/tdquote"
    assert b64url_decode(json.loads(body or b"")["report"]) == tdx()[32 : 32 + 1024]


def test_padding_of_the_quotes_base64_is_taken_either_way() -> None:
    made, _ = attester(tdx(), {"quote": base64.urlsafe_b64encode(td_quote()).decode()})
    assert AzureEvidence.parse(made.quote(OURS).evidence).td_quote == td_quote()


def test_the_report_is_read_with_the_owners_authorisation() -> None:
    vtpm = Vtpm(snp())
    AzureAttester(vtpm, vtpm, Host(None))
    assert vtpm.read == [(0x01400001, True)]


def test_another_key_at_the_handle_is_refused_here() -> None:
    """Its quotes would be refused everywhere, and nobody could say why."""
    vtpm, other = Vtpm(snp()), Vtpm(tdx())
    made = AzureAttester(vtpm, other, Host(None))
    assert code_of(lambda: made.quote(OURS), VerificationError) == "ak-mismatch"


# From the attester to the verifier.


@functools.cache
def machine() -> AzureTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return AzureTestPlatform(NOW)


def verified(envelope: EvidenceEnvelope, machine: AzureTestPlatform, expected: bytes = OURS) -> VerifiedAzure:
    """Verify as a verifier does that has nothing but the file, AMD's CRL and a root to trust."""
    found = verify_evidence(
        EvidenceEnvelope.parse(envelope.encode()),
        expected_report_data=expected,
        context=Context(at=NOW, roots=frozenset({machine.root_fingerprint})),
        collateral=Endorsements.detect([machine.hardware.crl]),
    )
    assert isinstance(found, VerifiedAzure)
    return found


def rules(found: VerifiedAzure, **changes: object) -> AzSnpRules:
    listed = ("measurement", "pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11")
    said = {
        "registers": {name: [found.registers[name].hex()] for name in listed},
        "roots": [found.root.hex()],
        "products": {"Milan": {"minimum_tcb": {"boot_loader": 10, "tee": 1, "snp": 27, "microcode": 219}}},
        **changes,
    }
    return AzSnpRules.model_validate(said)


def test_what_the_attester_makes_is_verified_and_appraised() -> None:
    vtpm = AzureTestVtpm(machine())
    found = verified(AzureAttester(vtpm, vtpm, vtpm.http).quote(OURS), machine())
    assert (found.platform, found.report_data, found.conditions) == ("az-snp-vtpm", OURS, ())
    assert len([name for name in found.registers if name.startswith("pcr")]) == 24
    assert [str(one) for one in rules(found).failures(found)] == []
    failed = rules(found, registers={"pcr4": ["00" * 32]}, unchecked=list(NOT_LISTED)).failures(found)
    assert [one.code for one in failed] == ["measurement-not-allowed"]


def test_with_other_report_data_it_is_refused() -> None:
    vtpm = AzureTestVtpm(machine())
    envelope = AzureAttester(vtpm, vtpm, vtpm.http).quote(OURS)
    with pytest.raises(VerificationError) as caught:
        verified(envelope, machine(), OURS[::-1])
    assert (caught.value.stage, caught.value.code) == ("quote", "report-data-mismatch")


def test_the_other_type_on_the_envelope_is_refused() -> None:
    vtpm = AzureTestVtpm(machine())
    envelope = AzureAttester(vtpm, vtpm, vtpm.http).quote(OURS)
    with pytest.raises(VerificationError) as caught:
        verified(envelope.model_copy(update={"type": "az-tdx-vtpm"}), machine())
    assert caught.value.code == "type-mismatch"


def test_the_config_goes_into_pcr_8() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        vtpm = AzureTestVtpm(AzureTestPlatform(NOW))
    made, config = AzureAttester(vtpm, vtpm, vtpm.http), bytes(range(32))
    assert isinstance(made, BindsConfig)
    made.bind_config(config)
    found = verified(made.quote(OURS), vtpm.machine)
    held = ConfigBinding(register="pcr8", held=found.registers["pcr8"])
    held.check(config, stage="config")


@pytest.mark.parametrize("name", ["az-snp-vtpm__hcl-report.bin", "az-tdx-vtpm__hcl-report.bin"])
def test_real_reports_are_over_their_runtime_data(name: str) -> None:
    made, _ = attester(vector(FOLDER + name), {"vcekCert": PEM, "certificateChain": PEM})
    report = made.report()
    at = {"snp": 0x50, "tdx": 128}[report.kind]
    assert report.hardware_report[at : at + 64] == report.expected_report_data()


def test_claims_that_were_changed_are_refused() -> None:
    for raw in (snp(), tdx()):
        changed = bytearray(raw)
        changed[1240] ^= 1
        made, _ = attester(bytes(changed))
        assert code_of(lambda made=made: made.quote(OURS), VerificationError) == "report-data-mismatch"  # type: ignore[misc]


def test_a_td_quote_over_other_claims_is_refused() -> None:
    other = bytearray(td_quote())
    other[568] ^= 1
    made, _ = attester(tdx(), {"quote": b64url(bytes(other))})
    assert code_of(lambda: made.quote(OURS), VerificationError) == "report-data-mismatch"


@pytest.mark.parametrize("length", [0, 63, 65])
def test_other_lengths_are_our_callers_bug(length: int) -> None:
    made, host = attester(snp())
    with pytest.raises(ValueError, match="64 bytes"):
        made.quote(bytes(length))
    assert host.asked == []


def test_another_vm_has_no_such_index() -> None:
    assert code_of(lambda: attester(None), UnavailableError) == "tee-interface-missing"


def reshaped(at: int, value: int) -> bytes:
    raw = bytearray(vector(f"{FOLDER}az-snp-vtpm__hcl-report.bin"))
    struct.pack_into("<I", raw, at, value)
    return bytes(raw)


@pytest.mark.parametrize(
    "change",
    [(0, 0), (1216 + 8, 0), (1216 + 8, 3), (1216 + 12, 4), (1216 + 16, 5000), (1216 + 16, 0xFFFFFFFF)],
)
def test_a_report_in_another_format_is_refused(change: tuple[int, int]) -> None:
    assert code_of(lambda: attester(reshaped(*change)), EvidenceFormatError) == "malformed-hcl-report"


@pytest.mark.parametrize("length", [0, 4, 1235, 1236])
def test_a_report_of_another_length_is_refused(length: int) -> None:
    raw = snp().ljust(20000, b"\0")[:length]
    assert code_of(lambda: attester(raw), EvidenceFormatError) == "malformed-hcl-report"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        {},
        {"vcekCert": PEM},
        {"vcekCert": PEM, "certificateChain": ""},
        {"vcekCert": 1, "certificateChain": 2},
    ],
)
def test_certificates_in_another_format_are_refused(answer: object) -> None:
    made, _ = attester(snp(), answer)
    assert code_of(lambda: made.quote(OURS), EvidenceFormatError) == "malformed-imds-answer"


@pytest.mark.parametrize("answer", [b"", {}, {"quote": 1}, {"quote": "ä"}, {"quote": "A"}, {"quote": "+/"}])
def test_a_quote_in_another_format_is_refused(answer: object) -> None:
    made, _ = attester(tdx(), answer)
    assert code_of(lambda: made.quote(OURS), EvidenceFormatError) == "malformed-imds-answer"


@pytest.mark.parametrize("quote", [b"", b"\4\0", b"\3\0" + bytes(5000)])
def test_what_is_no_quote_is_refused(quote: bytes) -> None:
    made, _ = attester(tdx(), {"quote": b64url(quote)})
    assert code_of(lambda: made.quote(OURS), UnavailableError) == "tee-refused"


def test_the_metadata_service_is_asked_without_proxy_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen: list[tuple[str, str, str | None]] = []

    class Imds(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.command, self.path, self.headers["Metadata"]))
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            status = {"/gone": 404, "/moved": 302}.get(self.path, 200)
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(bytes(imds.MAX_ANSWER + 1) if self.path == "/large" else b"answer")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Imds)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(imds, "IMDS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    try:
        assert imds.imds("/x", None) == imds.imds("/y", b"{}") == b"answer"
        for path in ("/gone", "/moved", "/large"):
            assert code_of(lambda path=path: imds.imds(path, None), UnavailableError) == "imds-unreachable"  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen[:2] == [("GET", "/x", "true"), ("POST", "/y", None)]
    assert "/elsewhere" not in [path for _, path, _ in seen]
    assert code_of(lambda: imds.imds("/x", None), UnavailableError) == "imds-unreachable"


def test_it_says_what_the_paravisor_states() -> None:
    told = attester(snp())[0].describe()
    assert told["interface"] == "NV index 0x01400001"
    assert isinstance(told["vm_configuration"], dict)
    assert told["user_data"] == "00" * 64
