"""`sealwright broker resource` against a broker that runs: sealed secrets, and image layers encrypted by a real skopeo."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jws
from joserfc.jwk import ECKey
from tests.broker.guest_support import Guest, guest_policy
from tests.broker.test_serve import served

from sealwright.cli import main
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning

pytestmark = pytest.mark.slow
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
ANNOTATION = "org.opencontainers.image.enc.keys.provider.attestation-agent"


@dataclass(frozen=True, slots=True)
class Site:
    """A broker that serves, what its administrator types, and a guest that it admits."""

    folder: Path
    admin: list[str]
    guest: Guest


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    now = datetime.now(UTC).replace(microsecond=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        platform = SnpTestPlatform(now)
    assert main(["broker", "init", str(tmp_path / "broker"), "--json"]) == 0
    (tmp_path / "policy.yaml").write_bytes(guest_policy(platform, now))
    with served(tmp_path / "broker") as (_, url):
        admin = ["--broker", url, "--token-file", str(tmp_path / "broker" / "admin-token")]
        assert main(["broker", "resource", "policy", "acme", str(tmp_path / "policy.yaml"), *admin]) == 0
        capsys.readouterr()
        yield Site(tmp_path, admin, Guest(None, platform, url=url))


def told(site: Site, capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert main(["broker", "resource", *command, *site.admin, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


async def test_a_sealed_secret_names_what_the_guest_fetches(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = site.folder / "sealing.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (site.folder / "password").write_bytes(b"correct horse")
    command = ["broker", "resource", "seal-secret", "kbs:///acme/secret/db", "--signing-key", str(pem)]
    assert main([*command, "--kid", "kbs:///acme/key/sealing", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (site.folder / "jwk").write_text(json.dumps(said["public_jwk"]))
    told(site, capsys, "put", "kbs:///acme/key/sealing", str(site.folder / "jwk"), "--tenant", "acme")
    told(site, capsys, "put", "kbs:///acme/secret/db", str(site.folder / "password"), "--tenant", "acme")
    async with site.guest.http:
        await opened_by_guest(site, said["sealed"])
    listed = told(site, capsys, "list")["resources"]
    assert [one["resource"] for one in listed] == ["kbs:///acme/key/sealing", "kbs:///acme/secret/db"]
    assert told(site, capsys, "remove", "kbs:///acme/secret/db")["removed"] is True
    assert len(told(site, capsys, "list")["resources"]) == 1


async def opened_by_guest(site: Site, sealed: str) -> None:
    # Fetch the key that the header names, check the signature, fetch what the payload names.
    await site.guest.attested()
    compact = sealed.removeprefix("sealed.")
    header = json.loads(base64.urlsafe_b64decode(compact.split(".")[0] + "=="))
    jwk = site.guest.open(await site.guest.resource(header["kid"].removeprefix("kbs:///")))
    payload = json.loads(jws.deserialize_compact(compact, ECKey.import_key(json.loads(jwk))).payload)
    assert (payload["version"], payload["type"], payload["provider"]) == ("0.1.0", "vault", "kbs")
    assert (
        site.guest.open(await site.guest.resource(payload["name"].removeprefix("kbs:///")))
        == b"correct horse"
    )


def test_what_is_no_resource_or_no_key_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = site.folder / "policy.yaml"
    assert main(["broker", "resource", "put", "acme/key/x", str(file), *site.admin]) == 65
    assert "malformed-name" in capsys.readouterr().err
    command = ["broker", "resource", "seal-secret", "kbs:///a/b/c", "--kid", "kbs:///a/b/d"]
    assert main([*command, "--signing-key", str(file)]) == 65
    assert "malformed-signing-key" in capsys.readouterr().err


def image(folder: Path) -> bytes:
    """Write an OCI layout with one layer; return the layer."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        info = tarfile.TarInfo("model.bin")
        info.size = 100_000
        archive.addfile(info, io.BytesIO(os.urandom(info.size)))
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(raw: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(raw).hexdigest()
        (blobs / digest).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}

    layer = blob(tar.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip")
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [layer],
    }
    found = blob(json.dumps(manifest).encode(), manifest["mediaType"])  # type: ignore[arg-type]
    found["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return tar.getvalue()


def encrypt(site: Site) -> dict[str, Any]:
    """Encrypt the image by skopeo with our key provider; return the descriptor of its layer."""
    provider = ["broker", "resource", "keyprovider", *site.admin, "--tenant", "acme"]
    script = site.folder / "provider"
    code = f"import sys; from sealwright.cli import main; sys.exit(main({provider!r}))"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o700)
    config = site.folder / "ocicrypt.json"
    config.write_text(json.dumps({"key-providers": {"attestation-agent": {"cmd": {"path": str(script)}}}}))
    parameter = "provider:attestation-agent:keyid=kbs:///acme/image/model"
    environment = {**os.environ, "OCICRYPT_KEYPROVIDER_CONFIG": str(config)}
    images = (f"oci:{site.folder}/plain:latest", f"oci:{site.folder}/sealed:latest")
    command = ["skopeo", "copy", "--insecure-policy", "--encryption-key", parameter, *images]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if "protocol not recognized" in done.stderr:
        pytest.skip("this skopeo has an ocicrypt without key providers (before 1.1)")
    assert done.returncode == 0, done.stderr
    index = json.loads((site.folder / "sealed" / "index.json").read_text())
    manifest = json.loads(sealed_blob(site, index["manifests"][0]["digest"]))
    layer: dict[str, Any] = manifest["layers"][0]
    return layer


