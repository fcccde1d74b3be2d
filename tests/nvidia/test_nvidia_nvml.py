"""Collection through NVML, against a library with NVML's names, structures and results, compiled from C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.nvidia.support import NONCE, context, nvidia

from sealwright.attester import nvml
from sealwright.attester.nvml import collect_gpus
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import UnavailableError
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.testing.nvgpu import FakeDevice
from sealwright.verify.nvgpu_devices import verify_devices

SOURCE = Path(__file__).parent / "fake_nvml.c"
ATTEST = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_ubyte), ctypes.POINTER(ctypes.c_ubyte)
)
RESULTS = ("init", "settings", "state", "count", "handle", "architecture", "certificate", "report")
SAID = ("environment", "ccFeature", "devToolsMode", "multiGpuMode", "devices", "arch", "chainSize")


class Fake(ctypes.Structure):
    """`struct fake` of fake_nvml.c."""

    _fields_ = (
        *((name, ctypes.c_int) for name in RESULTS),
        *((name, ctypes.c_uint) for name in SAID),
        ("chain", ctypes.c_ubyte * 0x1400),
        ("attest", ATTEST),
    )


class Machine:
    """The fake library with devices of the fake NVIDIA in it; `set` changes what it answers."""

    def __init__(self, path: Path, devices: list[FakeDevice]) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)
        self.fake = Fake.in_dll(self.library, "fake")
        ctypes.memset(ctypes.byref(self.fake), 0, ctypes.sizeof(self.fake))
        self._attest = ATTEST(self._report)  # kept, for C calls it later
        self.devices = devices
        self.reports = [device.report for device in devices]
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in devices[0].entity.chain)
        self.fake.chain[: len(pem)] = pem
        self.fake.attest = self._attest
        self.set(environment=2, ccFeature=1, devices=len(devices), arch=9, chainSize=len(pem))

    def set(self, **values: int) -> None:
        """Change results and answers."""
        for name, value in values.items():
            setattr(self.fake, name, value)

    def open(self) -> int:
        """Return how often the library is initialised."""
        return ctypes.c_int.in_dll(self.library, "fake_open").value

    def _report(
        self, index: int, nonce: ctypes.Array[ctypes.c_ubyte], out: ctypes.Array[ctypes.c_ubyte]
    ) -> int:
        report = self.reports[index](bytes(nonce[:32]))
        ctypes.memmove(out, report, min(len(report), 0x2000))
        return len(report)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the fake NVML (apt-get install gcc)")
    folder = tmp_path_factory.mktemp("nvml")
    built = {}
    for name, flags in (("new", []), ("old", ["-DOLD_DRIVER"])):
        built[name] = folder / f"libnvidia-ml-{name}.so.1"
        command = [
            compiler,
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            *flags,
            "-o",
            str(built[name]),
            str(SOURCE),
        ]
        subprocess.run(command, check=True)
    return built


@pytest.fixture
def machine(compiled: dict[str, Path]) -> Iterator[Machine]:
    found = Machine(compiled["new"], [nvidia().device()])
    yield found
    assert found.open() == 0  # every session was closed


def refused(machine: Machine) -> str:
    """Return the code with which collection ends."""
    with pytest.raises(UnavailableError) as caught:
        collect_gpus(NONCE, library=machine.path)
    assert caught.value.stage == "nvml"
    return caught.value.code


def test_structures_are_the_ones_of_nvml() -> None:
    sizes = [
        ctypes.sizeof(one)
        for one in (nvml.SystemState, nvml.SystemSettings, nvml.GpuCertificate, nvml.GpuAttestationReport)
    ]
    assert sizes == [12, 20, 9224, 12332]
    assert nvml.SETTINGS_V1 == 0x1000014


def test_what_is_collected_verifies(machine: Machine) -> None:
    collected = collect_gpus(NONCE, library=machine.path)
    known = Endorsements.detect(nvidia().endorsements(machine.devices[0]))
    (found,) = verify_devices(collected, known, expected_nonce=NONCE, context=context())
    assert found.conditions == ()
    assert found.facts["stated"] == {
        "environment": "production",
        "cc_feature": "on",
        "devtools": "off",
        "multi_gpu": "none",
    }


def test_every_gpu_is_asked_in_the_drivers_order(compiled: dict[str, Path]) -> None:
    gpus, switches = nvidia().machine(3, 1)
    machine = Machine(compiled["new"], gpus)
    machine.set(ccFeature=0, multiGpuMode=1)
    collected = [GpuEvidence.parse(one.evidence) for one in collect_gpus(NONCE, library=machine.path)]
    assert [dict(one.report.opaque)[20] for one in collected] == [gpu.fwid for gpu in gpus]
    assert {one.report.request_nonce for one in collected} == {NONCE}
    assert len({one.report.response_nonce for one in collected}) == 3
    assert collected[0].stated is not None
    assert collected[0].stated.multi_gpu == "protected-pcie"
    assert machine.open() == 0
    assert len(switches) == 1


def test_an_older_driver_does_not_know_the_newer_call(compiled: dict[str, Path]) -> None:
    machine = Machine(compiled["old"], [nvidia().device()])
    (found,) = collect_gpus(NONCE, library=machine.path)
    stated = GpuEvidence.parse(found.evidence).stated
    assert stated is not None
    assert (stated.cc_feature, stated.multi_gpu) == ("on", "unknown")
    machine.set(state=3)
    assert refused(machine) == "gpu-confidential-off"
    assert machine.open() == 0


def test_developer_tools_are_told(machine: Machine) -> None:
    machine.set(devToolsMode=1)
    (found,) = collect_gpus(NONCE, library=machine.path)
    stated = GpuEvidence.parse(found.evidence).stated
    assert stated is not None
    assert stated.devtools == "on"


def test_a_blackwell(compiled: dict[str, Path]) -> None:
    machine = Machine(compiled["new"], [nvidia().device("BLACKWELL")])
    machine.set(arch=10, multiGpuMode=2)
    (found,) = collect_gpus(NONCE, library=machine.path)
    assert GpuEvidence.parse(found.evidence).unverified_arch == "BLACKWELL"


def test_no_library() -> None:
    with pytest.raises(UnavailableError) as caught:
        collect_gpus(NONCE, library="/nonexistent/libnvidia-ml.so.1")
    assert caught.value.code == "nvml-missing"


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_length_is_our_bug(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        collect_gpus(nonce, library="/nonexistent")


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "state"])
@pytest.mark.parametrize(
    ("result", "code"),
    [(4, "gpu-permission"), (9, "gpu-driver-missing"), (15, "gpu-report-failed"), (999, "gpu-report-failed")],
)
def test_results_of_nvml(machine: Machine, name: str, result: int, code: str) -> None:
    machine.set(**{name: result})
    assert refused(machine) == code


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"ccFeature": 0}, "gpu-confidential-off"),
        ({"ccFeature": 0, "multiGpuMode": 2}, "gpu-confidential-off"),
        ({"settings": 25, "state": 3}, "gpu-confidential-off"),
        ({"arch": 8}, "gpu-confidential-off"),
        ({"devices": 0}, "gpu-missing"),
        ({"devices": 33}, "gpu-missing"),
        ({"chainSize": 0}, "gpu-report-failed"),
        ({"chainSize": 0x1401}, "gpu-report-failed"),
        ({"chainSize": 100}, "gpu-report-failed"),
    ],
)
def test_states_and_sizes(machine: Machine, values: dict[str, int], code: str) -> None:
    machine.set(**values)
    assert refused(machine) == code


def test_reports_that_are_none(machine: Machine) -> None:
    device = machine.devices[0]
    for report in (b"", bytes(0x2001), b"\x11\xe0", device.report(bytes(32)), device.report(NONCE)[:-1]):
        machine.reports = [lambda _, report=report: report]
        assert refused(machine) == "gpu-report-failed"


def test_too_many_certificates(machine: Machine) -> None:
    root = machine.devices[0].entity.chain[-1].public_bytes(Encoding.PEM)
    machine.fake.chain[: len(root) * 6] = root * 6
    machine.set(chainSize=len(root) * 6)
    assert len(GpuEvidence.parse(collect_gpus(NONCE, library=machine.path)[0].evidence).certificates) == 6
    short = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 9
    machine.fake.chain[: len(short)] = short
    machine.set(chainSize=len(short))
    assert refused(machine) == "gpu-report-failed"
