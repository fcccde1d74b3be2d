"""A plan run again gives the same weights, or says what differs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.training.checkpoint.chains import Run, run
from tests.training.world import PURPOSE, arrays

from sealwright.errors import VerificationError
from sealwright.protocol.checkpoint import CheckpointStatement
from sealwright.protocol.plan import Plan
from sealwright.training.checkpoint import Draft, this_environment, write_checkpoint
from sealwright.training.checkpoint.environment import Environment, differences
from sealwright.training.data import Batch, Loader, opened
from sealwright.training.data.order import permutation
from sealwright.training.rerun import Rerun, own_code, rerun, seeded, softmax, statements_differ, train
from sealwright.training.safetensors import encode_safetensors

PLAN = Plan(
    run="triage", trainer="sealwright.training.rerun:softmax", code=own_code(),
    parameters={"features": "3", "classes": "2", "rate": "0.05"}, seed=7, epochs=2, batch_rows=4, gate=[],
    purpose=PURPOSE,
)  # fmt: skip


def batches(epoch: int, *, plan: Plan = PLAN) -> Iterator[Batch]:
    """The loader's batches of one shard, without sealing."""
    order = permutation(10, seed=plan.seed, epoch=epoch, what="a")
    for at in range(0, 10, plan.batch_rows):
        yield {name: value[order[at : at + plan.batch_rows]] for name, value in arrays().items()}


def statement_of(folder: Path, tensors: Any, environment: Environment) -> CheckpointStatement:
    with run(folder, versions=0) as made:
        draft = made.draft(plan=PLAN, environment=environment, workers=_nobody(made), data=())
        assert isinstance(draft, Draft)
        return write_checkpoint(
            made.folder, tensors, draft, keys=made.keys, dek=made.site.weights_dek, kid="weights"
        ).statement


def _nobody(made: Run) -> Any:
    from sealwright.protocol.checkpoint import WorkerEntry

    one = made.attested()
    return (WorkerEntry(worker=bytes(32), evidence=one.evidence, result=one.result, grants=[]),)


def again(statement: CheckpointStatement, here: Environment, **options: Any) -> Rerun:
    return rerun(
        statement, PLAN, batches, code=own_code(), signed_in=this_environment(), here=here, **options
    )


def test_the_same_plan_and_data_give_the_same_digest(tmp_path: Path) -> None:
    tensors = train(PLAN, batches, code=own_code())
    statement = statement_of(tmp_path, tensors, this_environment())
    found = again(statement, this_environment())
    assert (found.same, found.differs, found.weights) == (True, (), statement.weights)


def test_from_sealed_shards_too(tmp_path: Path) -> None:
    """What the loader gives from a sealed shard is what an owner with the plaintext gets by the specification."""
    with run(tmp_path, versions=0, made=PLAN, code=[own_code()]) as made:
        site = made.site

        def sealed(epoch: int) -> Iterator[Batch]:
            def open_named(_: str) -> Any:
                return opened(site.artefact, site.manifest(), site.shard, site.released(epoch))

            yield from Loader(shards=["a"], open=open_named, batch_rows=4, seed=PLAN.seed, epoch=epoch)

        from_sealed = train(PLAN, sealed, code=own_code())
    np.testing.assert_array_equal(from_sealed["weights"], train(PLAN, batches, code=own_code())["weights"])


