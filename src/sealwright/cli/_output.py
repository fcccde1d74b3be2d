"""What a command prints: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer


def emit(result: dict[str, object], *, as_json: bool, lines: Sequence[str]) -> None:
    """Print a command's result on stdout.

    Args:
        result: the result for programs, JSON types only.
        as_json: print `result` as one JSON object instead of `lines`.
        lines: the result for people, one item a line.
    """
    if as_json:
        # ASCII escapes: readable whatever the encoding of the terminal or pipe is.
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    for line in lines:
        typer.echo(plain(line))


def note(line: str) -> None:
    """Print one line for people on stderr: progress, hints, warnings."""
    typer.echo(plain(line), err=True)


def plain(line: str) -> str:
    """Return `line` with control characters escaped.

    Names in evidence are chosen by others: an escape sequence or line break in one could draw a
    false verdict on the terminal.
    """
    return "".join(char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in line)
