"""tests/vectors/protocol.json: each vector is accepted, or refused at the stage and code it names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.protocol import generate
from tests.protocol import support as s
from tests.protocol.support import VECTORS

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import b64url_decode, rfc3339_decode
from sealwright.crypto.statement import ed25519
from sealwright.errors import SealwrightError
from sealwright.protocol.commitment import Commitment, Leaf, Opening, commitment_root, verify_openings
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import BrokerKeys, Callers, Lease, verify_broker_keys, verify_lease
from sealwright.protocol.receipt import Receipt, verify_receipt
from sealwright.protocol.release import verify_release
from sealwright.protocol.report_data import Purpose, report_data

Vector = dict[str, Any]
CASES: list[Vector] = json.loads(VECTORS.read_text())


def _broker(case: Vector) -> BrokerKeys:
    return s.broker_keys(release_key=b64url_decode(case["release_key"]))


def _document(case: Vector) -> None:
    cls = {"enclave-config": EnclaveConfig, "keyset": Keyset}[case["kind"]]
    raw = b64url_decode(case["document"])
    assert cls.parse(raw).encode() == raw


def _tenant_list(case: Vector) -> None:
    config = EnclaveConfig.parse(b64url_decode(case["config"]))
    TenantList.parse(b64url_decode(case["document"])).check(config)


def _report_data(case: Vector) -> None:
    run_spec = case["run_spec_digest"]
    value = report_data(
        Purpose(case["purpose"]),
        nonce=b64url_decode(case["nonce"]),
        config_digest=bytes.fromhex(case["config_digest"]),
        keyset_digest=bytes.fromhex(case["keyset_digest"]),
        run_spec_digest=bytes.fromhex(run_spec) if run_spec else None,
    )
    assert value.hex() == case["value"]
    assert len(value) == 64


def _broker_keys(case: Vector) -> None:
    roots = [b64url_decode(root) for root in case["roots"]]
    verify_broker_keys(canonical(case["envelope"]), roots, at=rfc3339_decode(case["at"]))


def _lease(case: Vector) -> None:
    verify_lease(
        canonical(case["envelope"]),
        _broker(case),
        tenant=case["tenant"],
        keyset_digest=bytes.fromhex(case["keyset_digest"]),
        config_digest=bytes.fromhex(case["config_digest"]),
        at=rfc3339_decode(case["at"]),
    )


def _callers(case: Vector) -> None:
    key = ed25519(b64url_decode(case["release_key"]))
    Callers.verify(canonical(case["envelope"]), [key], stage="callers")


def _release(case: Vector) -> None:
    verify_release(
        canonical(case["envelope"]),
        _broker(case),
        nonce=b64url_decode(case["nonce"]),
        tee_pubkey=bytes.fromhex(case["tee_pubkey"]),
        kid=case["kid"],
        manifest_digest=bytes.fromhex(case["manifest_digest"]),
        lease=Lease.parse(b64url_decode(case["lease"])),
    )


def _receipt(case: Vector) -> None:
    raw = b64url_decode(case["receipt"])
    receipt = Receipt.parse(raw)
    assert canonical(receipt.to_json()) == raw
    verify_receipt(
        receipt,
        Keyset.parse(b64url_decode(case["keyset"])),
        config_digest=bytes.fromhex(case["config_digest"]),
    )


def _commitment(case: Vector) -> None:
    openings = {name: validated(Opening, value) for name, value in case["fields"].items()}
    leaves = tuple(validated(Leaf, value) for value in case["leaves"])
    record_id = bytes.fromhex(case["record_id"])
    verify_openings(record_id, leaves, openings)
    assert commitment_root(leaves).hex() == case["root"]
    again = Commitment.make(
        {name: opening.value for name, opening in openings.items()},
        record_id=record_id,
        random=_salts(openings),
    )
    assert again.root.hex() == case["root"]


def _salts(openings: dict[str, Opening]) -> Any:
    salts = iter([openings[name].salt for name in sorted(openings)])
    return lambda _: next(salts)


RUN = {
    "enclave-config": _document,
    "keyset": _document,
    "tenant-list": _tenant_list,
    "report-data": _report_data,
    "broker-keys": _broker_keys,
    "lease": _lease,
    "callers": _callers,
    "release": _release,
    "receipt": _receipt,
    "commitment": _commitment,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: Vector) -> None:
    if case["expect"] == "ok":
        RUN[case["kind"]](case)
        return
    with pytest.raises(SealwrightError) as caught:
        RUN[case["kind"]](case)
    assert f"{caught.value.stage}/{caught.value.code}" == case["expect"]


def test_ids_are_distinct_and_each_kind_has_both_outcomes() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES)
    for kind in RUN.keys() - {"report-data", "commitment"}:
        outcomes = {case["expect"] == "ok" for case in CASES if case["kind"] == kind}
        assert outcomes == {True, False}, kind


def test_the_file_is_what_the_generator_writes() -> None:
    # Ed25519 is deterministic, so a change of any format shows up here.
    assert json.loads(json.dumps(generate.vectors())) == CASES
