"""Going on from a checkpoint: the whole chain first, then its weights, in memory alone. Spec: docs/spec/checkpoint.md, Rollback."""

from __future__ import annotations

import hmac
import mmap
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealwright.errors import VerificationError
from sealwright.sealing import open_memfd
from sealwright.training.checkpoint.chain import VerifiedChain, VerifiedCheckpoint, verify_chain
from sealwright.training.checkpoint.folder import CheckpointFolder
from sealwright.training.checkpoint.trust import TrainingTrust
from sealwright.training.checkpoint.versions import Newest
from sealwright.training.data.tables import release
from sealwright.training.safetensors import decode_safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A proved chain, and the weights of its newest version."""

    chain: VerifiedChain
    tensors: dict[str, NDArray[Any]]  # copies, to be trained on


def resume(folder: Path, trust: TrainingTrust, dek: bytes, *, at: datetime, newest: Newest | None) -> Resumed:
    """Return what training goes on from: nothing is opened before every version is proved and none newer is known.

    Args:
        dek: 32 bytes, of the newest artefact's kid.
        newest: the broker, or a file out of the host's reach; None: only what `trust` names is held against the chain.

    Raises:
        SealwrightError: as `verify_chain` and `open_weights`.
    """
    chain = verify_chain(folder, trust, at=at, newest=newest)
    return Resumed(chain=chain, tensors=open_weights(CheckpointFolder(folder), chain.newest, dek))


def open_weights(
    folder: CheckpointFolder, checkpoint: VerifiedCheckpoint, dek: bytes
) -> dict[str, NDArray[Any]]:
    """Return the weights of a verified checkpoint, proved to be those that its statement is about.

    Raises:
        VerificationError: `model-differs`, stage `weights`; and the stages of docs/spec/sealed-artefact.md.
        ArtefactFormatError: `malformed-safetensors`. UnavailableError.
    """
    # The sealer was the signer; still, the statement names the plaintext, and the artefact has to be that one.
    sealed = checkpoint.manifest.contents(dek)[0].sha256
    if sealed is None or not hmac.compare_digest(sealed, checkpoint.statement.weights):
        raise VerificationError(
            "the sealed weights are not those that the statement is about",
            code="model-differs",
            stage="weights",
        )
    fd = open_memfd(folder.artefact(checkpoint.version), checkpoint.manifest, dek)
    try:
        buffer = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        try:
            return {name: np.array(value) for name, value in decode_safetensors(buffer).items()}
        finally:
            release(buffer)
    finally:
        os.close(fd)
