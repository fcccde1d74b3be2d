"""A Rego policy as a rule: it refuses what Trustee's would, never allows what others refuse, and fails closed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from tests.rego.support import HEAD, NOW, POLICY, REPORT_DATA, VALUES, codes, rule, tdx

from sealwright.appraisal import rego
from sealwright.appraisal.rego import RegoRule
from sealwright.appraisal.rego_engine import evaluate
from sealwright.appraisal.rego_input import input_document
from sealwright.appraisal.tdx import TdxRules
from sealwright.client.rego_process import evaluate_apart
from sealwright.errors import AppraisalError
from sealwright.verify.verified import Condition

GOOD = {"executables": 3, "hardware": 2, "configuration": 2, "file-system": 0}


@pytest.fixture
def engine() -> None:
    pytest.importorskip("regopy", reason="the extra `rego` is not installed")


def says(value: Any) -> Callable[[bytes], bytes]:
    """Return an engine that answers this whatever it is asked."""
    return lambda _: json.dumps(value).encode()


def claims(**changes: Any) -> dict[str, Any]:
    return {"trust_claims": GOOD | {name.replace("_", "-"): value for name, value in changes.items()}}


@pytest.mark.usefixtures("engine")
class TestWithTheEngine:
    def test_what_is_approved_is_admitted(self) -> None:
        assert dict(rule().trust_claims(tdx(), evaluate)) == GOOD
        assert codes(rule()) == []

    @pytest.mark.parametrize("name", ["rtmr_1", "mr_td", "xfam"])
    def test_each_reference_value_counts(self, name: str) -> None:
        for values in (VALUES | {name: ["00"]}, {k: v for k, v in VALUES.items() if k != name}):
            assert codes(rule(reference_values=values)) == ["rego-not-allowed"]

    def test_without_reference_values_trustees_defaults_are_refused(self) -> None:
        found = list(rule(reference_values={}).failures(tdx(), evaluate))
        assert [failure.split(" gives ")[1] for failure in found] == [
            "configuration 36, warning",
            "executables 33, warning",
            "hardware 97, contraindicated",
        ]

    def test_else_comes_second(self) -> None:
        values = VALUES | {"rtmr_1": [], "rtmr_2": ["00" * 48]}
        assert rule(reference_values=values).trust_claims(tdx(), evaluate)["executables"] == 4

    def test_a_policy_without_trust_claims_is_asked_rule_by_rule(self) -> None:
        found = rule(HEAD + "executables := 2 if input.tdx\nfile_system := 32")
        assert dict(found.trust_claims(tdx(), evaluate)) == {
            "executables": 2,
            "hardware": 97,
            "configuration": 36,
            "file-system": 32,
        }
        assert codes(found) == ["rego-not-allowed"] * 3

    @pytest.mark.parametrize(
        "policy",
        [
            "trust_claims := 3",
            "trust_claims := {}[_]",
            'trust_claims := {"executables": missing} if { missing := input.missing }',
            'trust_claims := {"executables": 258, "hardware": 2, "configuration": 2}',
            'trust_claims := {"executables": 2.5, "hardware": 2, "configuration": 2}',
            'trust_claims := {"executables": true, "hardware": 2, "configuration": 2}',
            'trust_claims := {"executables": "2", "hardware": 2, "configuration": 2}',
            'trust_claims := {"executable": 2, "hardware": 2, "configuration": 2}',
            "this is no Rego, trust_claims",
            "trust_claims := a\na := trust_claims",
        ],
    )
    def test_what_is_no_vector_fails(self, policy: str) -> None:
        assert codes(rule(HEAD + policy)) == ["rego-failed"]

    def test_another_package_fails(self) -> None:
        assert codes(rule(POLICY.replace("package policy", "package other"))) == ["rego-failed"]

    def test_it_is_one_rule_more(self) -> None:
        """Nothing that a policy says takes back what other rules refuse."""
        rules = TdxRules.model_validate(
            {"minimum_tcb_evaluation": 1, "rego": rule(HEAD + f"trust_claims := {json.dumps(GOOD)}")}
        )
        condition = Condition(code="debug", text="it is debugged")
        verified = replace(tdx(), conditions=(condition,))
        assert {failure.code for failure in rules.failures(verified)} >= {"debug", "root-not-allowed"}

    def test_it_refuses_alone(self) -> None:
        without = TdxRules.model_validate({"minimum_tcb_evaluation": 1, "roots": [tdx().root.hex()]})
        with_rego = TdxRules.model_validate(
            {"minimum_tcb_evaluation": 1, "roots": [tdx().root.hex()], "rego": rule(reference_values={})}
        )
        before = [failure.code for failure in without.failures(tdx())]
        prepared = with_rego.prepared("tdx", NOW, engine=evaluate)
        after = [failure.code for failure in prepared.failures(tdx())]
        assert after == [*before, *["rego-not-allowed"] * 3]

    def test_the_engine_is_given(self) -> None:
        members = {"minimum_tcb_evaluation": 1, "roots": [tdx().root.hex()], "rego": rule()}
        rules = TdxRules.model_validate(members)
        apart = rules.prepared("tdx", NOW, engine=evaluate_apart)
        assert not [one for one in apart.failures(tdx()) if one.code.startswith("rego")]
        broken = rules.prepared("tdx", NOW, engine=says({}))
        assert "rego-failed" in [one.code for one in broken.failures(tdx())]

    def test_without_an_engine_it_is_refused(self) -> None:
        assert codes(rule(), None) == ["rego-failed"]
        rules = TdxRules.model_validate({"minimum_tcb_evaluation": 1, "rego": rule()})
        for one in (rules, rules.prepared("tdx", NOW)):
            assert "rego-failed" in [failure.code for failure in one.failures(tdx())]

    @pytest.mark.skipif(sys.platform == "win32", reason="signals")
    @pytest.mark.parametrize("call", ["x.f()", "x.opa.runtime()"])
    def test_a_crash_of_the_engine_is_a_refusal(self, call: str) -> None:
        crashing = rule(HEAD + f"trust_claims := {call} if {{ x := 1 }}")
        assert codes(crashing, evaluate_apart) == ["rego-failed"]


@pytest.mark.usefixtures("engine")
class TestRequire:
    def test_zero_asserts_nothing(self) -> None:
        assert codes(rule(), engine=says(claims(storage_opaque=0))) == []
        for name in ("executables", "hardware", "configuration"):
            assert codes(rule(), engine=says(claims(**{name: 0}))) == ["rego-not-allowed"]

    @pytest.mark.parametrize("value", [-128, -97, -96, -33, -1, 1, 32, 95, 96, 99, 127])
    def test_what_is_not_affirming_is_refused(self, value: int) -> None:
        for name in ("executables", "file_system", "sourced_data"):
            assert codes(rule(), engine=says(claims(**{name: value}))) == ["rego-not-allowed"]

    @pytest.mark.parametrize("value", [2, 31, -2, -32])
    def test_what_is_affirming_is_admitted(self, value: int) -> None:
        assert codes(rule(), engine=says(claims(executables=value, runtime_opaque=value))) == []

    def test_a_list_takes_the_place_of_the_default(self) -> None:
        found = rule(require={"configuration": [2], "executables": [33], "file-system": [2]})
        assert codes(found, engine=says(claims(executables=33))) == ["rego-not-allowed"]  # file-system
        assert codes(found, engine=says(claims(executables=33, file_system=2))) == []
        assert codes(found, engine=says(claims(executables=3, file_system=2))) == ["rego-not-allowed"]

    @pytest.mark.parametrize(
        "value", [[], None, 3, {}, {"trust_claims": None}, {"trust_claims": [2]}, {"other": GOOD}]
    )
    def test_what_an_engine_may_not_say(self, value: Any) -> None:
        assert codes(rule(), engine=says(value)) == ["rego-failed"]

    @pytest.mark.parametrize("value", [128, -129, 2.0, True, None, "2", [2], 1 << 70])
    def test_only_int8_counts(self, value: Any) -> None:
        assert codes(rule(), engine=says(claims(executables=value))) == ["rego-failed"]

    def test_an_engine_that_breaks_refuses(self) -> None:
        def broken(_: bytes) -> bytes:
            raise MemoryError

        assert codes(rule(), engine=broken) == ["rego-failed"]
        assert codes(rule(), engine=lambda _: b"{") == ["rego-failed"]


def test_without_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rego, "find_spec", lambda name: None)
    failures = list(rule().failures(tdx(), says(claims())))
    assert [failure.code for failure in failures] == ["rego-not-installed"]
    assert "sealwright[rego]" in failures[0]
    with pytest.raises(AppraisalError):
        rule().trust_claims(tdx(), evaluate)


@pytest.mark.parametrize(
    "text",
    [
        "r := time.now_ns()",
        'r := time["now_ns"]()',
        "r := time[`now_ns`]()",
        "r := time . now_ns ( )",
        "r := time\n.now_ns()",
        "r := time # comment\n.now_ns()",
        "r := opa.runtime()",
        'r := opa["runtime"]()',
        'r := rand.intn("x", 2)',
        'r := uuid.rfc4122("x")',
        'r := http.send({"url": "x"})',
        'r := net.lookup_ip_addr("x")',
        "r := numbers.range(1, 1000000000)",
        "r := count([]) with count as time.now_ns",
        "r := count([]) with input.x as 3",
        'r := print("x")',
        'r := trace("x")',
        "r if walk(input, [p, v])",
        "r := internal.print([])",
        'r := "quote without end\nopa.runtime()',
        "r := `quote without end",
        "r := 1\r#\r r := opa.runtime()",
        "r := 1\0",
        "r := object.get.runtime",
        'r := $"{opa.runtime()}"',
        "r := $`{time.now_ns()}`",
        "import opa as z\nr := z.runtime()",
        "import time.now_ns as z\nr := z()",
        'r := "\\\nopa.runtime()"',
        "r := 'x'",
        "r := \u00e9",
        "r := 1 @ 2",
    ],
)
def test_text_that_is_not_evaluated(text: str) -> None:
    with pytest.raises(ValidationError):
        RegoRule(policy=HEAD + text)


@pytest.mark.parametrize(
    "text",
    [
        '# time.now_ns() and an "odd quote',
        'r := "time.now_ns()"',
        'r := `opa.runtime() "`',
        "r := input.time.now",
        'r := input["opa"].runtime',
        'r := object.get(input, "opa", "\\"time.now_ns()\\"")',
        "r := object.union_n([{}, {}])",
        'r := startswith(input.a, "b")',
        "# $ ' @ \u00e9",
        'r := "$ \u00e9"',
        "r if { every x in input.l { x == 1 } }",
    ],
)
def test_text_that_is_evaluated(text: str) -> None:
    assert RegoRule(policy=HEAD + text).policy.endswith(text)


@pytest.mark.parametrize(
    "members",
    [
        {"policy": ""},
        {"policy": "#" * 65_537},
        {"reference_values": {"x": 1.5}},
        {"reference_values": {"x": {"y": 1}}},
        {"reference_values": {"x": 1 << 53}},
        {"reference_values": {"x": None}},
        {"require": {"executables": []}},
        {"require": {"executables": [128]}},
        {"require": {"executables": [True]}},
        {"require": {"file_system": [2]}},
        {"other": 1},
    ],
)
def test_rules_are_strict(members: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RegoRule.model_validate({"policy": POLICY} | members)


def test_reference_values_keep_their_type() -> None:
    values = {"t": True, "f": False, "n": 0, "l": [False, 0, "0", True, 1]}
    found = RegoRule.model_validate({"policy": POLICY, "reference_values": values}).reference_values
    assert repr(found) == repr(values)


def test_digest_is_of_the_text() -> None:
    assert rule().digest != rule(POLICY + "\n").digest
    assert len(rule().digest) == 32


def test_input_of_a_td() -> None:
    given = input_document(tdx())
    body, header = given["tdx"]["quote"]["body"], given["tdx"]["quote"]["header"]
    assert (header["version"], header["tee_type"]) == ("0400", "81000000")
    assert header["vendor_id"] == "939a7233f79c4ca9940a0db3957f0607"
    assert (body["mr_td"], body["rtmr_1"]) == ("11" * 48, "22" * 48)
    assert given["report_data"] == REPORT_DATA.hex()
    assert given["init_data"] == "00" * 48
    assert given["tdx"]["td_attributes"] == {
        "debug": False,
        "septve_disable": True,
        "protection_keys": False,
        "key_locker": False,
        "perfmon": False,
    }
    assert given["tdx"]["tcb_status"] == "UpToDate"
    assert given["sealwright"]["platform"] == "tdx"
    assert "tee_tcb_svn2" not in body
    assert "mr_servicetd" in input_document(tdx(version=5))["tdx"]["quote"]["body"]
    debugged = input_document(tdx(td_attributes=bytes([1, 0, 0, 0x10, 0, 0, 0, 0])))
    assert debugged["tdx"]["td_attributes"]["debug"] is True


def test_stale_collateral_is_not_current() -> None:
    use = tdx().collateral[0]
    for other in (replace(use, stale_s=1), replace(use, digest=b"")):
        verified = replace(tdx(), collateral=(other, *tdx().collateral[1:]))
        assert input_document(verified)["tdx"]["collateral_expiration_status"] == "1"


def test_input_is_json_without_floats() -> None:
    text = json.dumps(input_document(tdx()), allow_nan=False)
    assert json.loads(text) == input_document(tdx())
