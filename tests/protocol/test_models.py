"""The machine-checked models of release, lease and transport: they hold, and each wrong variant is refuted."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "spec" / "models"

pytestmark = pytest.mark.skipif(
    not shutil.which("spin") or not shutil.which("cc"), reason="spin or cc is not installed"
)

WRONG = {
    "release": [
        "NO_POLICY",  # changed code is attested
        "NO_BINDING",  # evidence counts for any keyset that is stated beside it
        "NO_NONCE",  # evidence of another session counts
        "NO_ROOT",  # the database is believed without the log
        "NO_HOLDER",  # the log is believed without its holder
        "NO_RECHECK",  # nobody looks again after the key was unwrapped
        "NO_LEASE_END",  # the broker releases past the lease
        "ANSWER_FIRST",  # a release leaves before its decision is durable
        "NONCE_AGAIN",  # an enclave takes a nonce twice, and counts from the second time
        "NO_EAR_NONCE",  # an enclave takes a lease of another session's nonce
        "FROM_ARRIVAL",  # an enclave counts from when the host gives it the lease
        "NO_WIPE",  # an enclave goes on at the lease's end
    ],
    "transport": [
        "NO_POLICY",  # a client seals to changed code
        "NO_BINDING",  # evidence counts for any keyset
        "NO_NONCE",  # evidence from before the client asked counts
        "NO_CACHE",  # a replayed request is acted upon
        "NO_DATE",  # a request that the cache has forgotten is acted upon
        "TIME_BACK",  # the cache forgets by a time that runs back
        "NO_BAR",  # a statement is made, and the request starts later
        "BAR_STARTED",  # a statement for what has started
        "BAR_UNDATED",  # a statement for what has started and was forgotten
        "RETRY",  # a client seals again without a statement
    ],
}


def errors(model: str, folder: Path, *defined: str) -> int:
    """Return how many errors SPIN finds (it stops at the first); the search was complete where there is none."""
    defines = [f"-D{name}" for name in defined]
    said = ""
    for command in (
        ["spin", "-a", *defines, str(MODELS / f"{model}.pml")],
        ["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=2048", "-o", "pan", "pan.c"],
        ["./pan", "-m200000"],
    ):
        said = subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=100
        ).stdout
    found = re.search(r"errors: (\d+)", said)
    assert found is not None, said
    count = int(found[1])
    assert count or ("max search depth too small" not in said and "Search not completed" not in said)
    return count


@pytest.mark.parametrize("model", sorted(WRONG))
def test_the_model_holds(tmp_path: Path, model: str) -> None:
    assert errors(model, tmp_path) == 0


@pytest.mark.parametrize(("model", "wrong"), [(model, one) for model in WRONG for one in WRONG[model]])
def test_a_wrong_variant_is_refuted(tmp_path: Path, model: str, wrong: str) -> None:
    assert errors(model, tmp_path, wrong) == 1


@pytest.mark.parametrize("model", sorted(WRONG))
def test_the_list_of_wrong_variants_is_whole(model: str) -> None:
    used = set(re.findall(r"#(?:ifdef|ifndef) (\w+)", (MODELS / f"{model}.pml").read_text()))
    assert used == set(WRONG[model])


@pytest.mark.parametrize(
    ("model", "reached"), [("release", "key -> serve()"), ("transport", "sealed == 1 && said[0] -> seal()")]
)
def test_what_the_properties_are_about_can_be_reached(tmp_path: Path, model: str, reached: str) -> None:
    """Nothing is proved of what never happens."""
    text = (MODELS / f"{model}.pml").read_text()
    assert text.count(reached) == 1
    guard, _, step = reached.rpartition(" -> ")
    bent = tmp_path / f"{model}.pml"
    bent.write_text(text.replace(reached, f"{guard} -> assert(false); {step}"))
    subprocess.run(["spin", "-a", str(bent)], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["cc", "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c"], cwd=tmp_path, check=True)
    said = subprocess.run(["./pan", "-m200000"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "errors: 1" in said.stdout
