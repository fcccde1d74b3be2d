"""Large artefacts, file to file, at 1 and 8 GiB: against age, and against AES-GCM alone.

    python bench/artefacts.py [--sizes 1,8]     GiB

Prints one JSON object a line, as bench/run.py says. One GiB lies in memory (/dev/shm), more on the disk of the temporary
folder, whose speed then bounds everybody. Needs `age` (apt-get install age), and twice the size there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealwright.crypto.streaming import SEGMENT_BYTES
from sealwright.sealing import Manifest, SealedFolder, Sealing, locate, open_to_file
from sealwright.sealing.seal import seal_one

GIB = 1 << 30
OWNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SEALING = Sealing(dek=bytes(range(32)), kid="bench", signer=OWNER, version=1)
RESUMABLE = Sealing(dek=bytes(range(32)), kid="bench", signer=OWNER, version=1, resume=True)


def raw_aes(source: Path) -> None:
    """Read the file, and encrypt it 1 MiB at a time into one reused buffer."""
    key, plain, out = AESGCM(bytes(32)), bytearray(SEGMENT_BYTES), bytearray(SEGMENT_BYTES + 16)
    with source.open("rb", buffering=0) as reader:
        while reader.readinto(plain):
            key.encrypt_into(bytes(12), plain, None, out)


def child(*command: object) -> tuple[float, float]:
    """Run a command; return its seconds and its largest resident size in MiB."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def measured(work: str, source: Path, out: Path) -> dict[str, float]:
    """Run one of our steps in a process of its own."""
    os.sync()
    run = subprocess.run(
        [sys.executable, __file__, "--work", work, str(source), str(out)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def step(work: str, source: Path, out: Path) -> None:
    """Print the seconds of a step, and how far it raised this process's largest resident size (MiB)."""
    manifest = verified(source) if work in ("open", "part") else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if work == "open":
        assert manifest is not None
        open_to_file(source, manifest, SEALING.dek, out)
    elif work == "part":
        assert manifest is not None
        (name,) = folder = SealedFolder(locate(source), manifest, SEALING.dek)
        with folder.open(name) as stream:
            stream.seek(folder[name].length // 2)
            stream.read(SEGMENT_BYTES)
    elif work == "raw":
        raw_aes(source)
    else:
        seal_one(source, out, RESUMABLE if work == "seal-resumable" else SEALING)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"s": seconds, "mib": grown}))


def verified(artefact: Path) -> Manifest:
    """Return the manifest of an artefact, as its owner checks it."""
    return Manifest.verify_signed(locate(artefact).envelope(), [OWNER.public_key()])


def best(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the run of the median time."""
    return sorted(runs)[len(runs) // 2]


class Size:
    """One size, in one folder."""

    def __init__(self, folder: Path, gib: int, age: str, turns: int) -> None:
        self.gib, self.age, self.turns, self.bytes = gib, age, turns, gib * GIB
        self.source, self.sealed, self.aged, self.plain = (
            folder / name for name in ("source", "source.sealed", "aged", "plain")
        )
        self.identity = folder / "identity"
        with self.source.open("wb") as file:
            for _ in range(self.bytes // (64 << 20)):
                file.write(os.urandom(64 << 20))
        child(f"{age}-keygen", "-o", self.identity)
        self.recipient = self.identity.read_text().split("public key: ")[1].split()[0]

    def ours(self, work: str, source: Path, out: Path) -> tuple[float, float]:
        """Run one of our steps; its output is left only by the last turn."""
        runs = []
        for _ in range(self.turns):
            out.unlink(missing_ok=True)
            found = measured(work, source, out)
            runs.append((found["s"], found["mib"]))
        return best(runs)

    def theirs(self, source: Path, out: Path, *options: object) -> tuple[float, float]:
        """Run age."""
        runs = []
        for _ in range(self.turns):
            out.unlink(missing_ok=True)
            runs.append(child(self.age, *options, "-o", out, source))
        return best(runs)

    def row(self, work: str, ours: float, peer: float, limit: str = "shown, no target") -> None:
        """Print a row of throughputs."""
        mine, other = self.bytes / ours / 1e9, self.bytes / peer / 1e9
        shown = {"ours": round(mine, 2), "peer": round(other, 2), "ratio": round(mine / other, 2)}
        self.print(work, {**shown, "unit": "GB/s", "limit": limit})

    def print(self, work: str, shown: dict[str, object]) -> None:
        """Print a row."""
        where = "in memory" if self.gib == 1 else "on disk"
        print(json.dumps({"work": f"{work}, {self.gib} GiB {where}", **shown}), flush=True)

    def measure(self) -> None:
        """Measure, and print all rows."""
        raw, _ = self.ours("raw", self.source, self.plain)
        theirs, age_mib = self.theirs(self.source, self.aged, "-r", self.recipient)
        self.aged.unlink()
        kept, _ = self.ours("seal-resumable", self.source, self.sealed)
        self.sealed.unlink()
        seal, mib = self.ours("seal", self.source, self.sealed)
        self.row("seal file to file, against age", seal, theirs, "ours >= 1.5 GB/s")
        self.row("the same, so that it can be gone on with", kept, theirs)
        self.row("seal file to file, against reading and AES-GCM alone", seal, raw)
        part, _ = self.ours("part", self.sealed, self.plain)
        self.source.unlink()
        opening, _ = self.ours("open", self.sealed, self.plain)
        self.sealed.unlink()
        child(self.age, "-r", self.recipient, "-o", self.aged, self.plain)
        self.plain.unlink()
        theirs, _ = self.theirs(self.aged, self.plain, "-d", "-i", self.identity)
        self.row("open file to file, against age", opening, theirs)
        memory: dict[str, object] = {"ours": round(mib, 1), "peer": round(age_mib, 1), "unit": "MiB"}
        ratio = round(mib / age_mib, 2)
        self.print(
            "memory that sealing adds, against all of age's",
            {**memory, "ratio": ratio, "limit": "ours <= 16"},
        )
        lazy: dict[str, object] = {"ours": round(part * 1e3, 2), "peer": None, "ratio": None, "unit": "ms"}
        self.print("1 MiB from the middle, opened lazily", {**lazy, "limit": "shown, no target"})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,8")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        step(args.work[0], Path(args.work[1]), Path(args.work[2]))
        return
    age = shutil.which("age")
    if age is None:
        sys.exit("bench/artefacts.py needs age: apt-get install age")
    for gib in map(int, args.sizes.split(",")):
        memory = "/dev/shm" if gib == 1 else None
        with tempfile.TemporaryDirectory(dir=memory) as name:
            Size(Path(name), gib, age, 3 if gib == 1 else 1).measure()


if __name__ == "__main__":
    main()
