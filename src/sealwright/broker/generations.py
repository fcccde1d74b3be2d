"""A key's generations: the current one, the next, the previous. Rows alone change here; no key is unwrapped.

Spec: docs/spec/life-cycle.md, Rotation.
"""

from __future__ import annotations

from sealwright.broker.rows import Changes, GenerationRow, KeyRow, Place
from sealwright.broker.state import View
from sealwright.crypto.document import validated
from sealwright.errors import AppraisalError, AppraisalFailure

STAGE = "rotation"


def is_previous(row: KeyRow) -> bool:
    """Say whether this generation was taken over from."""
    return isinstance(row, GenerationRow) and row.place == "previous"


def generation_at(view: View, kid: str, place: Place) -> GenerationRow | None:
    """Return a generation beside the current one."""
    return view.get(GenerationRow, "generation", f"{kid}@{place}")


def next_generation(view: View, current: KeyRow) -> GenerationRow:
    """Return the next generation. Raises AppraisalError: `no-next-generation`."""
    row = generation_at(view, current.kid, "next")
    if row is None:
        raise _refused(f"{current.kid} has no next generation: make it with key rotate", "no-next-generation")
    return row


def check_no_next(view: View, current: KeyRow) -> None:
    """Raise AppraisalError, `next-generation-exists`, where a rotation is under way."""
    if generation_at(view, current.kid, "next") is not None:
        text = f"{current.kid} has a next generation: switch to it, or drop it, first"
        raise _refused(text, "next-generation-exists")


def switched(view: View, current: KeyRow) -> tuple[Changes, KeyRow]:
    """Return the change that makes the next generation the current one, and keeps this one as the previous.

    What each key is wrapped for stays the same: nothing is unwrapped, and no backend is asked.

    Raises:
        AppraisalError: `no-next-generation`, `next-not-admitted`, `previous-generation-kept`.
    """
    coming = next_generation(view, current)
    if coming.admitted is None:
        raise _refused(
            "no manifest of the next generation was admitted yet: whoever starts now could open nothing",
            "next-not-admitted",
        )
    if generation_at(view, current.kid, "previous") is not None:
        raise _refused(
            "the generation before this one is still released: retire it first", "previous-generation-kept"
        )
    before = validated(GenerationRow, _fields(current) | {"place": "previous"})
    after = validated(KeyRow, {name: value for name, value in _fields(coming).items() if name != "place"})
    changes = {before.row_key: before.encode(), coming.row_key: None, after.row_key: after.encode()}
    return changes, after


def dropped(view: View, current: KeyRow, place: Place) -> Changes:
    """Return the change after which a generation is released no more.

    Raises:
        AppraisalError: `no-previous-generation`, `no-next-generation`.
    """
    row = generation_at(view, current.kid, place)
    if row is None:
        code = "no-previous-generation" if place == "previous" else "no-next-generation"
        raise _refused(f"{current.kid} has no {place} generation", code)
    return {row.row_key: None}


def _fields(row: KeyRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in type(row).model_fields}


def _refused(text: str, code: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(text, code=code)], stage=STAGE)
