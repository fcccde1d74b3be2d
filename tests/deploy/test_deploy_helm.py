"""The chart, rendered by Helm itself: objects that Kubernetes' own schemas accept, pods that may do nothing they need not."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sealwright.cli._commands import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import manifests  # noqa: E402

pytestmark = pytest.mark.skipif(
    not shutil.which("helm") and importlib.util.find_spec("helm_python") is None,
    reason="no Helm: neither the program nor wheel helm-python-sdk",
)
VALUES: dict[str, Any] = yaml.safe_load(manifests.VALUES.read_text())
CHAT: dict[str, Any] = VALUES["enclaves"]["chat"]
VERSIONS = ("1.29", "1.33", "1.36")
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")


def values(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(VALUES), **changes}


def enclave(**changes: Any) -> dict[str, Any]:
    return values(enclaves={"chat": {**copy.deepcopy(CHAT), **changes}})


CASES = {
    "as shipped": values(),
    "before the keys are made": values(broker={"init": True}),
    "before the code is measured": enclave(measure=True),
    "enclaves alone": values(broker={"enabled": False}, collateral={"enabled": False}),
    "broker alone": values(enclaves={}, pullSecrets=["registry"]),
    "kata": enclave(
        runtimeClassName="kata-qemu-nvidia-gpu-snp",
        nodeSelector={"amd.feature.node.kubernetes.io/snp": "true"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        devices={"sev-snp.amd.com/esids": 1, "nvidia.com/pgpu": 1},
    ),
    "scaled": enclave(autoscaling={"enabled": True, "metric": "my_queue_depth", "maxReplicas": 4}),
    "outside": values(
        broker={"admitCidrs": ["192.0.2.0/24"], "storage": {"size": "8Gi", "className": "fast"}}
    ),
}


@pytest.fixture(params=CASES, scope="module")
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return manifests.render(CASES[request.param])


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name, labels and spec of each pod template."""
    for one in objects:
        if one["kind"] in WORKLOADS:
            spec = one["spec"]
            template = (
                spec["jobTemplate"]["spec"]["template"] if one["kind"] == "CronJob" else spec["template"]
            )
            yield one["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def test_the_plain_manifests_are_those_of_the_chart() -> None:
    assert manifests.RENDERED.read_text() == manifests.manifests()


def test_kubernetes_schemas_accept_every_object(objects: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="wheel kubernetes-validate is not installed")
    for version in VERSIONS:
        for one in objects:
            validate.validate(one, version, strict=True)


def test_the_schema_check_can_fail() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="wheel kubernetes-validate is not installed")
    (service,) = (one for one in manifests.render(values(enclaves={})) if one["kind"] == "Service")
    service["spec"]["prots"] = service["spec"].pop("ports")
    with pytest.raises(validate.ValidationError):
        validate.validate(service, VERSIONS[0], strict=True)


def test_every_pod_keeps_the_restricted_standard(objects: list[dict[str, Any]]) -> None:
    """Pod Security Standards, level `restricted`, as far as its fields are set here; and a read-only root."""
    found = list(pods(objects))
    assert found
    for name, _, spec in found:
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] == 65532
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (
            pod["fsGroupChangePolicy"] == "OnRootMismatch"
        )  # else kubelet opens the broker's files to the group
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
        for volume in spec["volumes"]:
            kinds = volume.keys() - {"name"}
            assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "csi"}, name


def test_no_pod_holds_a_token_or_a_secret_in_its_environment(objects: list[dict[str, Any]]) -> None:
    for name, _, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert not {"env", "envFrom"} & container.keys()
            assert not re.search(r"sw[ak]_", json.dumps(container))
    assert not [one for one in objects if one["kind"] == "Secret"]


def test_images_are_named_by_digest_and_commands_exist(objects: list[dict[str, Any]]) -> None:
    for _, _, spec in pods(objects):
        for container in spec["containers"]:
            assert re.fullmatch(r"[a-z0-9./:-]+@sha256:[0-9a-f]{64}", container["image"])
            words = list(container["args"])
            command: Any = load(words.pop(0))
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_ready_means_attested(objects: list[dict[str, Any]]) -> None:
    for name, labels, spec in pods(objects):
        if labels["app.kubernetes.io/component"] in ("init", "measure", "collateral"):
            continue
        (container,) = spec["containers"]
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", name
        assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_every_pod_is_denied_by_default_and_selected_once(objects: list[dict[str, Any]]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    deny = policies["sealwright-default-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny.keys()
    wanted = deny["podSelector"]["matchLabels"].items()
    for name, labels, _ in pods(objects):
        assert wanted <= labels.items(), name
    for name, spec in policies.items():
        for rule in spec.get("egress", []):
            assert "ports" in rule
            assert "to" in rule or name == "sealwright-collateral"
        for rule in spec.get("ingress", []):
            assert rule["from"]
    selectors = [one["spec"]["selector"] for one in objects if one["kind"] == "Service"]
    for selector in selectors:
        hits = [name for name, labels, _ in pods(objects) if selector.items() <= labels.items()]
        assert len(hits) <= 1


def test_one_broker_and_its_state_stays() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in manifests.render(values())}
    assert found["StatefulSet", "sealwright-broker"]["spec"]["replicas"] == 1
    claim = found["PersistentVolumeClaim", "sealwright-broker"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert found["PodDisruptionBudget", "sealwright-broker"]["spec"]["maxUnavailable"] == 0
    before = manifests.render(values(broker={"init": True}))
    assert [
        name for name, labels, _ in pods(before) if labels["app.kubernetes.io/component"] == "broker"
    ] == []


def test_devices_and_runtime_reach_the_pod() -> None:
    ((_, _, spec),) = (
        pod
        for pod in pods(manifests.render(CASES["kata"]))
        if pod[1]["app.kubernetes.io/component"] == "enclave-chat"
    )
    assert spec["runtimeClassName"] == "kata-qemu-nvidia-gpu-snp"
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "4Gi", "nvidia.com/pgpu": 1, "sev-snp.amd.com/esids": 1}
    assert [spread["topologyKey"] for spread in spec["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (values(images={"broker": {"repository": "a", "digest": "latest"}, "enclave": {}}), "digest"),
        (values(images={**VALUES["images"], "broker": {"repository": "", "digest": ""}}), "images.broker"),
        (values(unknown=1), "unknown"),
        (values(broker={"replicas": 2}), "replicas"),
        (values(broker={"admitCidrs": ["everyone"]}), "admitCidrs"),
        (enclave(models={}), "models"),
        (enclave(models={"k": "../model.sealed"}), "models"),
        (enclave(stateVolume=None), "stateVolume"),
        (enclave(autoscaling={"enabled": True}), "no metric yet"),
        (values(enclaves={"Not A Name": CHAT}), "Not A Name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_values_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(manifests.RenderError, match=said):
        manifests.render(changed)
