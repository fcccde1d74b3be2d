"""`sealwright attest --local`: evidence of this machine into a file, or a refusal that says what mends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from sealwright.attester import local
from sealwright.attester.azure import AzureAttester
from sealwright.attester.detect import detect
from sealwright.attester.snp import SnpAttester
from sealwright.attester.tpm.attester import TpmAttester
from sealwright.attester.tsm import TsmReports
from sealwright.cli import _local, main
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.azure import AzureTestPlatform, AzureTestVtpm
from sealwright.testing.machines import MACHINES, lay_out
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.tpm import TpmTestPlatform
from sealwright.testing.tsm import FakeConfigfs, Options, SevGuest

pytestmark = pytest.mark.filterwarnings("ignore::sealwright.testing.software.FakePlatformWarning")


class Source:
    platform: Literal["snp"] = "snp"
    note = ""

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        return EvidenceEnvelope(type="snp", evidence=b"report" + report_data, endorsements=(b"vcek",))

    def describe(self) -> Mapping[str, object]:
        return {}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GCP SNP guest; returns the platforms whose attester was asked for."""
    laid = lay_out(tmp_path / "machine", MACHINES["gcp snp"])
    asked: list[str] = []

    def attester() -> Source:
        asked.append("snp")
        return Source()

    monkeypatch.setattr(_local, "detect", partial(detect, laid))
    monkeypatch.setattr(local, "TEES", {"snp": attester})
    return asked


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main(["attest", "--local", "--json", *map(str, arguments)])
    said = capsys.readouterr().out
    return code, json.loads(said) if said else None


def test_the_file_is_an_envelope_over_the_data_that_was_given(
    machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "evidence.json", bytes(range(64))
    code, said = run(capsys, "--report-data", data.hex(), "--out", out)
    assert (code, machine) == (0, ["snp"])
    assert EvidenceEnvelope.parse(out.read_bytes()).evidence == b"report" + data
    assert next(iter(said)) == "confidential"
    assert (said["confidential"], said["verified"], said["platform"]) == (False, False, "snp")
    assert (said["report_data"], said["evidence"], said["event_log"], said["endorsements"]) == (
        data.hex(),
        70,
        None,
        1,
    )


def test_a_nonce_is_padded_and_without_either_the_data_is_fresh(
    machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence.json"
    assert run(capsys, "--nonce", "ab" * 32, "--out", out)[1]["report_data"] == "ab" * 32 + "00" * 32
    first, second = (run(capsys, "--out", out)[1]["report_data"] for _ in range(2))
    assert first != second
    assert len(first) == 128


def test_a_person_is_told_how_to_verify(
    machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attest", "--local", "--platform", "snp", "--out", str(tmp_path / "e.json")]) == 0
    said = capsys.readouterr().out
    assert "verified      False" in said
    assert f"sealwright verify {tmp_path / 'e.json'} --report-data " in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "e", "--url", "http://127.0.0.1:1"],
        ["--out", "e", "--tenant", "t"],
        ["--out", "e", "--report-data", "00" * 63],
        ["--out", "e", "--report-data", "00" * 64, "--nonce", "00" * 32],
        ["--out", "e", "--nonce", ""],
        ["--out", "e", "--nonce", "00" * 15],
        ["--out", "e", "--nonce", "00" * 65],
        ["--out", "e", "--nonce", "0G"],
        ["--out", "e", "--nonce", "00" * 32],
        ["--out", "e", "--report-data", "00" * 64],
        ["--out", "e", "--platform", "snp:/dev/tpmrm0"],
        ["--out", "e", "--platform", "tpm", "--vtpm"],
        ["--out", "e", "--endorsement", __file__],
        ["--out", "e", "--endorsement", "none.der"],
    ],
)
def test_usage(
    arguments: list[str],
    machine: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *arguments)[0] == 2
    assert (machine, (tmp_path / "e").exists()) == ([], False)


