"""The machine-checked model, docs/spec/models/secagg.pml: it holds, and each wrong variant is refuted."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[3] / "docs" / "spec" / "models"
SAFETY = ("-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=2048")
LIVENESS = ("-DNOREDUCE", "-DNFAIR=3")

pytestmark = pytest.mark.skipif(
    not shutil.which("spin") or not shutil.which("cc"), reason="spin or cc is not installed"
)


def errors(model: str, folder: Path, *defined: str, build: tuple[str, ...], check: tuple[str, ...]) -> int:
    """Return how many errors SPIN finds (it stops at the first); the search was complete where there is none."""
    defines = [f"-D{name}" for name in defined]
    said = ""
    for command in (
        ["spin", "-a", *defines, str(MODELS / model)],
        ["cc", "-O2", "-w", *build, "-o", "pan", "pan.c"],
        ["./pan", "-m200000", *check],
    ):
        said = subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=300
        ).stdout
    found = re.search(r"errors: (\d+)", said)
    assert found is not None, said
    count = int(found[1])
    assert count or ("max search depth too small" not in said and "Search not completed" not in said)
    return count


@pytest.mark.slow  # 20 s: three million states
def test_no_coordinator_learns_more_than_sums(tmp_path: Path) -> None:
    assert errors("secagg.pml", tmp_path, build=SAFETY, check=()) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        "UNSIGNED_SET",  # a worker opens for a set that nobody countersigned
        "UNSIGNED_ROSTER",  # a worker masks for a roster that nobody countersigned
        "ANSWER_FIRST",  # the countersigner answers before it records
        "FORGETFUL",  # the countersigner forgets with a restart
        "NO_NONCE",  # a worker takes a roster from before its last answer
        "REPEATED_ROUND",  # a worker masks a round again
        "BOTH",  # a worker opens both for one peer
        "LOW_THRESHOLD",  # as many shares open a seed as the coordinator's workers hold
    ],
)
def test_a_wrong_variant_is_refuted(tmp_path: Path, wrong: str) -> None:
    assert errors("secagg.pml", tmp_path, wrong, build=SAFETY, check=()) == 1


@pytest.mark.parametrize("claim", ["comes", "ends"])
def test_where_enough_answer_a_sum_comes(tmp_path: Path, claim: str) -> None:
    check = ("-a", "-f", "-N", claim)
    assert errors("secagg.pml", tmp_path, "LIVE", build=LIVENESS, check=check) == 0


def test_without_shares_of_pair_seeds_no_sum_comes(tmp_path: Path) -> None:
    check = ("-a", "-f", "-N", "comes")
    assert errors("secagg.pml", tmp_path, "LIVE", "OWN_SEED_ONLY", build=LIVENESS, check=check) == 1
