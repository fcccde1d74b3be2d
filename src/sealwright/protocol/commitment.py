"""Salted field commitments and log entries. Spec: docs/spec/receipt.md."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from sealwright.crypto.document import Bytes, Bytes32, Digest, Document, Id16, Name, Record
from sealwright.crypto.encoding import digest
from sealwright.errors import VerificationError
from sealwright.tlog.merkle import leaf_hash, tree_root

MAX_FIELDS = 64


class LogEntry(Document):
    """What the log holds of a receipt, a keyset or a decision: a commitment, nothing to guess from.

    Reference values, checkpoints and data grants are public: their commitment is the digest of the document itself.
    """

    commitment: Digest
    type: Literal["receipt", "keyset", "decision", "reference-values", "checkpoint", "data-grant"]


class Leaf(Record):
    """A field's name and its commitment."""

    name: Name
    leaf: Digest


class Opening(Record):
    """What opens one field: its salt and its value."""

    salt: Bytes32
    value: Bytes


def field_leaf(record_id: bytes, name: str, opening: Opening) -> bytes:
    """Return the commitment (32 bytes) of one field of one record."""
    return digest("sealwright/field/v1", record_id, name, opening.salt, len(opening.value), opening.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """A record's fields, committed: `root` is public, `openings` belong to whoever may see them."""

    record_id: bytes  # 16 bytes
    leaves: tuple[Leaf, ...]  # in order of the names
    openings: Mapping[str, Opening]

    @classmethod
    def make(
        cls,
        fields: Mapping[str, bytes],
        *,
        record_id: bytes,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> Self:
        """Commit to `fields` with fresh 32-byte salts from `random`."""
        if not 1 <= len(fields) <= MAX_FIELDS:
            raise ValueError(f"a record has 1 to {MAX_FIELDS} fields")
        openings = {name: Opening(salt=random(32), value=fields[name]) for name in sorted(fields)}
        leaves = tuple(
            Leaf(name=name, leaf=field_leaf(record_id, name, opening)) for name, opening in openings.items()
        )
        return cls(record_id=record_id, leaves=leaves, openings=openings)

    @property
    def root(self) -> bytes:
        """The commitment (32 bytes)."""
        return commitment_root(self.leaves)


def commitment_root(leaves: tuple[Leaf, ...]) -> bytes:
    """Return the Merkle root over field commitments; names must be distinct and in order.

    Raises:
        VerificationError: `field-order`.
    """
    names = [leaf.name for leaf in leaves]
    if not names or names != sorted(set(names)):
        raise VerificationError(
            "field names repeat or are out of order", code="field-order", stage="commitment"
        )
    return tree_root([leaf_hash(leaf.leaf) for leaf in leaves])


def verify_openings(record_id: bytes, leaves: tuple[Leaf, ...], openings: Mapping[str, Opening]) -> None:
    """Prove that each opening opens the field of its name in this record.

    Raises:
        VerificationError: `field-unknown`, `field-mismatch`.
    """
    known = {leaf.name: leaf.leaf for leaf in leaves}
    for name, opening in openings.items():
        if name not in known:
            raise VerificationError(f"the record has no field {name!r}", code="field-unknown", stage="fields")
        if not hmac.compare_digest(field_leaf(record_id, name, opening), known[name]):
            raise VerificationError(
                f"the opening of {name!r} is not the committed one", code="field-mismatch", stage="fields"
            )


class Openings(Document):
    """A record's openings as a file: kept beside the broker for auditors, or given to the caller."""

    record_id: Id16
    fields: dict[Name, Opening]
