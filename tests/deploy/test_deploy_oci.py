"""OCI layouts: the same bytes from the same files, read by others' tools, refused when changed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sealwright.errors import FormatError, SealwrightError, SettingsError, VerificationError
from sealwright.image import ocisign
from sealwright.image.oci import Descriptor, LayoutReader, LayoutWriter, Runtime, write_image, write_referrer
from sealwright.image.ocitar import Node, merged, whole, write_layer

REFERENCE = "registry.example/sealwright/broker"
BOM = "application/vnd.cyclonedx+json"
TREE = {
    "etc/passwd": Node(mode=0o644, content=b"root:x:0:0::/:/none\n"),
    "lib": Node(target="usr/lib"),
    "usr/bin/tool": Node(mode=0o4755, content=b"\x7fELF" + bytes(5000)),
    "var/lib/state": Node(mode=0o700, owner=65532),
}
RUNTIME = Runtime(
    entrypoint=("/usr/bin/tool",),
    user="65532:65532",
    environment={"PATH": "/usr/bin", "LANG": "C.UTF-8"},
    labels={"org.opencontainers.image.title": "tool"},
    ports=(8420,),
    volumes=("/var/lib/state",),
)


def make(root: Path, key: EllipticCurvePrivateKey | Ed25519PrivateKey | None = None) -> Descriptor:
    out = LayoutWriter(root)
    image = write_image(
        out,
        [("base", dict(reversed(TREE.items()))), ("more", {"opt/file": Node(mode=0o644, content=b"x")})],
        RUNTIME,
        at=1_700_000_000,
        created="2023-11-14T22:13:20Z",
        architecture="amd64",
        annotations={"org.opencontainers.image.version": "1"},
    )
    out.refer(image, "tool")
    bom = write_referrer(out, image, b"{}", artifact_type=BOM, annotations={})
    out.refer(bom, "tool.sbom")
    if key is not None:
        out.refer(ocisign.write_signature(out, image, key, REFERENCE), ocisign.signature_name(image))
    out.close()
    return image


def files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_two_builds_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_ec(SECP256R1())
    make(tmp_path / "one", key)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        make(tmp_path / "elsewhere" / "two", key)
    finally:
        os.umask(before)
    assert files(tmp_path / "one") == files(tmp_path / "elsewhere" / "two")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_a_layer_holds_what_it_should_and_no_rights() -> None:
    out = io.BytesIO()
    write_layer(out, TREE, at=5)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        found = {info.name: info for info in archive}
        assert list(found) == sorted(found)
    assert {"etc", "usr", "usr/bin", "var", "var/lib"} <= found.keys()
    assert {(info.mtime, info.uname, info.gname) for info in found.values()} == {(5, "", "")}
    assert found["usr/bin/tool"].mode == 0o755  # setuid is taken off
    assert (found["lib"].issym(), found["lib"].linkname) == (True, "usr/lib")
    state = found["var/lib/state"]
    assert (state.isdir(), state.mode, state.uid, state.gid) == (True, 0o700, 65532, 65532)


@pytest.mark.parametrize("path", ["", "/etc/x", "a/../b", "a//b", "a/./b", "a/", "a\nb", "a\0b", "a\\b"])
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        whole({path: Node()})
    assert (caught.value.stage, caught.value.code) == ("layer", "image-path")


@pytest.mark.parametrize("above", [Node(content=b""), Node(target="elsewhere")])
def test_a_path_through_a_file_or_link_is_refused(above: Node) -> None:
    with pytest.raises(SettingsError) as caught:
        whole({"a/b": Node(content=b""), "a": above})
    assert caught.value.code == "image-path"


def test_two_packages_may_share_folders_but_no_file() -> None:
    one = {"usr": Node(), "usr/a": Node(content=b"a")}
    assert set(merged([one, {"usr": Node(), "usr/b": Node(content=b"b")}, one])) == {"usr", "usr/a", "usr/b"}
    for other in ({"usr/a": Node(content=b"b")}, {"usr/a": Node()}, {"usr": Node(target="a")}):
        with pytest.raises(SettingsError) as caught:
            merged([one, other])
        assert (caught.value.stage, caught.value.code) == ("layer", "image-conflict")


@given(
    st.dictionaries(st.text("ab/.", max_size=6), st.sampled_from([Node(), Node(content=b"x")]), max_size=4)
)
def test_a_tree_is_whole_or_refused(tree: dict[str, Node]) -> None:
    try:
        out = whole(tree)
    except SettingsError:
        return
    assert set(tree) <= set(out)
    assert list(out) == sorted(out, key=lambda path: path.encode())
    for path in out:
        above = path.rpartition("/")[0]
        assert not above or out[above].is_directory


def test_what_was_written_is_read(tmp_path: Path) -> None:
    image = make(tmp_path / "layout")
    layout = LayoutReader(tmp_path / "layout")
    assert layout.named("tool").digest == image.digest
    manifest = layout.check_image(layout.named("tool"))
    assert len(manifest["layers"]) == 2
    config = layout.document(Descriptor.from_json(manifest["config"]))
    assert config["config"]["User"] == "65532:65532"
    assert config["created"] == "2023-11-14T22:13:20Z"
    bom = layout.document(layout.named("tool.sbom"))
    assert bom["subject"]["digest"] == image.digest
    assert bom["artifactType"] == BOM


def test_every_changed_blob_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "layout")
    layout = LayoutReader(tmp_path / "layout")
    image = layout.named("tool")
    manifest = layout.check_image(image)
    digests = [image.digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    for digest in digests:
        path = tmp_path / "layout" / "blobs" / "sha256" / digest.removeprefix("sha256:")
        raw = path.read_bytes()
        for changed in (bytes([raw[0] ^ 1]) + raw[1:], raw + b"\n", raw[:-1]):
            path.write_bytes(changed)
            with pytest.raises(SealwrightError) as caught:
                layout.check_image(image)
            assert caught.value.code in ("image-digest", "too-large")
        path.write_bytes(raw)
    layout.check_image(image)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"mediaType": "a", "digest": "sha256:" + "0" * 63, "size": 1},
        {"mediaType": "a", "digest": "sha256:" + "A" * 64, "size": 1},
        {"mediaType": "a", "digest": "sha512:" + "0" * 64, "size": 1},
        {"mediaType": "a", "digest": "sha256:../../../../etc/passwd", "size": 1},
        {"mediaType": "a", "digest": "sha256:" + "0" * 64, "size": -1},
        {"mediaType": "a", "digest": "sha256:" + "0" * 64, "size": True},
        {"mediaType": 1, "digest": "sha256:" + "0" * 64, "size": 1},
        {"mediaType": "a", "digest": "sha256:" + "0" * 64, "size": 1, "annotations": []},
    ],
)
def test_a_malformed_descriptor_is_refused(value: Any) -> None:
    with pytest.raises(FormatError) as caught:
        Descriptor.from_json(value)
    assert (caught.value.stage, caught.value.code) == ("layout", "image-malformed")


def test_a_layout_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    make(root)
    whole_index = (root / "index.json").read_bytes()
    for name, content in {
        "oci-layout": b'{"imageLayoutVersion":"2.0.0"}',
        "index.json": b"[]",
    }.items():
        before = (root / name).read_bytes()
        (root / name).write_bytes(content)
        with pytest.raises(FormatError) as caught:
            LayoutReader(root)
        assert caught.value.code == "image-malformed"
        (root / name).write_bytes(before)
    index = json.loads(whole_index)
    index["manifests"] *= 2
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError) as refused:
        LayoutReader(root).named("tool")
    assert refused.value.code == "image-name"


def test_a_folder_in_use_or_a_name_taken_is_refused(tmp_path: Path) -> None:
    image = make(tmp_path / "layout")
    with pytest.raises(SettingsError) as caught:
        LayoutWriter(tmp_path / "layout")
    assert caught.value.code == "output-exists"
    out = LayoutWriter(tmp_path / "other")
    out.refer(image, "tool")
    for name in ("tool", "", "a/b", "-"):
        with pytest.raises(SettingsError) as caught:
            out.refer(image, name)
        assert caught.value.code == "image-name"


@pytest.fixture(params=["p256", "ed25519"])
def key(request: pytest.FixtureRequest) -> EllipticCurvePrivateKey | Ed25519PrivateKey:
    return generate_ec(SECP256R1()) if request.param == "p256" else Ed25519PrivateKey.generate()


def test_a_signature_holds_for_its_key_image_and_repository(
    key: EllipticCurvePrivateKey | Ed25519PrivateKey, tmp_path: Path
) -> None:
    image = make(tmp_path / "layout", key)
    layout = LayoutReader(tmp_path / "layout")
    ocisign.verify_signature(layout, image, key.public_key(), REFERENCE)
    for other, reference in (
        (generate_ec(SECP256R1()).public_key(), REFERENCE),
        (Ed25519PrivateKey.generate().public_key(), REFERENCE),
        (key.public_key(), "registry.example/sealwright/client"),
    ):
        with pytest.raises(VerificationError) as caught:
            ocisign.verify_signature(layout, image, other, reference)
        assert (caught.value.stage, caught.value.code) == ("signature", "image-signature")
    make(tmp_path / "unsigned")
    with pytest.raises(VerificationError) as caught:
        ocisign.verify_signature(LayoutReader(tmp_path / "unsigned"), image, key.public_key(), REFERENCE)
    assert caught.value.code == "image-not-signed"


def _swap(root: Path, name: str, changed: Any) -> None:
    """Replace the manifest listed as `name` by another, with its own digest: what a registry could do."""
    raw = json.dumps(changed).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (root / "blobs" / "sha256" / digest).write_bytes(raw)
    index = json.loads((root / "index.json").read_bytes())
    for one in index["manifests"]:
        if one["annotations"]["org.opencontainers.image.ref.name"] == name:
            one.update(digest=f"sha256:{digest}", size=len(raw))
    (root / "index.json").write_text(json.dumps(index))


def test_a_changed_signature_is_refused(
    key: EllipticCurvePrivateKey | Ed25519PrivateKey, tmp_path: Path
) -> None:
    root = tmp_path / "layout"
    image = make(root, key)
    layout = LayoutReader(root)
    manifest = layout.document(layout.named(ocisign.signature_name(image)))
    good = base64.b64decode(manifest["layers"][0]["annotations"][ocisign.SIGNATURE])
    for bad in (
        base64.b64encode(bytes([good[0] ^ 1]) + good[1:]).decode(),
        base64.b64encode(good[:-1] + bytes([good[-1] ^ 1])).decode(),
        base64.b64encode(good[:-1]).decode(),
        "not base64!",
        "",
        5,
    ):
        manifest["layers"][0]["annotations"][ocisign.SIGNATURE] = bad
        _swap(root, ocisign.signature_name(image), manifest)
        with pytest.raises(VerificationError) as caught:
            ocisign.verify_signature(LayoutReader(root), image, key.public_key(), REFERENCE)
        assert caught.value.code == "image-signature"


def test_a_good_signature_of_another_image_does_not_do(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    root = tmp_path / "layout"
    image = make(root, key)
    manifest = LayoutReader(root).document(image)
    manifest["annotations"]["org.opencontainers.image.version"] = "2"
    _swap(root, "tool", manifest)
    layout = LayoutReader(root)
    other = layout.named("tool")
    index = json.loads((root / "index.json").read_bytes())
    for one in index["manifests"]:
        name = one["annotations"]["org.opencontainers.image.ref.name"]
        if name == ocisign.signature_name(image):
            one["annotations"]["org.opencontainers.image.ref.name"] = ocisign.signature_name(other)
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(VerificationError) as caught:
        ocisign.verify_signature(LayoutReader(root), other, key.public_key(), REFERENCE)
    assert caught.value.code == "image-signature"


def test_keys_of_other_kinds_are_refused() -> None:
    other = generate_ec(SECP384R1())
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for load, pem in (
        (ocisign.load_signing_key, private),
        (ocisign.load_signing_key, b"nothing"),
        (ocisign.load_verifying_key, public),
        (ocisign.load_verifying_key, b"nothing"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(pem)
        assert caught.value.code == "image-key"


def test_openssl_verifies_a_signature(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key = generate_ec(SECP256R1())
    root = tmp_path / "layout"
    image = make(root, key)
    layout = LayoutReader(root)
    (layer,) = layout.document(layout.named(ocisign.signature_name(image)))["layers"]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "signature").write_bytes(base64.b64decode(layer["annotations"][ocisign.SIGNATURE]))
    (tmp_path / "payload").write_bytes(layout.blob(Descriptor.from_json(layer), limit=1 << 16))
    command = [openssl, "dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "payload"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0


def test_skopeo_reads_and_copies_it(tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    image = make(tmp_path / "layout", Ed25519PrivateKey.generate())
    source = f"oci:{tmp_path}/layout"

    def run(*arguments: str) -> str:
        return subprocess.run([skopeo, *arguments], check=True, capture_output=True, text=True).stdout

    said = json.loads(run("inspect", f"{source}:tool"))
    assert (said["Digest"], said["Labels"]) == (image.digest, RUNTIME.labels)
    run("--insecure-policy", "copy", f"{source}:tool", f"dir:{tmp_path}/dir")
    copied = (tmp_path / "dir" / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(copied).hexdigest()}" == image.digest
    config = json.loads(run("inspect", "--config", f"dir:{tmp_path}/dir"))
    assert config["config"]["Entrypoint"] == ["/usr/bin/tool"]
