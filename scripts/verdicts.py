"""Write docs/reference/verdicts.md: every file of real evidence that we know, and the verdict on it.

python scripts/verdicts.py           write it from tests/manifest/cases.json, whose verdicts the tests compare
python scripts/verdicts.py --check   exit 1 if the page is not what would be written
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "manifest" / "cases.json"
PAGE = ROOT / "docs" / "reference" / "verdicts.md"
Case = Mapping[str, Any]

_NAMES = {
    "sev-snp": "AMD SEV-SNP",
    "tdx": "Intel TDX",
    "sgx": "Intel SGX",
    "nitro": "AWS Nitro",
    "nvidia": "NVIDIA GPUs and switches",
    "tpm": "TPM, Azure and Google vTPMs",
    "cca": "Arm CCA (not supported)",
    "roots": "Vendors' roots",
}
_VERDICTS = {
    "genuine": "everything holds at that time, and nothing is wrong that no policy may be silent about (exit 0)",
    "refused": "genuine, but in a state that is refused unless a policy admits it (exit 11), or not read as collateral",
    "not genuine": "a signature, chain or binding does not hold (exit 10)",
    "undecided": "what is needed to decide is missing or not in force (exit 12)",
    "malformed": "not in a format that is read (exit 65)",
    "read": "an event log by itself: it is read and replayed, and proves nothing without a quote (exit 0)",
    "sorted": "collateral that `--endorsements` takes; sorting proves nothing",
    "pinned": "the very certificates that are pinned in this package",
}
# What the manifest's label leads one to expect; where our verdict is another one, the case says why.
_EXPECTED = (
    ("NEGATIVE-BY-POLICY (DEBUG); NEGATIVE", {"not genuine"}),
    ("NEGATIVE-BY-POLICY", {"refused"}),
    ("NEGATIVE", {"not genuine", "malformed"}),
    ("OK", {"genuine"}),
    ("EVENT LOG", {"read"}),
    ("TRUST ANCHOR", {"pinned"}),
    ("PARSE-ONLY", {"undecided"}),
    ("SYNTHETIC", {"malformed"}),
    ("CERTIFICATE(S)", {"sorted"}),
    ("CRL", {"sorted"}),
    ("TCB INFO", {"sorted"}),
    ("QE IDENTITY", {"sorted"}),
    ("OCSP", {"sorted"}),
    ("RIM", {"sorted"}),
)


def main() -> int:
    """Run as the module's docstring says."""
    fresh = page(json.loads(CASES.read_text("utf-8")))
    if "--check" not in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == fresh:
        return 0
    print("docs/reference/verdicts.md is not what the cases say; run: python scripts/verdicts.py")
    return 1


def agrees(case: Case) -> bool:
    """Say whether a verdict is what the manifest's label leads one to expect; a label without one fits all."""
    expected = next((verdicts for start, verdicts in _EXPECTED if case["label"].startswith(start)), None)
    return expected is None or case["verdict"] in expected


def page(cases: Mapping[str, Case]) -> str:
    """Return the page."""
    return "\n".join([*_head(cases), *(line for tee in _NAMES for line in _section(tee, cases))]) + "\n"


def _head(cases: Mapping[str, Case]) -> Iterator[str]:
    yield "# Verdicts on real evidence"
    yield ""
    yield f"<!-- Made by scripts/verdicts.py from tests/manifest/cases.json. --> The {len(cases)} files of evidence, collateral and roots that other projects published, and what"
    yield "`sealwright verify` says of each at the time it is meant for. The files are not in this repository; the tests run all of them where they are."
    yield ""
    yield "| verdict | files | meaning |"
    yield "|---|---|---|"
    counts = Counter(case["verdict"] for case in cases.values())
    for verdict, meaning in _VERDICTS.items():
        yield f"| {verdict} | {counts[verdict]} | {meaning} |"
    differing = sum(not agrees(case) for case in cases.values())
    yield ""
    yield f"Labels are those of the collection, which checked signatures and chains, mostly without dates, revocation or TCB status. In {differing} rows our verdict"
    yield "is another than the label leads one to expect; the last column says why. Times are UTC. All collateral is public and of that time; where none is, an outage policy"
    yield "(`--outage`) stands beside the time. What Intel signed is taken out of the containers of two projects (fortanix-pcs, Open Enclave) before it is used."


def _section(tee: str, cases: Mapping[str, Case]) -> Iterator[str]:
    yield ""
    yield f"## {_NAMES[tee]}"
    yield ""
    yield "| file | is | as of | verdict | codes | label | why |"
    yield "|---|---|---|---|---|---|---|"
    for name, case in cases.items():
        if name.partition("/")[0] == tee:
            cells = [
                f"`{name.partition('/')[2]}`",
                case["is"],
                _when(case),
                *_said(case),
                _label(case),
                case.get("why", ""),
            ]
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _when(case: Case) -> str:
    if "with" in case:
        return f"with `{case['with'].partition('/')[2]}`"
    at = case.get("at", "").removesuffix("Z").removesuffix(":00").replace("T", " ")
    return ", ".join([at, *(f"`{one}`" for one in case.get("outage", ()))]) if at else ""


def _said(case: Case) -> tuple[str, str]:
    codes = ", ".join(f"`{code}`" for code in case.get("codes", ()))
    if case["verdict"] == "pinned":
        codes = ", ".join(case["pinned"])
    elif case["verdict"] == "sorted":
        codes = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in case["holds"].items())
    elif case.get("tcb_status"):
        codes = ", ".join(filter(None, [codes, case["tcb_status"]]))
    return case["verdict"], codes


def _label(case: Case) -> str:
    """Return the manifest's label without the names of files in it."""
    label: str = case["label"]
    return label.partition(" with open/")[0].partition(" (FVP/")[0].partition(" - must")[0]


if __name__ == "__main__":
    sys.exit(main())
