"""A whole guest image, twice: the same bytes. Needs the packages that the lock names; `make test-image` fetches them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from sealwright.errors import VerificationError
from sealwright.image.guestimage import FILES, read_image, signed_disk
from sealwright.image.predict.stub import Uki

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def image() -> Path:
    """What `make test-image` built, or another one of the same."""
    named = os.environ.get("SEALWRIGHT_IMAGE")
    if not named:
        pytest.skip("SEALWRIGHT_IMAGE names no built image: make test-image")
    return Path(named)


def lock_file() -> Path:
    """The lock that the packages are of: their own, where mirrors have dropped what the project's names."""
    own = Path(os.environ["SEALWRIGHT_PACKAGES"]) / "lock.json"
    return own if own.exists() else ROOT / "deploy" / "oci" / "lock.json"


def test_every_file_is_the_one_that_the_manifest_names(image: Path) -> None:
    manifest = read_image(image)
    assert sorted(file.name for file in manifest.files) == sorted(FILES)
    for file in manifest.files:
        raw = (image / file.name).read_bytes()
        assert (sha256(raw).digest(), len(raw)) == (file.sha256, file.size)
    assert manifest.command_line.encode() == (image / "cmdline").read_bytes()
    sections = Uki.parse((image / "guest.efi").read_bytes()).sections
    assert sections[".cmdline"] == (image / "cmdline").read_bytes()
    assert sections[".initrd"] == (image / "initrd").read_bytes()
    assert sections[".linux"] == (image / "kernel").read_bytes()


def test_bill_and_provenance_name_what_went_in(image: Path) -> None:
    lock = json.loads(lock_file().read_text())
    bom = json.loads((image / "sbom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    listed = {one["name"] for one in bom["components"]}
    assert listed >= {one["name"] for one in lock["debian"] if "guest" in one["images"]}
    provenance = json.loads((image / "provenance.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in provenance["subject"]}
    assert subjects["disk.raw"] == sha256((image / "disk.raw").read_bytes()).hexdigest()
    named = {one["name"] for one in provenance["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {one["file"] for one in lock["debian"] if "tools" in one["images"]} <= named


def test_the_second_build_is_the_same(image: Path, tmp_path: Path) -> None:
    """Another folder, time zone, locale, mask, and order of the files on the disk."""
    packages, wheel = os.environ["SEALWRIGHT_PACKAGES"], os.environ["SEALWRIGHT_WHEEL"]
    elsewhere = tmp_path / "packages"
    elsewhere.mkdir()
    for file in sorted(Path(packages).glob("*.[dw]*"), reverse=True):
        (elsewhere / file.name).symlink_to(file.resolve())
    lock = str(lock_file())
    out = tmp_path / "deeper" / "image"
    arguments = ["image", "build", "--lock", lock, "--packages", str(elsewhere), "--wheel", wheel]
    code = "import sys, os; os.umask(0o077); from sealwright.cli import main; sys.exit(main())"
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(out)], env=environment, check=True, cwd=tmp_path
    )
    for name in (*FILES, "image.json"):
        assert (out / name).read_bytes() == (image / name).read_bytes(), name


@pytest.mark.skipif(shutil.which("sbsign") is None, reason="no sbsign: apt-get install sbsigntool")
def test_the_boot_program_can_be_signed_and_stays_what_it_is(image: Path, tmp_path: Path) -> None:
    key, cert, signed = (tmp_path / name for name in ("key", "cert", "signed"))
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1"]
    subprocess.run([*request, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    command = ["sbsign", "--key", str(key), "--cert", str(cert), "--output", str(signed)]
    subprocess.run([*command, str(image / "guest.efi")], check=True, capture_output=True)
    subprocess.run(["sbverify", "--cert", str(cert), str(signed)], check=True, capture_output=True)
    plain = next(file.sha256 for file in read_image(image).files if file.name == "disk.raw")
    assert signed_disk(image, signed, tmp_path / "disk") != plain
    assert signed.read_bytes() in (tmp_path / "disk").read_bytes()


def test_a_disk_takes_no_other_program(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.efi"
    raw = bytearray((image / "guest.efi").read_bytes())
    raw[-100] ^= 1
    other.write_bytes(raw)
    with pytest.raises(VerificationError) as caught:
        signed_disk(image, other, tmp_path / "disk")
    assert (caught.value.code, caught.value.stage) == ("image-digest", "sign")
    assert signed_disk(image, image / "guest.efi", tmp_path / "disk").hex() == next(
        file.sha256.hex() for file in read_image(image).files if file.name == "disk.raw"
    )
