"""Put a release together from what has been built: `make release`. Spec: docs/spec/release.md.

    .venv/bin/python scripts/release.py [build/release]

It takes what is there: the guest image in build/image, with its signed reference values in
build/reference-values/*.json; OCI layouts in build/oci/NAME. What a guest measures to where nothing of the machine's
is in it (TPMs without Secure Boot's keys) is predicted and signed here; for firmware of your own predict before, into
that folder. From the environment:

    RELEASE_KEYS      private keys that sign, separated by `:`; none: the release is not signed
    RELEASE_LOG       directory of the log, and RELEASE_LOG_KEY its private key; none: the release is not logged
    RELEASE_BUILDER   URI of the builder, RELEASE_RUN of this run, as provenance names them
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sealwright.cli import main as sealwright

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "build/image/image.json"
VALUES = ROOT / "build/reference-values"
PREDICTED = ("tpm", "vtpm")


def main() -> int:
    """Run as the module's docstring says."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "release"
    for command in commands(out):
        print(f"$ sealwright {' '.join(command[:2])}", file=sys.stderr)
        code = sealwright(command)
        if code:
            return code
    return 0


def commands(out: Path) -> Iterator[list[str]]:
    """Yield the commands to run, each once those before it have run: what is there by then decides."""
    keys = [f"--key={key}" for key in os.environ.get("RELEASE_KEYS", "").split(":") if key]
    if keys and IMAGE.exists():
        yield from predictions(keys)
    yield ["release", "build", f"--source={ROOT}", f"--out={out}", *parts(), *builder()]
    if keys:
        yield ["release", "sign", str(out), *keys]
    else:
        print("NOT SIGNED: RELEASE_KEYS names no key", file=sys.stderr)
    log, log_key = os.environ.get("RELEASE_LOG"), os.environ.get("RELEASE_LOG_KEY")
    if log and log_key:
        yield ["release", "log", str(out), f"--log={log}", f"--log-key={log_key}"]
    else:
        print("NOT LOGGED: RELEASE_LOG and RELEASE_LOG_KEY are not set", file=sys.stderr)


def predictions(keys: list[str]) -> Iterator[list[str]]:
    """Yield the commands that predict and sign what is not there yet."""
    VALUES.mkdir(parents=True, exist_ok=True)
    major, minor, patch = (int(part) for part in version("sealwright").split("."))
    count = max(1, major * 10**6 + minor * 10**3 + patch)
    named = ["--name=sealwright-guest", f"--version={count}", "--secure-boot=off", *keys]
    for platform in PREDICTED:
        out = VALUES / f"{platform}.json"
        if not out.exists():
            yield ["image", "predict", str(IMAGE.parent), f"--platform={platform}", f"--out={out}", *named]


def parts() -> list[str]:
    """Return the options for the parts that are there."""
    found = []
    if IMAGE.exists():
        found.append(f"--image={IMAGE.parent}")
        found += [f"--reference-values={path}" for path in sorted(VALUES.glob("*.json"))]
    return found + [f"--oci={path.parent}" for path in sorted(ROOT.glob("build/oci/*/oci-layout"))]


def builder() -> list[str]:
    """Return the options that name the builder."""
    named = {"--builder": "RELEASE_BUILDER", "--invocation": "RELEASE_RUN"}
    return [f"{option}={os.environ[name]}" for option, name in named.items() if os.environ.get(name)]


if __name__ == "__main__":
    sys.exit(main())
