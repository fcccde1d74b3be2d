"""What booted? A readable account of a replayed log, from what is proved alone. Spec: docs/spec/measured-boot.md."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TypeVar

from sealwright.errors import EvidenceFormatError
from sealwright.evidence.eventlog import Bank
from sealwright.evidence.runtimelog import AAEL_TAG, AaelEntry
from sealwright.evidence.uefi import image_path
from sealwright.verify import bootlines
from sealwright.verify.eventlog import RUNTIME, ReplayedLog
from sealwright.verify.ima import ReplayedIma
from sealwright.verify.measured import (
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_BOOT_SERVICES_DRIVER,
    EV_EFI_RUNTIME_SERVICES_DRIVER,
    EV_EVENT_TAG,
    EV_IPL,
    EV_PLATFORM_CONFIG_FLAGS,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
    MeasuredEvent,
    hashed,
    is_separator,
)
from sealwright.verify.secureboot import SecureBoot, read_secure_boot
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Fact, Verified

_V = TypeVar("_V", bound=Verified)

EXITED = b"Exit Boot Services Returned with Success"
_IMAGES = (
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_BOOT_SERVICES_DRIVER,
    EV_EFI_RUNTIME_SERVICES_DRIVER,
)
_COMMAND_LINES = ("kernel_cmdline", "grub_kernel_cmdline")
# How many separators each register has: one for each PCR that stands in it.
_SEPARATORS: Mapping[str, tuple[int, ...]] = {
    **{f"pcr{number}": (1,) for number in range(8)},
    "rtmr0": (1, 3),
    "rtmr1": (1, 5),
}
_IMAGE_STARTS = (b"MZ", b"VZ")  # PE, TE: what is hashed of an image begins so
# Of systemd-stub, in all versions.
_SECTIONS = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids", ".uname", ".sbat",
    ".pcrsig", ".pcrpkey", ".profile", ".efifw",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Something loaded whose digest alone is known: a boot loader, kernel, driver, initrd, or file."""

    register: str
    digest: bytes
    unverified_name: str  # path or description in the log: never measured
    type: str  # of the event, for people; not measured either


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """A kernel command line as the boot loader measured it."""

    text: str
    confirmed: bool  # what the kernel's own stub extends for this text was extended too


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What td-shim measured of its configuration, by content."""

    register: str
    unverified_name: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BootAccount:
    """What booted, as far as signed registers prove it. Made by `read_boot` alone."""

    firmware_versions: tuple[str, ...]
    secure_boot: SecureBoot
    images: tuple[Image, ...]  # firmware's: drivers, boot loader, kernel; in order, none left out
    files: tuple[
        Image, ...
    ]  # the boot loader's: configuration, kernel, initrd; all that is not in the next three
    commands: tuple[str, ...]  # what GRUB ran
    command_lines: tuple[CommandLine, ...]
    uki_sections: tuple[tuple[str, bytes], ...]  # name and digest, in order
    settings: tuple[Setting, ...]
    runtime: tuple[str, ...]  # what the operating system said it extended
    handed_over: bool  # the firmware measured that it left
    conditions: tuple[Condition, ...]
    not_proved: tuple[str, ...]
    log: ReplayedLog
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError("a BootAccount is made by read_boot alone")

    @property
    def facts(self) -> Mapping[str, Fact]:
        """The account as JSON values."""
        return bootlines.facts(self)

    def lines(self) -> list[str]:
        """Return the account for people."""
        return bootlines.lines(self)


def read_boot(log: ReplayedLog) -> BootAccount:
    """Return what `log` proves of the boot. Whatever it does not prove stands in `not_proved` or nowhere."""
    pcrs = log.layout == "pcr"
    loader = log.of("pcr8", "pcr9", "pcr11", "pcr12", "pcr13", "pcr14") if pcrs else log.of("rtmr2")
    actions = log.of("pcr5") if pcrs else log.of("rtmr1")
    sections, rest = _uki_sections(loader, log.bank)
    commands, command_lines = dict(_texts(rest, "grub_cmd")), dict(_texts(rest, *_COMMAND_LINES))
    command_lines |= dict(_systemd_texts(rest))
    secure_boot = read_secure_boot(log)
    exited = hashed(log.bank, EXITED)
    handed_over = any(event.digest == exited for event in actions)
    shown = commands.keys() | command_lines.keys()
    return BootAccount(
        firmware_versions=tuple(_versions(log.of("pcr0"), log.bank)),
        secure_boot=secure_boot,
        images=tuple(_image(event) for event in log.of("pcr2", "pcr4", "rtmr1") if _may_be_image(event)),
        files=tuple(_image(event) for event in rest if event.number not in shown),
        commands=tuple(commands.values()),
        command_lines=tuple(_command_lines(command_lines.values(), rest, log.bank)),
        uki_sections=sections,
        settings=tuple(_settings(log.events)),
        runtime=tuple(_runtime(log.events)),
        handed_over=handed_over,
        conditions=(*log.conditions, *secure_boot.conditions, *_conditions(log, actions, exited)),
        not_proved=tuple(_not_proved(log)),
        log=log,
        _made_by=MADE_BY_VERIFY,
    )


def with_boot(verified: _V, account: BootAccount, ima: ReplayedIma | None = None) -> _V:
    """Return `verified` with what `account` and `ima` add: conditions, facts `boot` and `ima`, what is not proved.

    Both have to rest on registers that `verified` signs; anything else is our bug (ValueError).
    """
    registers = account.log.registers if ima is None else {**account.log.registers, **ima.registers}
    for name, value in registers.items():
        if not hmac.compare_digest(verified.registers.get(name, b""), value):
            raise ValueError(f"the account is of another {name}")
    facts: dict[str, Fact] = {**verified.facts, "boot": account.facts}
    if ima is not None:
        facts["ima"] = ima.facts
    return replace(
        verified,
        facts=facts,
        conditions=(*verified.conditions, *account.conditions, *(() if ima is None else ima.conditions)),
        not_proved=(*verified.not_proved, *account.not_proved),
    )


def _versions(events: Sequence[MeasuredEvent], bank: Bank) -> Iterator[str]:
    """Yield versions from PCR 0, before its separator. RTMR0 has none, but boot variables that could pass for one."""
    for event in takewhile(lambda event: not is_separator(event, bank), events):
        if event.type == EV_S_CRTM_VERSION and event.content is not None:
            yield _readable(event.content)


def _may_be_image(event: MeasuredEvent) -> bool:
    """Say whether an event can be of an image, whatever the log calls it: unless its content is known to be none."""
    return event.content is None or event.content[:2] in _IMAGE_STARTS


def _image(event: MeasuredEvent) -> Image:
    return Image(register=event.register, digest=event.digest, unverified_name=_said(event), type=event.name)


def _said(event: MeasuredEvent) -> str:
    """Return what the log calls an opaque event: a path or a description, empty where it has neither."""
    data = event.unverified_data
    if event.type in _IMAGES:
        return image_path(data)
    if event.type == EV_EVENT_TAG and int.from_bytes(data[4:8], "little") == len(data) - 8:
        data = data[8:]  # taggedEventID and size come first
    return _readable(data[:256])


def _texts(events: Sequence[MeasuredEvent], *labels: str) -> Iterator[tuple[int, str]]:
    for event in events:
        if event.type == EV_IPL and event.content is not None and event.label in labels:
            yield event.number, event.content.decode("utf-8", "backslashreplace").rstrip("\0")


def _systemd_texts(events: Sequence[MeasuredEvent]) -> Iterator[tuple[int, str]]:
    """Yield command lines as systemd-boot and systemd-stub measure them: UTF-16."""
    for event in events:
        if event.type == EV_IPL and event.content and not event.label:
            text = event.content.decode("utf-16-le", "replace").rstrip("\0")
            if text.isprintable() and text.isascii():
                yield event.number, text


def _command_lines(
    texts: Iterable[str], events: Sequence[MeasuredEvent], bank: Bank
) -> Iterator[CommandLine]:
    opaque = {event.digest for event in events if not event.proved}
    for text in texts:
        # The kernel's EFI stub hashes what it was started with, as UTF-16; GRUB puts BOOT_IMAGE= before it.
        forms = [prefix + text + end for prefix in ("", "BOOT_IMAGE=") for end in ("", "\0")]
        own = {hashed(bank, form.encode("utf-16-le", "replace")) for form in forms}
        yield CommandLine(text=text, confirmed=bool(own & opaque))


def _uki_sections(
    events: Sequence[MeasuredEvent], bank: Bank
) -> tuple[tuple[tuple[str, bytes], ...], tuple[MeasuredEvent, ...]]:
    """Return the sections of a unified kernel image, each a name and then its content, and all other events.

    Names are known by their digest: a log that calls one something else hides no section.
    """
    names = {hashed(bank, name.encode() + b"\0"): name for name in _SECTIONS}
    sections: list[tuple[str, bytes]] = []
    rest: list[MeasuredEvent] = []
    last = ""
    for event in events:
        if event.register not in ("pcr11", "rtmr2"):
            rest.append(event)
        elif last:
            sections.append((last, event.digest))
            last = ""
        elif event.digest in names:
            last = names[event.digest]
        else:
            rest.append(event)
    return tuple(sections), tuple(rest)


def _settings(events: Sequence[MeasuredEvent]) -> Iterator[Setting]:
    for event in events:
        if event.type == EV_PLATFORM_CONFIG_FLAGS and event.content is not None and event.label:
            yield Setting(
                register=event.register, unverified_name=event.label, content=event.content.rstrip(b"\0")
            )


def _runtime(events: Sequence[MeasuredEvent]) -> Iterator[str]:
    """Yield AAEL entries and other events of the operating system, as text."""
    for event in events:
        if event.type == RUNTIME:
            yield f"{event.register} {event.label}: {_readable(event.unverified_data)}"
        elif event.type == EV_EVENT_TAG and event.content is not None:
            entry = _aael(event.content)
            if entry is not None:
                yield f"{event.register} aael: {entry.domain} {entry.operation} {entry.content}"


def _aael(content: bytes) -> AaelEntry | None:
    tag, size = int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")
    if tag != AAEL_TAG or size != len(content) - 8:
        return None
    try:
        return AaelEntry.parse(content[8:].decode())
    except (EvidenceFormatError, UnicodeDecodeError):
        return None


def _conditions(log: ReplayedLog, actions: Sequence[MeasuredEvent], exited: bytes) -> Iterator[Condition]:
    for name, wanted in _SEPARATORS.items():
        if name in log.registers:
            count = sum(is_separator(event, log.bank) for event in log.of(name))
            if count not in wanted or any(_is_error(event, log.bank) for event in log.of(name)):
                text = f"register {name} has {count} separators, or one that tells of an error"
                yield Condition(code="boot-separators", text=text, claim="configuration")
    if all(event.digest != exited for event in actions):
        text = "the firmware did not measure that it handed over: the log may go on after it left"
        yield Condition(code="boot-not-finished", text=text, claim="executables", value=32)
    elif actions[-1].digest != exited:
        text = f"register {actions[-1].register} was extended after the firmware had left"
        yield Condition(code="late-events", text=text, claim="executables")


def _is_error(event: MeasuredEvent, bank: Bank) -> bool:
    return event.type == EV_SEPARATOR and not is_separator(event, bank)


def _not_proved(log: ReplayedLog) -> Iterator[str]:
    yield "names and paths beside the digest of an image or file are the log's word: only digests are measured"
    yield "which of the measured texts GRUB took as a command or a command line is the log's word"
    if log.unlogged:
        yield f"what else was extended into {', '.join(log.unlogged)}"
    if log.unsigned:
        yield f"what the log says of {', '.join(log.unsigned)}, which the evidence does not sign"
    if log.layout == "rtmr":
        yield "which keys verified images: RTMR0 holds boot variables too, whose content others choose"


def _readable(data: bytes) -> str:
    """Return bytes as text, UTF-16 or UTF-8, if it is one that people can read; else as hex."""
    for encoding in ("utf-16-le", "utf-8"):
        try:
            text = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        if text and text.isprintable() and (encoding == "utf-8" or text.isascii()):
            return text
    return data[:64].hex()
