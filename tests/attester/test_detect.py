"""What a machine is, from what is to be seen of it: laid-out machines, and what is missing on each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from sealwright.attester import local
from sealwright.attester.azure import AzureAttester, machine_report
from sealwright.attester.base import BindsConfig
from sealwright.attester.detect import Detected, detect
from sealwright.attester.local import AZURE, PLATFORMS, TEES, AttesterSpec, WithVtpm, local_attester
from sealwright.attester.machine import Machine
from sealwright.attester.tpm.attester import TpmAttester
from sealwright.errors import UnavailableError
from sealwright.evidence.azure import HclReport
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.azure import AzureTestPlatform, AzureTestVtpm
from sealwright.testing.machines import MACHINES, TSM, lay_out
from sealwright.testing.software import FakePlatformWarning

REPORTS = "sys/kernel/config/tsm/report"


def laid(root: Path, files: Mapping[str, str], **kw: Any) -> Machine:
    with pytest.warns(FakePlatformWarning):
        return lay_out(root, files, **kw)


def seen(root: Path, name: str, **kw: Any) -> Detected:
    return detect(laid(root, MACHINES[name], **kw))


@pytest.mark.parametrize(
    ("name", "platforms", "cloud", "virtual"),
    [
        ("azure snp", ["tpm"], "azure", True),
        ("azure vm", ["tpm"], "azure", True),
        ("gcp tdx", ["tdx", "tpm"], "gcp", True),
        ("gcp snp", ["snp", "tpm"], "gcp", True),
        ("ec2 snp", ["snp"], "aws", True),
        ("qemu snp", ["snp"], "", True),
        ("snp host", [], "", False),
        ("nitro enclave", ["nitro"], "", True),
        ("ec2 with nitro tpm", ["tpm"], "aws", True),
        ("gramine", ["sgx"], "", False),
        ("sgx host", [], "", False),
        ("plain vm", [], "", True),
        ("laptop", ["tpm"], "", False),
        ("gpu box", [], "", False),
    ],
)
def test_each_machine_is_what_it_is(
    tmp_path: Path, name: str, platforms: list[str], cloud: str, virtual: bool
) -> None:
    found = seen(tmp_path, name)
    assert [candidate.platform for candidate in found.candidates] == platforms
    assert (found.cloud, found.virtual) == (cloud, virtual)
    assert all(candidate.ready and candidate.reasons for candidate in found.candidates)
    assert found.gpus == (("0000:01:00.0",) if name == "gpu box" else ())
    if platforms:
        assert found.choose() == platforms[0]


def test_every_machine_of_the_fakes_is_in_the_table_above() -> None:
    (mark,) = test_each_machine_is_what_it_is.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for row in mark.args[1]} == set(MACHINES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("snp host", "not a guest"), ("sgx host", "gramine-sgx"), ("plain vm", "no hardware evidence")],
)
def test_where_there_is_none_the_refusal_says_what_is_nearest(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UnavailableError, match=hint) as caught:
        seen(tmp_path, name).choose()
    assert caught.value.code == "no-attester"


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_azure_is_known_by_what_its_tpm_holds(tmp_path: Path, kind: Literal["snp", "tdx"]) -> None:
    machine = laid(tmp_path, MACHINES["azure snp"])
    report = HclReport(
        version=2, kind=kind, hash_name="sha256", hardware_report=b"", runtime_data=b"", padding=0
    )
    assert detect(machine, hcl=lambda: report).choose() == f"az-{kind}-vtpm"
    plain = detect(machine, hcl=lambda: None)
    assert ([c.platform for c in plain.candidates], plain.notes) == (["tpm"], ())
    assert "0x01400001" in detect(machine).notes[0].mend


def test_a_tpm_elsewhere_is_not_asked_for_azures_report(tmp_path: Path) -> None:
    def never() -> None:
        raise AssertionError("asked")

    assert detect(laid(tmp_path, MACHINES["laptop"]), hcl=never).choose() == "tpm"


MENDS = [
    ("qemu snp", {"kernel": "6.6.30"}, "boot a kernel 6.7 or later"),
    ("gcp tdx", {"kernel": "5.15.0-1060-gcp"}, "boot a kernel 6.7 or later"),
    ("qemu snp", {"closed": [REPORTS]}, "run the command as root: only root can read reports"),
    ("gcp tdx", {"closed": [REPORTS]}, "run the command as root: only root can read reports"),
    ("nitro enclave", {"closed": ["dev/nsm"]}, "run as root in the enclave"),
    ("laptop", {"closed": ["dev/tpmrm0"]}, "sudo usermod -aG tss $USER, and log in again"),
]


@pytest.mark.parametrize(("name", "change", "mend"), MENDS)
def test_what_is_missing_comes_with_what_mends_it(
    tmp_path: Path, name: str, change: dict[str, Any], mend: str
) -> None:
    found = seen(tmp_path, name, **change)
    assert [problem.mend for problem in found.candidates[0].problems] == [mend]
    with pytest.raises(UnavailableError) as caught:
        found.choose()
    assert caught.value.code == "attester-not-ready"
    assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        ({"flags": "hypervisor sev_snp", **TSM}, "sudo modprobe sev-guest"),
        ({"flags": "hypervisor tdx_guest", **TSM}, "sudo modprobe tdx-guest"),
        ({"dev/sev-guest": "", "sys/kernel/config/": ""}, "sudo mount -t configfs none /sys/kernel/config"),
        (
            {"dev/sev-guest": "", "sys/kernel/config/usb_gadget/": ""},
            "boot a kernel with CONFIG_TSM_REPORTS=y, or: sudo modprobe tsm_report",
        ),
        (
            {"dev/attestation/attestation_type": "epid"},
            'set sgx.remote_attestation = "dcap" in the manifest and sign it again',
        ),
        (
            {"dev/tpmrm0": "", "sys/class/tpm/tpm0/tpm_version_major": "1"},
            "switch it to TPM 2.0 in the firmware setup",
        ),
        ({"sys/class/tpm/tpm0/tpm_version_major": "2"}, "boot a kernel with CONFIG_TCG_TPM=y, 4.12 or later"),
    ],
)
def test_half_of_an_interface_is_found_with_its_mend(
    tmp_path: Path, files: dict[str, str], mend: str
) -> None:
    (candidate,) = detect(laid(tmp_path, files)).candidates
    assert [problem.mend for problem in candidate.problems] == [mend]


def test_a_weaker_platform_is_not_taken_for_one_that_is_not_ready(tmp_path: Path) -> None:
    """A guest whose report interface is closed must not pass as a machine with just a TPM."""
    found = seen(tmp_path, "gcp snp", closed=[REPORTS])
    assert [(c.platform, c.ready) for c in found.candidates] == [("snp", False), ("tpm", True)]
    with pytest.raises(UnavailableError, match="platform snp is here"):
        found.choose()


def test_a_virtual_tpm_is_named_as_the_hosts(tmp_path: Path) -> None:
    assert "the host's" in seen(tmp_path / "a", "ec2 with nitro tpm").candidates[0].reasons[0]
    assert "the host's" not in seen(tmp_path / "b", "laptop").candidates[0].reasons[0]


def test_this_machine_can_be_looked_at() -> None:
    assert detect().candidates == detect().candidates
    assert Machine().kernel() >= (4, 0)


@pytest.mark.parametrize(
    "cpuinfo",
    ["", "flags", "flags : ", "flags\t\t: sev_snp\x00hypervisor", "Features : fp asimd", "\xff" * 99],
)
def test_odd_files_conclude_nothing(tmp_path: Path, cpuinfo: str) -> None:
    machine = laid(tmp_path, {})
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo, "latin-1")
    (tmp_path / "proc/sys/kernel/osrelease").write_text("unknown")
    (tmp_path / "sys/bus/pci").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices").write_text("a file where a folder is")
    assert detect(machine).candidates == ()


def test_each_attester_is_of_its_platform() -> None:
    for platform in TEES:
        assert local_attester(platform).platform == platform
    for platform in ("software", "cca", ""):
        with pytest.raises(UnavailableError) as caught:
            local_attester(platform)
        assert caught.value.code == "no-attester"


def test_a_spec_is_told_whole_to_another_process() -> None:
    spec = AttesterSpec.named("snp:unix:/tpm", [b"ak"], vtpm=True, event_log=True)
    assert (spec.platform, spec.address, spec.endorsements) == ("snp", "unix:/tpm", (b"ak",))
    assert AttesterSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert {AttesterSpec.named(one).platform for one in PLATFORMS} == set(PLATFORMS)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("snp:unix:/tpm", {}),
        ("snp", {"endorsements": [b"vcek"]}),
        ("az-snp-vtpm", {"endorsements": [b"ak"]}),
        ("tpm", {"vtpm": True}),
        ("nitro", {"vtpm": True}),
        ("az-tdx-vtpm", {"vtpm": True}),
    ],
)
def test_a_spec_with_what_does_not_belong_to_its_platform(text: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"goe?s? along with|has an address"):
        AttesterSpec.named(text, **options)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stand in for the TPM of an Azure SNP machine; returns what was opened, with the event log."""
    opened: list[tuple[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        vtpm = AzureTestVtpm(AzureTestPlatform(datetime(2025, 6, 1, tzinfo=UTC)))

    def opening(address: str, *, event_log: Path | None) -> AzureAttester:
        opened.append((address, event_log))
        return AzureAttester(vtpm, vtpm, vtpm.http)

    monkeypatch.setattr(AzureAttester, "open", opening)
    return opened


def test_azures_attester_opens_the_machines_tpm(azure: list[tuple[str, Any]]) -> None:
    assert AttesterSpec.named("az-snp-vtpm").open().platform == "az-snp-vtpm"
    assert AttesterSpec.named("az-snp-vtpm:unix:/tpm", event_log=True).open().platform == "az-snp-vtpm"
    assert azure == [("/dev/tpmrm0", None), ("unix:/tpm", None)]


def test_azures_other_platform_is_refused(azure: list[tuple[str, Any]]) -> None:
    with pytest.raises(UnavailableError) as caught:
        AttesterSpec.named(AZURE[1]).open()
    assert caught.value.code == "tee-provider"


@pytest.mark.parametrize("platform", ["snp", "tdx"])
def test_a_vtpm_beside_a_tee_is_opened_when_asked_for(
    platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Any] = []
    log = tmp_path / "log"
    log.write_bytes(b"log")

    def opening(address: str, **options: Any) -> Source:
        opened.append((address, options["endorsements"], options["event_log"]))
        return Source("tpm")

    monkeypatch.setattr(TpmAttester, "open", opening)
    monkeypatch.setattr(local, "EVENT_LOG", log)
    assert not isinstance(AttesterSpec.named(platform).open(), WithVtpm)
    assert isinstance(AttesterSpec.named(platform, [b"ak"], vtpm=True).open(), WithVtpm)
    AttesterSpec.named(platform, vtpm=True, event_log=True).open()
    AttesterSpec.named(f"{platform}:unix:/tpm", vtpm=True, event_log=True).open()  # whose log nobody knows
    machine = "/dev/tpmrm0"
    assert opened == [(machine, (b"ak",), None), (machine, (), log), ("unix:/tpm", (), None)]


class Source:
    def __init__(self, platform: Literal["snp", "tpm"]) -> None:
        self.platform = platform
        self.note = f"note of {platform}"
        self.bound: list[bytes] = []

    def bind_config(self, config_digest: bytes) -> None:
        self.bound.append(config_digest)

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        return EvidenceEnvelope(
            type=self.platform, evidence=report_data, event_log=b"log", endorsements=(b"e",)
        )

    def describe(self) -> Mapping[str, object]:
        return {"interface": self.platform}


def test_a_tee_and_the_providers_tpm_quote_the_same_report_data() -> None:
    both = WithVtpm(Source("snp"), Source("tpm"))
    data = bytes(range(64))
    envelope = both.quote(data)
    assert (both.platform, envelope.type, envelope.evidence) == ("snp", "snp", data)
    assert envelope.vtpm is not None
    assert (envelope.vtpm.evidence, envelope.vtpm.event_log, envelope.vtpm.endorsements) == (
        data,
        b"log",
        (b"e",),
    )
    assert EvidenceEnvelope.parse(envelope.encode()) == envelope
    assert both.describe() == {"interface": "snp", "vtpm": {"interface": "tpm"}}
    with pytest.raises(ValueError, match="64 bytes"):
        both.quote(bytes(63))


def test_a_config_is_bound_in_both_and_the_tees_note_is_shown() -> None:
    tee, vtpm = Source("snp"), Source("tpm")
    both = WithVtpm(tee, vtpm)
    assert isinstance(both, BindsConfig)
    both.bind_config(bytes(32))
    assert (tee.bound, vtpm.bound, both.note) == ([bytes(32)], [bytes(32)], "note of snp")


def test_without_a_tpm_there_is_no_paravisors_report(tmp_path: Path) -> None:
    assert machine_report(str(tmp_path / "tpmrm0")) is None
