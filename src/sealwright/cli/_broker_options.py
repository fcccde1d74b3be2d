"""Options that several commands of `sealwright broker` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Holder = Annotated[
    Path | None, typer.Option(help="File kept elsewhere with the highest checkpoint: shows rollbacks.")
]
Witnesses = Annotated[
    list[str] | None,
    typer.Option(
        "--witness", metavar="VKEY@URL", help="A witness that holds the highest checkpoint; again for more."
    ),
]
DatabaseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File with the postgresql:// address that several replicas share; mode 0600."
    ),
]
