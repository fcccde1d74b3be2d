"""What the broker stops: a software TPM in the state that each changed image would leave, quoted, without a boot.

`test_boot_long.py` really boots the same images; that the states are the right ones is shown there, and by the good boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from tests.enclave.support import chat, enclave
from tests.enclave.test_enclave_tpm import on_tpm
from tests.image.boot.changes import changed_command_line, changed_initrd, stranger
from tests.image.boot.support import CODE, Predicted, Stage, predicted, quietly
from tests.inference.support import close_others, fake_engine

from sealwright.attester.tpm import Tpm, TpmAttester, connect
from sealwright.errors import AppraisalError, VerificationError
from sealwright.inference.zygote import Zygote
from sealwright.testing.tpm import SwTpm

pytestmark = pytest.mark.slow


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


@pytest.fixture
def swtpm(made: Stage) -> Iterator[SwTpm]:
    with quietly(lambda: SwTpm(made.tpm)) as running:
        yield running


def booted(made: Stage, swtpm: SwTpm, said: Predicted) -> TpmAttester:
    """Bring the TPM into the state after a boot; return its attester."""
    with Tpm(connect(swtpm.address)) as tpm:
        for pcr, digests in said.events.items():
            for digest in digests:
                tpm.pcr_extend(pcr, {"sha256": digest})
        values = tpm.pcr_read("sha256", [int(name.removeprefix("pcr")) for name in CODE])
    assert {f"pcr{number}": value.hex() for number, value in values.items()} == said.registers
    return TpmAttester.open(swtpm.address, endorsements=(made.certificates,))


@contextmanager
def quoting(made: Stage, attester: TpmAttester, *, extends: int = 1) -> Iterator[None]:
    """Let the world's workloads quote by `attester` until the block ends."""
    on_tpm(made.world, attester, extends=extends)  # type: ignore[arg-type]
    try:
        with attester:
            yield
    finally:
        del made.world.workload  # the class's own again


async def test_the_image_as_it_was_built_gets_its_key(made: Stage, swtpm: SwTpm, zygote: Zygote) -> None:
    attester = booted(made, swtpm, predicted(made.uki, made.variables))
    with quoting(made, attester):
        async with enclave(made.world, zygote) as serving:
            answer = await serving.client.post("/v1/chat/completions", json=chat("alpha"))
            assert answer.status_code == 200, answer.text


async def refusal(made: Stage, zygote: Zygote) -> str:
    """Return the code with which the broker refused the enclave."""
    with pytest.raises((AppraisalError, VerificationError)) as caught:
        async with enclave(made.world, zygote):
            raise AssertionError("it serves")
    assert caught.value.stage == "broker"
    return caught.value.code


@pytest.mark.parametrize(
    ("what", "registers"),
    [
        ("command line", {"pcr4", "pcr9", "pcr11"}),
        ("initrd", {"pcr4", "pcr9", "pcr11"}),
        ("Secure Boot keys", {"pcr7"}),
    ],
)
async def test_one_thing_changed_and_there_is_no_key(
    made: Stage, swtpm: SwTpm, zygote: Zygote, tmp_path: Path, what: str, registers: set[str]
) -> None:
    """It would boot: it is signed, or the host enrolled the key. Its registers are others, and no key is released."""
    uki, variables = made.uki, made.variables
    if what == "command line":
        uki = changed_command_line(made, tmp_path)
    elif what == "initrd":
        uki = changed_initrd(made, tmp_path)
    else:
        uki, variables = stranger(made, tmp_path)
    said = predicted(uki, variables)
    right = made.world.registers
    assert {name for name in CODE if said.registers[name] != right[name]} == registers
    with quoting(made, booted(made, swtpm, said)):
        assert await refusal(made, zygote) == "measurement-not-allowed"


async def test_another_config_and_there_is_no_key(made: Stage, swtpm: SwTpm, zygote: Zygote) -> None:
    attester = booted(made, swtpm, predicted(made.uki, made.variables))
    attester.bind_config(sha256(b"another config").digest())
    with quoting(made, attester, extends=0):
        assert await refusal(made, zygote) == "config-digest-mismatch"


async def test_a_config_that_is_not_allowed_and_there_is_no_key(
    made: Stage, swtpm: SwTpm, zygote: Zygote
) -> None:
    """It is measured as it should be, and names one host more."""
    with quoting(made, booted(made, swtpm, predicted(made.uki, made.variables))):
        config = made.world.config(egress=["192.0.2.1:443"])
        with pytest.raises(AppraisalError) as caught:
            async with enclave(made.world, zygote, config=config):
                raise AssertionError("it serves")
    assert (caught.value.stage, caught.value.code) == ("broker", "egress-host-not-allowed")


async def test_a_config_that_was_measured_twice_and_there_is_no_key(
    made: Stage, swtpm: SwTpm, zygote: Zygote
) -> None:
    with quoting(made, booted(made, swtpm, predicted(made.uki, made.variables)), extends=2):
        assert await refusal(made, zygote) == "config-digest-mismatch"
