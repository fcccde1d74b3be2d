"""A boot account as JSON values and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sealwright.verify.verified import Fact

if TYPE_CHECKING:
    from sealwright.verify.boot import BootAccount, Image

_SHOWN = 12  # of a long list


def facts(account: BootAccount) -> dict[str, Fact]:
    """Return the account as JSON values; what was not measured has a name that begins with `unverified_`."""
    return {
        "bank": account.log.bank,
        "registers": {name: value.hex() for name, value in account.log.registers.items()},
        "unlogged": list(account.log.unlogged),
        "unsigned": list(account.log.unsigned),
        "events": len(account.log.events),
        "events_proved": sum(event.proved for event in account.log.events),
        "firmware_versions": list(account.firmware_versions),
        "secure_boot": account.secure_boot.facts(),
        "images": [_image(one) for one in account.images],
        "files": [_image(one) for one in account.files],
        "commands": list(account.commands),
        "command_lines": [{"text": one.text, "confirmed": one.confirmed} for one in account.command_lines],
        "uki_sections": [{"name": name, "digest": digest.hex()} for name, digest in account.uki_sections],
        "settings": [
            {"register": one.register, "unverified_name": one.unverified_name, "content": one.content.hex()}
            for one in account.settings
        ],
        "runtime": list(account.runtime),
        "exit_boot_services": account.handed_over,
    }


def lines(account: BootAccount) -> list[str]:
    """Return the account for people."""
    return list(_lines(account))


def _lines(account: BootAccount) -> Iterator[str]:
    yield f"log replays to {', '.join(account.log.registers)} ({account.log.bank})"
    for version in account.firmware_versions:
        yield f"firmware {_safe(version)}"
    yield from _secure_boot(account)
    yield from _listed("image", account.images)
    yield from _listed("file", account.files)
    for name, digest in account.uki_sections:
        yield f"unified kernel image, section {name}: {_short(digest)}"
    for line in account.command_lines:
        by = "boot loader, and as kernels do" if line.confirmed else "boot loader"
        yield f"command line, measured by {by}: {_safe(line.text)}"
    if account.commands:
        yield f"GRUB ran {len(account.commands)} commands, last: {_safe(account.commands[-1])[:96]}"
    for text in account.runtime:
        yield f"after boot, {_safe(text)}"
    yield "firmware handed over" if account.handed_over else "no proof that the firmware handed over"
    for condition in account.conditions:
        yield f"! {condition.text}  [{condition.code}]"


def _secure_boot(account: BootAccount) -> Iterator[str]:
    state = account.secure_boot
    counts = ", ".join(f"{name} {len(found)}" for name, found in state.variables.items())
    yield f"Secure Boot {'on' if state.enabled else 'not proved to be on'}{f' ({counts})' if counts else ''}"
    for one in dict.fromkeys(state.authorities):
        yield f"verified by {one.variable}: {_safe(one.subject) or _short(one.digest)}"


def _listed(what: str, images: Sequence[Image]) -> Iterator[str]:
    for one in images[:_SHOWN]:
        yield f"{what} {_short(one.digest)} in {one.register}, said to be {_safe(one.unverified_name)[:80] or one.type}"
    if len(images) > _SHOWN:
        yield f"… and {len(images) - _SHOWN} more"


def _image(one: Image) -> dict[str, Fact]:
    return {
        "register": one.register,
        "digest": one.digest.hex(),
        "unverified_name": one.unverified_name,
        "unverified_type": one.type,
    }


def _short(digest: bytes) -> str:
    return f"{digest.hex()[:16]}…"


def _safe(text: str) -> str:
    """Return text without what could steer a terminal: it comes from whoever made the evidence."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
