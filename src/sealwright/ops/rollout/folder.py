"""A rollout's folder: policies, statements and proofs. Spec: docs/spec/rollout.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.yaml import MAX_YAML
from sealwright.errors import SettingsError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.rollout.chain import Chain, Link, check_policies, signers_of, verify_chain
from sealwright.ops.rollout.statement import MAX_STATEMENT, STAGES, RolloutStatement, Stage
from sealwright.sealing.files import io_errors

_NAME = re.compile(r"(?P<sequence>[0-9]{4})-[a-z-]{4,7}\.dsse\.json")
REVOKE = "revoke"


class Folder:
    """Reads and writes the files; believes none of them before `load` has."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, policies: Mapping[Stage, bytes]) -> None:
        """Write the policies into a new folder. Raises SettingsError `rollout-exists`."""
        if self.root.exists() and any(self.root.iterdir()):
            raise SettingsError(f"{self.root} is not empty", code="rollout-exists", stage="arguments")
        for stage, raw in policies.items():
            files.write(self._policy(stage), raw)

    def policy(self, name: str) -> bytes:
        """Return a policy's file, signed. Raises UnavailableError."""
        return files.read(self._policy(name), limit=MAX_YAML)

    def put_revoke(self, raw: bytes) -> None:
        """Keep the policy of a revocation."""
        files.write(self._policy(REVOKE), raw)

    def begin(self, statement: RolloutStatement, envelope: bytes) -> None:
        """Keep a statement that is about to be logged: after a crash the log says whether it counts."""
        files.write(self.root / "begun" / f"{statement.name}.dsse.json", envelope)

    def begun(self) -> list[tuple[str, bytes]]:
        """Return name and envelope of what was begun and not added."""
        found = sorted((self.root / "begun").glob("*.dsse.json"))
        return [
            (path.name.removesuffix(".dsse.json"), files.read(path, limit=2 * MAX_STATEMENT))
            for path in found
        ]

    def drop(self, name: str) -> None:
        """Forget what was begun under `name`."""
        with io_errors("file-unwritable", f"cannot remove {name}"):
            (self.root / "begun" / f"{name}.dsse.json").unlink(missing_ok=True)

    def add(self, statement: RolloutStatement, envelope: bytes, proof: bytes) -> None:
        """Write a statement and its proof; the proof first, so that no statement is ever without."""
        files.write(self.root / "statements" / f"{statement.name}.tlog-proof", proof)
        files.write(self.root / "statements" / f"{statement.name}.dsse.json", envelope)
        self.drop(statement.name)

    def links(self) -> list[Link]:
        """Return the statements in order of their numbers. Raises VerificationError: a number is missing or double."""
        found: list[Link] = []
        for path in sorted((self.root / "statements").glob("*.dsse.json")):
            match = _NAME.fullmatch(path.name)
            if match is None or int(match["sequence"]) != len(found) + 1:
                raise VerificationError(
                    f"{path.name} is not statement {len(found) + 1}",
                    code="rollout-chain-broken",
                    stage="parse",
                )
            name = path.name.removesuffix(".dsse.json")
            proof = files.read(path.with_name(f"{name}.tlog-proof"))
            found.append(Link(name=name, envelope=files.read(path, limit=2 * MAX_STATEMENT), proof=proof))
        return found

    def load(self) -> tuple[Chain, dict[Stage, KeyPolicy]]:
        """Return the chain and the policies, proved to belong together. Trust rests on the signers in `current`.

        Raises:
            FormatError, VerificationError: as `verify_chain` and `check_policies`.
        """
        raw = {stage: self.policy(stage) for stage in STAGES}
        chain = verify_chain(self.links(), signers_of(KeyPolicy.load(raw["current"])))
        return chain, check_policies(chain.plan, raw)

    def _policy(self, name: str) -> Path:
        return self.root / "policies" / f"{name}.policy"
