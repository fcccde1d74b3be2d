"""Put a release together from what has been built: `make release`. Spec: docs/spec/release.md.

    .venv/bin/python scripts/release.py [build/release]

It takes what is there: the guest image in build/image, with its signed reference values in
build/reference-values/*.json; OCI layouts in build/oci/NAME. From the environment:

    RELEASE_KEYS      private keys that sign, separated by `:`; none: the release is not signed
    RELEASE_LOG       directory of the log, and RELEASE_LOG_KEY its private key; none: the release is not logged
    RELEASE_BUILDER   URI of the builder, RELEASE_RUN of this run, as provenance names them
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sealwright.cli import main as sealwright

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run as the module's docstring says."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "release"
    for command in commands(out):
        print(f"$ sealwright {' '.join(command[:2])}", file=sys.stderr)
        code = sealwright(command)
        if code:
            return code
    return 0


def commands(out: Path) -> list[list[str]]:
    """Return the commands to run, by what is there."""
    steps = [["release", "build", f"--source={ROOT}", f"--out={out}", *parts(), *builder()]]
    keys = [key for key in os.environ.get("RELEASE_KEYS", "").split(":") if key]
    if keys:
        steps.append(["release", "sign", str(out), *[f"--key={key}" for key in keys]])
    else:
        print("NOT SIGNED: RELEASE_KEYS names no key", file=sys.stderr)
    log, log_key = os.environ.get("RELEASE_LOG"), os.environ.get("RELEASE_LOG_KEY")
    if log and log_key:
        steps.append(["release", "log", str(out), f"--log={log}", f"--log-key={log_key}"])
    else:
        print("NOT LOGGED: RELEASE_LOG and RELEASE_LOG_KEY are not set", file=sys.stderr)
    return steps


def parts() -> list[str]:
    """Return the options for the parts that are there."""
    found = []
    if (ROOT / "build/image/image.json").exists():
        found.append(f"--image={ROOT / 'build/image'}")
        values = sorted(ROOT.glob("build/reference-values/*.json"))
        found += [f"--reference-values={path}" for path in values]
    return found + [f"--oci={path.parent}" for path in sorted(ROOT.glob("build/oci/*/oci-layout"))]


def builder() -> list[str]:
    """Return the options that name the builder."""
    named = {"--builder": "RELEASE_BUILDER", "--invocation": "RELEASE_RUN"}
    return [f"{option}={os.environ[name]}" for option, name in named.items() if os.environ.get(name)]


if __name__ == "__main__":
    sys.exit(main())
