"""A checkpoint told in other formats: SLSA provenance, SCAI, CycloneDX. Unsigned; they prove nothing by themselves.

Spec: docs/spec/checkpoint.md, Views.
"""

from __future__ import annotations

import uuid
from typing import Any

from sealwright.crypto.encoding import rfc3339
from sealwright.protocol.checkpoint import CheckpointStatement
from sealwright.training.checkpoint.chain import VerifiedCheckpoint

STATEMENT = "https://in-toto.io/Statement/v1"
SLSA = "https://slsa.dev/provenance/v1"
SCAI = "https://in-toto.io/attestation/scai/v0.3"
BUILD_TYPE = "urn:sealwright:training:v1"
Json = dict[str, Any]


def slsa_provenance(one: VerifiedCheckpoint) -> Json:
    """Return an in-toto statement with SLSA provenance v1: the plan as parameters, data and code as materials."""
    said, plan = one.statement.predicate, one.plan
    materials = [_resource("plan", said.plan), _resource("training-code", said.code)]
    if said.base is not None:
        materials.append(_resource("base-weights", said.base))
    if said.parent is not None:
        materials.append(_resource("parent-checkpoint", said.parent))
    for used in one.data:
        materials.append(_resource(f"data-policy/{used.policy.dataset}", used.policy.digest()))
        manifests = {grant.manifest_digest: grant.kid for grant in used.grants}
        materials += [_resource(f"shard/{kid}", digest) for digest, kid in sorted(manifests.items())]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"run": plan.run, "trainer": plan.trainer, "parameters": plan.parameters}
            | {"seed": plan.seed, "epochs": plan.epochs, "batch_rows": plan.batch_rows},
            "internalParameters": {"aggregation": said.aggregation.mode},
            "resolvedDependencies": materials,
        },
        "runDetails": {
            "builder": {"id": f"urn:sealwright:measurement:{one.signer.appraisal.code.hex()}"},
            "metadata": {
                "invocationId": f"urn:sealwright:lineage:{said.lineage.hex()}:{said.version}",
                "finishedOn": rfc3339(said.created),
            },
            "byproducts": [_resource("environment", said.environment)],
        },
    }
    return _statement(one.statement, SLSA, predicate)


def scai(one: VerifiedCheckpoint) -> Json:
    """Return an in-toto statement with SCAI v0.3: what was attested of signer and workers, and by which evidence."""
    said = one.statement.predicate
    people = [("signer", said.signer, one.signer)]
    people += [(f"worker/{e.worker.hex()[:16]}", e, one.workers[e.worker]) for e in said.workers]
    attributes = [
        {
            "attribute": "CONFIDENTIAL" if who.appraisal.confidential else "ATTESTED",
            "target": _resource(name, who.keyset_digest),
            "conditions": {
                "platform": who.appraisal.platform,
                "measurement": who.appraisal.code.hex(),
                "config_digest": who.evidence.config_digest.hex(),
                "result": entry.result.hex(),
            },
            "evidence": _resource(f"{name}/evidence", entry.evidence)
            | {"mediaType": "application/vnd.sealwright.worker-evidence.v1+json"},
        }
        for name, entry, who in people
    ]
    producer = _resource("checkpoint-statement", one.statement.digest())
    return _statement(one.statement, SCAI, {"attributes": attributes, "producer": producer})


def ml_bom(one: VerifiedCheckpoint) -> Json:
    """Return a CycloneDX 1.6 BOM: the model with its card, its data sets, and the libraries it was made with."""
    said, plan = one.statement.predicate, one.plan
    ref = f"model:{said.lineage.hex()}:{said.version}"
    datasets: list[Json] = [
        {
            "type": "data",
            "bom-ref": f"data:{used.policy.digest().hex()}",
            "name": used.policy.dataset,
            "version": str(used.policy.version),
            "properties": _properties({"tenant": used.policy.tenant, "purpose": used.policy.purpose}),
        }
        for used in one.data
    ]
    libraries: list[Json] = [
        {"type": "library", "bom-ref": f"library:{name}", "name": name, "version": version}
        for name, version in sorted(one.environment.libraries.items())
    ]
    facts = {"parent": said.parent, "base": said.base, "plan": said.plan, "statement": one.statement.digest()}
    model = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": said.run,
        "version": str(said.version),
        "hashes": [{"alg": "SHA-256", "content": one.statement.weights.hex()}],
        "modelCard": {
            "modelParameters": {"datasets": [{"ref": item["bom-ref"]} for item in datasets]},
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {"type": name, "value": value} for name, value in sorted(said.metrics.items())
                ]
            },
            "considerations": {"useCases": [plan.purpose]},
        },
        "properties": _properties({name: value.hex() for name, value in facts.items() if value is not None}),
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=one.statement.digest()[:16], version=4)}",
        "version": 1,
        "metadata": {"timestamp": rfc3339(said.created), "component": model},
        "components": [*datasets, *libraries],
        "dependencies": [{"ref": ref, "dependsOn": [item["bom-ref"] for item in [*datasets, *libraries]]}],
    }


def _statement(about: CheckpointStatement, kind: str, predicate: Json) -> Json:
    subject = [{"name": one.name, "digest": {"sha256": one.digest.sha256.hex()}} for one in about.subject]
    return {"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": predicate}


def _resource(name: str, digest: bytes) -> Json:
    return {"name": name, "digest": {"sha256": digest.hex()}}


def _properties(values: dict[str, str]) -> list[Json]:
    return [{"name": f"sealwright:{name}", "value": value} for name, value in sorted(values.items())]
