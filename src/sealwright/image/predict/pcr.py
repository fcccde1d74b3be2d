"""The PCRs of a boot of a unified kernel image: 4, 7, 9, 11, and 8, 12, 13 beside them.

Who measures: TianoCore firmware (4, 7), systemd's stub (11), the kernel's EFI stub (9), our initrd (8).
Spec: docs/spec/predicted-measurements.md, "PCRs".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sealwright.image.predict.events import Algorithm, PredictedEvent, Prediction, measured, predicted
from sealwright.image.predict.secureboot import SecureBoot, authority_event, variable_events
from sealwright.image.predict.stub import Uki

Boot = Literal[
    "disk", "kernel"
]  # from a disk's EFI/BOOT/BOOTX64.EFI, or given to the firmware (QEMU's -kernel)
CALLING = b"Calling EFI Application from Boot Option"
SEPARATOR = bytes(4)
CODE = ("pcr4", "pcr7", "pcr9", "pcr11")
UNEXTENDED = ("pcr12", "pcr13")  # overrides of the command line, and extensions: neither has a way in


def predict_pcrs(uki: Uki, state: SecureBoot, *, boot: Boot, algorithm: Algorithm) -> Prediction:
    """Return PCR 4, 7, 9, 11, 12 and 13 of one bank, with their events in the order in which they come.

    Raises:
        FormatError: `malformed-pe`, `malformed-uki`, `image-not-admitted`.
    """
    events = [
        *secure_boot_events("pcr7", uki, state, algorithm),
        *image_events("pcr4", uki, algorithm, boot=boot, secure=state.enabled),
        *section_events("pcr11", uki, algorithm),
        *kernel_events("pcr9", uki.command_line(), uki.initrd(), algorithm),
    ]
    return predicted((*CODE, *UNEXTENDED), events, algorithm)


def secure_boot_events(
    register: str, uki: Uki, state: SecureBoot, algorithm: Algorithm
) -> list[PredictedEvent]:
    """Return the variables, the separator and, with Secure Boot on, the authority."""
    events = variable_events(register, state, algorithm)
    if state.enabled:
        events.append(authority_event(register, state, uki.image, algorithm))
    return events


def image_events(
    register: str, uki: Uki, algorithm: Algorithm, *, boot: Boot, secure: bool
) -> list[PredictedEvent]:
    """Return what firmware measures of the images it loads: this one, and the kernel for the stub.

    A kernel given to the firmware is loaded, and measured, before the boot option is called. With Secure Boot on, the
    stub takes the check of the kernel, which it holds already, out of the firmware's hands, and the measurement with it.

    Args:
        secure: whether Secure Boot is on.
    """
    image = PredictedEvent(
        register=register, what="unified kernel image", digest=uki.image.authenticode(algorithm)
    )
    calling = measured(register, CALLING.decode(), CALLING, algorithm)
    separator = measured(register, "separator", SEPARATOR, algorithm)
    first = [image, calling, separator] if boot == "kernel" else [calling, separator, image]
    if secure:
        return first
    what, digest = "kernel, section .linux", uki.kernel.authenticode(algorithm)
    return [*first, PredictedEvent(register=register, what=what, digest=digest)]


def section_events(register: str, uki: Uki, algorithm: Algorithm) -> list[PredictedEvent]:
    """Return what the stub measures of each section: its name with a NUL, then its content."""
    return [
        event
        for name, content in uki.measured_sections()
        for event in (
            measured(register, f"name {name}", name.encode() + b"\0", algorithm),
            measured(register, f"section {name}", content, algorithm),
        )
    ]


def kernel_events(
    register: str, command_line: str, initrd: bytes, algorithm: Algorithm
) -> list[PredictedEvent]:
    """Return what the kernel's EFI stub measures: its load options as UTF-16 with a NUL, and the initrd."""
    options = command_line.encode("utf-16-le") + bytes(2)
    return [
        measured(register, "command line", options, algorithm),
        measured(register, "initrd", initrd, algorithm),
    ]


def exit_events(register: str, algorithm: Algorithm) -> Sequence[PredictedEvent]:
    """Return what firmware measures when the kernel takes over."""
    texts = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
    return [measured(register, text.decode(), text, algorithm) for text in texts]
