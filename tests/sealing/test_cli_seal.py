"""The commands `seal`, `open` and `owner-key`, through the real command line."""

import importlib
import json
import os
import stat
import sys
import types
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import sealwright.cli._sealing as module
from sealwright import sealing
from sealwright.cli import main
from sealwright.cli.explain import explanations
from sealwright.crypto.dsse import key_id
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.sealing import Manifest, manifest_path

DEK = bytes(range(32))
PLAIN = b"weights " * 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a model, a DEK, a token and an owner's key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(PLAIN)
    secret(tmp_path / "dek", DEK)
    secret(tmp_path / "token", b"swa_token\n")
    assert main(["owner-key", "new", "owner.pem"]) == 0
    capsys.readouterr()
    return tmp_path


def secret(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    path.chmod(0o600)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, object]]:
    """Run a command with --json: exit code and result, or the error in it."""
    code = main([*args, "--json"])
    out, _ = capsys.readouterr()
    result = json.loads(out)
    return code, result.get("error", result)


def seal(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, object]]:
    return run(capsys, "seal", "model.gguf", "--owner-key", "owner.pem", *more)


def open_(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, object]]:
    return run(capsys, "open", "model.gguf.sealed", "--owner-key", "owner.pem", "--to", "opened", *more)


OFFLINE = ("--dek-file", "dek")


def test_an_owner_key_is_private_and_never_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "owner.pem"
    before = file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, shown = run(capsys, "owner-key", "show", "owner.pem")
    assert code == 0
    public = Ed25519PublicKey.from_public_bytes(b64url_decode(str(shown["public_key"]), length=32))
    assert shown["key_id"] == key_id(public)
    code, error = run(capsys, "owner-key", "new", "owner.pem")
    assert (code, error["code"]) == (69, "output-failed")
    assert file.read_bytes() == before


def test_what_is_sealed_offline_is_opened_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, sealed = seal(capsys, *OFFLINE, "--kid", "m1", "--artefact-version", "3", "--sha256")
    assert code == 0
    assert (sealed["kid"], sealed["version"], sealed["length"]) == ("m1", 3, len(PLAIN))
    assert sealed["admitted"] is False
    assert PLAIN[:8] not in (folder / "model.gguf.sealed").read_bytes()
    code, opened = open_(capsys, *OFFLINE, "--manifest-digest", str(sealed["manifest_digest"]))
    assert code == 0
    assert (folder / "opened").read_bytes() == PLAIN
    assert opened["manifest_digest"] == sealed["manifest_digest"]


def test_a_newer_version_keeps_the_artefact_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = seal(capsys, *OFFLINE)
    identity = str(first["artefact_id"])
    code, second = seal(capsys, *OFFLINE, "--artefact-version", "2", "--artefact-id", identity)
    assert (code, second["artefact_id"]) == (0, identity)
    code, error = open_(capsys, *OFFLINE, "--manifest-digest", str(first["manifest_digest"]))
    assert (code, error["code"], error["stage"]) == (10, "manifest-not-admitted", "admitted")
    assert not (folder / "opened").exists()