def sealed_blob(site: Site, digest: str) -> bytes:
    return (site.folder / "sealed" / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed: apt-get install skopeo")
async def test_a_layer_that_skopeo_encrypted_opens_with_what_the_guest_fetches(site: Site) -> None:
    plain = image(site.folder / "plain")
    layer = encrypt(site)
    assert layer["mediaType"] == LAYER
    async with site.guest.http:
        options = await unwrapped(site, layer["annotations"][ANNOTATION])
    public = json.loads(base64.b64decode(layer["annotations"]["org.opencontainers.image.enc.pubopts"]))
    symmetric = base64.b64decode(options["symkey"])
    nonce = base64.b64decode(options["cipheroptions"]["nonce"])
    sealed = sealed_blob(site, layer["digest"])
    tag = hmac.new(symmetric, sealed, hashlib.sha256).digest()
    assert base64.b64decode(public["hmac"]) == tag
    decryptor = Cipher(AES(symmetric), CTR(nonce)).decryptor()
    assert decryptor.update(sealed) + decryptor.finalize() == plain


async def unwrapped(site: Site, annotation: str) -> Any:
    """Unwrap a layer's options as the confidential data hub does."""
    packet = json.loads(base64.b64decode(annotation))
    assert packet["kid"].startswith("kbs:///acme/image/model-")
    assert packet["wrap_type"] == "A256GCM"
    await site.guest.attested()
    key = site.guest.open(await site.guest.resource(packet["kid"].removeprefix("kbs:///")))
    wrapped, iv = (base64.b64decode(packet[name]) for name in ("wrapped_data", "iv"))
    return json.loads(AESGCM(key).decrypt(iv, wrapped, b""))


async def test_the_key_provider_speaks_ocicrypts_protocol(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ocicrypt's `cmd` calls it; the layer's options come back to the guest alone."""
    options = json.dumps({"symkey": base64.b64encode(bytes(32)).decode()}).encode()

    def asked(**changes: Any) -> int:
        parameter = base64.b64encode(b"keyid=kbs:///acme/image/model").decode()
        config = {"Parameters": {"attestation-agent": [parameter]}, "DecryptConfig": {"Parameters": None}}
        wrap = {"ec": config, "optsdata": base64.b64encode(options).decode()}
        unwrap = {"dc": None, "annotation": None}
        said = {"op": "keywrap", "keywrapparams": wrap, "keyunwrapparams": unwrap, **changes}
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(said).encode())))
        return main(["broker", "resource", "keyprovider", *site.admin, "--tenant", "acme"])

    assert asked() == 0
    answer = json.loads(capsys.readouterr().out)
    annotation = base64.b64decode(answer["keywrapresults"]["annotation"])
    async with site.guest.http:
        assert json.dumps(await unwrapped(site, base64.b64encode(annotation).decode())).encode() == options
    assert asked(op="keyunwrap") == 65
    assert "keyprovider-operation" in capsys.readouterr().err
    assert asked(keywrapparams={"ec": {"Parameters": {}}, "optsdata": ""}) == 65
    assert "malformed-name" in capsys.readouterr().err
