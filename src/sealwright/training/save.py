"""Keeping checkpoints that an aggregator's agent makes: in a folder, logged as the newest of their lineage.

Spec: docs/spec/training.md, Checkpoints. Whoever does this believes nothing, and needs no trust.
"""

from __future__ import annotations

from sealwright.crypto.encoding import hex_decode
from sealwright.errors import MessageFormatError
from sealwright.training.agent.wire import Call, malformed, unwrapped
from sealwright.training.broker import TrainingBroker
from sealwright.training.checkpoint.folder import (
    MANIFEST,
    MODEL_SIGNATURE,
    SEALED,
    STATEMENT,
    CheckpointFolder,
    put_file,
)
from sealwright.training.drive import Aggregator

_FILES = {MODEL_SIGNATURE, SEALED, MANIFEST, STATEMENT}


def save_checkpoint(
    aggregator: Aggregator,
    folder: CheckpointFolder,
    broker: TrainingBroker,
    *,
    sealing_key: bytes,
    lineage: bytes,
    origin: str,
    log_size: int,
) -> int:
    """Have the agent make a checkpoint, write it, log it; return its version.

    Args:
        sealing_key: of the checkpoint's kid, sealed to the aggregator's attested key (DSSE), from the model's owner.
        lineage: 16 bytes. origin, log_size: of the broker's log, now.

    Raises:
        AgentRefusal, SealwrightError: of the broker; UnavailableError: `version-exists`, `output-failed`.
    """
    said = {"lineage": lineage.hex(), "origin": origin, "log_size": log_size}
    answer = unwrapped(aggregator(Call("checkpoint", said, [sealing_key])))
    version, names, digests = answer.number("version"), answer.said.get("files"), answer.said.get("sidecars")
    if not isinstance(names, list) or not isinstance(digests, list) or set(names) != _FILES:
        raise malformed("an answer that is no checkpoint")
    if len(names) + len(digests) != len(answer.parts):
        raise malformed("a checkpoint that is cut")
    files = {name: bytes(part) for name, part in zip(names, answer.parts, strict=False)}
    for digest, raw in zip(digests, answer.parts[len(names) :], strict=True):
        folder.put_sidecar(hex_decode(str(digest), length=32, error=MessageFormatError), bytes(raw))
    with folder.adding(version) as staged:
        for name, raw in files.items():
            put_file(staged / name, raw)
    folder.put_proof(version, broker.advance(files[STATEMENT]))
    return version
