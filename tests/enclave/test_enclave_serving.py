"""The whole enclave in one process, but for its engine: a real broker, a real client, a fake machine."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.support import KID, MODEL, Clock, World, chat, enclave
from tests.inference.support import close_others, fake_engine

from sealwright.client.receipts import receipt_of
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.errors import AppraisalError, VerificationError
from sealwright.inference import engine
from sealwright.inference.zygote import Zygote


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


@pytest.fixture
def world(zygote: Zygote, tmp_path: Path) -> World:
    return World(tmp_path)  # after the zygote: it must be forked before there are threads


async def test_a_sealed_answer_carries_a_receipt_that_gets_logged(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            answer = await serving.client.post("/v1/chat/completions", json=chat("alpha beta"))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "alpha beta "
            receipt = receipt_of(answer)
            assert receipt.receipt_id == answer.headers["sealwright-receipt-id"]
            fields = receipt.file.receipt.fields
            said = {name: json.loads(opening.value) for name, opening in fields.items()}
            assert said["status"] == "complete"
            assert (said["caller"], said["kid"], said["model"]) == ("alice", KID, MODEL)
            assert (said["tokens_in"], said["tokens_out"]) == (2, 2)
            assert said["response"] == hashlib.sha256(answer.content).hexdigest()

            entry = hashlib.sha256(receipt.statement.log_entry()).hexdigest()
            for _ in range(100):
                proof = await serving.client.get(f"/v1/sealwright/proofs/{entry}")
                if proof.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert proof.status_code == 200
            assert "c2sp.org/tlog-proof" in proof.text


async def test_a_stream(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            body = chat("one two three", stream=True, stream_options={"include_usage": True})
            async with serving.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                raw = b"".join([piece async for piece in answer.aiter_raw()])
            events = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
            assert events[-1] == "[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
            assert text == "one two three "
            assert chunks[-1]["usage"]["total_tokens"] == 6
            assert b"timings" not in raw
            assert receipt_of(answer).statement.predicate.sequence == 0


async def test_models_and_refusals(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            models = await serving.client.get("/v1/models")
            assert [model["id"] for model in models.json()["data"]] == [MODEL]

            async def refused(status: int, code: str, **request: Any) -> None:
                headers = request.pop("headers", {})
                got = await serving.client.post("/v1/chat/completions", json=request, headers=headers)
                assert (got.status_code, got.json()["error"]["code"]) == (status, code)
                assert got.headers["x-should-retry"] == "false"
                assert "tulip" not in got.text

            await refused(404, "model-not-found", **{**chat("hi"), "model": "tulip"})
            await refused(400, "unsupported-parameter", **chat("hi", cache_prompt=True))
            await refused(400, "engine-refused", **chat("REFUSE tulip"))
            await refused(502, "engine-failed", **chat("SECRETCODE"))
            await refused(401, "credential-unknown", **chat("hi"), headers={"authorization": "Bearer swk_x"})
            assert (await serving.client.get("/v1/tulip")).status_code == 404
            assert (await serving.client.get("/v1/sealwright/proofs/tulip")).status_code == 400
            assert "tulip" not in str(serving.notes)


async def test_a_crash_in_a_stream_is_told_and_receipted(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            body = chat("some words CRASH", stream=True)
            async with serving.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                raw = b"".join([piece async for piece in answer.aiter_raw()])
            assert b'"code":"engine-failed"' in raw
            assert b"[DONE]" not in raw
            assert json.loads(receipt_of(answer).file.receipt.fields["status"].value) == "failed"
            await serving.notes.wait("engine-started")
            again = await serving.client.post("/v1/chat/completions", json=chat("back"))
            assert again.status_code == 200


async def test_a_client_that_goes_away_cancels_and_leaves_a_receipt(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            body = chat("FOREVER", stream=True)
            async with serving.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                await anext(answer.aiter_raw())
            for _ in range(200):
                if world.running.core.state.store.count_receipts(_lease_id(serving.notes)):
                    break
                await asyncio.sleep(0.05)
            assert world.running.core.state.store.count_receipts(_lease_id(serving.notes)) == 1
            # Both slots are free again.
            answers = await asyncio.gather(
                *(serving.client.post("/v1/chat/completions", json=chat(f"n{n}")) for n in range(3))
            )
            assert [a.status_code for a in answers] == [200, 200, 200]


def _lease_id(notes: Any) -> bytes:
    return bytes.fromhex(next(ids["lease_id"] for event, ids in notes if event == "lease"))


def _private_keys() -> int:
    gc.collect()
    return sum(isinstance(one, EnclaveKeys) for one in gc.get_objects())


async def test_the_doors(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            health = await serving.plain.get("/healthz")
            assert (health.status_code, health.text) == (200, "serving\n")
            assert (await serving.plain.get("/v1/models")).status_code == 404
            door = "/.well-known/sealwright/attestation"
            assert (await serving.plain.get(door)).status_code == 405
            for body, status, code in (
                (b"{}", 400, "malformed-document"),
                (b"x" * 2000, 413, "too-large"),
                (b'{"nonce":"' + b"A" * 43 + b'","tenant":"nobody"}', 404, "no-lease"),
            ):
                got = await serving.plain.post(door, content=body)
                assert (got.status_code, got.json()["code"]) == (status, code)


async def test_too_busy_and_a_full_backlog_refuse(world: World, zygote: Zygote) -> None:
    world.limits = {"concurrency": 1, "receipt_backlog": 3}
    with world.broker():
        async with enclave(world, zygote) as serving:
            body = chat("FOREVER", stream=True)
            async with serving.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                await anext(answer.aiter_raw())
                got = await serving.client.post("/v1/chat/completions", json=chat("x"))
                assert (got.status_code, got.json()["error"]["code"]) == (503, "too-busy")
            for _ in range(100):  # the first one's slot is being freed
                got = await serving.client.post("/v1/chat/completions", json=chat("x"))
                if got.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            serving.workload.peers.clear()  # the broker cannot be reached any more
            codes = []
            for _ in range(6):
                got = await serving.client.post("/v1/chat/completions", json=chat("x"))
                codes.append(got.json()["error"]["code"] if got.status_code != 200 else "ok")
            assert codes[-1] == "receipt-backlog-full"
            serving.workload.peers[("broker.test", 80)] = world.peer
            for _ in range(200):
                got = await serving.client.post("/v1/chat/completions", json=chat("x"))
                if got.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert got.status_code == 200


async def test_a_lease_is_renewed_at_half_life_with_the_count_of_answers(
    world: World, zygote: Zygote
) -> None:
    world.lease_s = 4
    with world.broker():
        async with enclave(world, zygote) as serving:
            first = await serving.client.post("/v1/chat/completions", json=chat("x"))
            await serving.notes.wait("lease", count=2)
            second = await serving.client.post("/v1/chat/completions", json=chat("x"))
            assert first.headers["sealwright-lease"] != second.headers["sealwright-lease"]
    decisions = world.directory / "broker"
    assert decisions.exists()


async def test_a_revoked_key_stops_and_wipes_the_enclave(world: World, zygote: Zygote) -> None:
    world.lease_s = 4
    with world.broker():
        async with enclave(world, zygote) as serving:
            body = chat("FOREVER", stream=True)
            async with serving.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                pieces = answer.aiter_raw()
                await anext(pieces)
                assert _private_keys() == 1
                world.running.admin.revoke_key(KID)
                await serving.notes.wait("stopped")
                raw = b"".join([piece async for piece in pieces])
            assert b"engine-failed" in raw
            assert _private_keys() == 0
            code = next(ids["code"] for event, ids in serving.notes if event == "stopped")
            health = await serving.plain.get("/healthz")
            assert (health.status_code, health.text) == (503, f"stopped: {code}\n")
            for path in ("attestation", "gateway"):
                got = await serving.plain.post(f"/.well-known/sealwright/{path}", content=b"{}")
                assert (got.status_code, got.json()["code"]) == (503, code)
            lease_id = _lease_id(serving.notes)
            for _ in range(100):
                if world.running.core.state.store.count_receipts(lease_id):
                    break
                await asyncio.sleep(0.05)
            assert world.running.core.state.store.count_receipts(lease_id) == 1


async def test_a_lease_that_cannot_be_renewed_ends_by_enclave_time(world: World, zygote: Zygote) -> None:
    world.lease_s = 3
    with world.broker():
        async with enclave(world, zygote) as serving:
            serving.workload.peers.clear()
            await serving.notes.wait("stopped")
            assert ("stopped", {"code": "lease-ended"}) in serving.notes
            assert (await serving.plain.get("/healthz")).text == "stopped: lease-ended\n"


async def test_ready_while_it_holds_a_lease_and_its_engine_runs(
    world: World, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RESTART_PAUSES_S", (1.0,))
    with world.broker():
        async with enclave(world, zygote) as serving:

            async def ready() -> tuple[int, str]:
                answer = await serving.plain.get("/readyz")
                return answer.status_code, answer.text

            assert await ready() == (200, "ready\n")
            await serving.client.post("/v1/chat/completions", json=chat("CRASH"))
            await serving.notes.wait("engine-ended")
            assert await ready() == (503, "not ready: engine-unavailable\n")
            assert (await serving.plain.get("/healthz")).status_code == 200
            await serving.notes.wait("engine-started")
            assert await ready() == (200, "ready\n")


async def test_not_ready_without_a_lease(world: World, zygote: Zygote) -> None:
    world.lease_s = 3
    with world.broker():
        async with enclave(world, zygote) as serving:
            serving.workload.peers.clear()
            assert (await serving.plain.get("/readyz")).status_code == 200
            await serving.notes.wait("tenant-stopped")
            answer = await serving.plain.get("/readyz")
            assert answer.status_code == 503
            assert answer.text in ("not ready: no-lease\n", "not ready: lease-ended\n")


async def test_an_enclave_whose_host_is_ahead_of_the_broker_does_not_start(
    zygote: Zygote, tmp_path: Path
) -> None:
    world = World(tmp_path, clock=Clock(ahead=timedelta(hours=-2)))
    with world.broker(), pytest.raises(AppraisalError) as caught:
        async with enclave(world, zygote):
            pass
    assert caught.value.code == "keyset-not-yet"


async def test_refused_starts(world: World, zygote: Zygote) -> None:
    with world.broker():
        flipped = bytearray(world.artefact.read_bytes())
        flipped[-1] ^= 1
        broken = world.directory / "broken.sealed"
        broken.write_bytes(flipped)
        other_code = bytes(32)
        tenants = [opened.model_copy(update={"salt": bytes(32)}) for opened in world.openings]
        for changes, kind, code in (
            ({"code": other_code}, AppraisalError, "code-not-allowed"),
            ({"extra_fds": {KID: os.open(broken, os.O_RDONLY)}}, VerificationError, None),
            ({"extra_fds": {}}, VerificationError, "artefact-missing"),
            ({"peers": {}}, AppraisalError, "peer-not-allowed"),
            (
                {"payload": world.payload().model_copy(update={"openings": tenants}).encode()},
                VerificationError,
                "tenant-list-mismatch",
            ),
            (
                {"payload": world.payload().model_copy(update={"manifests": {}}).encode()},
                VerificationError,
                "artefact-missing",
            ),
        ):
            with pytest.raises(kind) as caught:
                async with enclave(world, zygote, **changes):  # type: ignore[arg-type]
                    pass
            assert code is None or caught.value.code == code  # type: ignore[attr-defined]
