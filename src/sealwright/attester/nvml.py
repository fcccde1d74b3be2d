"""Collects evidence of NVIDIA GPUs through NVML (`libnvidia-ml.so.1`), which comes with the driver.

Functions, structures and versions as in nvml.h; docs/spec/nvidia.md, "Collection". The library belongs to the machine:
what it returns is bounded here, and verified by whoever gets it.
"""

from __future__ import annotations

import ctypes
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import EvidenceFormatError, UnavailableError
from sealwright.evidence.envelope import MAX_DEVICES, DeviceEvidence
from sealwright.evidence.nvgpu import MAX_CERTIFICATES, Architecture, GpuDocument, Stated
from sealwright.evidence.spdm import NONCE_SIZE, SpdmReport

LIBRARY = "libnvidia-ml.so.1"
CERT_CHAIN_SIZE, ATTESTATION_CERT_CHAIN_SIZE = 0x1000, 0x1400
ATTESTATION_REPORT_SIZE, CEC_ATTESTATION_REPORT_SIZE = 0x2000, 0x1000
_SUCCESS, _NOT_SUPPORTED, _NO_PERMISSION, _DRIVER_NOT_LOADED, _FUNCTION_NOT_FOUND = 0, 3, 4, 9, 13
_VERSION_MISMATCH = 25
_ARCHITECTURES: dict[int, Architecture] = {9: "HOPPER", 10: "BLACKWELL"}
_ENVIRONMENTS: dict[int, Literal["unavailable", "simulation", "production"]] = {
    0: "unavailable",
    1: "simulation",
    2: "production",
}
_MULTI_GPU: dict[int, Literal["none", "protected-pcie", "nvlink-encrypted"]] = {
    0: "none",
    1: "protected-pcie",
    2: "nvlink-encrypted",
}
_STAGE = "nvml"


class SystemState(ctypes.Structure):
    """nvmlConfComputeSystemState_t."""

    _fields_ = (
        ("environment", ctypes.c_uint),
        ("ccFeature", ctypes.c_uint),
        ("devToolsMode", ctypes.c_uint),
    )


class SystemSettings(ctypes.Structure):
    """nvmlSystemConfComputeSettings_v1_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("environment", ctypes.c_uint),
        ("ccFeature", ctypes.c_uint),
        ("devToolsMode", ctypes.c_uint),
        ("multiGpuMode", ctypes.c_uint),
    )


class GpuCertificate(ctypes.Structure):
    """nvmlConfComputeGpuCertificate_t."""

    _fields_ = (
        ("certChainSize", ctypes.c_uint),
        ("attestationCertChainSize", ctypes.c_uint),
        ("certChain", ctypes.c_ubyte * CERT_CHAIN_SIZE),
        ("attestationCertChain", ctypes.c_ubyte * ATTESTATION_CERT_CHAIN_SIZE),
    )


class GpuAttestationReport(ctypes.Structure):
    """nvmlConfComputeGpuAttestationReport_t."""

    _fields_ = (
        ("isCecAttestationReportPresent", ctypes.c_uint),
        ("attestationReportSize", ctypes.c_uint),
        ("cecAttestationReportSize", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_SIZE),
        ("attestationReport", ctypes.c_ubyte * ATTESTATION_REPORT_SIZE),
        ("cecAttestationReport", ctypes.c_ubyte * CEC_ATTESTATION_REPORT_SIZE),
    )


SETTINGS_V1 = ctypes.sizeof(SystemSettings) | 1 << 24  # NVML_STRUCT_VERSION(SystemConfComputeSettings, 1)


def collect_gpus(nonce: bytes, *, library: str = LIBRARY) -> list[DeviceEvidence]:
    """Return the evidence of every GPU of this machine, in the driver's order.

    Args:
        nonce: 32 bytes, `device_nonce` of the verifier's nonce and the keyset.
        library: path or name of NVML.

    Raises:
        UnavailableError: `nvml-missing`, `gpu-driver-missing`, `gpu-missing`, `gpu-permission`,
            `gpu-confidential-off`, `gpu-report-failed`.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"an SPDM nonce has {NONCE_SIZE} bytes")
    with _session(library) as nvml:
        stated = _stated(nvml)
        if stated.cc_feature == "off" and stated.multi_gpu != "protected-pcie":
            raise _unavailable(
                "confidential computing is off on these GPUs: set CC mode on the host, and reset them",
                "gpu-confidential-off",
            )
        return [_evidence(nvml, handle, nonce, stated) for handle in _handles(nvml)]