@pytest.mark.parametrize(
    "option",
    [
        ["--platform", "snp"],
        ["--vtpm"],
        ["--endorsement", __file__],
        ["--nonce", "00" * 32],
        ["--report-data", "00" * 64],
        [],
    ],
)
def test_what_goes_with_local_goes_with_nothing_else(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", "http://127.0.0.1:1", "--tenant", "t"] if option else []
    assert main(["attest", *url, *option]) == 2


def test_a_machine_without_a_tee_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_local, "detect", partial(detect, lay_out(tmp_path, MACHINES["plain vm"])))
    code, said = run(capsys, "--out", tmp_path / "e")
    assert (code, said["error"]["code"]) == (69, "no-attester")
    code, said = run(capsys, "--platform", "cca", "--out", tmp_path / "e")
    assert (code, said["error"]["code"]) == (69, "no-attester")
    assert not (tmp_path / "e").exists()


def test_a_file_that_cannot_be_written_is_named(
    machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(capsys, "--out", tmp_path / "none" / "e")
    assert (code, said["error"]["code"]) == (65, "unwritable-file")


# What was collected is verified: `attest --local`, then `verify` of the file.

DATA = bytes(range(1, 65))
FLOOR = {"boot_loader": 10, "tee": 1, "snp": 27, "microcode": 219}


class Signing(SevGuest):
    """A guest driver whose reports are signed, with the host's certificate table."""

    def __init__(self, machine: SnpTestPlatform, table: bytes) -> None:
        super().__init__(auxblob=table)
        self.machine = machine

    def report_new(self, options: Options) -> tuple[bytes, bytes]:
        return self.machine.report(options.inblob, vmpl=options.privlevel), self.auxblob


class FakeTpm:
    """A TPM's attester whose key is in this process."""

    platform: Literal["tpm"] = "tpm"

    def __init__(self, machine: TpmTestPlatform) -> None:
        self.machine = machine
        self.closed = False

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        return self.machine.envelope(report_data)

    def describe(self) -> Mapping[str, object]:
        return {}

    def close(self) -> None:
        self.closed = True


def policy(path: Path, **platforms: Any) -> Path:
    now = datetime.now(UTC)
    said = {
        "format": "sealwright-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(now - timedelta(hours=1)),
        "expires": rfc3339(now + timedelta(hours=1)),
        "platforms": {name.replace("_", "-"): rules for name, rules in platforms.items()},
        "config": {"brokers": [b64url(bytes(32))], "log_keys": ["log.test/one+b0f29b1a+AQ" + "A" * 42]},
    }
    path.write_text(json.dumps(said))
    return path


def judged(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main(["verify", *map(str, arguments), "--report-data", DATA.hex(), "--json"])
    return code, json.loads(capsys.readouterr().out)


def snp_rules(machine: SnpTestPlatform) -> dict[str, Any]:
    return {
        "roots": [machine.root_fingerprint.hex()],
        "products": {machine.product: {"minimum_tcb": FLOOR}},
        "registers": {"measurement": ["00" * 48], "host_data": ["00" * 32]},
    }


def tpm_rules(machine: TpmTestPlatform) -> dict[str, Any]:
    return {
        "tpm": "provider",
        "minimum_firmware": "2019000000000000",
        "unchecked": ["pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11"],
        "roots": [machine.root_fingerprint.hex()],
    }


def use_snp(monkeypatch: pytest.MonkeyPatch, table: bytes | None = None) -> SnpTestPlatform:
    machine = SnpTestPlatform(datetime.now(UTC))
    driver = Signing(machine, machine.table().encode() if table is None else table)
    monkeypatch.setattr(local, "TEES", {"snp": lambda: SnpAttester(TsmReports(FakeConfigfs(driver)))})
    return machine


def use_tpm(monkeypatch: pytest.MonkeyPatch) -> FakeTpm:
    fake = FakeTpm(TpmTestPlatform(datetime.now(UTC)))
    monkeypatch.setattr(TpmAttester, "open", lambda *_, **__: fake)
    return fake


def test_snp_with_the_providers_tpm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, machine, tpm = tmp_path / "e.json", use_snp(monkeypatch), use_tpm(monkeypatch)
    code, said = run(capsys, "--platform", "snp", "--vtpm", "--report-data", DATA.hex(), "--out", out)
    assert (code, said["platform"], said["vtpm"], tpm.closed) == (0, "snp", True, True)
    rules = policy(tmp_path / "p", snp=snp_rules(machine), vtpm=tpm_rules(tpm.machine))
    crl = tmp_path / "crl"
    crl.write_bytes(machine.crl)
    code, said = judged(capsys, out, "--policy", rules, "--endorsements", crl)
    assert (code, said["allowed"], sorted(said["parts"])) == (0, True, ["cpu0", "vtpm0"])
    assert run(capsys, "--platform", "snp", "--report-data", DATA.hex(), "--out", out)[1]["vtpm"] is False
    code, said = judged(capsys, out, "--policy", rules, "--endorsements", crl)
    assert (code, said["error"]["code"]) == (11, "vtpm-missing")


def test_a_sloppy_hosts_table_is_said_and_its_file_verifies_with_certificates_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, machine = tmp_path / "e.json", use_snp(monkeypatch, b"\x01" * 64)
    assert main(["attest", "--local", "--platform", "snp", "--report-data", DATA.hex(), "-o", str(out)]) == 0
    assert "[malformed-certificate-table]" in capsys.readouterr().err
    rules = policy(tmp_path / "p", snp=snp_rules(machine))
    assert judged(capsys, out, "--policy", rules)[1]["error"]["code"] == "vek-missing"
    folder = tmp_path / "collateral"
    folder.mkdir()
    for number, blob in enumerate(machine.endorsements()):
        (folder / str(number)).write_bytes(blob)
    assert judged(capsys, out, "--policy", rules, "--endorsements", folder)[0] == 0


def test_tpm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, tpm = tmp_path / "e.json", use_tpm(monkeypatch)
    laid = lay_out(tmp_path / "machine", MACHINES["laptop"])
    monkeypatch.setattr(_local, "detect", partial(detect, laid))
    code, said = run(capsys, "--report-data", DATA.hex(), "--out", out)
    assert (code, said["platform"], tpm.closed) == (0, "tpm", True)
    code, said = judged(capsys, out, "--policy", policy(tmp_path / "p", tpm=tpm_rules(tpm.machine)))
    assert (code, said["allowed"], said["fresh"]) == (0, True, True)


def test_azure_is_found_and_its_file_verifies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = AzureTestPlatform(datetime.now(UTC))
    vtpm, out, crl = AzureTestVtpm(machine), tmp_path / "e.json", tmp_path / "crl"
    crl.write_bytes(machine.hardware.crl)
    laid = lay_out(tmp_path / "machine", MACHINES["azure snp"])
    monkeypatch.setattr(_local, "detect", partial(detect, laid))
    monkeypatch.setattr(_local, "machine_report", lambda _: machine.hcl())
    monkeypatch.setattr(AzureAttester, "open", lambda *_, **__: AzureAttester(vtpm, vtpm, vtpm.http))
    code, said = run(capsys, "--report-data", DATA.hex(), "--out", out)
    assert (code, said["platform"], said["endorsements"]) == (0, "az-snp-vtpm", 2)
    rules = {
        "roots": [machine.root_fingerprint.hex()],
        "products": {"Milan": {"minimum_tcb": FLOOR}},
        "unchecked": ["measurement", "pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11"],
    }
    admitted = policy(tmp_path / "p", az_snp_vtpm=rules)
    code, said = judged(capsys, out, "--policy", admitted, "--endorsements", crl)
    assert (code, said["type"], said["allowed"]) == (0, "az-snp-vtpm", True)
    code, said = judged(capsys, out, "--policy", admitted)
    assert (code, said["error"]["code"]) == (12, "collateral-missing")
