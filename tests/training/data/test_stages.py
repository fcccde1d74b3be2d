"""Pre-processing: each step's record is of exactly what went in and came out, and the steps are one chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.world import TRAINING_CODE, arrays

from sealwright.errors import FormatError, VerificationError
from sealwright.training.code import code_digest, folder_code_digest
from sealwright.training.data import StageRecord, run_stage, table_digest, verify_stages
from sealwright.training.data.tables import Columns

RUN, SHARD, OTHER = b"r" * 32, b"s" * 32, b"o" * 32


def scale(columns: Columns, parameters: Mapping[str, str]) -> Columns:
    return {"x": columns["x"] * float(parameters["by"])}


def stage(name: str = "scale", inputs: tuple[bytes, ...] = (SHARD,), **changes: Any) -> StageRecord:
    _, record = run_stage(
        name,
        scale,
        arrays(),
        inputs=inputs,
        code=TRAINING_CODE,
        run=RUN,
        parameters={"by": name[-1] if name[-1].isdigit() else "2"},
    )
    return record.model_copy(update=changes)


def verify(*records: StageRecord, code: tuple[bytes, ...] = (TRAINING_CODE,)) -> bytes | None:
    return verify_stages(records, sources=[SHARD], run=RUN, code=code)


def refused(*records: StageRecord, **options: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(*records, **options)
    assert caught.value.stage == "stages"
    return caught.value.code


def test_a_record_says_what_was_done() -> None:
    made, record = run_stage(
        "scale", scale, arrays(), inputs=[SHARD, SHARD], code=TRAINING_CODE, run=RUN, parameters={"by": "3"}
    )
    np.testing.assert_array_equal(made["x"], arrays()["x"] * 3)
    assert (record.output, record.rows, record.inputs) == (table_digest(made), 10, [SHARD])


def test_a_chain_ends_in_its_last_output() -> None:
    first = stage("by2")
    second = stage("by3", inputs=(first.output,))
    joined = stage("by5", inputs=(SHARD, second.output))
    assert verify() is None
    assert verify(first) == first.output
    assert verify(first, second, joined) == joined.output


def test_a_chain_with_a_hole_is_refused() -> None:
    first = stage("by2")
    second = stage("by3", inputs=(first.output,))
    assert refused(second) == "stage-input-unknown"
    assert refused(second, first) == "stage-input-unknown"
    assert refused(stage(inputs=(OTHER,))) == "stage-input-unknown"
    assert refused(first.model_copy(update={"output": OTHER}), second) == "stage-input-unknown"


def test_what_is_not_used_is_refused() -> None:
    assert refused(stage("by2"), stage("by3")) == "stage-unused"


def test_another_run_or_code_is_refused() -> None:
    assert refused(stage(run=OTHER)) == "stage-other-run"
    assert refused(stage(code=OTHER)) == "stage-code"
    assert refused(stage(), code=()) == "stage-code"


def test_inputs_are_in_order() -> None:
    said = stage().to_json() | {"inputs": [SHARD.hex(), OTHER.hex()]}
    with pytest.raises(FormatError):
        StageRecord.from_json(said)


def test_a_table_has_one_digest() -> None:
    one = arrays()
    same = {
        name: np.asfortranarray(one[name]).astype(one[name].dtype.newbyteorder(">")) for name in reversed(one)
    }
    assert table_digest(one) == table_digest(same)
    others = [
        {"x": one["x"]},
        {"x": one["x"], "z": one["y"]},
        {**one, "y": one["y"].astype(np.int32)},
        {**one, "x": one["x"].reshape(10, 3, 1)},
        {**one, "y": 1 - one["y"]},
    ]
    assert len({table_digest(table) for table in [one, *others]}) == len(others) + 1


@given(
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
)
def test_texts_are_kept_apart(one: list[str], other: list[str]) -> None:
    digests = [table_digest({"text": np.array(rows, dtype=object)}) for rows in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_code_is_its_files(tmp_path: Any) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "train.py").write_text("a")
    (tmp_path / "pkg" / "model.py").write_text("b")
    (tmp_path / "notes.txt").write_text("not code")
    wanted = code_digest({"train.py": b"a", "pkg/model.py": b"b"})
    assert folder_code_digest(tmp_path) == wanted
    assert code_digest({"train.py": b"b", "pkg/model.py": b"a"}) != wanted
