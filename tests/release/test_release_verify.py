"""Every part of a release that is altered is refused, at its stage; all failures are listed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.release.support import AT, Stand, make_values

from sealwright.appraisal.signed import Signers
from sealwright.cli import main
from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.errors import FormatError, VerificationError
from sealwright.ops.release import files
from sealwright.ops.release.logged import log_release
from sealwright.ops.release.manifest import PROOF, SIGNATURES, ReleaseManifest, verify_signatures
from sealwright.ops.release.verify import verify_release
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.posix import PosixLog


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(root=tmp_path_factory.mktemp("release"))


@pytest.fixture
def stand(made: Stand, tmp_path: Path) -> Stand:
    """A copy that a test may alter."""
    shutil.copytree(made.root, tmp_path / "copy")
    copy = object.__new__(Stand)
    for name in ("first", "second", "log", "source", "parts", "manifest"):
        setattr(copy, name, getattr(made, name))
    copy.root = tmp_path / "copy"
    return copy


def refused(stand: Stand, **changes: Any) -> set[tuple[str, str]]:
    trust = replace(stand.trust(), **changes)
    return {(one.stage, one.code) for one in verify_release(stand.folder, trust, at=AT).failures}


def renamed(stand: Stand, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and have both builders sign and log it: what is inside has to be caught by itself."""
    document = stand.manifest.to_json()
    change(document)
    for artefact in document["artefacts"]:
        path = stand.folder / artefact["path"]
        if path.exists():
            raw = path.read_bytes()
            artefact |= {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    stand.manifest = ReleaseManifest.from_json(document)
    (stand.folder / "release.json").write_bytes(stand.manifest.encode())
    (stand.folder / SIGNATURES).unlink()
    stand.sign(stand.first, stand.second)
    shutil.rmtree(stand.root / "log")
    PosixLog.open(stand.made(stand.root / "log"), stand.log, create=True).close()
    files.write(stand.folder / PROOF, log_release(stand.manifest, stand.root / "log", stand.log))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_bytes(canonical(document))


def test_a_good_release_is_verified(stand: Stand) -> None:
    report = verify_release(stand.folder, stand.trust(), at=AT)
    assert report.failures == []
    assert len(report.signed_by) == 2
    assert report.logged is not None
    assert report.logged.index == 0
    assert [one.name for one in report.reference_values] == ["toy-guest"]


def flipped(envelope: bytes, at: int) -> bytes:
    document = json.loads(envelope)
    signature = bytearray(base64.b64decode(document["signatures"][at]["sig"]))
    signature[10] ^= 1
    document["signatures"][at]["sig"] = base64.b64encode(signature).decode()
    return canonical(document)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("threshold", [1, 2])
def test_each_signature_counts_also_beyond_the_threshold(stand: Stand, at: int, threshold: int) -> None:
    path = stand.folder / SIGNATURES
    path.write_bytes(flipped(path.read_bytes(), at))
    signers = stand.trust(threshold=threshold).signers
    assert refused(stand, signers=signers) == {("signatures", "bad-signature")}


@pytest.mark.parametrize("at", [0, 1])
def test_one_signature_is_not_two(stand: Stand, at: int) -> None:
    edit(stand.folder / SIGNATURES, lambda document: document["signatures"].pop(at))
    assert refused(stand) == {("signatures", "untrusted-signer")}


def test_one_key_twice_is_not_two(stand: Stand) -> None:
    edit(
        stand.folder / SIGNATURES,
        lambda document: document["signatures"].__setitem__(1, document["signatures"][0]),
    )
    assert refused(stand) == {("signatures", "malformed-envelope")}


def test_a_stranger_is_no_second_builder(stand: Stand) -> None:
    edit(stand.folder / SIGNATURES, lambda document: document["signatures"].pop(1))
    stand.sign(Ed25519PrivateKey.generate())
    assert refused(stand) == {("signatures", "untrusted-signer")}


def test_signatures_over_another_manifest_or_type_are_none(stand: Stand) -> None:
    other = ReleaseManifest.from_json(stand.manifest.to_json() | {"commit": "0" * 40})
    keys = (stand.first, stand.second)
    (stand.folder / SIGNATURES).write_bytes(Envelope.sign(other.PAYLOAD_TYPE, other.encode(), *keys).encode())
    assert refused(stand) == {("signatures", "release-mismatch")}
    raw = stand.manifest.encode()
    (stand.folder / SIGNATURES).write_bytes(Envelope.sign("application/json", raw, *keys).encode())
    assert refused(stand) == {("signatures", "wrong-payload-type")}


def test_the_log_has_to_hold_it(stand: Stand) -> None:
    proof = stand.folder / PROOF
    good = proof.read_bytes()
    line = good.rindex(b" ") + 8
    proof.write_bytes(good[:line] + (b"A" if good[line : line + 1] != b"A" else b"B") + good[line + 1 :])
    ((stage, _code),) = refused(stand)
    assert stage == "note"
    stranger = type(stand.log)(name=stand.log.name, key=Ed25519PrivateKey.generate())
    proof.write_bytes(good)
    ((_, code),) = refused(stand, log=LogPolicy.of_key(stranger.vkey.encode()))
    assert code == "untrusted-signer"
    proof.unlink()
    assert refused(stand) == {("log", "release-unlogged")}
    (stand.folder / SIGNATURES).unlink()
    assert refused(stand) == {("log", "release-unlogged"), ("signatures", "release-unsigned")}


def test_a_proof_of_another_release_is_none(stand: Stand) -> None:
    other = ReleaseManifest.from_json(stand.manifest.to_json() | {"commit": "0" * 40})
    with pytest.raises(VerificationError) as caught:
        log_release(other, stand.root / "log", stand.log)
    assert caught.value.code == "release-equivocation"
    assert log_release(stand.manifest, stand.root / "log", stand.log) == (stand.folder / PROOF).read_bytes()
    with PosixLog.open(stand.root / "log", stand.log) as log:
        (stand.folder / PROOF).write_bytes(log.prove(log.append([other.log_entry()])).encode())
    assert {code for _, code in refused(stand)} == {"bad-inclusion-proof"}


@pytest.mark.parametrize(
    "path", ["image/disk.raw", "oci/enclave/index.json", "sbom.cdx.json", "provenance.json"]
)
def test_an_altered_file_is_refused(stand: Stand, path: str) -> None:
    raw = bytearray((stand.folder / path).read_bytes())
    raw[len(raw) // 2] ^= 1
    (stand.folder / path).write_bytes(raw)
    assert refused(stand) == {("artefacts", "release-file-mismatch")}
    (stand.folder / path).unlink()
    assert refused(stand) == {("artefacts", "release-file-missing")}


def test_nothing_else_may_stand_in_the_folder(stand: Stand) -> None:
    (stand.folder / "wheel/toy_thing-1.2.4-py3-none-any.whl").write_bytes(b"take me")
    assert refused(stand) == {("artefacts", "release-file-unnamed")}
    (stand.folder / "wheel/toy_thing-1.2.4-py3-none-any.whl").unlink()
    (stand.folder / "wheel/link").symlink_to(stand.root)
    assert refused(stand) == {("artefacts", "release-not-plain")}


def test_every_failure_is_listed_and_the_gravest_is_the_exit_code(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand.folder / "image/guest.efi").write_bytes(b"x")
    (stand.folder / "more").write_bytes(b"x")
    edit(stand.folder / SIGNATURES, lambda document: document["signatures"].pop(1))
    (stand.folder / PROOF).write_bytes(b"no proof")
    keys = [b64url(key.public_key().public_bytes_raw()) for key in (stand.first, stand.second)]
    arguments = [
        "release",
        "verify",
        str(stand.folder),
        "--log-key",
        stand.log.vkey.encode(),
        "--at",
        "2026-06-01T12:00:00Z",
    ]
    for key in keys:
        arguments += ["--signer", key]
    assert main([*arguments, "--json"]) == 65
    body = json.loads(capsys.readouterr().out)["error"]
    assert {one["code"] for one in body["failures"]} == {
        "malformed-log-proof",
        "untrusted-signer",
        "release-file-mismatch",
        "release-file-unnamed",
    }
    assert main(arguments) == 65
    assert "also:" in capsys.readouterr().err


def sbom_of_another(document: dict[str, Any]) -> None:
    document["metadata"]["component"]["hashes"][0]["content"] = "00" * 32


def provenance_of_less(document: dict[str, Any]) -> None:
    document["subject"].pop()


def provenance_of_another_commit(document: dict[str, Any]) -> None:
    document["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"] = "0" * 40


def provenance_of_another_type(document: dict[str, Any]) -> None:
    document["predicate"]["buildDefinition"]["buildType"] = "urn:other"


@pytest.mark.parametrize(
    ("path", "change", "wanted"),
    [
        ("sbom.cdx.json", sbom_of_another, ("sbom", "sbom-mismatch")),
        ("sbom.cdx.json", lambda document: document.update(specVersion="1.5"), ("sbom", "malformed-sbom")),
        ("provenance.json", provenance_of_less, ("provenance", "provenance-mismatch")),
        ("provenance.json", provenance_of_another_commit, ("provenance", "provenance-mismatch")),
        ("provenance.json", provenance_of_another_type, ("provenance", "provenance-mismatch")),
        (
            "provenance.json",
            lambda document: document.update(predicateType="https://slsa.dev/provenance/v0.2"),
            ("provenance", "malformed-provenance"),
        ),
    ],
)
def test_documents_that_do_not_fit_are_refused_though_signed(
    stand: Stand, path: str, change: Callable[[dict[str, Any]], None], wanted: tuple[str, str]
) -> None:
    edit(stand.folder / path, change)
    renamed(stand, lambda _: None)
    found = refused(stand)
    # Another SBOM is another subject, so the provenance does not fit either.
    assert wanted in found
    assert found <= {wanted, ("provenance", "provenance-mismatch")}


def test_an_image_names_its_own_files(stand: Stand) -> None:
    edit(stand.folder / "image/image.json", lambda document: document["files"][0].update(sha256="00" * 32))
    renamed(stand, lambda _: None)
    assert ("image", "release-file-mismatch") in refused(stand)
    (stand.folder / "image/image.json").write_text("{}")
    renamed(stand, lambda _: None)
    assert ("image", "malformed-image") in refused(stand)


def test_a_blob_has_the_digest_of_its_name(stand: Stand) -> None:
    (blob,) = (stand.folder / "oci/enclave/blobs/sha256").iterdir()
    blob.write_bytes(b"another layer")
    renamed(stand, lambda _: None)
    assert ("image", "release-file-mismatch") in refused(stand)


def test_reference_values_have_their_own_signatures_and_dates(stand: Stand) -> None:
    path = stand.folder / "reference-values/snp.json"
    good = path.read_bytes()
    path.write_bytes(flipped(good, 0))
    renamed(stand, lambda _: None)
    assert refused(stand) == {("reference-values", "bad-signature")}
    make_values(path, Ed25519PrivateKey.generate())
    renamed(stand, lambda _: None)
    assert refused(stand) == {("reference-values", "untrusted-signer")}
    make_values(path, stand.first, expires=AT)
    renamed(stand, lambda _: None)
    assert refused(stand) == {("reference-values", "reference-values-expired")}
    path.write_bytes(good)
    renamed(stand, lambda _: None)
    only = Signers(keys=[stand.second.public_key().public_bytes_raw()])
    assert refused(stand, reference_signers=only) == {("reference-values", "untrusted-signer")}
    assert refused(stand) == set()


def test_two_documents_of_one_build_are_refused(stand: Stand) -> None:
    make_values(stand.folder / "reference-values/snq.json", stand.first, expires=AT + timedelta(days=1))
    artefact = {
        "path": "reference-values/snq.json",
        "kind": "reference-values",
        "size": 1,
        "sha256": "00" * 32,
    }

    def change(document: dict[str, Any]) -> None:
        document["artefacts"] = sorted([*document["artefacts"], artefact], key=lambda one: one["path"])

    renamed(stand, change)
    assert refused(stand) == {("reference-values", "reference-values-twice")}


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "twice": lambda m: m["artefacts"].append(m["artefacts"][-1]),
    "order": lambda m: m["artefacts"].reverse(),
    "no wheel": lambda m: m["artefacts"].pop(),
    "leads out": lambda m: m["artefacts"][0].update(path="image/../../x"),
    "absolute": lambda m: m["artefacts"][0].update(path="/image/x"),
    "hidden": lambda m: m["artefacts"][0].update(path="image/.x"),
    "out of place": lambda m: m["artefacts"][-1].update(kind="image"),
    "a file about it": lambda m: m["artefacts"][0].update(path="release.json"),
    "another version": lambda m: m.update(version="1.2.4"),
    "short commit": lambda m: m.update(commit="abc"),
    "another format": lambda m: m.update(format="sealwright-release-manifest/v2"),
    "unknown member": lambda m: m.update(more=1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_manifest_out_of_form_is_refused(made: Stand, name: str) -> None:
    document = made.manifest.to_json()
    BAD[name](document)
    with pytest.raises(FormatError):
        ReleaseManifest.read(canonical(document))


@given(at=st.integers(min_value=0), mask=st.integers(1, 255))
def test_a_manifest_with_a_flipped_byte_is_refused_or_unsigned(made: Stand, at: int, mask: int) -> None:
    raw = bytearray(made.manifest.encode())
    raw[at % len(raw)] ^= mask
    try:
        manifest = ReleaseManifest.read(bytes(raw))
    except FormatError:
        return
    with pytest.raises(VerificationError):
        verify_signatures((made.folder / SIGNATURES).read_bytes(), manifest, made.trust().signers)
