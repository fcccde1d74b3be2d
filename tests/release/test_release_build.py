"""The same commit gives the same release, and a second builder says so, or says what differs."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from tests.release.support import ROOT, Stand, git, make_image, make_source, make_values

from sealwright.crypto.dsse import key_id
from sealwright.errors import SealwrightError, SettingsError, UnavailableError, VerificationError
from sealwright.ops.release.assemble import Parts, assemble
from sealwright.ops.release.differ import first_difference
from sealwright.ops.release.lock import pins
from sealwright.ops.release.manifest import PROVENANCE, ReleaseManifest
from sealwright.ops.release.reproduce import reproduce
from sealwright.ops.release.sbom import make_sbom
from sealwright.ops.release.wheel import Source, build_wheel, stored


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(root=tmp_path)


def differences(stand: Stand, source: Source | None = None, parts: Parts | None = None) -> dict[str, str]:
    _, found = reproduce(
        stand.folder,
        source or stand.source,
        parts or stand.parts,
        stand.root / "own",
        builder="urn:test:second",
    )
    return {one.path: one.text for one in found}


def test_the_wheel_is_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    one, other = make_source(tmp_path / "a"), make_source(tmp_path / "deeper/b")
    (tmp_path / "deeper/b/toy_thing/lies_about.py").write_text("untracked = True\n")  # must not get in
    for path in (tmp_path / "deeper/b").rglob("*.py"):
        path.chmod(0o755)  # git keeps this bit of a committed file, and here it was not committed
    git(tmp_path / "deeper/b", "config", "core.fileMode", "false")
    assert build_wheel(one) == build_wheel(other)
    name, raw = build_wheel(one)
    assert name == "toy_thing-1.2.3-py3-none-any.whl"
    wheel = tmp_path / name
    wheel.write_bytes(raw)
    with zipfile.ZipFile(wheel) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {member.date_time for member in archive.infolist()} == {(2026, 5, 1, 0, 0, 0)}
        assert "toy_thing/lies_about.py" not in archive.namelist()
        assert archive.testzip() is None


@pytest.mark.slow  # 2 s: the real wheel, twice
def test_our_own_wheel_is_the_same_bytes_twice(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        git(tmp_path, "clone", "-q", str(ROOT), str(tmp_path / name))
    first, second = (build_wheel(Source.of(tmp_path / name)) for name in ("a", "b/c"))
    assert first == second


def test_what_another_zlib_writes_is_stored_the_same(tmp_path: Path) -> None:
    date = Source.of(make_source(tmp_path / "s").root).date
    archives = []
    for level in (1, 9):
        path = tmp_path / f"{level}.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
            archive.writestr("a.txt", "some text " * 1000)
        archives.append(path.read_bytes())
    assert archives[0] != archives[1]
    assert stored(archives[0], date) == stored(archives[1], date)


def test_a_second_builder_finds_no_difference(stand: Stand) -> None:
    assert differences(stand, make_source(stand.root / "elsewhere")) == {}


def test_two_releases_of_a_commit_differ_in_the_provenance_alone(stand: Stand) -> None:
    own = assemble(stand.source, stand.root / "own", stand.parts, builder="urn:test:second")
    unlike = {one.path for one in own.artefacts} - {
        one.path for one in own.artefacts if one in stand.manifest.artefacts
    }
    assert unlike == {PROVENANCE}


def test_another_commit_is_not_the_source(stand: Stand) -> None:
    with pytest.raises(VerificationError) as caught:
        differences(stand, make_source(stand.root / "other", text="ANSWER = 41\n"))
    assert (caught.value.code, caught.value.stage) == ("source-differs", "source")


def test_files_that_were_changed_are_not_the_source(stand: Stand) -> None:
    (stand.source.root / "toy_thing/__init__.py").write_text("ANSWER = 41\n")
    with pytest.raises(VerificationError) as caught:
        Source.of(stand.source.root)
    assert caught.value.code == "source-modified"
    with pytest.raises(UnavailableError) as missing:
        Source.of(stand.root / "image")
    assert missing.value.code == "git-failed"


def test_a_wheel_that_is_not_of_the_source_is_named_with_its_first_member(stand: Stand) -> None:
    """A releaser who puts other code in signs a manifest that fits it; only building again shows it."""
    evil = make_source(stand.root / "evil", text="ANSWER = 43\n")
    lying = replace(evil, commit=evil.commit, date=stand.source.date)
    shutil.rmtree(stand.folder)
    made = assemble(lying, stand.folder, stand.parts, builder="urn:test:first")
    said = ReleaseManifest.from_json(made.to_json() | {"commit": stand.source.commit})
    (stand.folder / "release.json").write_bytes(said.encode())
    found = differences(stand)
    wheel = found["wheel/toy_thing-1.2.3-py3-none-any.whl"]
    assert "first in member toy_thing/__init__.py" in wheel
    assert wheel.startswith("first at byte ")
    assert set(found) == {"wheel/toy_thing-1.2.3-py3-none-any.whl", "sbom.cdx.json", "provenance.json"}


def test_one_other_byte_of_an_image_is_named(stand: Stand) -> None:
    image = make_image(stand.root / "image2")
    raw = bytearray((image / "disk.raw").read_bytes())
    raw[1234] ^= 1
    (image / "disk.raw").write_bytes(raw)
    found = differences(stand, parts=replace(stand.parts, image=image))
    assert found["image/disk.raw"] == "first at byte 1234 (6000 and 6000 bytes)"


def test_archives_are_compared_by_their_members(tmp_path: Path) -> None:
    def tar(name: str, second: bytes, *, mtime: int = 0) -> Path:
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, raw in (("a", b"same"), ("b", second)):
                info = tarfile.TarInfo(member)
                info.size, info.mtime = len(raw), mtime
                archive.addfile(info, io.BytesIO(raw))
        return tmp_path / name

    assert first_difference(tar("1.tar", b"x"), tar("2.tar", b"x")) == ""
    assert first_difference(tar("1.tar", b"x"), tar("2.tar", b"y")).endswith("first in member b")
    assert first_difference(tar("1.tar", b"x"), tar("2.tar", b"x", mtime=1)).endswith("first in member a")
    for level in (1, 9):
        with zipfile.ZipFile(
            tmp_path / f"{level}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=level
        ) as archive:
            archive.writestr(zipfile.ZipInfo("a"), "some text " * 1000, zipfile.ZIP_DEFLATED, level)
    found = first_difference(tmp_path / "1.zip", tmp_path / "9.zip")
    assert "every member has the same content" in found
    (tmp_path / "cut.zip").write_bytes((tmp_path / "1.zip").read_bytes()[:-3])
    assert "bytes)" in first_difference(tmp_path / "1.zip", tmp_path / "cut.zip")


def test_what_was_not_built_again_is_a_difference(stand: Stand) -> None:
    found = differences(stand, parts=Parts())
    assert {"image/disk.raw", "oci/enclave/oci-layout", "reference-values/snp.json"} <= set(found)
    assert "was not predicted again" in found["reference-values/snp.json"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"registers": {"measurement": ["60" * 48]}}, "measurement"),
        ({"config_register": ""}, "config_register"),
        ({"version": 8}, "version"),
    ],
)
def test_reference_values_are_predicted_again(stand: Stand, changes: dict[str, object], named: str) -> None:
    own = make_values(stand.root / "own.json", stand.second, **changes)
    found = differences(stand, parts=replace(stand.parts, reference_values=(own,)))
    assert named in found["reference-values/snp.json"]
    fresh = make_values(stand.root / "fresh.json", stand.second)
    shutil.rmtree(stand.root / "own")
    assert differences(stand, parts=replace(stand.parts, reference_values=(fresh,))) == {}


def test_what_is_countersigned_is_what_lies_there(stand: Stand) -> None:
    """The folder's own files are held against the manifest, or a swapped file would get a signature."""
    (stand.folder / "image/guest.efi").write_bytes(b"another kernel")
    assert "not the one that the release names" in differences(stand)["image/guest.efi"]


