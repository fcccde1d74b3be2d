"""Feed changed evidence to every parser and to the whole verification: nothing but their own errors may come out.

    python scripts/fuzz.py [--seconds N] [--target NAME …] [--seed N] [--atheris] [INPUT …]

Only FormatError may come out of a parser, only SealwrightError out of `check_evidence`, no warning out of either, and
each input is done within two seconds. Inputs are real evidence, where it is here, and that of the fakes, changed by
chance from a seed. With `--atheris` (which has to be installed) coverage guides one target. What fails is kept in
.cache/fuzz, and given again by its path with its target. Not part of CI; `tests/test_fuzz.py` runs a short slice.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]  # so that tests can import this module too

from fuzz_targets import TARGETS, Target, accepts, fakes, real, seeds  # noqa: E402, F401

KEPT = ROOT / ".cache" / "fuzz"
SLOW_S = 2.0
ROUND = 200  # inputs of one target before it is another's turn
_BYTES = (0x00, 0x01, 0x20, 0x22, 0x2C, 0x30, 0x5B, 0x5D, 0x7B, 0x7F, 0x80, 0x81, 0x82, 0x84, 0xFE, 0xFF)
_TOKENS = (
    b"null", b"true", b"-1", b"1e999", b"18446744073709551616", b'""', b"{}", b"[]", b"[" * 500, b'{"a":' * 300,
    b'"\\ud800"', b"\xff\xfe", b"\0" * 64, b"<!DOCTYPE a>", b"&lt;", b"-----BEGIN CERTIFICATE-----\n", b"\n\n",
)  # fmt: skip


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="repeat it; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; one target")
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="run these instead")
    options = parser.parse_args()
    names = options.target or sorted(TARGETS)
    if options.inputs:
        found = [failure(TARGETS[name], path.read_bytes()) for name in names for path in options.inputs]
        return report([one for one in found if one])
    pool = [*fakes(), *real()]
    if options.atheris:
        return guided(names[0], pool, options.seconds)
    return report(list(hunt(names, pool, seconds=options.seconds, seed=options.seed)))


def hunt(names: Sequence[str], pool: Sequence[bytes], *, seconds: float, seed: int) -> Iterator[str]:
    """Yield what failed, targets taking turns until the time is over. Each failure's input is kept."""
    corpora = {name: seeds(TARGETS[name], pool) for name in names}
    end, turn, count, seen = time.monotonic() + seconds, 0, 0, set[str]()
    while time.monotonic() < end:
        for name in names:
            chance = random.Random(f"{seed} {turn} {name}")  # noqa: S311
            for _ in range(ROUND):
                raw = changed(chance, corpora[name])
                said = failure(TARGETS[name], raw)
                count += 1
                if said and (place := said.splitlines()[-1] + said.splitlines()[0]) not in seen:
                    seen.add(place)
                    yield f"{name}: kept as {keep(name, raw)}\n{said}"
                if time.monotonic() >= end:
                    break
        turn += 1
    print(f"fuzz: {count} inputs, {len(names)} targets, {turn} turns", file=sys.stderr)


def failure(target: Target, raw: bytes) -> str:
    """Return what came out of a target that may not, or that it took too long; empty: all is well."""
    start = time.process_time()  # others may use the cores
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.act(raw)
    except target.allowed:
        pass
    except Exception:  # noqa: BLE001
        return traceback.format_exc()
    took = time.process_time() - start
    return f"slow\n{took:.1f} s for {len(raw)} bytes" if took > SLOW_S else ""


def changed(chance: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return one of `corpus` after one to four changes."""
    raw = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 4)):
        chance.choice(_CHANGES)(chance, raw, corpus)
    return bytes(raw)


def _flip(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    if raw:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _set(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    if raw:
        raw[chance.randrange(len(raw))] = chance.choice(_BYTES)


def _number(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    """Lengths and counts: 2, 4 or 8 bytes, small, huge or near the size of it all."""
    size = chance.choice((2, 4, 8))
    value = chance.choice((0, 1, len(raw), len(raw) - 1, (1 << 8 * size) - 1, 1 << 8 * size - 1))
    at = chance.randrange(max(1, len(raw)))
    raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))


def _cut(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    at = chance.randrange(max(1, len(raw)))
    del raw[at : at + chance.choice((1, 2, 4, 16, 256, len(raw)))]


def _repeat(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    at = chance.randrange(max(1, len(raw)))
    raw[at:at] = raw[at : at + chance.choice((1, 4, 32, 512))] * chance.choice((1, 2, 8))


def _insert(chance: random.Random, raw: bytearray, _corpus: Sequence[bytes]) -> None:
    at = chance.randrange(len(raw) + 1)
    raw[at:at] = chance.choice((chance.randbytes(chance.choice((1, 4, 16))), chance.choice(_TOKENS)))


def _splice(chance: random.Random, raw: bytearray, corpus: Sequence[bytes]) -> None:
    other = chance.choice(corpus)
    at, start = chance.randrange(max(1, len(raw))), chance.randrange(max(1, len(other)))
    raw[at : at + chance.choice((0, 16, 128))] = other[start : start + chance.choice((16, 128, 4096))]


_CHANGES: Sequence[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = (
    _flip, _flip, _set, _set, _number, _number, _cut, _repeat, _insert, _splice,
)  # fmt: skip


def guided(name: str, pool: Sequence[bytes], seconds: float) -> int:
    """Let atheris look for inputs that reach more of one target. It ends the process by itself."""
    atheris = import_module("atheris")
    corpus = KEPT / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for raw in seeds(TARGETS[name], pool):
        (corpus / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)

    def one(raw: bytes) -> None:
        if said := failure(TARGETS[name], raw):
            raise RuntimeError(f"{name}: kept as {keep(name, raw)}\n{said}")

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={round(seconds)}", "-timeout=10", str(corpus)], one)
    atheris.Fuzz()
    return 0


def keep(name: str, raw: bytes) -> Path:
    """Write an input that failed, and return where."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}"
    path.write_bytes(raw)
    return path


def report(failures: Sequence[str]) -> int:
    """Print the failures; return the exit code."""
    print("\n\n".join(failures) or "fuzz: nothing came out that may not")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
