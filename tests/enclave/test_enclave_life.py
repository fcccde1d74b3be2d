"""Revocations that reach an enclave long before its lease ends, and a rotation that no request notices."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.support import CODE, KID, MODEL, TENANT, Serving, World, chat, enclave
from tests.inference.support import close_others, fake_engine

from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.enclave.broker_client import NoticeLine
from sealwright.enclave.http import HttpConnection
from sealwright.enclave.listener import Listener
from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.inference.zygote import Zygote
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing import manifest_path, seal_file


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


@pytest.fixture
def another() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


@pytest.fixture
def world(zygote: Zygote, another: Zygote, tmp_path: Path) -> World:
    return World(tmp_path)  # after the zygote: it must be forked before there are threads


def keyset_of(world: World) -> str:
    from sealwright.broker.rows import LeaseRow

    return world.running.core.state.view().all(LeaseRow, "lease")[-1].keyset_digest.hex()


REVOKED: list[tuple[str, Callable[[World], str], str]] = [
    ("key", lambda _: KID, "key-revoked"),
    ("tenant", lambda _: TENANT, "tenant-revoked"),
    ("measurement", lambda _: CODE.hex(), "measurement-revoked"),
    ("enclave", keyset_of, "enclave-revoked"),
]


@pytest.mark.parametrize(("kind", "value", "code"), REVOKED, ids=[case[0] for case in REVOKED])
async def test_a_revocation_stops_an_enclave_whose_lease_has_long_to_go(
    kind: str, value: Callable[[World], str], code: str, world: World, zygote: Zygote
) -> None:
    with world.broker():  # leases of 600 s: the next renewal would be in five minutes
        async with enclave(world, zygote) as serving:
            assert (await serving.client.post("/v1/chat/completions", json=chat("x"))).status_code == 200
            world.running.life.revoke(kind, value(world), "drill")
            await serving.notes.wait("stopped")
            assert ("stopped", {"code": code}) in serving.notes
            answer = await serving.plain.post("/.well-known/sealwright/gateway", content=b"{}")
            assert (answer.status_code, answer.json()["code"]) == (503, code)


async def test_a_policy_reaches_an_enclave_and_it_serves_on(world: World, zygote: Zygote) -> None:
    with world.broker():
        async with enclave(world, zygote) as serving:
            world.running.admin.set_policy(KID, canonical(world.policy(version=2, lease_s=500)))
            await serving.notes.wait("lease", count=2)
            assert (await serving.client.post("/v1/chat/completions", json=chat("x"))).status_code == 200
            assert "stopped" not in serving.notes.events()


async def test_no_request_fails_while_a_key_is_rotated(world: World, zygote: Zygote, another: Zygote) -> None:
    world.lease_s = 4  # so that the old enclave renews at every step
    with world.broker():
        async with enclave(world, zygote) as old:
            load = Load()
            load.aim(old)
            asking = [asyncio.create_task(load.run()) for _ in range(2)]
            await load.more()
            new_world = rotated(world)
            await load.more()
            world.running.life.switch(KID)
            await old.notes.wait("lease", count=2 + old.notes.events().count("lease"))
            async with enclave(new_world, another) as new:
                await load.more()
                load.aim(new)
                await load.more()
                world.running.life.retire(KID)
                await old.notes.wait("stopped")
                assert ("stopped", {"code": "manifest-mismatch"}) in old.notes
                await load.more()
                load.ended = True
                await asyncio.gather(*asking)
            assert load.failed == []
            assert len(load.answered) >= 8


class Load:
    """Asks whichever enclave it is aimed at, one request after the other."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.failed: list[Any] = []
        self.ended = False
        self._at: Serving

    def aim(self, at: Serving) -> None:
        self._at = at

    async def run(self) -> None:
        while not self.ended:
            answer = await self._at.client.post("/v1/chat/completions", json=chat("alpha"))
            if answer.status_code == 200:
                self.answered.append(answer.json()["choices"][0]["message"]["content"])
            else:
                self.failed.append((answer.status_code, answer.text))

    async def more(self, number: int = 2) -> None:
        """Wait for as many more answers, each of a request that began after now."""
        until = len(self.answered) + number + 2
        while len(self.answered) < until and not self.failed:
            await asyncio.sleep(0.01)


def rotated(world: World) -> World:
    """Make the next generation, seal the next version under it; return the surroundings of an enclave for it."""
    running = world.running
    running.life.rotate(KID)
    private = HpkePrivateKey.generate(Kem.XWING)
    release = running.core.secrets.release.public_key().public_bytes_raw()
    sealed = running.admin.sealing_key(KID, private.public.raw, coming=True)
    said = SealingKey.verify(sealed, [ed25519(release)], stage="signature")
    dek = open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)
    new = copy.copy(world)
    new.artefact = world.directory / "next.gguf.sealed"
    plain = world.directory / "next.gguf"
    plain.write_bytes(world.model)
    from sealwright.sealing.manifest import Manifest

    envelope = manifest_path(world.artefact).read_bytes()
    before = Manifest.verify_signed(envelope, [world.owner.public_key()])
    manifest = seal_file(
        plain, new.artefact, dek=dek, kid=KID, signer=world.owner, version=2, artefact_id=before.artefact_id
    )
    running.admin.admit(KID, manifest_path(new.artefact).read_bytes(), owner_key=None, force=False)
    entry = {"kid": KID, "manifest_digest": manifest.manifest_digest.hex(), "model": MODEL}
    listed = {"tenant": TENANT, "salt": b64url(os.urandom(32)), "artefacts": [entry]}
    new.openings = [TenantList.from_json(listed)]
    return new


# The line that notices come over


class Line:
    """Stands in for a broker's line: answers, or breaks."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.asked, self.closed = answers, 0, 0

    def notices(self) -> Line:
        return self

    def wait(self, leases: Any) -> list[bytes]:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def abort(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


def test_a_listener_outlives_a_broken_line_and_tells_what_it_hears() -> None:
    line = Line([UnavailableError("x", code="x"), MessageFormatError("y"), [b"\1" * 16]])
    told: list[bytes] = []
    listener = Listener(lambda: line, lambda: [b"\1" * 16], told.extend)  # type: ignore[arg-type, return-value]
    assert [listener._once() for _ in range(4)] == [False, False, True, False]
    assert told == [b"\1" * 16]
    assert line.closed == line.asked == 4
    nothing = Listener(lambda: line, list, told.extend)  # type: ignore[arg-type, return-value]
    assert nothing._once() is False
    assert line.asked == 4


@pytest.mark.parametrize("body", [b"", b"[]", b'{"changed": 1}', b"{}"])
def test_an_answer_that_is_no_notice_is_refused(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from sealwright.enclave.http import Answer

    http = HttpConnection("http://broker.test", None)  # type: ignore[arg-type]
    monkeypatch.setattr(http, "request", lambda *_: Answer(200, "", body))
    with pytest.raises(MessageFormatError):
        NoticeLine(http).wait([bytes(16)])
    monkeypatch.setattr(http, "request", lambda *_: Answer(404, "", body))
    with pytest.raises(UnavailableError) as caught:
        NoticeLine(http).wait([bytes(16)])
    assert caught.value.code == "no-notices"


async def test_a_wait_ends_when_the_enclave_does(world: World, zygote: Zygote) -> None:
    import threading

    with world.broker():
        async with enclave(world, zygote):
            pass
        # The broker would have held its answer back for 15 s.
        for thread in threading.enumerate():
            if thread.name == "notices":
                with suppress(RuntimeError):
                    await asyncio.to_thread(thread.join, 10)
                assert not thread.is_alive()