@contextmanager
def _session(library: str) -> Iterator[ctypes.CDLL]:
    try:
        nvml = ctypes.CDLL(library)
    except OSError as exc:
        raise _unavailable(f"{library} cannot be loaded: install the NVIDIA driver", "nvml-missing") from exc
    _call(nvml, "nvmlInit_v2")
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _stated(nvml: ctypes.CDLL) -> Stated:
    """Return what the driver says; drivers before 545 do not know the newer call."""
    settings = SystemSettings(version=SETTINGS_V1)
    absent = (_FUNCTION_NOT_FOUND, _NOT_SUPPORTED, _VERSION_MISMATCH)
    if _call(nvml, "nvmlSystemGetConfComputeSettings", ctypes.byref(settings), but=absent):
        return _as_stated(settings, _MULTI_GPU.get(settings.multiGpuMode, "unknown"))
    state = SystemState()
    if _call(nvml, "nvmlSystemGetConfComputeState", ctypes.byref(state), but=absent):
        return _as_stated(state, "unknown")
    raise _unavailable("the driver or these GPUs do not know confidential computing", "gpu-confidential-off")


def _as_stated(
    said: SystemState | SystemSettings,
    multi_gpu: Literal["none", "protected-pcie", "nvlink-encrypted", "unknown"],
) -> Stated:
    return Stated(
        environment=_ENVIRONMENTS.get(said.environment, "unavailable"),
        cc_feature="on" if said.ccFeature else "off",
        devtools="on" if said.devToolsMode else "off",
        multi_gpu=multi_gpu,
    )


def _handles(nvml: ctypes.CDLL) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    if not 0 < count.value <= MAX_DEVICES:
        raise _unavailable(
            f"the driver has {count.value} GPUs (1 to {MAX_DEVICES} are wanted)", "gpu-missing"
        )
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        found.append(handle)
    return found


def _evidence(nvml: ctypes.CDLL, handle: ctypes.c_void_p, nonce: bytes, stated: Stated) -> DeviceEvidence:
    number = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetArchitecture", handle, ctypes.byref(number))
    architecture = _ARCHITECTURES.get(number.value)
    if architecture is None:
        raise _unavailable(f"a GPU of architecture {number.value} cannot attest", "gpu-confidential-off")
    document = GpuDocument(
        arch=architecture,
        report=_report(nvml, handle, nonce),
        certificates=tuple(_certificates(nvml, handle)),
        stated=stated,
    )
    return DeviceEvidence(type="nvgpu", evidence=document.encode(), endorsements=())


def _report(nvml: ctypes.CDLL, handle: ctypes.c_void_p, nonce: bytes) -> bytes:
    asked = GpuAttestationReport()
    asked.nonce[:] = nonce
    _call(nvml, "nvmlDeviceGetConfComputeGpuAttestationReport", handle, ctypes.byref(asked))
    report = _bounded(asked.attestationReport, asked.attestationReportSize)
    try:
        echoed = SpdmReport.parse(report).request_nonce
    except EvidenceFormatError as exc:
        raise _unavailable(f"the GPU's report is not in its format: {exc}", "gpu-report-failed") from exc
    if not hmac.compare_digest(echoed, nonce):
        raise _unavailable("the GPU's report is over another nonce", "gpu-report-failed")
    return report


def _certificates(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> list[bytes]:
    found = GpuCertificate()
    _call(nvml, "nvmlDeviceGetConfComputeGpuCertificate", handle, ctypes.byref(found))
    pem = _bounded(found.attestationCertChain, found.attestationCertChainSize)
    try:
        chain = [der for _, der in pem_blocks(pem)]
    except EvidenceFormatError as exc:
        raise _unavailable(f"the GPU's certificates are not PEM: {exc}", "gpu-report-failed") from exc
    if len(chain) > MAX_CERTIFICATES:
        raise _unavailable(f"the GPU has a chain of {len(chain)} certificates", "gpu-report-failed")
    return chain


def _bounded(buffer: ctypes.Array[ctypes.c_ubyte], size: int) -> bytes:
    if not 0 < size <= len(buffer):
        raise _unavailable(f"the driver says {size} bytes in a buffer of {len(buffer)}", "gpu-report-failed")
    return bytes(buffer[:size])


def _call(nvml: ctypes.CDLL, name: str, *arguments: Any, but: tuple[int, ...] = ()) -> bool:
    """Call a function of NVML. Return whether it succeeded; False only for the results in `but`."""
    try:
        function = getattr(nvml, name)
    except AttributeError:
        result = _FUNCTION_NOT_FOUND
    else:
        result = function(*arguments)
    if result == _SUCCESS:
        return True
    if result in but:
        return False
    if result == _DRIVER_NOT_LOADED:
        raise _unavailable("the NVIDIA driver is not loaded: modprobe nvidia", "gpu-driver-missing")
    if result == _NO_PERMISSION:
        raise _unavailable("this user may not use the GPUs: see the modes of /dev/nvidia*", "gpu-permission")
    raise _unavailable(f"{name} failed with {result}", "gpu-report-failed")


def _unavailable(message: str, code: str) -> UnavailableError:
    return UnavailableError(message, code=code, stage=_STAGE)