def test_a_release_folder_is_not_overwritten(stand: Stand) -> None:
    with pytest.raises(SettingsError) as caught:
        assemble(stand.source, stand.folder, stand.parts, builder="urn:test:first")
    assert caught.value.code == "release-exists"


def test_a_link_is_no_part_of_a_release(stand: Stand) -> None:
    (stand.root / "image/link").symlink_to("disk.raw")
    with pytest.raises(SealwrightError) as caught:
        assemble(stand.source, stand.root / "own", stand.parts, builder="urn:test:first")
    assert caught.value.code == "release-not-plain"


def test_another_version_of_the_build_tool_is_refused(stand: Stand) -> None:
    lock = stand.source.root / "requirements/build.txt"
    lock.write_text(lock.read_text().replace("hatchling==1.33.0", "hatchling==1.32.0"))
    git(stand.source.root, "commit", "-qam", "two")
    with pytest.raises(UnavailableError) as caught:
        build_wheel(Source.of(stand.source.root))
    assert caught.value.code == "build-tool-missing"


def test_a_project_that_cannot_be_built_says_so(stand: Stand) -> None:
    (stand.source.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    git(stand.source.root, "commit", "-qam", "two")
    with pytest.raises(UnavailableError) as caught:
        build_wheel(Source.of(stand.source.root))
    assert caught.value.code == "build-failed"


GOOD_LOCK = "# a lock\na==1 ; python_version > '3' \\\n    --hash=sha256:" + "0" * 64 + "\n"


@pytest.mark.parametrize(
    "bad",
    [
        "a==1\n",
        GOOD_LOCK + GOOD_LOCK,
        GOOD_LOCK.replace("sha256", "md5"),
        GOOD_LOCK.replace("a==1", "a>=1"),
        GOOD_LOCK.replace("a==1", "a @ file:///x"),
        GOOD_LOCK.replace("0" * 64, "0" * 63),
        "--index-url x\n" + GOOD_LOCK,
    ],
)
def test_a_lock_that_pins_less_is_refused(bad: str) -> None:
    assert pins(GOOD_LOCK)["a"].version == "1"
    with pytest.raises(SettingsError) as caught:
        pins(bad)
    assert caught.value.code == "malformed-lock"


def sbom(licences: bytes) -> bytes:
    return make_sbom(
        name="sealwright",
        version="0.1.0",
        sha256="ab" * 32,
        dated="2026-05-01T00:00:00Z",
        required=(ROOT / "requirements/base.txt").read_text(),
        optional=(ROOT / "requirements/demo.txt").read_text(),
        licences=licences,
    )


def test_our_sbom_names_every_locked_package_with_its_licence() -> None:
    document = json.loads(sbom((ROOT / "requirements/licences.json").read_bytes()))
    required = pins((ROOT / "requirements/base.txt").read_text())
    named = {one["name"]: one for one in document["components"]}
    assert {name for name, one in named.items() if one["scope"] == "required"} == set(required)
    blake3 = named["blake3"]
    assert blake3["purl"] == f"pkg:pypi/blake3@{required['blake3'].version}"
    hashes = [one["content"] for one in blake3["externalReferences"][0]["hashes"]]
    assert hashes == list(required["blake3"].sha256)
    with pytest.raises(SettingsError) as caught:
        sbom(b'{"anyio": "MIT"}')
    assert caught.value.code == "licence-unknown"


def test_our_sbom_is_valid_by_the_official_schema() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    good = sbom((ROOT / "requirements/licences.json").read_bytes()).decode()
    assert validator.validate_str(good) is None
    assert validator.validate_str(good.replace('"scope":"required"', '"scope":"perhaps"', 1)) is not None


def test_provenance_is_read_by_the_in_toto_bindings(stand: Stand) -> None:
    document = json.loads((stand.folder / PROVENANCE).read_text())
    statement = ParseDict(document, statement_pb2.Statement())
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    provenance = ParseDict(document["predicate"], provenance_pb2.Provenance())
    assert provenance.run_details.builder.id == "urn:test:first"
    commit = next(d for d in provenance.build_definition.resolved_dependencies if "gitCommit" in d.digest)
    assert commit.digest["gitCommit"] == stand.source.commit


def test_keys_are_counted_once(stand: Stand) -> None:
    stand.sign(stand.first)
    stand.sign(stand.first)
    document = json.loads((stand.folder / "release.dsse.json").read_text())
    ids = [one["keyid"] for one in document["signatures"]]
    assert sorted(ids) == sorted(key_id(key.public_key()) for key in (stand.first, stand.second))
