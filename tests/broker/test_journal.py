"""Receipts into the log, proofs out of it, and answers counted against them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.broker.support import Enclave, GotLease, Kbs, World

from sealwright.broker.journal import INFO, JournalBatch, seal_frame
from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.hpke import Aead, HpkePublicKey, Kem, seal_to
from sealwright.errors import FormatError, MessageFormatError, SealwrightError
from sealwright.protocol.commitment import Commitment, LogEntry
from sealwright.protocol.lease import BrokerKeys
from sealwright.protocol.receipt import Predicate, ReceiptStatement
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof


def receipt(
    enclave: Enclave, got: GotLease, key: Ed25519PrivateKey | None = None, **changes: Any
) -> tuple[bytes, bytes]:
    """Return (DSSE, log entry) of one answer's receipt."""
    committed = Commitment.make({"status": b"200"}, record_id=os.urandom(16))
    said = {
        "receipt_id": committed.record_id,
        "sequence": 1,
        "issued": enclave.world.clock.now,
        "keyset_digest": enclave.keyset.digest(),
        "config_digest": enclave.config.digest(),
        "lease_id": got.lease.lease_id,
        "platform": "software",
        "confidential": False,
        "commitment": committed.root,
        "fields": list(committed.leaves),
    }
    statement = ReceiptStatement.of(Predicate.model_validate(said | changes))
    return statement.sign(key or enclave.receipt_key), statement.log_entry()


def batch(keys: BrokerKeys, keyset_digest: bytes, *receipts: bytes) -> bytes:
    plain = canonical(
        {
            "entries": [{"receipt": parse_json(one)} for one in receipts],
            "keyset_digest": keyset_digest.hex(),
        }
    )
    return sealed(keys, plain)


def sealed(keys: BrokerKeys, plain: bytes) -> bytes:
    journal = keys.journal_key
    assert (journal.kem, journal.kdf, journal.aead) == (Kem.XWING, 1, Aead.AES_256_GCM)
    return seal_frame(*seal_to(HpkePublicKey(kem=Kem.XWING, raw=journal.public_key), INFO, b"", plain))


async def post(kbs: Kbs, body: bytes) -> Any:
    return await kbs.http.post(
        "/sealwright/v1/journal", content=body, headers={"content-type": "application/octet-stream"}
    )


async def test_receipts_are_logged_once_and_proved(kbs: Kbs, enclave: Enclave) -> None:
    got = await kbs.leased(enclave)
    made = [receipt(enclave, got) for _ in range(3)]
    body = batch(got.broker_keys, enclave.keyset.digest(), *(one for one, _ in made))
    answer = await post(kbs, body)
    assert (answer.status_code, answer.json()) == (200, {"logged": 3})
    size = kbs.running.core.state.ledger.size
    assert (await post(kbs, body)).json() == {"logged": 3}
    assert kbs.running.core.state.ledger.size == size
    policy = LogPolicy.of_key(got.broker_keys.log_key)
    for _, entry in made:
        found = await kbs.http.get(f"/sealwright/v1/proofs/{hashlib.sha256(entry).hexdigest()}")
        LogProof.parse(found.content).verify(entry, policy)


