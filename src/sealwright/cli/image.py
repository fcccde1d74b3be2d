"""`sealwright image`: images of guests and containers."""

from __future__ import annotations

from sealwright.cli._group import group
from sealwright.cli.image_boot import boot, config_disk
from sealwright.cli.image_build import build, sign_disk
from sealwright.cli.image_eif import eif
from sealwright.cli.image_id_block import id_block
from sealwright.cli.image_oci import oci, oci_verify
from sealwright.cli.image_predict import predict

app = group("Build images, and say what they measure to.")


@app.callback()
def _group() -> None:
    """Build images, and say what they measure to."""


app.command("build")(build)
app.command("sign-disk")(sign_disk)
app.command("config-disk")(config_disk)
app.command("boot")(boot)
app.command("oci")(oci)
app.command("oci-verify")(oci_verify)
app.command("eif")(eif)
app.command("id-block")(id_block)
app.command("predict")(predict)
