"""The PCRs of a boot of a unified kernel image: 4, 7, 9, 11, and 8, 12, 13 beside them.

Who measures: TianoCore firmware (4, 7), systemd's stub (11), the kernel's EFI stub (9), our initrd (8).
Spec: docs/spec/predicted-measurements.md, "PCRs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from sealwright.image.predict.events import Algorithm, PredictedEvent, Prediction, measured, predicted
from sealwright.image.predict.secureboot import ImageSignature, SecureBoot, authority_event, variable_events
from sealwright.image.predict.stub import Uki
from sealwright.verify.measured import hashed

Boot = Literal[
    "disk", "kernel"
]  # from a disk's EFI/BOOT/BOOTX64.EFI, or given to the firmware (QEMU's -kernel)
CALLING = b"Calling EFI Application from Boot Option"
SEPARATOR = bytes(4)
CODE = ("pcr4", "pcr7", "pcr9", "pcr11")
UNEXTENDED = ("pcr12", "pcr13")  # overrides of the command line, and extensions: neither has a way in


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """What of a unified kernel image is measured, in one bank; `Digests.of` takes it from the file."""

    algorithm: Algorithm
    image: bytes  # Authenticode
    signature: ImageSignature
    kernel: bytes  # Authenticode of section .linux
    sections: tuple[tuple[str, bytes], ...]  # in the order in which the stub measures them
    command_line: str
    initrd: bytes  # of all that the stub hands to the kernel

    @classmethod
    def of(cls, uki: Uki, algorithm: Algorithm) -> Self:
        """Return the digests of a file. Raises FormatError `malformed-pe`, `malformed-uki`."""
        return cls(
            algorithm=algorithm,
            image=uki.image.authenticode(algorithm),
            signature=ImageSignature.of(uki.image),
            kernel=uki.kernel.authenticode(algorithm),
            sections=tuple((name, hashed(algorithm, data)) for name, data in uki.measured_sections()),
            command_line=uki.command_line(),
            initrd=hashed(algorithm, uki.initrd()),
        )


def predict_pcrs(uki: Digests, state: SecureBoot, *, boot: Boot) -> Prediction:
    """Return PCR 4, 7, 9, 11, 12 and 13 of one bank, with their events.

    Raises:
        FormatError: `image-not-admitted`, `malformed-variables`.
    """
    events = [
        *secure_boot_events(uki, state),
        *image_events("pcr4", uki, boot=boot, secure=state.enabled),
        *section_events("pcr11", uki),
        *kernel_events("pcr9", uki),
    ]
    return predicted((*CODE, *UNEXTENDED), events, uki.algorithm)


def secure_boot_events(uki: Digests, state: SecureBoot) -> list[PredictedEvent]:
    """Return the variables, the separator and, with Secure Boot on, the authority."""
    events = variable_events("pcr7", state, uki.algorithm)
    if state.enabled:
        events.append(authority_event("pcr7", state, uki.signature, uki.algorithm))
    return events


def image_events(register: str, uki: Digests, *, boot: Boot, secure: bool) -> list[PredictedEvent]:
    """Return what firmware measures of the images it loads: this one, and the kernel for the stub.

    A kernel given to the firmware is loaded, and measured, before the boot option is called. With Secure Boot on, the
    stub takes the check of the kernel, which it holds already, out of the firmware's hands, and the measurement with it.

    Args:
        secure: whether Secure Boot is on.
    """
    image = PredictedEvent(register=register, what="unified kernel image", digest=uki.image)
    calling = measured(register, CALLING.decode(), CALLING, uki.algorithm)
    separator = measured(register, "separator", SEPARATOR, uki.algorithm)
    first = [image, calling, separator] if boot == "kernel" else [calling, separator, image]
    if secure:
        return first
    return [*first, PredictedEvent(register=register, what="kernel, section .linux", digest=uki.kernel)]


def section_events(register: str, uki: Digests) -> list[PredictedEvent]:
    """Return what the stub measures of each section: its name with a NUL, then its content."""
    return [
        event
        for name, digest in uki.sections
        for event in (
            measured(register, f"name {name}", name.encode() + b"\0", uki.algorithm),
            PredictedEvent(register=register, what=f"section {name}", digest=digest),
        )
    ]


def kernel_events(register: str, uki: Digests) -> list[PredictedEvent]:
    """Return what the kernel's EFI stub measures: its load options as UTF-16 with a NUL, and the initrd."""
    options = uki.command_line.encode("utf-16-le") + bytes(2)
    return [
        measured(register, "command line", options, uki.algorithm),
        PredictedEvent(register=register, what="initrd", digest=uki.initrd),
    ]


def exit_events(register: str, algorithm: Algorithm) -> Sequence[PredictedEvent]:
    """Return what firmware measures when the kernel takes over."""
    texts = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
    return [measured(register, text.decode(), text, algorithm) for text in texts]
