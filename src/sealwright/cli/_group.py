"""What groups of commands share."""

from __future__ import annotations

from typing import Annotated

import typer

# Of options and arguments that name what is there.
FILE = {"exists": True, "dir_okay": False}
FOLDER = {"exists": True, "file_okay": False}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def group(text: str) -> typer.Typer:
    """Return a group of commands without Typer's own completion and markup. Args: text: its help."""
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
