"""An enclave on platform `tpm`: a real software TPM, enrolled by the owner's CA, a real broker and a real client.

Platform `tpm` hides nothing from its host, and says so: its policies are demo policies.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.support import KID, World, chat, enclave
from tests.enclave.test_enclave_quoted import client
from tests.inference.support import close_others, fake_engine
from tests.inference.test_inference_llamacpp import gguf
from tests.tpm.support import running

from sealwright.attester.local import AttesterSpec
from sealwright.attester.quoter.launch import Running, launch
from sealwright.attester.tpm import Tpm, TpmAttester, connect
from sealwright.cli import main
from sealwright.client.receipts import receipt_of
from sealwright.enclave.image import DISTRIBUTIONS, ENTRY
from sealwright.errors import AppraisalError, SealwrightError, VerificationError
from sealwright.inference.zygote import Zygote
from sealwright.protocol.enclave_config import EnclaveConfig
from sealwright.testing.tpm import SwTpm, manufacture
from sealwright.testing.workload import FakeWorkload

pytestmark = pytest.mark.skipif(
    not SwTpm.installed(), reason="swtpm is not installed: apt-get install swtpm swtpm-tools"
)
BOOT = {4: b"firmware", 7: b"secure boot", 9: b"kernel", 11: b"image"}  # what a measured boot would extend


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TPM as it was made; each test has a copy."""
    folder = tmp_path_factory.mktemp("tpm")
    manufacture(folder)
    return folder


@pytest.fixture
def swtpm(pristine: Path) -> Iterator[SwTpm]:
    with running(pristine) as made:
        with Tpm(connect(made.address)) as tpm:
            for pcr, said in BOOT.items():
                tpm.pcr_extend(pcr, {"sha256": sha256(said).digest()})
        yield made


class TpmWorld(World):
    """A world whose policies admit one TPM in the state that its measured boot left."""

    ca_root = ""

    def policy(self, **changes: Any) -> dict[str, Any]:
        return super().policy(**{"platforms": {"tpm": self.rules()}, **changes})

    def rules(self) -> dict[str, Any]:
        booted = {
            f"pcr{pcr}": [sha256(bytes(32) + sha256(said).digest()).hexdigest()] for pcr, said in BOOT.items()
        }
        return {
            "registers": booted,
            "unchecked": ["pcr0", "pcr2"],
            "config_register": "pcr8",
            "roots": [self.ca_root],
            "tpm": "provider",
            "minimum_firmware": "00" * 8,
        }


