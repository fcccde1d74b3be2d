"""From an inference receipt to the checkpoint that answered. Spec: docs/spec/checkpoint.md, Serving."""

from __future__ import annotations

from collections.abc import Mapping

from sealwright.errors import VerificationError
from sealwright.training.checkpoint.chain import VerifiedChain, VerifiedCheckpoint


def served_checkpoint(values: Mapping[str, object], chain: VerifiedChain) -> VerifiedCheckpoint:
    """Return the version of a verified chain that a receipt names, proved to be the artefact that was opened.

    Args:
        values: the opened fields of a verified receipt (`VerifiedReceipt.values`): `checkpoint`, `manifest_digest`.

    Raises:
        VerificationError: `served-unnamed`, `served-elsewhere`; stage `serving`.
    """
    named, manifest = values.get("checkpoint"), values.get("manifest_digest")
    if not isinstance(named, str) or not isinstance(manifest, str):
        raise VerificationError(
            "the receipt does not open `checkpoint` and `manifest_digest`",
            code="served-unnamed",
            stage="serving",
        )
    for one in chain.checkpoints:
        if one.statement.digest().hex() == named:
            if one.statement.predicate.artefact.manifest_digest.hex() == manifest:
                return one
            break
    raise VerificationError(
        "the receipt's checkpoint or manifest is of no version of this chain",
        code="served-elsewhere",
        stage="serving",
    )