def test_lines_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    assert main(["seal", "model.gguf", "--owner-key", "owner.pem", "--dek-file", "dek", "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert "8000 bytes" in out
    assert "not yet" in out
    assert err == ""
    assert sorted(os.listdir(folder / "out")) == ["model.gguf.sealed", "model.gguf.sealed.json"]
    args = "open out/model.gguf.sealed --owner-key owner.pem --dek-file dek --to opened"
    assert main(args.split()) == 0
    assert "opened" in capsys.readouterr().out


def test_a_bar_is_drawn_on_a_terminal_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["seal", "model.gguf", "--owner-key", "owner.pem", "--dek-file", "dek"]) == 0
    out, err = capsys.readouterr()
    assert "Sealing" in err
    assert "Sealing" not in out


ROOT = bytes(range(32))


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A stand-in for the broker's admin client; what it was asked."""
    asked: list[tuple[object, ...]] = []
    fake = types.ModuleType("sealwright.client.admin")

    def fetch_sealing_key(url: str, token: str, kid: str, *, root: bytes, coming: bool) -> bytes:
        assert not coming
        assert root == ROOT
        asked.append(("fetch", url, token, kid))
        return DEK

    def admit_manifest(url: str, token: str, kid: str, envelope: bytes, *, owner_key: bytes) -> None:
        assert len(owner_key) == 32
        asked.append(("admit", url, token, kid, Manifest.unverified_parse(envelope).manifest_digest.hex()))

    fake.fetch_sealing_key = fetch_sealing_key  # type: ignore[attr-defined]
    fake.admit_manifest = admit_manifest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sealwright.client.admin", fake)
    return asked


BROKER = ("--broker", "https://broker.example", "--broker-root", b64url(ROOT), "--token-file", "token")


def test_a_broker_gives_the_key_and_admits_the_manifest(
    folder: Path, admin: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, sealed = seal(capsys, *BROKER)
    assert (code, sealed["admitted"]) == (0, True)
    where = ("https://broker.example", "swa_token", "model.gguf")
    assert admin == [("fetch", *where), ("admit", *where, sealed["manifest_digest"])]
    code, _ = open_(capsys, *BROKER)
    assert code == 0
    assert (folder / "opened").read_bytes() == PLAIN


def test_no_admin_client_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module, "importlib", types.SimpleNamespace(import_module=absent))
    code, error = seal(capsys, *BROKER)
    assert (code, error["code"]) == (69, "no-admin-client")

    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'else'", name="else")

    monkeypatch.setattr(module, "importlib", types.SimpleNamespace(import_module=broken))
    code, error = seal(capsys, *BROKER)
    assert (code, error["code"]) == (70, "internal-error")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--dek-file", "dek", *BROKER),
        ("--broker", "https://b"),
        tuple(part for part in BROKER if part not in ("--broker-root", b64url(ROOT))),
        ("--dek-file", "dek", "--token-file", "token"),
    ],
    ids=["neither", "both", "no token", "no root", "token without broker"],
)
def test_one_source_of_the_key_must_be_named(
    folder: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = seal(capsys, *options)
    assert (code, error["code"]) == (2, "usage")


def test_bad_secret_files_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elliptic = generate_private_key(SECP256R1())
    pem = elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    owner = (folder / "owner.pem").read_bytes()
    cases = [
        ("dek", DEK[:31], OFFLINE, "wrong-length"),
        ("dek", bytes(20_000), OFFLINE, "too-large"),
        ("token", b"\n", BROKER, "malformed-admin-token"),
        ("token", b"\xff", BROKER, "malformed-admin-token"),
        ("token", b"a\nb", BROKER, "malformed-admin-token"),
        ("owner.pem", b"not PEM", OFFLINE, "malformed-owner-key"),
        ("owner.pem", pem, OFFLINE, "malformed-owner-key"),
    ]
    for name, raw, options, wanted in cases:
        secret(folder / name, raw)
        code, error = seal(capsys, *options)
        assert (code, error["code"]) == (65, wanted)
        secret(folder / "owner.pem", owner)
        secret(folder / "dek", DEK)
    (folder / "dek").chmod(0o640)
    code, error = seal(capsys, *OFFLINE)
    assert (code, error["code"]) == (65, "secret-exposed")
    (folder / "dek").unlink()
    code, error = seal(capsys, *OFFLINE)
    assert (code, error["code"]) == (69, "input-unreadable")
    assert sorted(os.listdir(folder)) == ["model.gguf", "owner.pem", "token"]


def test_a_stranger_cannot_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seal(capsys, *OFFLINE)
    (folder / "owner.pem").unlink()
    assert main(["owner-key", "new", "owner.pem"]) == 0
    capsys.readouterr()
    code, error = open_(capsys, *OFFLINE)
    assert (code, error["code"], error["stage"]) == (10, "untrusted-signer", "signature")


def test_every_code_of_sealing_is_explained() -> None:
    known = {row.code for row in explanations()}
    names = ("cli.seal", "cli._sealing", "cli.owner_key", "crypto.streaming")
    names += tuple(f"sealing.{path.stem}" for path in Path(str(sealing.__file__)).parent.glob("[a-z]*.py"))
    used = set()
    for name in names:
        source = Path(str(importlib.import_module(f"sealwright.{name}").__file__)).read_text()
        used |= {part.split('"')[0] for part in source.split('code="')[1:]}
        used |= {part.split('"')[0] for part in source.split('io_errors("')[1:]}
    assert len(used) > 15
    assert used <= known
    assert manifest_path(Path("a.sealed")).name == "a.sealed.json"
