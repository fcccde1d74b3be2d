"""The command line: `sealwright`. One module a command, imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from sealwright import __version__
from sealwright.cli._commands import LazyGroup
from sealwright.cli._failure import report, report_usage

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/reference/cli.md).

    Args:
        argv: the arguments, without the program's name; default: those of this process.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args[: args.index("--")] if "--" in args else "--json" in args
    try:
        code = _root()(args or ["--help"], prog_name="sealwright", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return 130
    except typer.TyperException as exc:
        return report_usage(exc, as_json=as_json)
    except Exception as exc:  # noqa: BLE001 - the one place that turns any failure into an exit code
        return report(exc, as_json=as_json)


def _root() -> Callable[..., object]:
    app = typer.Typer(cls=LazyGroup, rich_markup_mode=None)
    app.callback()(_options)
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sealwright {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Confidential computing for AI: seal, attest, release keys, serve, and prove it offline.

    Every command has --json. Results are on stdout, the rest on stderr. Exit codes: 0 done, 2 usage,
    10 not genuine, 11 not allowed, 12 stale or missing collateral, 13 revoked, 65 malformed,
    69 unavailable, 70 our bug.
    """
