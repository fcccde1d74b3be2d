"""Install what tests need of the system, where that is possible: `python scripts/system.py swtpm swtpm-tools`.

Debian packages, through apt, for root. Everywhere else nothing is done: the tests that need them are skipped by
name, and say what to install. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

LIMIT_S = 300


def main() -> int:
    """Run as the module's docstring says; a package that cannot be had fails nothing here."""
    missing = [name for name in sys.argv[1:] if not installed(name)]
    if not missing:
        return 0
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid():
        print(f"setup: without {', '.join(missing)} some tests are skipped", file=sys.stderr)
        return 0
    print(f"setup: installing Debian's {', '.join(missing)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for action in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        command = ["apt-get", "-qq", *action]
        try:
            subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            print("setup: apt took too long", file=sys.stderr)
    return 0


def installed(package: str) -> bool:
    """Say whether dpkg knows the package as installed."""
    if not shutil.which("dpkg-query"):
        return False
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout == "installed"


if __name__ == "__main__":
    sys.exit(main())
