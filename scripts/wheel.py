"""Build the wheel for a guest image: `python scripts/wheel.py FOLDER`. Spec: docs/spec/release.md, Wheel.

The released bytes, if this is a checkout without changes; else a wheel of the files as they are, which no release has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sealwright.errors import SealwrightError
from sealwright.ops.release.wheel import Source, build_wheel

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run as the module's docstring says."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        name, raw = build_wheel(Source.of(ROOT))
    except SealwrightError as exc:
        print(f"NOT THE RELEASED WHEEL: {exc}", file=sys.stderr)
        options = ["--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}"]
        return subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=False
        ).returncode
    (folder / name).write_bytes(raw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
