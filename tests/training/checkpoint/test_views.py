"""Checkpoints in other formats, read by those formats' own libraries."""

from __future__ import annotations

import json

import pytest
from tests.training.checkpoint.chains import Run

from sealwright.training.checkpoint.views import SCAI, SLSA, ml_bom, scai, slsa_provenance


def test_slsa_provenance_is_read_by_in_toto(honest: Run) -> None:
    statement_pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2

    newest = honest.verify().newest
    view = slsa_provenance(newest)
    statement = Parse(json.dumps(view), statement_pb2.Statement())
    assert statement.predicate_type == SLSA
    assert statement.subject[0].digest["sha256"] == newest.statement.weights.hex()
    said = ParseDict(view["predicate"], provenance_pb2.Provenance())
    assert said.run_details.builder.id.endswith(newest.signer.appraisal.code.hex())
    named = {one.name: one.digest["sha256"] for one in said.build_definition.resolved_dependencies}
    assert named["shard/shard-a"] == honest.site.shard.manifest_digest.hex()
    assert named["data-policy/north"] == honest.site.policy.digest().hex()
    assert named["parent-checkpoint"] == honest.verify().checkpoints[0].statement.digest().hex()


def test_scai_is_read_by_in_toto(honest: Run) -> None:
    scai_pb2 = pytest.importorskip("in_toto_attestation.predicates.scai.v0.scai_pb2")
    from google.protobuf.json_format import ParseDict

    newest = honest.verify().newest
    view = scai(newest)
    assert view["predicateType"] == SCAI
    report = ParseDict(view["predicate"], scai_pb2.AttributeReport())
    assert [one.attribute for one in report.attributes] == [
        "ATTESTED",
        "ATTESTED",
    ]  # `software` is not confidential
    assert report.attributes[0].evidence.digest["sha256"] == newest.statement.predicate.signer.evidence.hex()


def test_the_bill_of_materials_is_valid(honest: Run) -> None:
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    newest = honest.verify().newest
    view = ml_bom(newest)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(view)) is None
    model = view["metadata"]["component"]
    assert model["hashes"][0]["content"] == newest.statement.weights.hex()
    assert [one["name"] for one in view["components"] if one["type"] == "data"] == ["north"]


def test_the_first_version_has_no_parent(honest: Run) -> None:
    first = honest.verify().checkpoints[0]
    names = [
        one["name"] for one in slsa_provenance(first)["predicate"]["buildDefinition"]["resolvedDependencies"]
    ]
    assert "parent-checkpoint" not in names
    assert "sealwright:parent" not in [
        one["name"] for one in ml_bom(first)["metadata"]["component"]["properties"]
    ]
