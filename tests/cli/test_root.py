"""The root command: exit codes, what is printed where, and lazy loading."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sealwright.cli import _commands, main
from sealwright.cli._failure import report
from sealwright.cli._output import emit, plain
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    CollateralError,
    FormatError,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)

SECRET = "the planted plaintext"
ERRORS = [
    (FormatError("m", code="malformed-json"), 65),
    (VerificationError("m", code="bad-signature"), 10),
    (AppraisalError([AppraisalFailure("m", code="wrong-measurement")]), 11),
    (CollateralError("m", code="stale-crl"), 12),
    (RevokedError("m", code="lease-revoked"), 13),
    (UnavailableError("m", code="no-broker"), 69),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: getattr(value, "code", value))
def test_each_error_has_its_exit_code_and_names_its_code(
    error: SealwrightError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, as_json=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: m  [{error.code}]" in err
    assert f"sealwright explain {error.code}" in err


def test_json_error_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [AppraisalFailure("is x", code="wrong-config"), AppraisalFailure("is y", code="wrong-code")]
    assert report(AppraisalError(failures), as_json=True) == 11
    out, err = capsys.readouterr()
    assert err == ""
    body = json.loads(out)["error"]
    assert body["code"] == "wrong-config"
    assert body["stage"] == "appraisal"
    assert body["failures"] == [
        {"code": "wrong-config", "message": "is x"},
        {"code": "wrong-code", "message": "is y"},
    ]


def test_every_reason_of_an_appraisal_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [AppraisalFailure("is x", code="wrong-config"), AppraisalFailure("is y", code="wrong-code")]
    report(AppraisalError(failures), as_json=False)
    err = capsys.readouterr().err
    assert "is x  [wrong-config]" in err
    assert "is y  [wrong-code]" in err


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_errors_the_gravest_counts(order: int, capsys: pytest.CaptureFixture[str]) -> None:
    errors: list[Exception] = [RevokedError("m", code="r"), VerificationError("m", code="v")]
    group = ExceptionGroup("", [ExceptionGroup("", errors[::order]), CollateralError("m", code="c")])
    assert report(group, as_json=False) == 10
    assert "[v]" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_exits_70_and_does_not_quote_the_exception(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEALWRIGHT_TRACEBACK", raising=False)
    with pytest.raises(KeyError) as caught:
        {}[SECRET]
    assert report(caught.value, as_json=as_json) == 70
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    assert "our bug: KeyError at test_root.py:" in out + err
    assert "Traceback" not in out + err


def test_a_trace_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALWRIGHT_TRACEBACK", "1")
    report(RuntimeError("why"), as_json=False)
    assert "RuntimeError: why" in capsys.readouterr().err


def test_a_typo_is_usage_and_never_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctr"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "doctr" in err
    assert main(["doctr", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_json_after_two_dashes_belongs_to_someone_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctr", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: sealwright" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sealwright 0.")


def test_untrusted_text_cannot_draw_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    emit({}, as_json=False, lines=["CN=\x1b[2J\x1b[32m genuine\nverified: yes \u202e [bold]x[/bold] :key:"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[bold]x[/bold] :key:" in out
    assert plain("✓ tab\tstays, ünïcode too") == "✓ tab\tstays, ünïcode too"


def test_json_result_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"subject": "ü"}, as_json=True, lines=["for people"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"subject": "ü"}
    assert err == ""


def test_help_imports_no_command() -> None:
    probe = (
        "import sys; from sealwright.cli import main; main(['--help'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('sealwright.')), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    cli = [f"sealwright.cli{module}" for module in ("", "._commands", "._failure", "._output")]
    assert result.stderr.strip() == str([*cli, "sealwright.errors"])


@pytest.mark.parametrize("name", _commands.COMMANDS)
def test_each_command_of_the_table_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"sealwright {name}" in capsys.readouterr().out
