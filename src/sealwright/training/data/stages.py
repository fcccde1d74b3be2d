"""Pre-processing whose every step is signed: what went in, which code with which parameters, what came out.

Spec: docs/spec/training-data.md, Stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sealwright.crypto.document import Digest, Name
from sealwright.crypto.encoding import joined
from sealwright.crypto.statement import Statement
from sealwright.errors import VerificationError
from sealwright.protocol.plan import Parameter
from sealwright.protocol.training_data import MAX_SHARDS, Positive
from sealwright.training.data.tables import Columns

MAX_STAGES = 64
_LABEL = "sealwright/table/v1"
Transform = Callable[[Columns, Mapping[str, str]], Columns]


class StageRecord(Statement):
    """One step, signed by the `receipt_key` of the worker that did it."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.data-stage.v1+json"

    format: Literal["sealwright-data-stage/v1"] = "sealwright-data-stage/v1"
    run: Digest  # of the training plan
    name: Name
    inputs: Annotated[
        list[Digest], Field(min_length=1, max_length=MAX_SHARDS)
    ]  # manifests, or outputs before
    code: Digest
    parameters: Annotated[dict[Name, Parameter], Field(max_length=64)]
    output: Digest  # `table_digest`
    rows: Positive
    egress: Literal["none"] = "none"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.inputs != sorted(set(self.inputs)):
            raise ValueError("inputs are in order, each once")
        return self


def table_digest(columns: Columns) -> bytes:
    """Return SHA-256 (32 bytes) over names, types, shapes and values, in order of the names."""
    found = hashlib.sha256(joined(_LABEL, len(columns)))
    for name in sorted(columns):
        value = columns[name]
        if value.dtype.hasobject:
            found.update(joined(name, "text", *value.shape))
            for one in value.ravel():
                found.update(joined(str(one)))
            continue
        little = value.dtype.newbyteorder("<")
        found.update(joined(name, little.str, *value.shape, value.size * little.itemsize))
        found.update(np.ascontiguousarray(value, dtype=little).data.cast("B") if value.size else b"")
    return found.digest()


def run_stage(
    name: str,
    transform: Transform,
    columns: Columns,
    *,
    inputs: Sequence[bytes],
    code: bytes,
    run: bytes,
    parameters: Mapping[str, str],
) -> tuple[dict[str, NDArray[Any]], StageRecord]:
    """Return what `transform` makes of the columns, and the record to sign.

    Args:
        inputs: manifest digests of the shards that the columns are of, or the output before.
        code: digest of the code that `transform` is in, see `code_digest`.
    """
    made = dict(transform(columns, parameters))
    rows = len(next(iter(made.values())))
    record = StageRecord(
        run=run,
        name=name,
        inputs=sorted(set(inputs)),
        code=code,
        parameters=dict(parameters),
        output=table_digest(made),
        rows=rows,
    )
    return made, record


def verify_stages(
    records: Iterable[StageRecord], *, sources: Iterable[bytes], run: bytes, code: Iterable[bytes]
) -> bytes | None:
    """Return what the last stage made, each step proved to be of what was there before. None: there was no stage.

    Args:
        records: in their order; signatures are already verified.
        sources: manifest digests of the shards that were granted.
        code: what owners allow.

    Raises:
        VerificationError: stage `stages`: `stage-other-run`, `stage-code`, `stage-input-unknown`, `stage-unused`.
    """
    allowed, there = set(code), set(sources)
    made: dict[bytes, str] = {}
    last: bytes | None = None
    for record in records:
        if record.run != run:
            raise _refused(f"{record.name} is of another run", "stage-other-run")
        if record.code not in allowed:
            raise _refused(f"no owner allows the code of {record.name}", "stage-code")
        missing = [one for one in record.inputs if one not in there]
        if missing:
            text = (
                f"{record.name} has an input {missing[0].hex()[:16]}… that no shard or stage before it gives"
            )
            raise _refused(text, "stage-input-unknown")
        for used in record.inputs:
            made.pop(used, None)
        there.add(record.output)
        made[record.output] = record.name
        last = record.output
    if len(made) > 1:
        text = f"what {next(iter(made.values()))} made went into nothing"
        raise _refused(text, "stage-unused")
    return last


def _refused(text: str, code: str) -> VerificationError:
    return VerificationError(text, code=code, stage="stages")
