"""The broker's own collateral: what evidence did not bring is taken from its cache, and counts as all collateral does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.broker.support import AUTH, Clock, Enclave, Kbs, World
from tests.broker.test_platforms import NOW, ONE, TCB, refused
from tests.vector_files import vector

from sealwright.audit.detect import detect
from sealwright.broker.collateral import cached_collateral, needs_in
from sealwright.collateral.cache import Cache
from sealwright.collateral.need import Need
from sealwright.collateral.record import Piece
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.kbs import decode_nonce
from sealwright.protocol.report_data import Purpose, report_data
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning

CRL = Need.named("amd-crl", "vcek:Genoa")


@pytest.fixture
def platform() -> SnpTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return SnpTestPlatform(NOW)


def put(cache: Cache, blobs: Sequence[bytes], need: Need = CRL) -> None:
    cache.put(Piece(need=need, blobs=tuple(blobs), fetched=NOW, issued=None, next_update=None), replace=True)


async def attest(tmp_path: Path, platform: SnpTestPlatform, **options: Any) -> str:
    """Return the code of the refusal of evidence without its CRL; empty: there is a result."""
    world = World(tmp_path / "broker", clock=Clock(NOW))
    with world.open(**options) as running:
        world.add_key(running)
        enclave = Enclave.make(world, running)
        rules = {
            "registers": {"measurement": [(ONE * 48).hex()]},
            "config_register": "host_data",
            "roots": [platform.root_fingerprint.hex()],
            "products": {"Genoa": {"minimum_tcb": TCB}},
        }
        running.admin.set_policy("k1", world.policy(platforms={"snp": rules}))
        kbs = Kbs(running)
        nonce = await kbs.auth({**AUTH, "tee": "snp"})
        config = enclave.config.digest()
        bound = report_data(
            Purpose.LEASE,
            nonce=decode_nonce(nonce),
            config_digest=config,
            keyset_digest=enclave.keyset.digest(),
        )
        raw, endorsements = platform.evidence(bound, measurement=ONE * 48, host_data=config)
        kept = tuple(one for one in endorsements if one != platform.crl)
        assert len(kept) == len(endorsements) - 1
        said = EvidenceEnvelope(type="snp", evidence=raw, endorsements=kept).to_json()
        answer = await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=said))
        return "" if answer.status_code == 200 else refused(running)


async def test_a_crl_in_the_cache_decides(tmp_path: Path, platform: SnpTestPlatform) -> None:
    cache = Cache(tmp_path / "cache")
    put(cache, [platform.crl])
    assert await attest(tmp_path, platform, collateral=tmp_path / "cache") == ""


async def test_without_it_nothing_is_decided(tmp_path: Path, platform: SnpTestPlatform) -> None:
    assert await attest(tmp_path, platform) == "collateral-missing"


async def test_what_the_cache_says_revoked_is_revoked(tmp_path: Path, platform: SnpTestPlatform) -> None:
    put(Cache(tmp_path / "cache"), [platform.amd.crl([platform.amd.signers["vcek"]])])
    assert await attest(tmp_path, platform, collateral=tmp_path / "cache") == "certificate-revoked"


@pytest.mark.parametrize("blobs", [[b"no CRL"], [b"0\x82\xff\xff"]])
async def test_what_cannot_be_read_is_not_there(
    tmp_path: Path, platform: SnpTestPlatform, blobs: list[bytes]
) -> None:
    put(Cache(tmp_path / "cache"), blobs)
    found = await attest(tmp_path, platform, collateral=tmp_path / "cache")
    assert found == "collateral-missing"


def test_what_nobody_knows_needs_nothing(tmp_path: Path) -> None:
    envelope = EvidenceEnvelope(type="nitro", evidence=b"?", endorsements=())
    assert not cached_collateral(Cache(tmp_path), envelope).crls


def test_a_gpus_report_names_its_reference_values_and_responders() -> None:
    """Of a real H100; the leaf of its chain lives for one boot, and no responder knows it."""
    (device,) = detect(vector("nvidia/nv-attestation-sdk/hopper_evidence.json")).devices
    envelope = EvidenceEnvelope(type="nitro", evidence=b"?", endorsements=(), devices=(device,))
    needs = [f"{need.kind}/{need.key}" for need in needs_in(envelope)]
    assert "nvidia-rim/NV_GPU_DRIVER_GH100_590.12" in needs
    assert "nvidia-rim/NV_GPU_VBIOS_G520_0200_885_9600A50001" in needs
    assert sum(need.startswith("nvidia-ocsp/") for need in needs) == 3
    broken = device.model_copy(update={"evidence": device.evidence[:-9]})
    assert needs_in(envelope.model_copy(update={"devices": (broken,)})) == ()
