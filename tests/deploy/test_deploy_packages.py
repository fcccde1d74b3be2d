"""Packages into images: what is unpacked, what is left out, what is refused. Packages are made here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sealwright.cli import main
from sealwright.errors import FormatError, SealwrightError, SettingsError, UnavailableError, VerificationError
from sealwright.image.oci import Descriptor, LayoutReader
from sealwright.image.ocibuild import build
from sealwright.image.ocilock import Lock, read_lock
from sealwright.image.ocipackages import SITE, deb_tree, wheel_tree

LOCK = Path(__file__).resolve().parents[2] / "deploy" / "oci" / "lock.json"
PYTHON = {"usr/bin/python3.13": b"\x7fELF python", "usr/share/doc/python/copyright": b"PSF"}


def tar(files: dict[str, bytes | str | tarfile.TarInfo]) -> bytes:
    """Return a tar archive: bytes are a file, text is a link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(f"./{name}")
            if isinstance(content, bytes):
                info.size, info.mode = len(content), 0o4755
                archive.addfile(info, io.BytesIO(content))
                continue
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            archive.addfile(info)
    return out.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}".encode()
        out += head + b"`\n" + content + (b"\n" if len(content) % 2 else b"")
    return out


def deb(files: dict[str, bytes | str | tarfile.TarInfo]) -> bytes:
    control = tar({"control": b"Package: made\n"})
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(control),
            "data.tar.xz": lzma.compress(tar(files)),
        }
    )


def wheel(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def test_a_debian_package_is_unpacked_and_no_more() -> None:
    raw = deb(
        {
            **PYTHON,
            "lib64/ld.so": b"loader",
            "usr/bin/other": b"a program",
            "usr/share/man/man1/x.1": b"",
            "usr/share/doc/python/README": b"",
            "usr/lib/x.so.1": "x.so.1.2",
        }
    )
    tree, control = deb_tree(raw)
    assert control == b"Package: made\n"
    assert set(tree) == {*PYTHON, "usr/lib64/ld.so", "usr/lib/x.so.1"}
    assert tree["usr/bin/python3.13"].mode == 0o755  # setuid is gone
    assert tree["usr/lib/x.so.1"].target == "x.so.1.2"


def _device() -> tarfile.TarInfo:
    info = tarfile.TarInfo("./dev/mem")
    info.type = tarfile.CHRTYPE
    return info


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"!<arch>\n",
        deb(PYTHON)[:-40],
        deb(PYTHON).replace(b"`\n", b"``", 1),
        deb({"dev/mem": _device()}),
        ar({"control.tar.xz": lzma.compress(tar({"control": b""})), "data.tar.xz": b"no xz"}),
        ar({"control.tar.xz": lzma.compress(tar({"control": b""})), "data.tar.gz": b"another"}),
        ar({"control.tar.xz": lzma.compress(b"x"), "data.tar.xz": lzma.compress(tar({})) + b"more"}),
    ],
    ids=["empty", "no members", "cut off", "bad member", "device", "no xz", "no data", "after the end"],
)
def test_what_is_no_debian_package_is_refused(raw: bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        deb_tree(raw)
    assert (caught.value.stage, caught.value.code) == ("packages", "package-malformed")


@given(st.binary(max_size=300), st.booleans())
def test_the_parsers_raise_only_their_own_error(raw: bytes, prefix: bool) -> None:
    for parse in (deb_tree, wheel_tree):
        try:
            parse((b"!<arch>\n" if prefix else b"") + raw)
        except SealwrightError:
            continue


@given(st.data())
def test_a_mutated_package_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(deb(PYTHON))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(SettingsError):
        deb_tree(bytes(raw))


def test_a_wheel_goes_where_python_looks() -> None:
    made = wheel(
        {
            "pkg/__init__.py": b"",
            "pkg-1.data/purelib/more.py": b"x",
            "pkg-1.data/scripts/tool": b"#!python",
            "pkg-1.dist-info/METADATA": b"",
        }
    )
    assert set(wheel_tree(made)) == {
        f"{SITE}/{name}" for name in ("pkg/__init__.py", "more.py", "pkg-1.dist-info/METADATA")
    }
    with pytest.raises(SettingsError) as caught:
        wheel_tree(b"PK no zip")
    assert caught.value.code == "package-malformed"


class Made:
    """A folder of packages with its lock and a wheel of ours."""

    def __init__(self, folder: Path, **files: bytes | str) -> None:
        self.folder = folder / "packages"
        self.folder.mkdir(parents=True)
        debs = {"python.deb": deb({**PYTHON, **files})}
        wheels = {"dep-1-py3-none-any.whl": wheel({"dep.py": b"x = 1\n"})}
        self.wheel = folder / "sealwright-0.1.0-py3-none-any.whl"
        self.wheel.write_bytes(wheel({"sealwright/cli/__init__.py": b""}))
        for name, raw in {**debs, **wheels}.items():
            (self.folder / name).write_bytes(raw)
        self.lock = folder / "lock.json"
        self.lock.write_text(
            json.dumps(
                {
                    "format": "sealwright-oci-lock/v1",
                    "at": "2026-01-01T00:00:00Z",
                    "architecture": "amd64",
                    "debian": [self._entry(name) for name in debs],
                    "wheels": [self._entry(name) for name in wheels],
                }
            )
        )

    def _entry(self, name: str) -> dict[str, Any]:
        sha256 = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        return {
            "file": name,
            "name": name.partition(".")[0],
            "version": "1",
            "sha256": sha256,
            "images": ["client"],
        }

    def build(self, out: Path) -> LayoutReader:
        build("client", read_lock(self.lock), self.folder, self.wheel, out)
        return LayoutReader(out)


def test_an_image_and_its_bill(tmp_path: Path) -> None:
    layout = Made(tmp_path).build(tmp_path / "out")
    image = layout.named("client")
    layout.check_image(image)
    bom = layout.document(layout.named("client.sbom"))
    content = layout.document(Descriptor.from_json(bom["layers"][0]))
    assert content["metadata"]["component"]["version"] == image.digest
    assert {one["purl"].split("?")[0] for one in content["components"]} == {
        "pkg:deb/debian/python@1",
        "pkg:pypi/dep-1-py3-none-any@1",
        "pkg:pypi/sealwright@0.1.0",
    }
    assert Made(tmp_path / "b").build(tmp_path / "b/out").index == layout.index


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"opt/editor": "/usr/bin/dash"}, "image-forbidden"),  # a link to one, under another name
        ({"opt/bin/bash": b"a shell"}, "image-forbidden"),
        ({"opt/bin/wget": b""}, "image-forbidden"),
        ({"opt/../etc/passwd": b"me"}, "image-path"),
        ({"etc/passwd": b"another"}, "package-conflict"),
        ({"bin": b"no link"}, "package-conflict"),
    ],
)
def test_what_has_no_place_in_an_image_is_refused(
    files: dict[str, bytes | str], code: str, tmp_path: Path
) -> None:
    made = Made(tmp_path, **files)
    with pytest.raises(SettingsError) as caught:
        made.build(tmp_path / "out")
    assert caught.value.code == code


