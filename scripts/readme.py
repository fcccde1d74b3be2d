"""Keep the `sealwright --help` block of README.md true.

python scripts/readme.py           write it
python scripts/readme.py --check   exit 1 and show the difference if it is not what the command prints
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- help -->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Run as the module's docstring says."""
    text = README.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        print("README.md has no <!-- help --> block", file=sys.stderr)
        return 1
    fresh = _BLOCK.sub(lambda match: match[1] + _help() + match[3], text)
    if "--check" not in sys.argv:
        README.write_text(fresh, encoding="utf-8")
        return 0
    diff = difflib.unified_diff(
        text.splitlines(), fresh.splitlines(), "README.md", "sealwright --help", lineterm=""
    )
    shown = list(diff)
    print("\n".join([*shown, "run: python scripts/readme.py"] if shown else []), end="\n" if shown else "")
    return 1 if shown else 0


def _help() -> str:
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "sealwright.cli", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


if __name__ == "__main__":
    sys.exit(main())
