"""RFC 6962 Merkle trees over SHA-256: hashes, roots, proofs made and proofs verified.

A proof is made from perfect subtrees, asked for by (height, index): the hash over leaves
[index << height, (index + 1) << height). Where they come from is the caller's affair.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from sealwright.errors import VerificationError

HASH_SIZE = 32  # bytes
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_PROOF = 63  # hashes; a tree has fewer than 2^63 leaves

Node = Callable[[int, int], bytes]  # (height, index) of a perfect subtree -> its hash


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over `hashes`: leaf hashes, or the roots of equal perfect subtrees."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        above = [node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        row = above + row[2 * len(above) :]  # an odd one out moves up as it is
    return row[0]


def range_hash(node: Node, start: int, end: int) -> bytes:
    """Return MTH(D[start:end]) for a range that RFC 6962 would hash (`start` aligned), from perfect subtrees."""
    if start == end:
        return EMPTY_ROOT
    parts = []
    while start < end:
        height = (end - start).bit_length() - 1
        parts.append(node(height, start >> height))
        start += 1 << height
    result = parts.pop()
    for part in reversed(parts):
        result = node_hash(part, result)
    return result


def inclusion_proof(node: Node, index: int, size: int) -> tuple[bytes, ...]:
    """Return PATH(index, D[size]) of RFC 6962 section 2.1.1, leaf's sibling first."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    low, high, ranges = 0, size, []
    while high - low > 1:
        split = _split(low, high)
        if index < split:
            ranges.append((split, high))
            high = split
        else:
            ranges.append((low, split))
            low = split
    return tuple(range_hash(node, *span) for span in reversed(ranges))


def consistency_proof(node: Node, old: int, new: int) -> tuple[bytes, ...]:
    """Return PROOF(old, D[new]) of RFC 6962 section 2.1.2."""
    if not 0 < old <= new:
        raise ValueError(f"no consistency proof from {old} to {new}")
    low, high, ranges = 0, new, []
    while high != old:
        split = _split(low, high)
        if old <= split:
            ranges.append((split, high))
            high = split
        else:
            ranges.append((low, split))
            low = split
    if low > 0:  # the old root is not itself a node of the new tree's left edge
        ranges.append((low, high))
    return tuple(range_hash(node, *span) for span in reversed(ranges))


def verify_inclusion(index: int, size: int, leaf: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Prove that `leaf` (its hash) is number `index` of the tree of `size` leaves under `root`.

    RFC 9162 section 2.1.3.2.

    Raises:
        VerificationError: `bad-inclusion-proof`.
    """
    if not 0 <= index < size:
        raise _bad_inclusion(f"there is no leaf {index} in a tree of {size}")
    _check_lengths((leaf, *proof), _bad_inclusion)
    at, last, result = index, size - 1, leaf
    for part in proof:
        if last == 0:
            raise _bad_inclusion("the proof is too long")
        if at & 1 or at == last:
            result = node_hash(part, result)
            zeros = _trailing_zeros(at)
            at, last = at >> zeros, last >> zeros
        else:
            result = node_hash(result, part)
        at, last = at >> 1, last >> 1
    if last or not hmac.compare_digest(result, root):
        raise _bad_inclusion(f"the proof does not lead from leaf {index} to the root")


def verify_subtree_inclusion(
    index: int, start: int, end: int, leaf: bytes, root: bytes, proof: Sequence[bytes]
) -> None:
    """Prove that `leaf` is number `index` of the log, inside the subtree [start, end) under `root`.

    Raises:
        VerificationError: `bad-inclusion-proof`.
    """
    if start == end or not _is_subtree(start, end):
        raise _bad_inclusion(f"[{start}, {end}) is not a subtree")
    verify_inclusion(index - start, end - start, leaf, root, proof)


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Prove that the tree of `new` leaves under `new_root` begins with that of `old` leaves under `old_root`.

    Size 0 is refused: every tree begins with the empty one, so it would prove nothing.

    Raises:
        VerificationError: `bad-consistency-proof`.
    """
    if old == 0:
        raise _bad_consistency("a proof from size 0 proves nothing")
    verify_subtree_consistency(0, old, new, old_root, new_root, proof)


def verify_subtree_consistency(
    start: int, end: int, size: int, subtree_root: bytes, root: bytes, proof: Sequence[bytes]
) -> None:
    """Prove that the tree of `size` leaves under `root` holds the subtree [start, end) under `subtree_root`.

    draft-ietf-plants-merkle-tree-certs, section 4.4.3; with start 0 RFC 9162 section 2.1.4.2.

    Raises:
        VerificationError: `bad-consistency-proof`.
    """
    if not _is_subtree(start, end) or end > size:
        raise _bad_consistency(f"[{start}, {end}) is not a subtree of a tree of {size}")
    _check_lengths(proof, _bad_consistency)
    if start == end:
        if proof or not hmac.compare_digest(subtree_root, EMPTY_ROOT):
            raise _bad_consistency("an empty subtree has the empty root and an empty proof")
        return
    found, found_root = _consistency_roots(start, end - 1, size - 1, subtree_root, proof)
    if not hmac.compare_digest(found, subtree_root) or not hmac.compare_digest(found_root, root):
        raise _bad_consistency("the proof does not lead to both roots")


def _consistency_roots(
    first: int, last: int, end: int, subtree_root: bytes, proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Return what the proof says are the roots of the subtree [first, last] and of the tree [0, end]."""
    while first != last and (last & 1 or last == end):
        first, last, end = first >> 1, last >> 1, end >> 1
    if first == last:  # the subtree is a node of the tree
        while end and last == end:
            first, last, end = first >> 1, last >> 1, end >> 1
        seed, rest = subtree_root, proof
    elif proof:
        seed, rest = proof[0], proof[1:]
    else:
        raise _bad_consistency("the proof is too short")
    found = found_root = seed
    for part in rest:
        if end == 0:
            raise _bad_consistency("the proof is too long")
        if last & 1 or last == end:
            if first < last:
                found = node_hash(part, found)
            found_root = node_hash(part, found_root)
            zeros = _trailing_zeros(last)
            first, last, end = first >> zeros, last >> zeros, end >> zeros
        else:
            found_root = node_hash(found_root, part)
        first, last, end = first >> 1, last >> 1, end >> 1
    if end:
        raise _bad_consistency("the proof is too short")
    return found, found_root


def _split(low: int, high: int) -> int:
    """Return where RFC 6962 splits leaves [low, high): after the largest power of two below its length."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def _is_subtree(start: int, end: int) -> bool:
    """Say whether [start, end) is aligned: `start` a multiple of the power of two that holds its length."""
    if not 0 <= start <= end:
        return False
    return start == end or start % (1 << (end - start - 1).bit_length()) == 0


def _trailing_zeros(number: int) -> int:
    return (number & -number).bit_length() - 1 if number else 0


def _check_lengths(hashes: Sequence[bytes], error: Callable[[str], VerificationError]) -> None:
    if any(len(item) != HASH_SIZE for item in hashes):
        raise error("a hash in the proof does not have 32 bytes")


def _bad_inclusion(text: str) -> VerificationError:
    return VerificationError(text, code="bad-inclusion-proof", stage="inclusion")


def _bad_consistency(text: str) -> VerificationError:
    return VerificationError(text, code="bad-consistency-proof", stage="consistency")
