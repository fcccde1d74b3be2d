"""The KBS surface as JSON over HTTP, from auth to a key that opens, and every way it is refused."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.broker.support import AUTH, CODE, NOW, Enclave, Kbs, World

from sealwright.appraisal.ear import ear_digest, verify_ear
from sealwright.broker.service import Running
from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.kbs import MAX_ATTEST
from sealwright.protocol.keyset import Keyset, TeePubkey
from sealwright.protocol.report_data import Purpose


def newest(running: Running) -> dict[str, Any]:
    return dict(running.admin.decisions(1)[0])


async def test_from_auth_to_a_key_that_opens(kbs: Kbs, enclave: Enclave, dek: bytes) -> None:
    got = await kbs.leased(enclave)
    assert await kbs.released(enclave, got) == dek
    assert got.lease.not_after - got.lease.not_before == timedelta(seconds=600)
    actions = [(item["action"], item["verdict"]) for item in kbs.running.admin.decisions(3)]
    assert actions == [("release", "grant"), ("lease", "grant"), ("attest", "grant")]


async def test_the_result_is_an_ear_and_its_digest_stands_in_the_lease(kbs: Kbs, enclave: Enclave) -> None:
    token = (await kbs.attest(enclave)).json()["token"]
    ear = verify_ear(token, kbs.running.core.secrets.ear, at=NOW)
    assert ear.claims["submods"]["cpu0"]["sealwright"]["allowed"] is True
    assert ear.claims["eat_nonce"] == b64url(kbs.nonce)
    lease = (await kbs.lease()).json()["lease"]
    assert ear_digest(token).hex() in base64.b64decode(lease["payload"]).decode()


async def test_asking_again_spends_nothing(kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    first = await kbs.resource()
    size = kbs.running.core.state.ledger.size
    assert (await kbs.resource()).content == first.content
    again = await kbs.lease()
    assert again.status_code == 200
    body = enclave.attest_body(base64.b64encode(kbs.nonce).decode())
    assert (await kbs.http.post("/kbs/v0/attest", json=body)).status_code == 200
    assert kbs.running.core.state.ledger.size == size


async def test_callers_come_with_the_lease_as_digests(kbs: Kbs, enclave: Enclave) -> None:
    from sealwright.protocol.lease import credential_digest

    credential = kbs.running.admin.add_caller("acme", "anna")
    kbs.running.admin.add_caller("other", "otto")
    got = await kbs.leased(enclave)
    assert [caller.caller for caller in got.callers.callers] == ["anna"]
    assert got.callers.callers[0].credential_digest == credential_digest(credential)


async def test_auth_of_other_versions_and_tees_is_refused(kbs: Kbs) -> None:
    cases = [
        ({**AUTH, "version": "0.1.1"}, "kbs-version"),
        ({**AUTH, "tee": "sample"}, "tee-unsupported"),
        ({**AUTH, "tee": "no-such-tee"}, "tee-unsupported"),
        ({**AUTH, "extra-params": ""}, "tee-unsupported"),  # platform software has the keyset form alone
    ]
    for body, code in cases:
        answer = await kbs.http.post("/kbs/v0/auth", json=body)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.json()["type"].startswith("https://github.com/confidential-containers/kbs/errors/")
    assert newest(kbs.running)["code"] == "tee-unsupported"


def other_keyset(enclave: Enclave) -> Enclave:
    tee = HpkePrivateKey.generate(Kem.XWING)
    changed = enclave.keyset.model_copy(update={"tee_pubkey": TeePubkey(pub=tee.public.raw)})
    return replace(enclave, keyset=Keyset.parse(changed.encode()))


async def stale_nonce(kbs: Kbs, enclave: Enclave) -> Any:
    old = await kbs.auth()
    await kbs.auth()
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(old))


async def stale_quote(kbs: Kbs, enclave: Enclave) -> Any:
    await kbs.auth()
    return await kbs.attest(enclave, evidence=enclave.evidence(kbs.nonce))


async def replayed_nonce(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    bad = enclave.attest_body(nonce, evidence=enclave.evidence(os.urandom(32)))
    await kbs.http.post("/kbs/v0/attest", json=bad)
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce))


async def wrong_purpose(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    evidence = enclave.evidence(kbs.nonce, Purpose.SERVE)
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=evidence))


async def swapped_keyset(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    evidence = enclave.evidence(kbs.nonce)
    return await kbs.http.post(
        "/kbs/v0/attest", json=other_keyset(enclave).attest_body(nonce, evidence=evidence)
    )


async def swapped_tee_pubkey(kbs: Kbs, enclave: Enclave) -> Any:
    return await kbs.attest(enclave, **{"tee-pubkey": other_keyset(enclave).keyset.tee_pubkey.to_json()})


async def swapped_config(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    other = enclave.with_config(limits=enclave.config.limits.to_json() | {"concurrency": 5})
    quote = enclave.world.platform.quote
    from sealwright.protocol.report_data import report_data

    bound = report_data(
        Purpose.LEASE,
        nonce=kbs.nonce,
        config_digest=other.config.digest(),
        keyset_digest=other.keyset.digest(),
    )
    evidence = quote(bound, (CODE, enclave.config.digest())).to_json()
    return await kbs.http.post("/kbs/v0/attest", json=other.attest_body(nonce, evidence=evidence))


async def other_broker(kbs: Kbs, enclave: Enclave) -> Any:
    brokers = [{"url": "http://broker.test", "root": b64url(os.urandom(32))}]
    return await kbs.attest(enclave.with_config(brokers=brokers))


async def second_broker(kbs: Kbs, enclave: Enclave) -> Any:
    rogue = {"url": "http://rogue.test", "root": b64url(os.urandom(32))}
    named = [broker.to_json() for broker in enclave.config.brokers]
    return await kbs.attest(enclave.with_config(brokers=[*named, rogue]))


async def other_log(kbs: Kbs, enclave: Enclave) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from sealwright.tlog.keys import Signer

    key = Signer(name=enclave.config.log.origin, key=Ed25519PrivateKey.generate()).vkey.encode()
    return await kbs.attest(enclave.with_config(log=enclave.config.log.to_json() | {"keys": [key]}))


async def egress(kbs: Kbs, enclave: Enclave) -> Any:
    return await kbs.attest(enclave.with_config(egress=["evil.test:443"]))


async def classical(kbs: Kbs, enclave: Enclave) -> Any:
    return await kbs.attest(enclave.with_config(suite="classical"))


async def other_list(kbs: Kbs, enclave: Enclave) -> Any:
    enclave.openings[0] = TenantList.from_json(
        enclave.openings[0].to_json() | {"salt": b64url(os.urandom(32))}
    )
    return await kbs.attest(enclave)


async def other_code(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    from sealwright.protocol.report_data import report_data

    bound = report_data(
        Purpose.LEASE,
        nonce=kbs.nonce,
        config_digest=enclave.config.digest(),
        keyset_digest=enclave.keyset.digest(),
    )
    quote = enclave.world.platform.quote(bound, (bytes(32), enclave.config.digest()))
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=quote.to_json()))


async def weak_claim(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    evidence = enclave.evidence(kbs.nonce, swap="reachable")
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=evidence))


async def other_root(kbs: Kbs, enclave: Enclave) -> Any:
    import warnings

    from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        enclave.world.platform = SoftwareTestPlatform(NOW)
    return await kbs.attest(enclave)


async def revoked_quoter(kbs: Kbs, enclave: Enclave) -> Any:
    enclave.world.platform.revoke(NOW)
    return await kbs.attest(enclave)


async def unknown_type(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    evidence = enclave.evidence(kbs.nonce) | {"type": "sample"}
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=evidence))


async def policy_expired(kbs: Kbs, enclave: Enclave) -> Any:
    expires = {"expires": "2026-06-01T12:01:00Z"}
    kbs.running.admin.set_policy("k1", enclave.world.policy(**expires))
    enclave.world.clock.forward(minutes=1)
    return await kbs.attest(enclave)


async def policy_requires_hardware(kbs: Kbs, enclave: Enclave) -> Any:
    kbs.running.admin.set_policy("k1", enclave.world.policy(profile="production", require_hardware=True))
    return await kbs.attest(enclave)


async def wrong_manifest(kbs: Kbs, enclave: Enclave) -> Any:
    admin, world = kbs.running.admin, enclave.world
    newer = world.manifest(world.sealing_key(kbs.running, "k1"), "k1", version=2)
    admin.admit("k1", newer, owner_key=None, force=False)
    return await kbs.attest(enclave)


async def revoked_key(kbs: Kbs, enclave: Enclave) -> Any:
    kbs.running.admin.revoke_key("k1")
    return await kbs.attest(enclave)


async def foreign_kid(kbs: Kbs, enclave: Enclave) -> Any:
    enclave.world.add_key(kbs.running, "other", "k2")
    theirs = Enclave.make(enclave.world, kbs.running, {"acme": ["k2"]})
    return await kbs.attest(theirs)


async def expired_session(kbs: Kbs, enclave: Enclave) -> Any:
    nonce = await kbs.auth()
    enclave.world.clock.forward(minutes=5)
    return await kbs.http.post("/kbs/v0/attest", json=enclave.attest_body(nonce))


async def ended_keyset(kbs: Kbs, enclave: Enclave) -> Any:
    enclave.world.clock.forward(hours=13)
    return await kbs.attest(enclave)


Attack = Callable[[Kbs, Enclave], Awaitable[Any]]
ATTACKS: list[tuple[Attack, int, str]] = [
    (stale_nonce, 401, "nonce-mismatch"),
    (stale_quote, 401, "report-data-mismatch"),
    (replayed_nonce, 401, "nonce-used"),
    (wrong_purpose, 401, "report-data-mismatch"),
    (swapped_keyset, 401, "report-data-mismatch"),
    (swapped_tee_pubkey, 401, "tee-pubkey-mismatch"),
    (swapped_config, 401, "config-digest-mismatch"),
    (other_broker, 401, "broker-not-named"),
    (second_broker, 401, "broker-not-allowed"),
    (other_log, 401, "log-not-named"),
    (egress, 401, "egress-host-not-allowed"),
    (classical, 401, "suite-not-accepted"),
    (other_list, 401, "tenant-list-mismatch"),
    (other_code, 401, "code-not-allowed"),
    (weak_claim, 401, "claim-not-allowed"),
    (other_root, 401, "quoting-root-not-allowed"),
    (revoked_quoter, 401, "quoting-key-revoked"),
    (unknown_type, 400, "malformed-document"),
    (policy_expired, 401, "policy-expired"),
    (policy_requires_hardware, 401, "hardware-required"),
    (wrong_manifest, 401, "manifest-mismatch"),
    (revoked_key, 401, "key-revoked"),
    (foreign_kid, 401, "key-unknown"),
    (expired_session, 401, "session-expired"),
    (ended_keyset, 401, "keyset-ended"),
]


@pytest.mark.parametrize(
    ("attack", "status", "code"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
async def test_attestation_is_refused_logged_and_not_explained(
    attack: Attack, status: int, code: str, kbs: Kbs, enclave: Enclave
) -> None:
    answer = await attack(kbs, enclave)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body["detail"] == body["title"]  # the reason is for the auditor only
    decision = newest(kbs.running)
    assert (decision["action"], decision["verdict"], decision["code"]) == ("attest", "refuse", code)
    assert decision["reason"]
    assert (await kbs.lease()).status_code == 401
    assert (await kbs.resource()).status_code == 401


async def test_the_policy_of_the_moment_decides_each_release(kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    software = {"vector": {"hardware": 97, "runtime-opaque": 96}, "code": [bytes(32).hex()]}
    software["roots"] = [enclave.world.platform.root_fingerprint.hex()]
    kbs.running.admin.set_policy("k1", enclave.world.policy(platforms={"software": software}), force=True)
    answer = await kbs.resource()
    assert (answer.status_code, answer.json()["code"]) == (401, "code-not-allowed")
    assert newest(kbs.running)["code"] == "code-not-allowed"


async def test_a_key_revoked_after_its_release_is_not_given_again(
    kbs: Kbs, enclave: Enclave, dek: bytes
) -> None:
    got = await kbs.leased(enclave)
    assert await kbs.released(enclave, got) == dek
    kbs.running.admin.revoke_key("k1")
    assert (await kbs.resource()).json()["code"] == "key-revoked"
    assert (await kbs.lease()).json()["code"] == "key-revoked"


async def test_a_key_wrapped_again_still_opens(kbs: Kbs, enclave: Enclave, dek: bytes) -> None:
    kbs.running.admin.set_policy("k1", enclave.world.policy(lease_s=30))
    got = await kbs.leased(enclave)
    assert await kbs.released(enclave, got) == dek
    assert got.lease.not_after - got.lease.not_before == timedelta(seconds=30)


async def test_a_release_needs_a_lease_that_lasts(kbs: Kbs, enclave: Enclave) -> None:
    kbs.running.admin.set_policy("k1", enclave.world.policy(lease_s=30))
    await kbs.attest(enclave)
    assert (await kbs.resource()).json()["code"] == "lease-missing"
    await kbs.lease()
    enclave.world.clock.forward(seconds=31)
    assert (await kbs.resource()).json()["code"] == "lease-ended"
    assert newest(kbs.running)["code"] == "lease-ended"


async def test_the_strictest_policy_of_a_tenant_sets_its_lease(kbs: Kbs, enclave: Enclave) -> None:
    enclave.world.add_key(kbs.running, "acme", "k2", lease_s=45)
    both = Enclave.make(enclave.world, kbs.running, {"acme": ["k1", "k2"]})
    got = await kbs.leased(both)
    assert got.lease.not_after - got.lease.not_before == timedelta(seconds=45)
    assert [item.kid for item in got.lease.kids] == ["k1", "k2"]


async def test_tenants_are_kept_apart(kbs: Kbs, enclave: Enclave, dek: bytes) -> None:
    world = enclave.world
    other = world.add_key(kbs.running, "other", "k2")
    both = Enclave.make(world, kbs.running, {"acme": ["k1"], "other": ["k2"]})
    got = await kbs.leased(both)
    assert [item.kid for item in got.lease.kids] == ["k1"]
    assert (await kbs.resource("k2", "acme")).json()["code"] == "key-unknown"
    assert (await kbs.resource("k2", "other")).json()["code"] == "lease-missing"
    assert await kbs.released(both, got) == dek
    from tests.broker.support import check_lease

    theirs = check_lease(both, (await kbs.lease("other")).json(), "other")
    assert await kbs.released(both, theirs, "k2") == other
    # One tenant withdraws: the others go on.
    kbs.running.admin.revoke_key("k2")
    assert (await kbs.attest(both)).status_code == 200
    withdrawn = newest(kbs.running)
    assert (withdrawn["verdict"], withdrawn["tenant"], withdrawn["code"]) == (
        "refuse",
        "other",
        "key-revoked",
    )
    assert (await kbs.lease("other")).json()["code"] == "tenant-not-attested"
    assert (await kbs.lease("acme")).status_code == 200


async def test_sizes_and_forms_are_checked_before_anything(kbs: Kbs, enclave: Enclave) -> None:
    size = kbs.running.core.state.ledger.size
    post = kbs.http.post
    assert (await post("/kbs/v0/auth", content=b"x" * 9000)).status_code == 413
    assert (await post("/kbs/v0/attest", content=b"x" * (MAX_ATTEST + 1))).status_code == 413
    assert (await post("/kbs/v0/auth", content=b"{")).json()["code"] == "malformed-json"
    assert (await post("/kbs/v0/attest", json={})).status_code == 400
    assert (await kbs.http.get("/kbs/v0/resource/a/key/" + "x" * 65)).status_code == 400
    assert (await kbs.http.get("/kbs/v0/resource/a/other/b")).status_code == 401
    assert (await kbs.http.get("/kbs/v0/resource/a/b")).status_code == 404
    assert kbs.running.core.state.ledger.size == size


async def test_the_request_log_has_codes_and_no_session_nonce_or_reason(kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    session = kbs.http.cookies["kbs-session-id"]
    await other_broker(kbs, enclave)
    text = repr(kbs.lines)
    assert "broker-not-named" in text
    for secret in (session, b64url(kbs.nonce), base64.b64encode(kbs.nonce).decode(), "does not name"):
        assert secret not in text


async def test_many_enclaves_at_once_leave_a_log_that_can_be_opened_again(world: World) -> None:
    import asyncio

    with world.open() as running:
        dek = world.add_key(running)

        async def one() -> bytes:
            kbs, enclave = Kbs(running), Enclave.make(world, running)
            return await kbs.released(enclave, await kbs.leased(enclave))

        assert await asyncio.gather(*(one() for _ in range(12))) == [dek] * 12
        epoch = running.core.state.anchor.epoch
    with world.open() as running:
        assert running.core.state.anchor.epoch == epoch
        epochs = [item["epoch"] for item in running.admin.decisions(60)]
        assert epochs == sorted(epochs, reverse=True)  # type: ignore[type-var]
