"""Every error code in the source has exactly one row in the tables of docs/reference/errors/."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sealwright import errors
from sealwright.cli import main
from sealwright.cli.explain import explanations, parse

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sealwright"
EXITS = {0, 2, 10, 11, 12, 13, 65, 69, 70}


@cache
def codes() -> dict[str, set[tuple[str, int | None]]]:
    """Return each code in the source, with where it stands and the exit code of its class, if that is plain."""
    found: dict[str, set[tuple[str, int | None]]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for code, exit_code in _codes(node):
                found[code].add((str(path.relative_to(ROOT)), exit_code))
    return found


def _codes(node: ast.AST) -> Iterator[tuple[str, int | None]]:
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg == "code":
                for value in _texts(keyword.value):
                    yield value, _exit_code(node.func)
    if isinstance(node, ast.FunctionDef):
        defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        for argument, default in defaults:
            if argument.arg == "code" and default is not None:
                for value in _texts(default):
                    yield value, None


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)


def _exit_code(function: ast.expr) -> int | None:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "AppraisalFailure":
        return errors.AppraisalError.exit_code
    kind = getattr(errors, name, None)
    return kind.exit_code if isinstance(kind, type) and issubclass(kind, errors.SealwrightError) else None


def test_the_search_finds_codes() -> None:
    assert ("src/sealwright/crypto/dsse.py", 10) in codes()["bad-signature"]
    assert "malformed" in codes()


def test_every_code_in_the_source_has_a_row() -> None:
    documented = {row.code for row in explanations()}
    missing = {
        code: sorted(path for path, _ in found) for code, found in codes().items() if code not in documented
    }
    assert missing == {}


def test_no_code_has_two_rows() -> None:
    counted = Counter(row.code for row in explanations())
    assert [code for code, number in counted.items() if number > 1] == []


@pytest.mark.parametrize("row", explanations(), ids=lambda row: row.code)
def test_a_row_is_complete_and_its_exit_code_is_the_one_that_is_raised(row: object) -> None:
    assert row.cause
    assert row.fix
    assert row.who
    # A dash: seen only on the wire, where no command ends with it.
    assert row.exit == "–" or int(row.exit) in EXITS
    raised = {str(exit_code) for _, exit_code in codes().get(row.code, ()) if exit_code is not None}
    assert raised <= {row.exit}


def test_a_table_is_read_with_pipes_and_without_other_tables() -> None:
    page = "| a | b |\n|---|---|\n| x | y |\n\n| code | exit | cause | fix | who |\n|---|---|---|---|---|\n"
    (row,) = parse(page + "| `c` | 65 | a \\| b | f | w |\n")
    assert (row.code, row.exit, row.cause) == ("c", "65", "a | b")
    with pytest.raises(ValueError, match="3 cells"):
        parse(page + "| `c` | 65 | too few |\n")


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "bad-signature"]) == 0
    assert "exit code 10" in capsys.readouterr().out
    assert main(["explain", "bad-signatur"]) == 2
    assert "did you mean bad-signature" in capsys.readouterr().err
