"""The engine: what goes in comes out as it was, false is false, and each way to fail is a failure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rego.support import job

from sealwright.appraisal.rego_engine import MEMORY, evaluate
from sealwright.client.rego_process import evaluate_apart

pytest.importorskip("regopy", reason="the extra `rego` is not installed")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def answer(policy: str, document: Any = None, **reference: Any) -> Any:
    return json.loads(evaluate(job(policy, document, **reference)))


@given(VALUES)
def test_input_and_reference_values_are_unchanged(value: object) -> None:
    found = answer('r := [input.v, query_reference_value("v")]', {"v": value}, v=value)
    assert repr(found) == repr({"r": [value, value]}) or found == {"r": [value, value]}
    assert type(found["r"][0]) is type(value)


@given(VALUES)
def test_truth_is_that_of_rego(value: object) -> None:
    """Only false and what is undefined are not true; an engine that makes false a number fails here."""
    policy = 'default r := "not"\nr := "true" if input.v'
    assert answer(policy, {"v": value}) == {"r": "not" if value is False else "true"}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("input.f == false", True),
        ("input.f == 0", False),
        ("input.f == 0.0", False),
        ("input.f", False),
        ("not input.f", True),
        ("input.n.f", False),
        ("input.l[_] == true", False),
        ("is_boolean(input.f)", True),
        ("input.zero == false", False),
        ("input.zero", True),
        ("input.null", True),
        ("input.missing", False),
        ('query_reference_value("f") == false', True),
        ('false in query_reference_value("l")', True),
        ('0 in query_reference_value("l")', False),
        ("data.reference.f == false", True),
        ("input.big == 18446744073709551615", True),
        ("input.big == 18446744073709551616", False),
        ("input.big > 18446744073709551614", True),
        ('input.text == `a"b\\c`', True),
        # A reference value that is not there: no comparison holds, so a rule without its value admits nothing.
        ('5 >= query_reference_value("missing")', False),
        ('query_reference_value("missing") == null', False),
        ('query_reference_value("missing") != 5', False),
        ('5 in query_reference_value("missing")', False),
    ],
)
def test_conditions(condition: str, *, holds: bool) -> None:
    document = {
        "f": False,
        "n": {"f": False},
        "l": [False, False],
        "zero": 0,
        "null": None,
        "big": (1 << 64) - 1,
        "text": 'a"b\\c',
    }
    found = answer(f"r := 1 if {{ {condition} }}", document, f=False, l=[False])
    assert found == ({"r": 1} if holds else {})


@pytest.mark.parametrize(
    "policy",
    [
        "r := ",
        "r := f(1)\nf(x) := f(x)",
        "r := s\ns := r",
        "r := 1 / 0",
        "r := 1\nr := 2",
        "r := 1 if true\nr := 2 if true",
        "r := no_such_function(1)",
        'r := http.send({"method": "get", "url": "http://127.0.0.1/"})',
        'query_reference_value(name) := "mine"\nr := query_reference_value("v")',
    ],
)
def test_a_policy_that_fails_has_no_value(policy: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whatever the engine raises, the rule refuses
        evaluate(job(policy, v="theirs"))


def test_apart_says_the_same() -> None:
    document = job("r := input.v\ns := 2 if input.none", {"v": [None, 1, "é"]}, ("r", "s"))
    assert json.loads(evaluate_apart(document)) == json.loads(evaluate(document)) == {"r": [None, 1, "é"]}


def test_apart_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALWRIGHT_SECRET", "hunter2")
    found = json.loads(evaluate_apart(job("r := opa.runtime().env")))["r"]
    assert "SEALWRIGHT_SECRET" not in found
    assert "PYTHONPATH" in found


def test_apart_has_limits() -> None:
    doubled = "".join(f'a{n + 1} := concat("", [a{n}, a{n}])\n' for n in range(40))
    with pytest.raises(subprocess.CalledProcessError):
        evaluate_apart(job(f'a0 := "0123456789abcdef"\n{doubled}r := count(a40)'))


def test_apart_fails_with_its_policy() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        evaluate_apart(job("r := 1 / 0"))


def test_apart_bounds_the_answer() -> None:
    with pytest.raises(ValueError, match="too long"):
        evaluate_apart(job("r := input.v", {"v": "x" * 70_000}))


def test_apart_has_a_limit_of_time() -> None:
    text = "".join(f"x{n} := input.l[_]; " for n in range(9))
    loop = f"r := count([1 | {text} x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 == 1])"
    with pytest.raises((subprocess.CalledProcessError, subprocess.TimeoutExpired)):
        evaluate_apart(job(loop, {"l": list(range(100))}))


@pytest.mark.parametrize("policy", ["r := ", "r := f(1)\nf(x) := f(x)", "r := 1\nr := 2", "r := 0x10"])
def test_the_engine_writes_nothing(policy: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A command's JSON on stdout is its own."""
    with pytest.raises(Exception):  # noqa: B017 - whatever the engine raises
        evaluate(job(policy))
    assert capfd.readouterr() == ("", "")


def test_the_size_of_the_process_that_asks_is_not_the_engines() -> None:
    code = (
        "from sealwright.client.rego_process import evaluate_apart\n"
        f"held = b'x' * {MEMORY + (64 << 20)}\n"
        f"print(evaluate_apart({job('r := 1')!r}).decode())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(found) == {"r": 1}
