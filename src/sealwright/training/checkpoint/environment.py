"""What a run may depend on beside its plan and data: the machine and libraries it ran with. Spec: docs/spec/checkpoint.md, Reruns."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sealwright.crypto.document import Document, Name

Text = Annotated[str, Field(max_length=1024)]
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "opacus", "flwr", "pyarrow")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Environment(Document):
    """Where a checkpoint was made."""

    format: Literal["sealwright-environment/v1"] = "sealwright-environment/v1"
    python: Text
    system: Text  # kernel name and machine
    libc: Text
    cpu: Text
    cpu_features: Annotated[list[Text], Field(max_length=512)]  # those that change floating-point code paths
    cpus: Annotated[int, Field(ge=1, le=1 << 16)]  # that the process may use
    threads: Annotated[dict[Name, Text], Field(max_length=64)]  # as libraries are told
    libraries: Annotated[dict[Name, Text], Field(max_length=64)]
    blas: Text


def this_environment(
    *, libraries: Sequence[str] = LIBRARIES, cpuinfo: Path = Path("/proc/cpuinfo")
) -> Environment:
    """Return the environment of this process."""
    model, features = _cpu(cpuinfo)
    affinity = getattr(os, "sched_getaffinity", None)
    return Environment(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        libc=" ".join(platform.libc_ver()),
        cpu=model,
        cpu_features=features,
        cpus=len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        threads={name: os.environ[name][:64] for name in THREADS if name in os.environ},
        libraries={name: version for name in libraries if (version := _version(name))},
        blas=_blas(),
    )


def differences(one: Environment, other: Environment) -> list[str]:
    """Return exactly what differs, a line each, named by its member; none: the environments are the same."""
    left, right = one.to_json(), other.to_json()
    return [line for name in sorted(left) for line in _differ(name, left[name], right[name])]


def _differ(name: str, left: object, right: object) -> list[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        names = sorted({*left, *right})
        return [line for key in names for line in _differ(f"{name}.{key}", left.get(key), right.get(key))]
    if isinstance(left, list) and isinstance(right, list):
        gone, new = sorted(set(left) - set(right)), sorted(set(right) - set(left))
        return [f"{name}: -{one}" for one in gone] + [f"{name}: +{one}" for one in new]
    return [] if left == right else [f"{name}: {_shown(left)} -> {_shown(right)}"]


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _cpu(cpuinfo: Path) -> tuple[str, list[str]]:
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (said.get("flags") or said.get("Features") or "").split()
    kept = sorted(
        flag for flag in set(flags) if flag.startswith(("avx", "fma", "sse", "amx", "f16c", "asimd", "sve"))
    )
    return said.get("model name", platform.processor() or "unknown")[:256], kept


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _blas() -> str:
    try:
        import numpy as np

        said = np.show_config(mode="dicts")
        found = said["Build Dependencies"]["blas"] if isinstance(said, dict) else {}
        return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()[:256]
    except (ImportError, KeyError, TypeError):
        return "unknown"
