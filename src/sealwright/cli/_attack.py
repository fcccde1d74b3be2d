"""What an attack is: who has to refuse it, with which code, and how the demo and the tests find out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sealwright.cli._relay import Relay
from sealwright.cli._stand import Outcome, Server, Stand
from sealwright.crypto.canonical import canonical
from sealwright.errors import VerificationError

START_S = 120.0  # how long an enclave may take to be refused
_CODE = re.compile(r"\[([a-z0-9-]+)\]$", re.MULTILINE)


class Refusal(NamedTuple):
    """What stopped an attack."""

    by: str  # who refused
    code: str
    exit_code: int  # 0: there was no command of ours to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is attacked: a running installation, and what it has given away so far."""

    stand: Stand
    enclave: Server
    relay: Relay
    nonce: str  # of `bundle`, hex

    @property
    def trust(self) -> Path:
        """The hospital's trust file."""
        return self.stand.folder / "hospital.trust"

    @property
    def bundle(self) -> Path:
        """A genuine attestation."""
        return self.stand.folder / "attestation.json"

    @property
    def receipt(self) -> Path:
        """A genuine receipt, with its proof."""
        return self.stand.folder / "receipt.json"

    @property
    def credential(self) -> str:
        """What the hospital's application authenticates with."""
        return (self.stand.folder / "app.credential").read_text().strip()


class Attack(NamedTuple):
    """One attack, and the refusal that is documented for it (docs/reference/attacks.md)."""

    title: str
    attempt: Callable[[Target], Refusal]
    documented: Refusal

    def run(self, target: Target) -> Refusal:
        """Attack, and return the refusal, which is the documented one.

        Raises:
            VerificationError: `attack-not-refused`, or refused for another reason than documented.
        """
        refusal = self.attempt(target)
        if refusal != self.documented:
            raise undefended(f"{self.title}: refused by {refusal}, which is not {self.documented}")
        return refusal


def undefended(what: str) -> VerificationError:
    """Return the error that says that an attack succeeded."""
    return VerificationError(f"not refused: {what}", code="attack-not-refused", stage="attack")


def of_command(outcome: Outcome, by: str) -> Refusal:
    """Return how a command refused."""
    if outcome.exit_code == 0:
        raise undefended(f"a command accepted it: {json.dumps(outcome.result)}")
    return Refusal(by, outcome.code, outcome.exit_code)


def of_start(server: Server, by: str) -> Refusal:
    """Wait for the end of a server that must not come to serve, and return why it ended."""
    exit_code = server.process.wait(START_S)
    found = _CODE.findall(server.log.read_text(errors="replace"))
    if not exit_code or not found:
        raise undefended(f"{server.log.name}: {server.last_line()}")
    return Refusal(by, found[-1], exit_code)


def json_changed(source: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a changed copy of a JSON document; return its path."""
    doc = json.loads(source.read_bytes())
    change(doc)
    out.write_bytes(canonical(doc))
    return out
