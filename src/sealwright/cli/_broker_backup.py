"""`sealwright broker backup` and `restore`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._admin import Json
from sealwright.cli._broker_options import DatabaseFile, Holder, Witnesses
from sealwright.cli._output import emit
from sealwright.crypto.encoding import rfc3339
from sealwright.sealing.files import io_errors

Directory = Annotated[Path, typer.Argument(help="The broker's folder.")]


def backup(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the backup goes; it must not exist.")],
    database: DatabaseFile = None,
    as_json: Json = False,
) -> None:
    """Write rows, log and openings to one file, encrypted; the broker may work on. Its keys are not in it."""
    from sealwright.broker.backup import back_up
    from sealwright.broker.restore import open_source
    from sealwright.broker.settings import Layout

    with (
        open_source(Layout(root=directory), database) as source,
        io_errors("unwritable-file", f"cannot write {out.name}"),
        open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
    ):
        manifest = back_up(source, file, at=datetime.now(UTC).replace(microsecond=0))
        file.flush()
        os.fsync(file.fileno())
    lines = [f"backup  {out}", f"epoch   {manifest.epoch}", f"of      {rfc3339(manifest.created)}"]
    emit({"file": str(out), "backup": manifest.to_json()}, as_json=as_json, lines=lines)


def restore(
    file: Annotated[Path, typer.Argument(help="The backup.", exists=True)],
    directory: Annotated[Path, typer.Argument(help="Folder with the broker's keys/ and settings.json.")],
    holder: Holder = None,
    witness: Witnesses = None,
    database: DatabaseFile = None,
    new_log: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGIN", help="Lose what came after the backup, and begin another log with its rows."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a backup back, where nothing was decided since; holders say whether. Else only into a new log."""
    from sealwright.broker.restore import restore_exactly, restore_into_new_log
    from sealwright.broker.settings import Layout
    from sealwright.broker.storage import claimed

    layout = Layout(root=directory)
    held = {"holder": holder, "witnesses": witness or ()}
    with file.open("rb") as source, claimed(database) as shared:
        if new_log is None:
            manifest = restore_exactly(source, layout, shared, **held)
        else:
            manifest = restore_into_new_log(source, layout, shared, origin=new_log, **held, new_holder=True)
    lines = [f"restored  epoch {manifest.epoch}, of {rfc3339(manifest.created)}"]
    emit({"backup": manifest.to_json(), "new_log": new_log}, as_json=as_json, lines=lines)