async def test_decisions_and_keysets_have_proofs_too(kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    ledger = kbs.running.core.state.ledger
    policy = LogPolicy.of_key(enclave.world.log_key)
    kinds = set()
    for index, entry in ledger.entries_backwards():
        kinds.add(LogEntry.parse(entry).type)
        found = await kbs.http.get(f"/sealwright/v1/proofs/{hashlib.sha256(entry).hexdigest()}")
        assert LogProof.parse(found.content).verify(entry, policy).index == index
    assert kinds == {"decision", "keyset"}
    for unknown in ("00" * 32, "zz", "AB" * 32):
        assert (await kbs.http.get(f"/sealwright/v1/proofs/{unknown}")).status_code == 404


async def test_the_log_is_served_as_tiles(kbs: Kbs, enclave: Enclave) -> None:
    from sealwright.tlog.monitor import verify_log

    files = {}
    root = enclave.world.root / "log"
    for path in [root / "checkpoint", *root.glob("tile/**/*")]:
        if path.is_file():
            name = str(path.relative_to(root))
            files[name] = (await kbs.http.get(f"/log/{name}")).content
    policy = LogPolicy.of_key(enclave.world.log_key)
    assert verify_log(files.__getitem__, policy, previous=None).verified.checkpoint.size > 3
    for path in (".state/treeState", "../settings.json", "tile/0/../../settings.json", "tile/9/000"):
        assert (await kbs.http.get(f"/log/{path}")).status_code == 404


async def bad_signature(kbs: Kbs, enclave: Enclave, got: GotLease) -> bytes:
    forged, _ = receipt(enclave, got, key=Ed25519PrivateKey.generate())
    return batch(got.broker_keys, enclave.keyset.digest(), forged)


async def one_bad_among_good(kbs: Kbs, enclave: Enclave, got: GotLease) -> bytes:
    good, _ = receipt(enclave, got)
    forged, _ = receipt(enclave, got, key=Ed25519PrivateKey.generate())
    return batch(got.broker_keys, enclave.keyset.digest(), good, forged)


async def unleased(kbs: Kbs, enclave: Enclave, got: GotLease) -> bytes:
    stranger = Enclave.make(enclave.world, kbs.running)
    return batch(got.broker_keys, stranger.keyset.digest(), receipt(stranger, got)[0])


async def other_keyset_named(kbs: Kbs, enclave: Enclave, got: GotLease) -> bytes:
    return batch(
        got.broker_keys, enclave.keyset.digest(), receipt(enclave, got, keyset_digest=os.urandom(32))[0]
    )


async def other_commitment(kbs: Kbs, enclave: Enclave, got: GotLease) -> bytes:
    return batch(
        got.broker_keys, enclave.keyset.digest(), receipt(enclave, got, commitment=os.urandom(32))[0]
    )


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (bad_signature, "untrusted-signer"),
        (one_bad_among_good, "untrusted-signer"),
        (unleased, "keyset-not-leased"),
        (other_keyset_named, "receipt-mismatch"),
        (other_commitment, "commitment-mismatch"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_other_receipts_are_refused_and_logged(
    make: Any, code: str, kbs: Kbs, enclave: Enclave
) -> None:
    got = await kbs.leased(enclave)
    answer = await post(kbs, await make(kbs, enclave, got))
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    newest = kbs.running.admin.decisions(1)[0]
    assert (newest["action"], newest["verdict"], newest["code"]) == ("journal", "refuse", code)
    kinds = {LogEntry.parse(entry).type for _, entry in kbs.running.core.state.ledger.entries_backwards()}
    assert "receipt" not in kinds


async def test_a_batch_in_another_form_is_refused(kbs: Kbs, enclave: Enclave) -> None:
    got = await kbs.leased(enclave)
    good = batch(got.broker_keys, enclave.keyset.digest(), receipt(enclave, got)[0])
    flipped = bytearray(good)
    flipped[-1] ^= 1
    cases = [
        (bytes(flipped), "journal-sealed-elsewhere"),
        (good + b"\0", "malformed-journal"),
        (good[:-1], "malformed-journal"),
        (b"", "malformed-journal"),
        (sealed(got.broker_keys, b"{}"), "malformed-document"),
        (sealed(got.broker_keys, b'{"entries":[] }'), "not-canonical"),
        (b"x" * ((1 << 20) + 1), "too-large"),
    ]
    for body, code in cases:
        assert (await post(kbs, body)).json()["code"] == code


@given(raw=st.binary(max_size=64))
def test_a_batch_raises_only_its_own_errors(raw: bytes) -> None:
    with pytest.raises(FormatError):
        JournalBatch.parse(raw)


@given(raw=st.binary(max_size=3000))
def test_a_frame_raises_only_its_own_errors(raw: bytes) -> None:
    from sealwright.broker.journal import _item

    try:
        first, rest = _item(raw)
    except MessageFormatError:
        return
    assert seal_frame(first, b"")[: 4 + len(first)] + rest == raw


async def renew(kbs: Kbs, enclave: Enclave, answers: int) -> GotLease:
    enclave.world.clock.forward(minutes=4)
    return await kbs.leased(enclave, answers=answers)


async def test_receipts_for_every_answer_are_no_mismatch(kbs: Kbs, enclave: Enclave) -> None:
    got = await kbs.leased(enclave)
    sent = [receipt(enclave, got)[0] for _ in range(2)]
    later = await renew(kbs, enclave, 2)
    # Receipts may come a little after the claim; each names the lease it was made under.
    await post(kbs, batch(later.broker_keys, enclave.keyset.digest(), *sent))
    await renew(kbs, enclave, 0)
    assert kbs.running.admin.status()["count_mismatches"] == []


async def test_withheld_receipts_are_a_mismatch_that_is_logged_and_shown(kbs: Kbs, enclave: Enclave) -> None:
    got = await kbs.leased(enclave)
    await post(kbs, batch(got.broker_keys, enclave.keyset.digest(), receipt(enclave, got)[0]))
    await renew(kbs, enclave, 3)
    assert kbs.running.admin.status()["count_mismatches"] == []  # not due yet
    await renew(kbs, enclave, 0)
    shown = kbs.running.admin.status()["count_mismatches"]
    assert isinstance(shown, list)
    assert [(item["lease_id"], item["answers"], item["logged"]) for item in shown] == [
        (got.lease.lease_id.hex(), 3, 1)
    ]
    found = [item for item in kbs.running.admin.decisions(20) if item["action"] == "count"]
    assert [(item["code"], item["answers"], item["logged"]) for item in found] == [("count-mismatch", 3, 1)]
    await renew(kbs, enclave, 0)
    assert len([item for item in kbs.running.admin.decisions(50) if item["action"] == "count"]) == 1


async def test_the_status_finds_a_mismatch_that_is_due(kbs: Kbs, enclave: Enclave) -> None:
    await kbs.leased(enclave)
    await renew(kbs, enclave, 5)
    enclave.world.clock.forward(seconds=61)
    shown = kbs.running.admin.status()["count_mismatches"]
    assert isinstance(shown, list)
    assert len(shown) == 1
    enclave.world.clock.forward(minutes=30)
    assert kbs.running.admin.status()["count_mismatches"] == shown


async def test_ended_leases_are_forgotten(kbs: Kbs, enclave: Enclave) -> None:
    for _ in range(3):
        await kbs.leased(enclave)
        enclave.world.clock.forward(minutes=25)
    await kbs.leased(enclave)
    with kbs.running.core.state.lock:
        rows = [key for key in kbs.running.core.state.view().rows if key[0] == "lease"]
    assert len(rows) == 1


def test_a_batch_sealed_to_us_is_still_checked(running: Running, world: World) -> None:
    keys = BrokerKeys.unverified(running.core.broker_keys())
    with pytest.raises(SealwrightError):
        running.journal.add(sealed(keys, b"not json"))
