"""A toy language model in GGUF: the right form for llama.cpp, a few thousand weights, and no sense in what it says.

Format: GGUF version 3 (ggml-org/ggml, docs/gguf.md). For machines on which a real model would take minutes a token.
"""

from __future__ import annotations

import random
import struct
import warnings
from collections.abc import Iterator, Sequence

from sealwright.testing.software import FakePlatformWarning

_EMBEDDING, _HEADS, _FEED_FORWARD, _CONTEXT = 32, 2, 64, 1024
_ALIGNMENT = 32  # bytes
_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # token types
_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def toy_gguf(seed: int = 0) -> bytes:
    """Return the file of a llama model with one layer whose tokens are the 256 bytes; the same seed, the same bytes."""
    warnings.warn("toy_gguf is no language model", FakePlatformWarning, stacklevel=2)
    head, data, offset = [], [], 0
    for name, shape, values in _tensors(random.Random(seed)):  # noqa: S311 - weights, no secrets
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head.append(_text(name) + dimensions + struct.pack("<IQ", 0, offset))  # F32
        raw = struct.pack(f"<{len(values)}f", *values)
        data.append(raw.ljust(-(-len(raw) // _ALIGNMENT) * _ALIGNMENT, b"\0"))
        offset += len(data[-1])
    facts = [_text(key) + value for key, value in _facts()]
    found = struct.pack("<4sIQQ", b"GGUF", 3, len(head), len(facts)) + b"".join(facts) + b"".join(head)
    return found.ljust(-(-len(found) // _ALIGNMENT) * _ALIGNMENT, b"\0") + b"".join(data)


def _tokens() -> list[tuple[str, int]]:
    special = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    letters = [(chr(code), _NORMAL) for code in range(97, 123)]
    return special + [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)] + letters


def _facts() -> Iterator[tuple[str, bytes]]:
    numbers = {
        "context_length": _CONTEXT,
        "embedding_length": _EMBEDDING,
        "block_count": 1,
        "feed_forward_length": _FEED_FORWARD,
        "attention.head_count": _HEADS,
        "rope.dimension_count": _EMBEDDING // _HEADS,
        "vocab_size": len(_tokens()),
    }
    yield "general.architecture", struct.pack("<I", _STRING) + _text("llama")
    for name, number in numbers.items():
        yield f"llama.{name}", struct.pack("<II", _U32, number)
    yield "llama.attention.layer_norm_rms_epsilon", struct.pack("<If", _F32, 1e-5)
    yield "tokenizer.ggml.model", struct.pack("<I", _STRING) + _text("llama")
    tokens = _tokens()
    yield "tokenizer.ggml.tokens", _array(_STRING, [_text(text) for text, _ in tokens])
    yield "tokenizer.ggml.scores", _array(_F32, [struct.pack("<f", -float(at)) for at in range(len(tokens))])
    yield "tokenizer.ggml.token_type", _array(_I32, [struct.pack("<i", kind) for _, kind in tokens])
    for name, number in {"unknown": 0, "bos": 1, "eos": 2}.items():
        yield f"tokenizer.ggml.{name}_token_id", struct.pack("<II", _U32, number)
    yield "tokenizer.chat_template", struct.pack("<I", _STRING) + _text(_TEMPLATE)


def _tensors(chance: random.Random) -> Iterator[tuple[str, tuple[int, ...], list[float]]]:
    """Yield name, shape (innermost first) and values (F32) of each tensor."""
    wide, tokens = _EMBEDDING, len(_tokens())
    matrices = {
        "token_embd.weight": (wide, tokens),
        **{f"blk.0.attn_{one}.weight": (wide, wide) for one in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (wide, _FEED_FORWARD),
        "blk.0.ffn_up.weight": (wide, _FEED_FORWARD),
        "blk.0.ffn_down.weight": (_FEED_FORWARD, wide),
        "output.weight": (wide, tokens),
    }
    for name, (inner, outer) in matrices.items():
        yield name, (inner, outer), [chance.gauss(0, 0.3) for _ in range(inner * outer)]
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        yield f"{name}.weight", (wide,), [1.0] * wide


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)
