"""The same chain with evidence of a made-up AMD processor: nothing in it is about platform `software`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.broker.support import NOW, World
from tests.training.checkpoint.chains import run

from sealwright.crypto.canonical import canonical_digest
from sealwright.errors import SealwrightError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning

MEASURED = b"\x11" * 48
CODE = canonical_digest({"measurement": MEASURED.hex()})


class Amd:
    """Quotes as the fake platform of `World` does: the second register is the config."""

    def __init__(self) -> None:
        with pytest.warns(FakePlatformWarning):
            self.chip = SnpTestPlatform(NOW)
        self.measured = MEASURED

    def quote(self, bound: bytes, registers: tuple[bytes, bytes], *_: Any) -> EvidenceEnvelope:
        raw, endorsements = self.chip.evidence(bound, measurement=self.measured, host_data=registers[1])
        return EvidenceEnvelope(type="snp", evidence=raw, endorsements=tuple(sorted(endorsements)))


class AmdWorld(World):
    """A broker whose policies admit that processor alone."""

    def __post_init__(self) -> None:
        World.__post_init__(self)
        self.platform = Amd()  # type: ignore[assignment]

    def policy(self, **changes: Any) -> bytes:
        snp = {
            "registers": {"measurement": [MEASURED.hex()]},
            "config_register": "host_data",
            "roots": [self.platform.chip.root_fingerprint.hex()],  # type: ignore[attr-defined]
            "products": {"Genoa": {"minimum_tcb": {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}}},
        }
        software = json.loads(World.policy(_Bare(self))) | {"platforms": {"snp": snp}}  # type: ignore[arg-type]
        return json.dumps(software | changes).encode()


class _Bare:
    """A world as `World.policy` reads one, without a quoting root."""

    def __init__(self, world: AmdWorld) -> None:
        self.broker_root, self.log_key = world.broker_root, world.log_key
        self.platform = self
        self.root_fingerprint = bytes(32)


def test_a_chain_of_snp_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.training.world.World", AmdWorld)
    monkeypatch.setattr("tests.training.checkpoint.chains.CODE", CODE)
    with run(tmp_path, measurements=[CODE]) as made:
        newest = made.verify().newest
        assert newest.signer.appraisal.platform == "snp"
        assert newest.signer.appraisal.code == CODE
        assert not newest.confidential  # the root is not AMD's
        # The same worker, in a guest that measures to something else.
        made.site.world.platform.measured = b"\x22" * 48  # type: ignore[attr-defined]
        with pytest.raises(SealwrightError) as caught:
            made.site.enrol()
        assert (caught.value.stage, caught.value.code) == ("appraisal", "measurement-not-allowed")
