"""RFC 6962 trees: 518 proof cases of transparency-dev/merkle, and properties."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tlog.support import vectors_root

from sealwright.errors import VerificationError
from sealwright.tlog import merkle

CASES = sorted((vectors_root() / "merkle" / "testdata").glob("**/*.json"))


def _hash(value: str | None) -> bytes:
    return base64.b64decode(value or "")


def _run(kind: str, case: dict[str, Any]) -> None:
    proof = [_hash(item) for item in case["proof"] or []]
    if kind == "inclusion":
        merkle.verify_inclusion(
            case["leafIdx"], case["treeSize"], _hash(case["leafHash"]), _hash(case["root"]), proof
        )
    elif kind == "consistency":
        merkle.verify_consistency(
            case["size1"], case["size2"], _hash(case["root1"]), _hash(case["root2"]), proof
        )
    elif kind == "subtreeinclusion":
        merkle.verify_subtree_inclusion(
            case["leafIdx"], case["start"], case["end"], _hash(case["leafHash"]), _hash(case["root"]), proof
        )
    else:
        assert kind == "subtreeconsistency"
        merkle.verify_subtree_consistency(
            case["start"], case["end"], case["size"], _hash(case["root1"]), _hash(case["root2"]), proof
        )


def test_all_518_cases_are_here() -> None:
    if not CASES:
        pytest.skip("vectors tlog/merkle are not here (SEALWRIGHT_VECTORS)")
    assert len(CASES) == 518


@pytest.mark.parametrize("path", CASES, ids=lambda path: "/".join(path.parts[-4:]))
def test_vector(path: Path) -> None:
    case = json.loads(path.read_text())
    kind = path.relative_to(vectors_root() / "merkle" / "testdata").parts[0]
    if case["wantErr"]:
        with pytest.raises(VerificationError):
            _run(kind, case)
    else:
        _run(kind, case)


def _leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(b"%d" % i) for i in range(size)]


def _mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return merkle.node_hash(_mth(leaves[:split]), _mth(leaves[split:]))


def _node(leaves: list[bytes]) -> merkle.Node:
    return lambda height, index: merkle.tree_root(leaves[index << height : (index + 1) << height])


@pytest.mark.parametrize("size", range(1, 40))
def test_every_proof_of_small_trees(size: int) -> None:
    leaves = _leaves(size)
    root = _mth(leaves)
    assert merkle.tree_root(leaves) == merkle.range_hash(_node(leaves), 0, size) == root
    for index in range(size):
        proof = merkle.inclusion_proof(_node(leaves), index, size)
        merkle.verify_inclusion(index, size, leaves[index], root, proof)
    for old in range(1, size + 1):
        proof = merkle.consistency_proof(_node(leaves), old, size)
        merkle.verify_consistency(old, size, _mth(leaves[:old]), root, proof)


def test_the_empty_tree() -> None:
    assert merkle.tree_root([]) == merkle.EMPTY_ROOT
    assert merkle.range_hash(_node([]), 0, 0) == merkle.EMPTY_ROOT
    with pytest.raises(ValueError, match="no leaf 0"):
        merkle.inclusion_proof(_node([]), 0, 0)
    with pytest.raises(ValueError, match="from 0"):
        merkle.consistency_proof(_node(_leaves(2)), 0, 2)


@st.composite
def _inclusions(draw: st.DrawFn) -> tuple[int, int, tuple[bytes, ...], bytes, bytes]:
    size = draw(st.integers(1, 200))
    index = draw(st.integers(0, size - 1))
    leaves = _leaves(size)
    proof = merkle.inclusion_proof(_node(leaves), index, size)
    return index, size, proof, leaves[index], merkle.tree_root(leaves)


@given(_inclusions(), st.data())
def test_a_changed_inclusion_proof_is_refused(
    case: tuple[int, int, tuple[bytes, ...], bytes, bytes], data: st.DataObject
) -> None:
    index, size, proof, leaf, root = case
    parts = [leaf, root, *proof]
    which = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 255))
    changed = bytearray(parts[which])
    changed[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(changed)
    with pytest.raises(VerificationError, match="proof"):
        merkle.verify_inclusion(index, size, parts[0], parts[1], parts[2:])


@given(st.integers(2, 200), st.data())
def test_a_changed_consistency_proof_is_refused(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size - 1))
    leaves = _leaves(size)
    proof = merkle.consistency_proof(_node(leaves), old, size)
    parts = [merkle.tree_root(leaves[:old]), merkle.tree_root(leaves), *proof]
    which = data.draw(st.integers(0, len(parts) - 1))
    parts[which] = data.draw(st.binary(max_size=64).filter(lambda raw: raw != parts[which]))
    with pytest.raises(VerificationError) as caught:
        merkle.verify_consistency(old, size, parts[0], parts[1], parts[2:])
    assert caught.value.code == "bad-consistency-proof"