def test_another_process_with_another_hash_seed_gives_the_same() -> None:
    script = (
        "from tests.training.checkpoint.test_reruns import PLAN, batches, own_code, train\n"
        "import hashlib\n"
        "from sealwright.training.safetensors import encode_safetensors\n"
        "print(hashlib.sha256(encode_safetensors(train(PLAN, batches, code=own_code()))).hexdigest())\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    here = encode_safetensors(train(PLAN, batches, code=own_code()))
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_what_differs_is_said_to_the_number(tmp_path: Path) -> None:
    tensors = train(PLAN, batches, code=own_code())
    other = {"weights": np.array(tensors["weights"])}
    other["weights"][0, 0] += 0.5
    statement = statement_of(tmp_path, other, this_environment())
    here = this_environment().model_copy(update={"blas": "other 1.0", "cpus": 63})
    found = again(statement, here, original=other)
    assert not found.same
    assert found.differs[-1] == "tensor weights: 1 of 8 numbers differ, by 0.5 at most"
    assert {line.partition(":")[0] for line in found.differs[:-1]} == {"blas", "cpus"}
    assert again(statement, this_environment()).differs == ("weights: another digest",)
    renamed = {"w": tensors["weights"]}
    assert again(statement, this_environment(), original=renamed).differs == (
        "tensor w: absent",
        "tensor weights: new",
    )
    shaped = {"weights": tensors["weights"].astype(np.float32)}
    assert again(statement, this_environment(), original=shaped).differs == (
        "tensor weights: float32(4, 2) -> float64(4, 2)",
    )


@pytest.mark.parametrize(
    "changes", [{"seed": 8}, {"epochs": 1}, {"parameters": PLAN.parameters | {"rate": "0.06"}}]
)
def test_another_plan_gives_other_weights(changes: dict[str, Any]) -> None:
    other = PLAN.model_copy(update=changes)

    def its_batches(epoch: int) -> Iterator[Batch]:
        return batches(epoch, plan=other)

    one, two = softmax(PLAN, batches, None)["weights"], softmax(other, its_batches, None)["weights"]
    assert not np.array_equal(one, two)


def test_going_on_from_weights() -> None:
    start = softmax(PLAN, batches, None)
    assert not np.array_equal(softmax(PLAN, batches, start)["weights"], start["weights"])


def test_initial_weights_are_pinned() -> None:
    assert seeded((2, 2), seed=7).tolist() == SEEDED


SEEDED: list[list[float]] = [
    [0.0018207317561461346, 0.0026580589591000247],
    [-0.0036640615836139668, 0.003258505606174935],
]


def refused(work: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        work()
    assert caught.value.stage == "rerun"
    return caught.value.code


def test_reruns_are_of_the_signed_plan_and_code(tmp_path: Path) -> None:
    tensors = train(PLAN, batches, code=own_code())
    statement = statement_of(tmp_path, tensors, this_environment())
    here = this_environment()
    other = PLAN.model_copy(update={"seed": 8})
    options: dict[str, Any] = {"code": own_code(), "signed_in": here, "here": here}
    assert refused(lambda: rerun(statement, other, batches, **options)) == "plan-mismatch"
    foreign = here.model_copy(update={"cpus": 63})
    assert (
        refused(lambda: rerun(statement, PLAN, batches, **options | {"signed_in": foreign}))
        == "plan-mismatch"
    )
    assert refused(lambda: train(PLAN, batches, code=bytes(32))) == "trainer-code"
    unknown = PLAN.model_copy(update={"trainer": "os:system"})
    assert refused(lambda: train(unknown, batches, code=own_code())) == "trainer-unknown"


def test_two_statements_are_compared(honest: Run) -> None:
    first, second = (one.statement for one in honest.verify().checkpoints)
    assert statements_differ(first, first) == []
    names = [line.partition(":")[0] for line in statements_differ(first, second)]
    assert names == ["subject", "epoch", "parent", "version"]


def test_an_environment_says_what_matters(tmp_path: Path) -> None:
    here = this_environment()
    assert Environment.parse(here.encode()) == here
    assert "numpy" in here.libraries
    assert here.cpus >= 1
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Test CPU\nflags\t\t: fpu avx2 sse4_2\n\nmodel name\t: Second\n")
    made = this_environment(cpuinfo=cpuinfo)
    assert (made.cpu, made.cpu_features) == ("Test CPU", ["avx2", "sse4_2"])
    absent = this_environment(cpuinfo=tmp_path / "absent", libraries=["no-such-library"])
    assert (absent.cpu_features, absent.libraries) == ([], {})
    lines = differences(made, absent.model_copy(update={"threads": {"OMP_NUM_THREADS": "1"}}))
    assert "cpu_features: -avx2" in lines
    assert "threads.OMP_NUM_THREADS: absent -> 1" in lines
    assert f"libraries.numpy: {made.libraries['numpy']} -> absent" in lines
