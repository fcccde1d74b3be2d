"""`sealwright image`: guest images."""

from __future__ import annotations

import typer

from sealwright.cli.image_eif import eif
from sealwright.cli.image_id_block import id_block
from sealwright.cli.image_predict import predict

app = typer.Typer(
    help="Build guest images, and say what they measure to.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Build guest images, and say what they measure to."""


app.command("eif")(eif)
app.command("id-block")(id_block)
app.command("predict")(predict)
