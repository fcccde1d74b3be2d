"""The table of commands. Modules are imported only when their command runs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """Where a command lives, and its line in `sealwright --help`."""

    module: str  # below sealwright.cli
    attribute: str  # a typer.Typer, or the command's function
    summary: str


COMMANDS = {
    "demo": Entry("demo", "command", "Tell the whole story on this machine, on a real language model."),
    "doctor": Entry("doctor", "command", "Say what this machine is, what is missing and what mends it."),
    "explain": Entry("explain", "command", "Explain an error code: its cause, the fix, and who can do it."),
    "verify": Entry("verify", "command", "Verify evidence offline: is it genuine, and is it allowed?"),
    "attest": Entry("attest", "command", "Ask a running enclave for fresh evidence, and verify it."),
    "collateral": Entry("collateral", "app", "Fetch, keep and carry what vendors publish about platforms."),
    "trust": Entry("trust", "app", "Make and check trust files: whom a client or auditor trusts."),
    "policy": Entry("policy", "app", "Read, sign and test the policies under which keys are released."),
    "refvalues": Entry(
        "refvalues", "app", "Make, sign and check reference values: what a build measures to."
    ),
    "seal": Entry("seal", "seal", "Seal a file or folder so that only attested code can open it."),
    "open": Entry("seal", "open_", "Open a sealed file or folder with the owner's key."),
    "rewrap": Entry("seal", "rewrap_", "Seal an artefact anew under another key."),
    "owner-key": Entry("owner_key", "owner_key", "Make and show the owner's keys."),
    "broker": Entry("broker", "app", "Appraise enclaves, hold keys and release them."),
    "drill": Entry("drill", "drill", "Make faults on purpose, and show that a broker holds them."),
    "enclave": Entry("enclave", "app", "Serve a sealed model inside an attested enclave."),
    "train": Entry("train", "app", "Agents and checkpoints of training between organisations."),
    "image": Entry("image", "app", "Build images, and say what they measure to."),
    "tpm": Entry("tpm", "app", "Enrol TPMs: vouch for attestation keys that were proved to stand in them."),
    "connect": Entry("connect", "command", "Offer an attested model as a local OpenAI endpoint."),
    "receipt": Entry("receipt", "app", "Show and verify receipts of answers."),
    "log": Entry("log", "app", "Show, prove and verify entries of the transparency log."),
    "release": Entry("release", "app", "Build, sign, log, build again and verify releases."),
    "rollout": Entry(
        "rollout", "app", "Bring a new build to an enclave's key, step by step, and retire the old."
    ),
}


def available(entry: Entry) -> bool:
    """Return whether the command's module is part of this build."""
    return importlib.util.find_spec(f"sealwright.cli.{entry.module}") is not None


def load(name: str) -> TyperCommand | TyperGroup:
    """Import and return the command `name` of the table."""
    entry = COMMANDS[name]
    target = getattr(importlib.import_module(f"sealwright.cli.{entry.module}"), entry.attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(target)
        command = typer.main.get_command(single)
    command.name = name
    return command  # type: ignore[no-any-return]


class LazyGroup(TyperGroup):
    """The root command: lists every command from the table, imports only the one that runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            if available(entry):
                self.commands[name] = TyperCommand(name, help=entry.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the listed stand-in by the command itself."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if found and name else found, rest
