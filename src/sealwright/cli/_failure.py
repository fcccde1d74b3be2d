"""How a command ends when it fails: one line of reason, a code, an exit code that never changes meaning."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from sealwright.cli._output import note
from sealwright.errors import AppraisalError, AppraisalFailure, SealwrightError

USAGE = 2
OUR_BUG = 70
_ORDER = (65, 10, 13, 12, 11)  # DESIGN section 10: where several hold, the first of these


def report(error: BaseException, *, as_json: bool) -> int:
    """Print why the command failed, and return its exit code.

    People read stderr; with `as_json` a program reads one JSON object on stdout.
    """
    if isinstance(error, BaseExceptionGroup) and (found := _first(error)):
        others = [one for one in _leaves(error) if isinstance(one, SealwrightError) and one is not found]
        return _expected(found, as_json=as_json, others=others)
    if isinstance(error, SealwrightError):
        return _expected(error, as_json=as_json)
    return _bug(error, as_json=as_json)


def report_usage(error: typer.TyperException, *, as_json: bool) -> int:
    """Print what was wrong with the command line, and return exit code 2."""
    message = error.format_message()
    if as_json:
        _print_json("usage", "arguments", message, [])
        return USAGE
    context = getattr(error, "ctx", None)
    if context is not None and not message.startswith("Usage:"):
        typer.echo(context.get_usage(), err=True)
        message = f"error: {message}  [usage]\nmore:  {context.command_path} --help"
    typer.echo(message, err=True)
    return USAGE


def _expected(error: SealwrightError, *, as_json: bool, others: Sequence[SealwrightError] = ()) -> int:
    failures: list[SealwrightError | AppraisalFailure]
    failures = [*error.failures] if isinstance(error, AppraisalError) else []
    if others:
        failures = [error, *others]
    if as_json:
        listed = [{"code": failure.code, "message": str(failure)} for failure in failures]
        _print_json(error.code, error.stage, str(error), listed)
        return error.exit_code
    for line in error.lines():
        note(line)
    for other in others:
        note(f"also:  {other}  [{other.code}]")
    return error.exit_code


def _bug(error: BaseException, *, as_json: bool) -> int:
    # The text of an unexpected exception can quote keys or plaintext: name only its kind and place.
    message = f"internal error, our bug: {type(error).__name__} at {_place(error)}"
    if os.environ.get("SEALWRIGHT_TRACEBACK") == "1":
        traceback.print_exception(error)
    if as_json:
        _print_json("internal-error", "internal", message, [])
    else:
        note(f"error: {message}  [internal-error]")
        note("more:  SEALWRIGHT_TRACEBACK=1 shows the trace (read it before you send it to anyone)")
    return OUR_BUG


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _first(group: BaseExceptionGroup[BaseException]) -> SealwrightError | None:
    found = [error for error in _leaves(group) if isinstance(error, SealwrightError)]
    rank = {code: index for index, code in enumerate(_ORDER)}
    return min(found, key=lambda error: rank.get(error.exit_code, len(_ORDER)), default=None)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _print_json(code: str, stage: str, message: str, failures: list[dict[str, str]]) -> None:
    body = {"code": code, "stage": stage, "message": message, "failures": failures}
    typer.echo(json.dumps({"error": body}, indent=2))
