"""What Trustee's policies for GPUs, switches and protected PCIe ask of a device, and what they get here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.nvidia.support import NONCE, check, context, nvidia
from tests.vector_files import vector

from sealwright.appraisal.rego import RegoRule
from sealwright.appraisal.rego_engine import evaluate
from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.nvgpu import GpuEvidence, Stated
from sealwright.testing.nvgpu import SWITCH_VBIOS
from sealwright.verify.context import Tolerance
from sealwright.verify.nvgpu import VerifiedGpu

pytestmark = pytest.mark.usefixtures("engine")
CHAIN = "attestation-report-cert-chain"
RIM = ("fetched", "measurements-available", "schema-validated", "signature-verified", "version-match")
# Policies of Trustee at commit 78962cd: their texts are not in this repository, and count where they are beside the
# vectors; the test of names below stands for them.
TRUSTEE = "rego/trustee/ear_default_policy_{}.rego"
MISSING = Tolerance(missing=True)
NOTHING = {
    "file-system": 0,
    "instance-identity": 0,
    "runtime-opaque": 0,
    "storage-opaque": 0,
    "sourced-data": 0,
}


@pytest.fixture
def engine() -> None:
    pytest.importorskip("regopy", reason="the extra `rego` is not installed")


def device(kind: str, *, stated: bool = True, endorsed: bool = True) -> VerifiedGpu:
    made = nvidia().device("LS10" if kind == "switch" else "HOPPER")
    said = Stated(environment="production", cc_feature="on", devtools="off", multi_gpu="none")
    evidence = GpuEvidence.parse(made.document(NONCE, stated=said if stated else None))
    blobs = nvidia().endorsements(made) if endorsed else ()
    outage = {} if endorsed else {"nvidia-rim": MISSING, "nvidia-ocsp": MISSING}
    return check(evidence, Endorsements.detect([*blobs]), context(**({"outage": outage} if outage else {})))


def needed(kind: str) -> Mapping[str, str]:
    """Return, for each claim that Trustee's policy of this kind affirms, what has to hold, as Rego.

    Facts out of its text: which members of the input it looks at, and what they have to be.
    """
    prefix, bios = f"x-nvidia-{kind}", "switch-bios" if kind == "switch" else "gpu-vbios"
    flags = [f"{prefix}-{CHAIN}-fwid-match", f"{prefix}-attestation-report-parsed", f"{prefix}-arch-check"]
    flags.append(f"{prefix}-attestation-report-signature-verified")
    parts = [bios] if kind == "switch" else ["gpu-driver", bios]
    rims = [f"x-nvidia-{part}-rim-{said}" for part in parts for said in RIM]
    return {
        "hardware": _good(f"{prefix}-{CHAIN}") + _true(*flags),
        "configuration": _true("secboot") + '\n    input.nvidia.dbgstat == "disabled"',
        "executables": _good(f"x-nvidia-{bios}-rim-cert-chain")
        + _true(*rims)
        + '\n    input.nvidia.measres == "success"',
    }


def _true(*names: str) -> str:
    return "".join(f'\n    input.nvidia["{name}"] == true' for name in names)


def _good(name: str) -> str:
    status = f'input.nvidia["{name}"]["x-nvidia-cert'
    return f'\n    {status}-ocsp-status"] == "good"\n    {status}-status"] == "valid"'


def asking(kind: str) -> RegoRule:
    """Return a policy that affirms each claim under those conditions."""
    rules = [f"default {claim} := 97\n{claim} := 2 if {{{holds}\n}}" for claim, holds in needed(kind).items()]
    claims = ", ".join(f'"{claim}": {claim}' for claim in needed(kind))
    head = "package policy\nimport rego.v1\n"
    return RegoRule.model_validate({"policy": head + "\n".join(rules) + f"\ntrust_claims := {{{claims}}}\n"})


@pytest.mark.parametrize("kind", ["gpu", "switch"])
def test_everything_that_trustees_policy_looks_at_is_there(kind: str) -> None:
    rule = asking(kind)
    assert list(rule.failures(device(kind), evaluate)) == []
    bare = rule.trust_claims(device(kind, endorsed=False), evaluate)
    assert (bare["executables"], bare["hardware"]) == (97, 97)  # no OCSP, no reference values
    other = asking("gpu" if kind == "switch" else "switch").trust_claims(device(kind), evaluate)
    assert (other["executables"], other["hardware"]) == (97, 97)  # of the other kind nothing is told


def test_a_gpu_that_does_not_say_whether_it_is_debugged_has_no_configuration() -> None:
    assert asking("gpu").trust_claims(device("gpu", stated=False), evaluate)["configuration"] == 97


def trustee(kind: str, **members: Any) -> RegoRule:
    text = vector(TRUSTEE.format(kind)).decode()
    return RegoRule.model_validate({"policy": text, **members})


def test_trustees_switch_policy() -> None:
    rule = trustee("switch")
    assert dict(rule.trust_claims(device("switch"), evaluate)) == NOTHING | {
        "hardware": 2,
        "configuration": 3,
        "executables": 3,
    }
    assert list(rule.failures(device("switch"), evaluate)) == []
    listed = trustee("switch", reference_values={"allowed_switch_bios_versions": [SWITCH_VBIOS]})
    assert listed.trust_claims(device("switch"), evaluate)["configuration"] == 2
    assert list(rule.failures(device("gpu"), evaluate))


def test_trustees_gpu_policy() -> None:
    assert list(trustee("gpu").failures(device("gpu"), evaluate)) == []
    assert list(trustee("gpu").failures(device("switch"), evaluate))


def test_trustees_ppcie_policy_asserts_nothing_but_a_configuration() -> None:
    """There it is of a class of its own, made where the topology holds; here `switches.topology` says that."""
    found = trustee("ppcie").trust_claims(device("gpu"), evaluate)
    assert dict(found) == NOTHING | {"hardware": 0, "executables": 0, "configuration": 2}
    assert [one.code for one in trustee("ppcie").failures(device("gpu"), evaluate)] == [
        "rego-not-allowed"
    ] * 2
    admitted = trustee("ppcie", require={"hardware": [0], "executables": [0]})
    assert list(admitted.failures(device("gpu"), evaluate)) == []
