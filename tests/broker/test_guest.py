"""Guests of Confidential Containers: the KBS protocol 0.4.0 as their components speak it, through the real routes."""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.jwk import ECKey
from tests.broker.guest_support import AUTH, INIT_DATA, MEASURED, Guest, guest_policy, sev_json
from tests.broker.support import NOW, Enclave, Kbs, World
from tests.vector_files import vector

from sealwright.appraisal.ear import verify_ear
from sealwright.broker.service import Running
from sealwright.crypto.encoding import b64url
from sealwright.errors import EvidenceFormatError, SettingsError
from sealwright.protocol.guest_evidence import guest_envelope, snp_report
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning

PATH = "acme/key/disk"
SECRET = os.urandom(48)


@pytest.fixture(scope="module")
def platform() -> SnpTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return SnpTestPlatform(NOW)


@pytest.fixture
def guest(running: Running, platform: SnpTestPlatform) -> Guest:
    running.resources.put(PATH, SECRET, tenant="acme", policy=guest_policy(platform))
    return Guest(running, platform)


def decisions(guest: Guest) -> list[dict[str, Any]]:
    return guest.running.admin.decisions(50)


async def test_a_guest_fetches_a_resource_by_cookie(guest: Guest) -> None:
    challenge = await guest.auth()
    assert challenge["extra-params"] == {"selected-hash-algorithm": "sha384"}
    assert len(base64.b64decode(challenge["nonce"], validate=True)) == 32
    answer = await guest.http.post("/kbs/v0/attest", json=guest.body(challenge["nonce"]))
    assert answer.status_code == 200, answer.text
    assert guest.open(await guest.resource()) == SECRET
    newest = decisions(guest)[0]
    assert (newest["action"], newest["verdict"], newest["resource"]) == ("resource", "grant", PATH)


async def test_a_guest_fetches_a_resource_by_token(guest: Guest) -> None:
    token = await guest.attested()
    guest.http.cookies.clear()
    assert guest.open(await guest.resource(authorization=f"Bearer {token}")) == SECRET
    for bad in ("", "Bearer ", f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {token}x"):
        answer = await guest.resource(authorization=bad)
        assert (answer.status_code, answer.json()["code"]) == (401, "session-unknown")


async def test_the_token_is_our_ear_and_names_the_guests_key(guest: Guest) -> None:
    token = await guest.attested()
    key: ECKey = guest.running.core.secrets.ear
    ear = verify_ear(token, key, at=NOW)
    assert ear.claims["tee-pubkey"] == guest.jwk()
    assert ear.claims["ear_status"] in ("affirming", "warning", "contraindicated")
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert (header["alg"], header["typ"]) == ("ES256", "JWT")
    assert "d" not in header["jwk"]
    assert jws.deserialize_compact(token, ECKey.import_key(header["jwk"])).payload
    again = await guest.http.post("/kbs/v0/attest", json=guest.body("anything"))
    assert again.json()["token"] == token


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        (["sha256", "sha384", "sha512", "sm3"], "sha384"),
        (["SHA-256", "SHA-512"], "sha512"),
        (["sha256"], "sha256"),
        (None, "sha384"),
    ],
)
async def test_the_hash_is_negotiated(guest: Guest, listed: list[str] | None, chosen: str) -> None:
    extra: Any = "" if listed is None else {"supported-hash-algorithms": listed}
    challenge = await guest.auth({**AUTH, "extra-params": extra})
    assert challenge["extra-params"] == {"selected-hash-algorithm": chosen}
    evidence = guest.evidence(challenge["nonce"], hash_name=chosen)
    answer = await guest.http.post("/kbs/v0/attest", json=guest.body(challenge["nonce"], evidence=evidence))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**AUTH, "tee": "sample"}, 401, "tee-unsupported"),
        ({**AUTH, "tee": "software"}, 401, "tee-unsupported"),  # a stand-in is no guest's platform
        ({**AUTH, "tee": "se"}, 401, "tee-unsupported"),
        ({**AUTH, "version": "0.1.1"}, 401, "kbs-version"),
        ({**AUTH, "extra-params": {"supported-hash-algorithms": ["sm3"]}}, 401, "hash-unsupported"),
        ({**AUTH, "extra-params": {"supported-hash-algorithms": "sha384"}}, 400, "malformed-extra-params"),
    ],
)
async def test_auth_is_refused(guest: Guest, body: Any, status: int, code: str) -> None:
    answer = await guest.http.post("/kbs/v0/auth", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) >= {"type", "detail"}  # what the guest components read of an error


