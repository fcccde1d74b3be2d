"""Write tests/vectors/checkpoint.json: one honest folder of checkpoints, and edits that are refused, by stage.

Run from the repository's root: `python -m tests.training.checkpoint.make_vectors`. Each run makes new keys.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.training.checkpoint.chains import LINEAGE, Run, run
from tests.training.checkpoint.test_chain import key, of

from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SealwrightError
from sealwright.training.checkpoint import CheckpointFolder, TrainingTrust, verify_chain
from sealwright.training.checkpoint.folder import PROOF, SEALED

OUT = Path(__file__).parents[2] / "vectors" / "checkpoint.json"
HEX = "ab" * 32
Bend = Callable[[Run, CheckpointFolder], dict[str, Any] | None]


def remove(name: str) -> Bend:
    def bend(_: Run, folder: CheckpointFolder) -> None:
        path = folder.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return bend


def signed(change: Callable[[dict[str, Any]], None]) -> Bend:
    def bend(made: Run, folder: CheckpointFolder) -> None:
        made.resign(folder, 2, change)

    return bend


def flipped(name: str, at: int) -> Bend:
    def bend(_: Run, folder: CheckpointFolder) -> None:
        path = folder.root / name
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        path.write_bytes(raw)

    return bend


def sidecar(find: Callable[[Run], bytes]) -> Bend:
    def bend(made: Run, folder: CheckpointFolder) -> None:
        path = folder.root / "sidecars" / find(made).hex()
        raw = bytearray(path.read_bytes())
        at = raw.index(b'"sig":"') + 12
        raw[at] = ord("A") if raw[at] != ord("A") else ord("B")
        path.write_bytes(raw)

    return bend


def trusting(**changes: Any) -> Bend:
    return lambda made, _: made.trust(**changes).to_json()


def second_grant(made: Run) -> bytes:
    return made.verify().newest.statement.predicate.workers[0].grants[0]


def same_grant(made: Run, folder: CheckpointFolder) -> None:
    first = made.verify().checkpoints[0].statement.predicate.workers[0].grants[0].hex()
    made.resign(folder, 2, of("workers", 0, "grants")([first]))


def other_proof(_: Run, folder: CheckpointFolder) -> None:
    folder.put_proof(2, folder.read(1, PROOF))


CASES: dict[str, Bend] = {
    "honest": lambda *_: None,
    "no-first-version": remove("v000001"),
    "no-newest-version": trusting(newest={"lineage": LINEAGE.hex(), "version": 3, "statement": HEX}),
    "another-branch-known": trusting(newest={"lineage": LINEAGE.hex(), "version": 2, "statement": HEX}),
    "statement-bent": flipped("v000002/statement.json", 200),
    "no-proof": remove("v000002/statement.tlog-proof"),
    "proof-of-another": other_proof,
    "wrong-parent": signed(of("parent")(HEX)),
    "other-lineage": signed(of("lineage")("00" * 16)),
    "other-plan": signed(of("plan")(HEX)),
    "other-code": signed(of("code")(HEX)),
    "other-run": signed(of("run_spec")(HEX)),
    "other-worker": signed(of("workers", 0, "worker")(HEX)),
    "grant-twice": same_grant,
    "grant-bent": sidecar(second_grant),
    "hidden-data": signed(of("data")([])),
    "policy-bent": sidecar(lambda made: made.site.policy.digest()),
    "owner-not-trusted": trusting(owners={"acme": [key()]}),
    "no-such-owner": trusting(owners={"other": [key()]}),
    "other-weights": signed(lambda said: said["subject"][0]["digest"].update(sha256=HEX)),
    "other-artefact": signed(of("artefact", "manifest_digest")(HEX)),
    "logged-elsewhere": signed(of("log", "origin")("log.test/other")),
    "logged-before": signed(of("log", "size")(0)),
}


def files(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEALED)
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(path.read_bytes()).decode() for path in found
    }


def case(made: Run, name: str, bend: Bend, folder: Path) -> dict[str, Any]:
    copied = made.copy(folder)
    trust = bend(made, copied)
    try:
        chosen = made.trust() if trust is None else TrainingTrust.from_json(trust)
        verify_chain(copied.root, chosen, at=made.now + timedelta(hours=1))
        expect: Any = "ok"
    except SealwrightError as error:
        expect = {"stage": error.stage, "code": error.code}
    before, after = files(made.folder.root), files(copied.root)
    edits = {
        path: after.get(path) for path in sorted({*before, *after}) if before.get(path) != after.get(path)
    }
    said: dict[str, Any] = {"id": name, "expect": expect, "edits": edits}
    return said if trust is None else said | {"trust": trust}


def main() -> None:
    """Write the file."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, run(Path(folder) / "made") as made:
        cases = [case(made, name, bend, Path(folder) / name) for name, bend in CASES.items()]
        said = {
            "source": "made by tests/training/checkpoint/make_vectors.py with keys of its own; platform software",
            "licence": "Apache-2.0",
            "at": rfc3339(made.now + timedelta(hours=1)),
            "files": files(made.folder.root),
            "trust": made.trust().to_json(),
            "cases": cases,
        }
    OUT.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
