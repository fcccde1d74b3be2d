"""An event log beside a quote of a machine that has been running: the system went on extending after the log ended."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.tpm.support import NOW, REPORT_DATA, platform

from sealwright.appraisal.tpm import TpmRules
from sealwright.attester.tpm import attester
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.eventlog import BootLogBuilder
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context
from sealwright.verify.evidence import verify_evidence
from sealwright.verify.verified import Verified

TPM = platform()
PHASES = {"pcr11": ["enter-initrd", "leave-initrd", "ready"], "pcr15": ["machine-id:0123"]}


def booted() -> tuple[bytes, dict[int, bytes]]:
    """Return a firmware's log, and the PCRs when it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        log = BootLogBuilder()
    log.boot(sections=[(".linux", b"kernel")])
    found = log.registers()
    return log.log().encode(), {number: found.get(f"pcr{number}", bytes(32)) for number in range(24)}


def record(register: str, text: str) -> bytes:
    said = {"pcr": int(register[3:]), "digests": [], "content_type": "systemd", "content": {"string": text}}
    return b"\x1e" + json.dumps(said).encode() + b"\n"


def running(told: dict[str, list[str]] | None = None, **done: list[str]) -> EvidenceEnvelope:
    """Return evidence of a machine whose system extended `done`. Args: told: what its log says of that; None: no log."""
    log, pcrs = booted()
    for register, texts in done.items():
        for text in texts:
            number = int(register[3:])
            pcrs[number] = hashlib.sha256(pcrs[number] + hashlib.sha256(text.encode()).digest()).digest()
    evidence, endorsements = TPM.evidence(REPORT_DATA, pcrs=pcrs)
    runtime = None
    if told is not None:
        runtime = b"".join(record(name, text) for name, texts in told.items() for text in texts)
    return EvidenceEnvelope(
        type="tpm",
        evidence=evidence,
        event_log=log,
        runtime_log=runtime,
        endorsements=tuple(endorsements),
    )


def verify(envelope: EvidenceEnvelope, bound: frozenset[str] = frozenset()) -> Verified:
    return verify_evidence(
        EvidenceEnvelope.parse(envelope.encode()),
        expected_report_data=REPORT_DATA,
        context=Context(at=NOW, roots=frozenset({TPM.root_fingerprint})),
        collateral=Endorsements(),
        bound=bound,
    )


def conditions(envelope: EvidenceEnvelope, *bound: str) -> list[str]:
    return [one.code for one in verify(envelope, frozenset(bound)).conditions]


def test_systemds_log_tells_what_the_firmwares_does_not() -> None:
    assert conditions(running()) == []
    assert conditions(running(PHASES, **PHASES)) == []
    told = verify(running(PHASES, **PHASES)).facts["boot"]
    assert "leave-initrd" in json.dumps(told)
    assert "0123" in json.dumps(told)


def test_without_it_the_registers_are_told_as_unlogged() -> None:
    assert conditions(running(**PHASES)) == ["unlogged-extends"] * 2
    shorter = {"pcr11": PHASES["pcr11"][:1], "pcr15": PHASES["pcr15"]}
    assert conditions(running(shorter, **PHASES)) == ["unlogged-extends"]
    other = {"pcr11": ["enter-initrd", "leave-initrd", "other"], "pcr15": PHASES["pcr15"]}
    assert conditions(running(other, **PHASES)) == ["unlogged-extends"]


def test_a_register_that_the_policy_names_is_the_policys_affair() -> None:
    assert conditions(running(**PHASES), "pcr11", "pcr15") == []
    assert conditions(running(**PHASES), "pcr15") == ["unlogged-extends"]
    rules = TpmRules.model_validate(
        {
            "minimum_firmware": "00" * 8,
            "vendor_roots": True,
            "registers": {"pcr4": ["00" * 32], "pcr11": ["00" * 32]},
            "unchecked": ["pcr7", "pcr15"],
            "config_register": "pcr8",
        }
    )
    assert rules.bound == {"pcr8", "pcr11", "pcr15"}  # of the firmware's registers none, listed or not


def test_the_firmwares_registers_hold_what_its_log_says() -> None:
    with pytest.raises(VerificationError) as caught:
        verify(running(pcr4=["another boot loader"]))
    assert (caught.value.stage, caught.value.code) == ("event-log", "event-log-mismatch")
    told = {"pcr4": ["another boot loader"]}
    with pytest.raises(VerificationError) as caught:
        verify(running(told, **told))
    assert (caught.value.stage, caught.value.code) == ("event-log", "bad-register")


def test_a_runtime_log_needs_the_log_that_it_goes_on_from() -> None:
    whole = running(PHASES, **PHASES).to_json()
    with pytest.raises(EvidenceFormatError):
        EvidenceEnvelope.from_json(
            {name: value for name, value in whole.items() if name != "event_log"}, error=EvidenceFormatError
        )
    with pytest.raises(ValidationError):
        EvidenceEnvelope(type="tpm", evidence=b"x", runtime_log=b"y", endorsements=())
    with pytest.raises(EvidenceFormatError):
        verify(running(PHASES).model_copy(update={"runtime_log": b"\x1e{}\n"}))


@pytest.mark.parametrize(
    ("held", "sent"),
    [
        (record("pcr11", "ready"), True),
        (b"", False),
        (b"no JSON", False),
        (record("pcr11", "ready") + record("pcr4", "x"), False),
        (None, False),
    ],
)
def test_what_the_attester_sends(held: bytes | None, sent: bool, tmp_path: Path) -> None:
    path: Any = tmp_path / "tpm2-measure.log"
    if held is not None:
        path.write_bytes(held)
    assert attester._system_log(path) == (held if sent else None)
