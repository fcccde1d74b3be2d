"""Platforms: what each measures of a guest, which register holds its config, and its reference values.

Spec: docs/spec/predicted-measurements.md, "Platforms"; DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn, TypeVar

from cryptography import x509

from sealwright.appraisal.binding import holding
from sealwright.errors import SettingsError
from sealwright.image.eif import Eif
from sealwright.image.predict.events import SIZES, Algorithm, NotPredicted, Prediction
from sealwright.image.predict.files import GuestFiles
from sealwright.image.predict.firmware import Firmware
from sealwright.image.predict.nitro import predict_nitro
from sealwright.image.predict.pcr import Boot, Digests, predict_pcrs
from sealwright.image.predict.secureboot import SecureBoot
from sealwright.image.predict.snp import DirectBoot, SnpShape, predict_snp
from sealwright.image.predict.tdx import PageOrder, TdxBoot, predict_tdx
from sealwright.verify.eventlog import Layout

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a prediction can depend on. What is not given is asked for by name where it is needed."""

    guest: GuestFiles
    boot: Boot = "disk"
    state: SecureBoot | None = None
    firmware: Firmware | None = None
    shapes: Sequence[SnpShape] = ()
    page_order: PageOrder = "page"
    direct_uki: bool = False  # SNP: the unified kernel image is what QEMU's -kernel is given
    eif: Eif | None = None
    certificate: x509.Certificate | None = None
    algorithm: Algorithm | None = None  # None: the platform's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One platform."""

    platform: str  # in reference values
    config_register: str
    algorithm: Algorithm
    predict: Callable[[Inputs, Algorithm], list[Prediction]]
    unknown: tuple[NotPredicted, ...] = field(default=())
    layout: Layout | None = "pcr"  # of the event log; None: there is none

    def predictions(self, inputs: Inputs) -> list[Prediction]:
        """Return one prediction for each shape that was asked for, or one.

        Raises:
            SettingsError: `input-missing`: names what is needed. FormatError: an input is malformed.
        """
        found = self.predict(inputs, inputs.algorithm or self.algorithm)
        return [Prediction(registers={}, missing=self.unknown) | one for one in found]

    def config(self, config_digest: bytes, algorithm: Algorithm | None = None) -> dict[str, bytes]:
        """Return the config's register and what it holds for `config_digest` (32 bytes)."""
        size = SIZES[algorithm or self.algorithm]
        return {self.config_register: holding(self.config_register, config_digest, size)}


def values(predictions: Sequence[Prediction]) -> dict[str, list[bytes]]:
    """Return registers with the values that any of the shapes gives, each once."""
    names = dict.fromkeys(name for one in predictions for name in one.registers)
    return {
        name: list(dict.fromkeys(one.registers[name] for one in predictions if name in one.registers))
        for name in names
    }


def _pcrs(inputs: Inputs, algorithm: Algorithm) -> list[Prediction]:
    uki = _given(inputs.guest.uki, "the unified kernel image (--uki)")
    state = _given(inputs.state, "Secure Boot's state (--vars, or --pk --kek --db --dbx, or --secure-boot)")
    return [predict_pcrs(Digests.of(uki, algorithm), state, boot=inputs.boot)]


def _snp(inputs: Inputs, _: Algorithm) -> list[Prediction]:
    firmware = _given(inputs.firmware, "the firmware (--firmware)")
    guest = inputs.guest
    if inputs.direct_uki:
        uki = _given(guest.uki, "the unified kernel image (--uki)")
        boot = DirectBoot(kernel=uki.image.raw, initrd=b"", cmdline="")
    else:
        boot = DirectBoot(
            kernel=_given(guest.kernel, "the kernel (--kernel)"),
            initrd=_given(guest.initrd, "the initrd (--initrd)"),
            cmdline=_given(guest.cmdline, "the command line (--cmdline)"),
        )
    if not inputs.shapes:
        _missing("the guest's shape (--shape VCPUS:TYPE)")
    return [predict_snp(firmware, shape, boot) for shape in inputs.shapes]


def _tdx(inputs: Inputs, *, vtpm: bool) -> list[Prediction]:
    uki = _given(inputs.guest.uki, "the unified kernel image (--uki)")
    state = _given(inputs.state, "Secure Boot's state (--vars, or --pk --kek --db --dbx, or --secure-boot)")
    how = TdxBoot(
        boot=inputs.boot,
        secure=state.enabled,
        vtpm=vtpm,
        page_order=inputs.page_order,
        gpt=inputs.guest.gpt,
    )
    return [predict_tdx(inputs.firmware, Digests.of(uki, "sha384"), how)]


def _tdx_direct(inputs: Inputs, _: Algorithm) -> list[Prediction]:
    return _tdx(inputs, vtpm=False)


def _tdx_gcp(inputs: Inputs, _: Algorithm) -> list[Prediction]:
    return _tdx(inputs, vtpm=True)


def _nitro(inputs: Inputs, _: Algorithm) -> list[Prediction]:
    return [predict_nitro(_given(inputs.eif, "the enclave image (--eif)"), inputs.certificate)]


def _given(value: _T | None, what: str) -> _T:
    if value is None:
        _missing(what)
    return value


def _missing(what: str) -> NoReturn:
    raise SettingsError(f"this platform needs {what}", code="input-missing")


def _paravisor(register: str) -> tuple[NotPredicted, ...]:
    return (NotPredicted(register=register, reason="Azure's paravisor is not public: take it from evidence"),)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "tpm": Target(platform="tpm", config_register="pcr8", algorithm="sha256", predict=_pcrs),
        # Google's and Amazon's instances on SEV-SNP: kernel and root are in the provider's TPM alone.
        "vtpm": Target(platform="vtpm", config_register="pcr8", algorithm="sha256", predict=_pcrs),
        "nitrotpm": Target(platform="nitro", config_register="pcr8", algorithm="sha384", predict=_pcrs),
        "az-snp-vtpm": Target(
            platform="az-snp-vtpm",
            config_register="pcr8",
            algorithm="sha256",
            predict=_pcrs,
            unknown=_paravisor("measurement"),
        ),
        "az-tdx-vtpm": Target(
            platform="az-tdx-vtpm",
            config_register="pcr8",
            algorithm="sha256",
            predict=_pcrs,
            unknown=_paravisor("mrtd"),
        ),
        "snp": Target(
            platform="snp", config_register="host_data", algorithm="sha384", predict=_snp, layout=None
        ),
        "tdx": Target(
            platform="tdx",
            config_register="mrconfigid",
            algorithm="sha384",
            predict=_tdx_direct,
            layout="rtmr",
        ),
        "gcp-tdx": Target(
            platform="tdx", config_register="rtmr3", algorithm="sha384", predict=_tdx_gcp, layout="rtmr"
        ),
        "nitro": Target(
            platform="nitro", config_register="pcr16", algorithm="sha384", predict=_nitro, layout=None
        ),
    }
)