def _other_bytes(made: Made) -> None:
    path = made.folder / "python.deb"
    path.write_bytes(path.read_bytes() + b"\n")


def _gone(made: Made) -> None:
    (made.folder / "python.deb").unlink()


def _no_wheel(made: Made) -> None:
    made.wheel = made.wheel.rename(made.wheel.with_name("other-1-py3-none-any.whl"))


def _empty_wheel(made: Made) -> None:
    made.wheel.write_bytes(wheel({"other.py": b""}))


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        (_other_bytes, VerificationError, "package-digest"),
        (_gone, UnavailableError, "input-unreadable"),
        (_no_wheel, SettingsError, "package-malformed"),
        (_empty_wheel, SettingsError, "image-incomplete"),
    ],
)
def test_packages_that_are_not_those_of_the_lock_are_refused(
    change: Callable[[Made], None], error: type[SealwrightError], code: str, tmp_path: Path
) -> None:
    made = Made(tmp_path)
    change(made)
    with pytest.raises(error) as caught:
        made.build(tmp_path / "out")
    assert (caught.value.stage, caught.value.code) == ("packages", code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "sealwright-oci-lock/v2"},
        {"at": "yesterday"},
        {"architecture": "riscv"},
        {"debian": []},
        {"more": 1},
        {
            "wheels": [
                {"file": "../x.whl", "name": "x", "version": "1", "sha256": "00" * 32, "images": ["client"]}
            ]
        },
        {
            "wheels": [
                {"file": "x.whl", "name": "x", "version": "1", "sha256": "00" * 32, "images": ["other"]}
            ]
        },
    ],
)
def test_a_malformed_lock_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    value = {**json.loads(Made(tmp_path).lock.read_text()), **change}
    (tmp_path / "lock.json").write_text(json.dumps(value))
    with pytest.raises(FormatError):
        read_lock(tmp_path / "lock.json")


def test_the_lock_of_the_repository() -> None:
    lock: Lock = read_lock(LOCK)
    names = [one.name for one in [*lock.debian, *lock.wheels]]
    assert len(set(names)) == len(names)
    for image, needed in {"broker": "sqlalchemy", "enclave": "xllamacpp", "client": "httpx2"}.items():
        inside = {one.name for one in [*lock.debian, *lock.wheels] if image in one.images}
        assert inside >= {needed, "libc6", "python3.13-minimal", "cryptography"}
        assert not inside & {"dash", "bash", "coreutils", "apt", "openai", "pip"}


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(tmp_path)
    key = generate_private_key(SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    out, reference = str(tmp_path / "out"), "registry.example/client"
    options = [
        "--lock",
        str(made.lock),
        "--packages",
        str(made.folder),
        "--wheel",
        str(made.wheel),
        "--out",
        out,
    ]
    signed = [*options, "--key", str(tmp_path / "key.pem"), "--reference", reference]
    assert main(["image", "oci", "client", *options, "--reference", reference]) == 2
    assert main(["image", "oci", "client", *signed, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    verify = ["image", "oci-verify", out, "client", "--key", str(tmp_path / "key.pub")]
    assert main([*verify, "--reference", reference, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"image": shown["image"], "reference": reference}
    assert main([*verify, "--reference", "registry.example/other"]) == 10
    assert "image-signature" in capsys.readouterr().err
    assert main(["image", "oci", "client", *signed]) == 65
    assert "output-exists" in capsys.readouterr().err