def _other_key(guest: Guest, nonce: str) -> dict[str, Any]:
    """Evidence of one guest, the key of another: what a man in the middle would send."""
    body = guest.body(nonce)
    body["runtime-data"]["tee-pubkey"] = replace(guest, key=ec.generate_private_key(ec.SECP256R1())).jwk()
    return body


def _measured(guest: Guest, nonce: str) -> dict[str, Any]:
    return guest.body(nonce, evidence=guest.evidence(nonce, measurement=b"\x22" * 48))


def _other_host_data(guest: Guest, nonce: str) -> dict[str, Any]:
    return guest.body(nonce, evidence=guest.evidence(nonce, host_data=b"\x01" * 32))


def _no_init_data(guest: Guest, nonce: str) -> dict[str, Any]:
    return {**guest.body(nonce), "init-data": None}


def _unlisted_init_data(guest: Guest, nonce: str) -> dict[str, Any]:
    return replace(guest, init_data=INIT_DATA + "# exec allowed\n").body(nonce)


def _off_curve(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["runtime-data"]["tee-pubkey"] = {**guest.jwk(), "y": b64url(b"\x01" * 32)}
    return body


def _rsa(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["runtime-data"]["tee-pubkey"] = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": "AQAB", "e": "AQAB"}
    return body


def _flipped(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["tee-evidence"]["primary_evidence"]["attestation_report"]["signature"]["r"][0] ^= 1
    return body


def _changed_field(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["tee-evidence"]["primary_evidence"]["attestation_report"]["guest_svn"] += 1
    return body


def _additional(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["tee-evidence"]["additional_evidence"] = '{"sampledevice": {}}'
    return body


def _nonce(guest: Guest, nonce: str) -> dict[str, Any]:
    return guest.body(base64.b64encode(bytes(32)).decode())


def _no_algorithm(guest: Guest, nonce: str) -> dict[str, Any]:
    body = guest.body(nonce)
    body["init-data"]["body"] = 'version = "0.1.0"\n'
    return body


@pytest.mark.parametrize(
    ("bend", "status", "code"),
    [
        (_other_key, 401, "report-data-mismatch"),
        (_measured, 401, "measurement-not-allowed"),
        (_other_host_data, 401, "init-data-mismatch"),
        (_no_init_data, 401, "init-data-mismatch"),
        (_unlisted_init_data, 401, "init-data-not-allowed"),
        (_off_curve, 401, "tee-pubkey-mismatch"),
        (_rsa, 401, "tee-pubkey-unsupported"),
        (_flipped, 401, "bad-signature"),
        (_changed_field, 401, "bad-signature"),
        (_additional, 400, "malformed-trustee-evidence"),
        (_nonce, 401, "nonce-mismatch"),
        (_no_algorithm, 400, "malformed-init-data"),
    ],
)
async def test_attest_is_refused(
    guest: Guest, bend: Callable[[Guest, str], dict[str, Any]], status: int, code: str
) -> None:
    nonce = (await guest.auth())["nonce"]
    answer = await guest.http.post("/kbs/v0/attest", json=bend(guest, nonce))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    newest = decisions(guest)[0]
    assert (newest["verdict"], newest["code"]) == ("refuse", code)
    # The nonce is used up; and nothing was attested.
    answer = await guest.http.post("/kbs/v0/attest", json=guest.body(nonce))
    assert (answer.status_code, answer.json()["code"]) == (401, "nonce-used")
    answer = await guest.resource()
    assert (answer.status_code, answer.json()["code"]) == (401, "not-attested")


async def test_a_guest_without_init_data_has_zeros_in_the_register(guest: Guest) -> None:
    plain = replace(guest, init_data=None)
    token = await plain.attested()
    assert token
    assert plain.open(await plain.resource()) == SECRET


async def test_a_resource_is_refused_as_soon_as_its_policy_does(
    guest: Guest, platform: SnpTestPlatform
) -> None:
    await guest.attested()
    snp = json.loads(guest_policy(platform))["platforms"]["snp"]
    snp["registers"]["measurement"] = [(b"\x33" * 48).hex()]
    guest.running.resources.put(
        PATH, SECRET, tenant="acme", policy=guest_policy(platform, version=2, platforms={"snp": snp})
    )
    answer = await guest.resource()
    assert (answer.status_code, answer.json()["code"]) == (401, "measurement-not-allowed")
    guest.running.resources.remove(PATH)
    answer = await guest.resource()
    assert (answer.status_code, answer.json()["code"]) == (404, "resource-unknown")


async def test_an_expired_policy_and_an_ended_session_are_refused(guest: Guest, world: World) -> None:
    token = await guest.attested()
    world.clock.forward(minutes=6)
    answer = await guest.resource(authorization=f"Bearer {token}")
    assert (answer.status_code, answer.json()["code"]) == (401, "session-expired")
    world.clock.forward(hours=21)
    answer = await guest.attest()
    assert (answer.status_code, answer.json()["code"]) == (401, "policy-expired")


async def test_the_two_forms_do_not_mix(guest: Guest, kbs: Kbs, world: World, enclave: Enclave) -> None:
    nonce = await kbs.auth()
    answer = await kbs.http.post("/kbs/v0/attest", json=guest.body(nonce))
    assert (answer.status_code, answer.json()["code"]) == (401, "session-form")
    challenge = await guest.auth()
    answer = await guest.http.post("/kbs/v0/attest", json=enclave.attest_body(challenge["nonce"]))
    assert (answer.status_code, answer.json()["code"]) == (401, "session-form")
    await guest.attested()
    answer = await guest.http.post("/kbs/v0/sealwright/lease", json={"tenant": "acme", "answers": 0})
    assert (answer.status_code, answer.json()["code"]) == (401, "not-attested")
    answer = await guest.resource("acme/key/k1")  # a key of an artefact is no resource
    assert (answer.status_code, answer.json()["code"]) == (404, "resource-unknown")


async def test_an_altered_or_swapped_content_is_refused(guest: Guest, platform: SnpTestPlatform) -> None:
    guest.running.resources.put("acme/key/other", b"other", tenant="acme", policy=guest_policy(platform))
    await guest.attested()
    store = guest.running.core.state.store
    rows = [row for row in store.rows() if row[0] == "resource"]
    contents = {
        row_id: bytes.fromhex(json.loads(store.rows()[kind, row_id])["content"]) for kind, row_id in rows
    }
    other = store.content(contents["acme/key/other"])
    assert other is not None
    store.keep_contents({contents["acme/key/other"]})
    store.add_content(contents[PATH], other)
    answer = await guest.resource()
    assert (answer.status_code, answer.json()["code"]) == (503, "row-tampered")
    store.keep_contents(set())
    answer = await guest.resource()
    assert (answer.status_code, answer.json()["code"]) == (503, "row-tampered")


async def test_trustees_admin_routes(running: Running, platform: SnpTestPlatform, world: World) -> None:
    guest = Guest(running, platform)
    token = (world.root / "admin-token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    refused = await guest.http.post(f"/kbs/v0/resource/{PATH}", content=SECRET)
    assert (refused.status_code, refused.json()["code"]) == (401, "admin-token")
    early = await guest.http.post(f"/kbs/v0/resource/{PATH}", content=SECRET, headers=headers)
    assert early.json()["code"] == "guest-policy-missing"
    policy = {"policy": b64url(guest_policy(platform))}
    answer = await guest.http.post("/kbs/v0/resource-policy", json=policy, headers=headers)
    assert answer.status_code == 200, answer.text
    answer = await guest.http.post(f"/kbs/v0/resource/{PATH}", content=SECRET, headers=headers)
    assert answer.status_code == 200, answer.text
    await guest.attested()
    assert guest.open(await guest.resource()) == SECRET
    rego = {"policy": b64url(b"package policy\ndefault allow = true\n")}
    for path in ("resource-policy", "attestation-policy", "reference-value"):
        answer = await guest.http.post(f"/kbs/v0/{path}", json=rego, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "policy-not-typed")
    listed = await guest.http.get("/kbs/v0/resource-policy", headers=headers)
    assert [one["tenant"] for one in listed.json()["guest_policies"]] == ["default"]


async def test_resources_live_through_a_restart_and_a_tenant_keeps_to_its_own(
    world: World, platform: SnpTestPlatform
) -> None:
    with world.open() as running:
        running.resources.put(PATH, SECRET, tenant="acme", policy=guest_policy(platform))
        with pytest.raises(Exception, match="not this tenant's"):
            running.resources.put(PATH, b"mine", tenant="evil", policy=guest_policy(platform))
    with world.open() as running:
        guest = Guest(running, platform)
        await guest.attested()
        assert guest.open(await guest.resource()) == SECRET
        assert [one["resource"] for one in running.resources.list_all()] == [f"kbs:///{PATH}"]
        assert SECRET not in (world.root / "broker.sqlite").read_bytes()


def test_a_policy_that_leaves_init_data_to_the_host_is_refused(
    running: Running, platform: SnpTestPlatform
) -> None:
    snp = json.loads(guest_policy(platform))["platforms"]["snp"]
    del snp["config_register"]
    with pytest.raises(SettingsError, match="could choose any init-data"):
        running.resources.put(
            PATH, SECRET, tenant="acme", policy=guest_policy(platform, platforms={"snp": snp})
        )


@pytest.mark.parametrize("name", ["sev-snp/trustee/test-report.bin", "sev-snp/trustee/test-vlek-report.bin"])
def test_a_captured_report_is_put_together_again(name: str) -> None:
    raw = vector(name)[:1184]
    assert snp_report(sev_json(raw)) == raw


def test_made_reports_of_all_products_are_put_together_again() -> None:
    for product in ("Milan", "Genoa", "Turin"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            made = SnpTestPlatform(NOW, product=product)
        raw = made.report(bytes(64), measurement=MEASURED)
        assert snp_report(sev_json(raw)) == raw


@pytest.mark.parametrize(
    "bend",
    [
        lambda said: said.pop("attestation_report"),
        lambda said: said["attestation_report"].pop("policy"),
        lambda said: said["attestation_report"].update(policy=1 << 64),
        lambda said: said["attestation_report"].update(version=True),
        lambda said: said["attestation_report"]["measurement"].pop(),
        lambda said: said["attestation_report"].update(chip_id=[256] * 64),
        lambda said: said["attestation_report"]["signature"].update(r="AA"),
        lambda said: said.update(cert_chain=[{"cert_type": "VCEK"}]),
        lambda said: said.update(cert_chain={}),
        lambda said: said.update(cert_chain=said["cert_chain"] * 8),
    ],
)
def test_malformed_evidence_is_refused(guest: Guest, bend: Callable[[dict[str, Any]], object]) -> None:
    said = guest.evidence("nonce")
    bend(said)
    with pytest.raises(EvidenceFormatError):
        guest_envelope("snp", said, "")