def enrol(swtpm: SwTpm, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """Enrol the TPM by command line; return its certificates and the root of the CA."""
    chain = folder / "maker.pem"
    chain.write_bytes((swtpm.folder / "ca" / "issuercert.pem").read_bytes())
    with (chain).open("ab") as file:
        file.write((swtpm.folder / "ca" / "swtpm-localca-rootca-cert.pem").read_bytes())
    assert main(["tpm", "ca-new", str(folder / "ca"), "--json"]) == 0
    root = json.loads(capsys.readouterr().out)["root"]
    (maker,) = swtpm.roots()
    out = folder / "ak.pem"
    command = [
        "tpm",
        "enrol",
        "--ca",
        str(folder / "ca"),
        "--machine",
        "worker-1",
        "--out",
        str(out),
        "--json",
    ]
    command += ["--ek-root", maker.hex(), "--ek-chain", str(chain), "--tpm", swtpm.address]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["root"] == root
    return out, root


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


@pytest.fixture
def world(zygote: Zygote, swtpm: SwTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> TpmWorld:
    (tmp_path / "world").mkdir()
    world = TpmWorld(tmp_path / "world")
    world.certificates, world.ca_root = enrol(swtpm, tmp_path, capsys)  # type: ignore[attr-defined]
    return world


class TpmWorkload(FakeWorkload):
    """A workload in this process that quotes by the TPM, as `quoter` would let it."""

    attester: TpmAttester

    def quote(self, report_data: bytes) -> bytes:
        return self.attester.quote(report_data).encode()


def on_tpm(world: TpmWorld, attester: TpmAttester, *, extends: int = 1) -> None:
    """Make the world's workloads quote by `attester`, with their config in PCR 8."""
    made = world.workload

    def workload(config: EnclaveConfig | None = None, **changes: Any) -> FakeWorkload:
        found = made(config, **changes)
        found.__class__ = TpmWorkload
        found.attester = attester  # type: ignore[attr-defined]
        found.platform = "tpm"
        if extends:
            attester.bind_config(sha256(found.config).digest())
        for _ in range(1, extends):
            attester.tpm.pcr_extend(8, {"sha256": sha256(found.config).digest()})
        return found

    world.workload = workload  # type: ignore[method-assign]


@pytest.fixture
def attester(world: TpmWorld, swtpm: SwTpm) -> Iterator[TpmAttester]:
    blob = world.certificates.read_bytes()  # type: ignore[attr-defined]
    with TpmAttester.open(swtpm.address, endorsements=(blob,)) as attester:
        yield attester


async def test_an_enclave_on_a_tpm_gets_its_key_and_answers(
    world: TpmWorld, zygote: Zygote, attester: TpmAttester
) -> None:
    on_tpm(world, attester)
    with world.broker():
        async with enclave(world, zygote) as serving:
            answer = await serving.client.post("/v1/chat/completions", json=chat("alpha beta"))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "alpha beta "
            predicate = receipt_of(answer).statement.predicate
            assert (predicate.platform, predicate.confidential) == ("tpm", False)


@pytest.mark.parametrize("pcr", [4, 7, 9, 11, 12])
async def test_one_pcr_changed_and_there_is_no_key(
    world: TpmWorld, zygote: Zygote, attester: TpmAttester, pcr: int
) -> None:
    on_tpm(world, attester)
    attester.tpm.pcr_extend(pcr, {"sha256": sha256(b"another").digest()})
    code = await refusal(world, zygote)
    assert code == ("pcr-extended" if pcr == 12 else "measurement-not-allowed")


async def test_another_config_in_the_register_and_there_is_no_key(
    world: TpmWorld, zygote: Zygote, attester: TpmAttester
) -> None:
    attester.bind_config(sha256(b"another config").digest())
    on_tpm(world, attester, extends=0)
    assert await refusal(world, zygote) == "config-digest-mismatch"


async def test_a_second_extend_of_the_same_config_and_there_is_no_key(
    world: TpmWorld, zygote: Zygote, attester: TpmAttester
) -> None:
    on_tpm(world, attester, extends=2)
    assert await refusal(world, zygote) == "config-digest-mismatch"


async def test_an_attestation_key_that_nobody_enrolled_gets_no_key(
    world: TpmWorld, zygote: Zygote, swtpm: SwTpm
) -> None:
    with TpmAttester.open(swtpm.address) as stranger:
        on_tpm(world, stranger)
        assert await refusal(world, zygote) == "ak-not-certified"


async def refusal(world: TpmWorld, zygote: Zygote) -> str:
    """Return the code with which the broker refused the enclave."""
    with world.broker(), pytest.raises((AppraisalError, VerificationError)) as caught:
        async with enclave(world, zygote):
            raise AssertionError("it serves")
    return caught.value.code


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quoter_starts_an_enclave_that_quotes_by_the_tpm(
    swtpm: SwTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured start, hardened, with a real model; quotes come from the TPM in place of the quoter's own."""
    pytest.importorskip("xllamacpp")
    (tmp_path / "world").mkdir()
    (tmp_path / "state").mkdir(mode=0o700)
    world = TpmWorld(tmp_path / "world", model=Path(gguf()).read_bytes())
    certificates, world.ca_root = enrol(swtpm, tmp_path, capsys)
    spec = AttesterSpec(platform="tpm", address=swtpm.address, endorsements=(certificates.read_bytes(),))
    with world.broker(), socket.create_server(("127.0.0.1", 0)) as listener:
        running = start(world, listener, tmp_path / "state", spec)
        try:
            with client(world, listener) as http:
                body = chat("Name a tulip colour.", temperature=0, max_tokens=8)
                answer = http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert receipt_of(answer).statement.predicate.platform == "tpm"
        finally:
            assert running.terminate() == 0
    with world.broker(), socket.create_server(("127.0.0.1", 0)) as listener:
        other = world.config(limits={**world.config().to_json()["limits"], "concurrency": 5})
        with pytest.raises(SealwrightError) as caught:
            start(world, listener, tmp_path / "state", spec, config=other)
        assert caught.value.code == "config-register-used"


def start(
    world: TpmWorld,
    listener: socket.socket,
    state: Path,
    spec: AttesterSpec,
    config: EnclaveConfig | None = None,
) -> Running:
    root = world.config().to_json()["brokers"][0]["root"]
    host, port = world.peer
    peers: Mapping[str, Any] = {"brokers": [{"url": f"http://{host}:{port}", "root": root}]}
    fd = os.open(world.artefact, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return launch(
            (config or world.config(**peers)).encode(),
            entry=ENTRY,
            distributions=DISTRIBUTIONS,
            listen=listener,
            extra_fds={KID: fd},
            state_dir=state,
            allow_swap=True,
            payload=world.payload().encode(),
            attester=spec,
        )
    finally:
        os.close(fd)
