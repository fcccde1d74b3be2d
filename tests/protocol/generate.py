"""Write tests/vectors/protocol.json: `python -m tests.protocol.generate`. Keys and times are fixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from tests.protocol import support as s

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Document
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.statement import Statement
from sealwright.protocol.commitment import Leaf
from sealwright.protocol.receipt import ReceiptStatement
from sealwright.protocol.report_data import Purpose, report_data

Vector = dict[str, Any]
MISSING: Any = object()
SECOND = timedelta(seconds=1)


def changed(document: Document, **members: Any) -> bytes:
    """Return canonical bytes with members replaced, added or (MISSING) left out, unchecked."""
    doc = document.to_json() | members
    return canonical({name: value for name, value in doc.items() if value is not MISSING})


def parse_cases(kind: str, document: Document) -> Iterator[Vector]:
    """What every canonical document must refuse."""
    raw = document.encode()
    first = sorted(document.to_json())[0]
    bad = {
        "white-space": (json.dumps(document.to_json(), sort_keys=True).encode(), "parse/not-canonical"),
        "duplicate-key": (b'{"%s":0,' % first.encode() + raw[1:], "parse/duplicate-key"),
        "unknown-member": (changed(document, zz=1), "parse/malformed-document"),
        "missing-member": (changed(document, **{first: MISSING}), "parse/malformed-document"),
        "not-json": (raw[:-1], "parse/malformed-json"),
        "array": (b"[" + raw + b"]", "parse/malformed-json"),
        "big-integer": (
            changed(document, **{first: 0})[:-1] + b',"zz":9007199254740993}',
            "parse/integer-range",
        ),
    }
    yield {"id": f"{kind}-ok", "kind": kind, "document": b64url(raw), "expect": "ok"}
    for name, (data, expect) in bad.items():
        yield {"id": f"{kind}-{name}", "kind": kind, "document": b64url(data), "expect": expect}


def documents() -> Iterator[Vector]:
    def refused(kind: str, name: str, data: bytes) -> Vector:
        expect = "parse/malformed-document"
        return {"id": f"{kind}-{name}", "kind": kind, "document": b64url(data), "expect": expect}

    config, keyset = s.config(), s.keyset()
    yield from parse_cases("enclave-config", config)
    tenants = config.to_json()["tenants"]
    yield refused("enclave-config", "no-broker", changed(config, brokers=[]))
    yield refused("enclave-config", "tenant-twice", changed(config, tenants=tenants * 2))
    yield refused("enclave-config", "unknown-suite", changed(config, suite="none"))
    yield refused("enclave-config", "other-format", changed(config, format="sealwright-enclave-config/v2"))
    yield refused("enclave-config", "egress-without-port", changed(config, egress=["example.org"]))
    yield refused(
        "enclave-config",
        "number-as-text",
        changed(config, limits=config.limits.to_json() | {"concurrency": "4"}),
    )
    yield from parse_cases("keyset", keyset)
    hpke = keyset.to_json()["hpke"]
    yield refused(
        "keyset", "over-24-hours", changed(keyset, not_after=rfc3339(s.T0 + timedelta(hours=24) + SECOND))
    )
    yield refused("keyset", "ends-before-it-begins", changed(keyset, not_after=rfc3339(s.T0)))
    yield refused("keyset", "key-id-twice", changed(keyset, hpke=hpke * 2))
    yield refused("keyset", "no-hpke-key", changed(keyset, hpke=[]))
    yield refused("keyset", "boot-id-upper-case", changed(keyset, boot_id="AB" * 16))
    yield refused("keyset", "time-with-offset", changed(keyset, created="2026-11-22T07:00:00+01:00"))
    yield refused("keyset", "padded-base64", changed(keyset, receipt_key=b64url(s.public(s.RECEIPT)) + "="))


def tenant_lists() -> Iterator[Vector]:
    right = s.tenant_list()
    entry = right.artefacts[0]
    other = entry.model_copy(update={"manifest_digest": b"\x12" * 32})
    lists = {
        "ok": (right, "ok"),
        "other-salt": (s.tenant_list(salt=b"\x23" * 32), "config/tenant-list-mismatch"),
        "other-manifest": (s.tenant_list(artefacts=[other]), "config/tenant-list-mismatch"),
        "other-tenant": (s.tenant_list(tenant="clinic"), "config/tenant-list-mismatch"),
        "longer": (s.tenant_list(artefacts=[entry, other]), "config/tenant-list-mismatch"),
    }
    config = b64url(s.config().encode())
    for name, (document, expect) in lists.items():
        yield {"id": f"tenant-list-{name}", "kind": "tenant-list", "document": b64url(document.encode()),
               "config": config, "expect": expect}  # fmt: skip


def report_datas() -> Iterator[Vector]:
    for purpose in Purpose:
        run_spec = b"\x03" * 32 if purpose is Purpose.ENROL else None
        value = report_data(
            purpose,
            nonce=s.NONCE,
            config_digest=b"\x01" * 32,
            keyset_digest=b"\x02" * 32,
            run_spec_digest=run_spec,
        )
        yield {"id": f"report-data-{purpose.name.lower()}", "kind": "report-data", "purpose": str(purpose),
               "nonce": b64url(s.NONCE), "config_digest": "01" * 32, "keyset_digest": "02" * 32,
               "run_spec_digest": run_spec.hex() if run_spec else None, "value": value.hex(), "expect": "ok"}  # fmt: skip


def signed(
    kind: str, good: Statement, seed: int, other_type: Statement, context: Vector, stage: str
) -> Iterator[Vector]:
    """What every signed statement must refuse."""
    envelope = json.loads(good.sign(s.key(seed)))
    signature = envelope["signatures"][0]
    forged = {**envelope, "signatures": [{**signature, "sig": signature["sig"][::-1].lstrip("=")}]}
    flipped = {**signature, "sig": ("A" if signature["sig"][0] != "A" else "B") + signature["sig"][1:]}
    two = json.loads(good.sign(s.key(s.STRANGER), s.key(seed)))
    retyped = {**envelope, "payloadType": "application/json"}
    cases = {
        "ok": (envelope, "ok"),
        "ok-second-signature": (two, "ok"),
        "stranger": (json.loads(good.sign(s.key(s.STRANGER))), f"{stage}/untrusted-signer"),
        "flipped-signature": ({**envelope, "signatures": [flipped]}, f"{stage}/bad-signature"),
        "signature-base64": (forged, "parse/malformed-base64"),
        "no-signature": ({**envelope, "signatures": []}, "parse/malformed-envelope"),
        "extra-member": ({**envelope, "zz": 1}, "parse/malformed-envelope"),
        "retyped": (retyped, f"{stage}/wrong-payload-type"),
        "other-statement": (json.loads(other_type.sign(s.key(seed))), f"{stage}/wrong-payload-type"),
    }
    for name, (envelope, expect) in cases.items():
        yield {"id": f"{kind}-{name}", "kind": kind, "envelope": envelope, **context, "expect": expect}


def one(kind: str, name: str, statement: Statement, seed: int, context: Vector, expect: str) -> Vector:
    envelope = json.loads(statement.sign(s.key(seed)))
    return {"id": f"{kind}-{name}", "kind": kind, "envelope": envelope, **context, "expect": expect}


def statements() -> Iterator[Vector]:
    keys, lease, callers = s.broker_keys(), s.lease(), s.callers()
    at = rfc3339(s.T0 + timedelta(minutes=1))
    roots = {"roots": [b64url(s.public(s.ROOT))]}
    yield from signed("broker-keys", keys, s.ROOT, lease, {**roots, "at": at}, "broker")
    for name, when, expect in (
        ("early", s.T0 - timedelta(minutes=5) - SECOND, "broker/broker-keys-not-yet"),
        ("skew", s.T0 - timedelta(minutes=5), "ok"),
        ("last-second", keys.not_after - SECOND, "ok"),
        ("ended", keys.not_after, "broker/broker-keys-ended"),
    ):
        yield one("broker-keys", name, keys, s.ROOT, {**roots, "at": rfc3339(when)}, expect)

    def ask(when: datetime = s.T0 + timedelta(minutes=1), **changes: str) -> Vector:
        return {"release_key": b64url(s.public(s.RELEASE)), "tenant": s.TENANT,
                "keyset_digest": s.keyset().digest().hex(), "config_digest": s.config().digest().hex(),
                "at": rfc3339(when), **changes}  # fmt: skip

    yield from signed("lease", lease, s.RELEASE, keys, ask(), "lease")
    for name, context, expect in (
        ("early", ask(s.T0 - timedelta(minutes=5) - SECOND), "lease/lease-not-yet"),
        ("skew", ask(s.T0 - timedelta(minutes=5)), "ok"),
        ("last-second", ask(lease.not_after - SECOND), "ok"),
        ("ended", ask(lease.not_after), "lease/lease-ended"),
        ("other-tenant", ask(tenant="clinic"), "lease/lease-mismatch"),
        ("other-keyset", ask(keyset_digest="00" * 32), "lease/lease-mismatch"),
        ("other-config", ask(config_digest="00" * 32), "lease/lease-mismatch"),
    ):
        yield one("lease", name, lease, s.RELEASE, context, expect)
    release_key = {"release_key": b64url(s.public(s.RELEASE))}
    yield from signed("callers", callers, s.RELEASE, lease, release_key, "callers")
    yield from releases(release_key)


def releases(release_key: Vector) -> Iterator[Vector]:
    context: Vector = {
        **release_key,
        "nonce": b64url(s.NONCE),
        "tee_pubkey": s.keyset().tee_pubkey.digest().hex(),
        "kid": "smol",
        "manifest_digest": "11" * 32,
        "lease": b64url(s.lease().encode()),
    }
    yield from signed("release", s.release(), s.RELEASE, s.lease(), context, "signature")
    for name, changes in {
        "other-nonce": {"nonce": b64url(b"\0" * 32)},
        "other-tee-pubkey": {"tee_pubkey": "00" * 32},
        "other-kid": {"kid": "large"},
        "older-manifest": {"manifest_digest": "10" * 32},
        "other-lease": {"lease": b64url(s.lease(state_epoch=4).encode())},
        "other-tenant": {"lease": b64url(s.lease(tenant="clinic").encode())},
    }.items():
        yield one("release", name, s.release(), s.RELEASE, context | changes, "binding/release-mismatch")


def receipts() -> Iterator[Vector]:
    good = s.receipt()
    made = s.commitment()
    context = {"keyset": b64url(s.keyset().encode()), "config_digest": s.config().digest().hex()}
    swapped = {**good.fields, "kid": good.fields["model"], "model": good.fields["kid"]}
    edited = {**good.fields, "kid": good.fields["kid"].model_copy(update={"value": b'"large"'})}
    unknown = {**good.fields, "zz": good.fields["kid"]}
    few = {"kid": good.fields["kid"]}
    leaves = list(made.leaves)
    flipped = [Leaf(name=leaves[0].name, leaf=b"\0" * 32), *leaves[1:]]
    other_subject = ReceiptStatement.of(s.predicate())
    other_subject = other_subject.model_copy(
        update={"subject": [other_subject.subject[0].model_copy(update={"name": "receipt/00"})]}
    )
    cases = {
        "ok": (good, "ok"),
        "one-field-opened": (good.model_copy(update={"fields": few}), "ok"),
        "none-opened": (good.model_copy(update={"fields": {}}), "ok"),
        "forged": (s.receipt(seed=s.STRANGER), "signature/untrusted-signer"),
        "other-keyset": (s.receipt(keyset_digest=b"\0" * 32), "signature/receipt-mismatch"),
        "other-config": (s.receipt(config_digest=b"\0" * 32), "signature/receipt-mismatch"),
        "leaf-changed": (s.receipt(fields=flipped), "commitment/commitment-mismatch"),
        "leaf-dropped": (s.receipt(fields=leaves[1:]), "commitment/commitment-mismatch"),
        "leaf-twice": (s.receipt(fields=[leaves[0], *leaves]), "commitment/field-order"),
        "leaves-out-of-order": (s.receipt(fields=leaves[::-1]), "commitment/field-order"),
        "commitment-changed": (s.receipt(commitment=b"\0" * 32), "commitment/commitment-mismatch"),
        "other-subject": (s.receipt(other_subject), "commitment/commitment-mismatch"),
        "openings-swapped": (good.model_copy(update={"fields": swapped}), "fields/field-mismatch"),
        "value-edited": (good.model_copy(update={"fields": edited}), "fields/field-mismatch"),
        "unknown-field": (good.model_copy(update={"fields": unknown}), "fields/field-unknown"),
        "openings-of-another-record": (s.receipt(receipt_id=b"\xcd" * 16), "fields/field-mismatch"),
    }
    for name, (receipt, expect) in cases.items():
        yield {"id": f"receipt-{name}", "kind": "receipt", "receipt": b64url(canonical(receipt.to_json())),
               **context, "expect": expect}  # fmt: skip


def commitments() -> Iterator[Vector]:
    made = s.commitment()
    fields = {name: opening.to_json() for name, opening in made.openings.items()}
    yield {"id": "commitment-ok", "kind": "commitment", "record_id": made.record_id.hex(), "fields": fields,
           "leaves": [leaf.to_json() for leaf in made.leaves], "root": made.root.hex(), "expect": "ok"}  # fmt: skip


def vectors() -> list[Vector]:
    return [*documents(), *tenant_lists(), *report_datas(), *statements(), *receipts(), *commitments()]


def main() -> None:
    lines = ",\n".join(json.dumps(vector, sort_keys=True) for vector in vectors())
    s.VECTORS.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
