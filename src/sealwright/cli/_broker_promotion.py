"""`sealwright broker promotion`: what approvers sign so that another site writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._admin import Json, read_bytes
from sealwright.cli._keys import load_owner_key
from sealwright.cli._output import emit
from sealwright.cli._signing import KeyFiles, Out, write_new
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SettingsError

app = typer.Typer(
    help="Approve that a standby becomes the site that writes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("new")
def new(
    site: Annotated[str, typer.Argument(help="The site that is to write.")],
    broker_root: Annotated[str, typer.Option(help="The broker's root, base64url.")],
    log_key: Annotated[str, typer.Option(help="The broker's log key.")],
    checkpoint: Annotated[
        Path,
        typer.Option(help="The newest checkpoint that a holder has: what must not be lost.", exists=True),
    ],
    term: Annotated[int, typer.Option(min=1, help="One more than the last; 1 names the first site.")],
    approver: Annotated[
        list[str], typer.Option(help="Public key (base64url) that approves the next; again.")
    ],
    key: KeyFiles,
    out: Out,
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many approvers the next one needs.")] = 2,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How long it may be used.")] = 24,
    as_json: Json = False,
) -> None:
    """Write a promotion and sign it. Every approver looks at it before signing too: `promotion sign`."""
    from sealwright.broker.site import Promotion
    from sealwright.tlog.policy import LogPolicy

    head = LogPolicy.of_key(log_key).verify(read_bytes(checkpoint)).checkpoint
    now = datetime.now(UTC)
    said = Promotion.from_json(
        {
            "root": broker_root,
            "site": site,
            "term": term,
            "signers": {"keys": approver, "threshold": threshold},
            "log_size": head.size,
            "log_root": head.root.hex(),
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(hours=hours)),
        },
        error=SettingsError,
    )
    envelope = Envelope.sign(Promotion.PAYLOAD_TYPE, said.encode(), *map(load_owner_key, key))
    write_new(out, envelope.encode())
    _show(envelope, out, as_json)


@app.command("sign")
def sign(
    file: Annotated[Path, typer.Argument(help="The promotion.", exists=True)],
    key: KeyFiles,
    out: Out,
    as_json: Json = False,
) -> None:
    """Add signatures to a promotion, after showing what it says."""
    from sealwright.broker.site import Promotion

    before = Envelope.parse(read_bytes(file), error=SettingsError)
    Promotion.parse(before.unverified_payload, error=SettingsError)
    more = Envelope.sign(before.payload_type, before.unverified_payload, *map(load_owner_key, key))
    envelope = Envelope(
        payload_type=before.payload_type,
        unverified_payload=before.unverified_payload,
        signatures=(*before.signatures, *more.signatures),
    )
    write_new(out, envelope.encode())
    _show(envelope, out, as_json)


def _show(envelope: Envelope, out: Path, as_json: bool) -> None:
    from sealwright.broker.site import Promotion

    said = Promotion.parse(envelope.unverified_payload)
    lines = [
        f"file        {out}",
        f"site        {said.site}, from term {said.term}",
        f"log         at least {said.log_size} entries, root {said.log_root.hex()}",
        f"in force    {rfc3339(said.created)} to {rfc3339(said.expires)}",
        f"next needs  {said.signers.threshold} of {len(said.signers.keys)} approvers",
        f"signatures  {len(envelope.signatures)}",
    ]
    result: dict[str, object] = {"file": str(out), "promotion": said.to_json()}
    emit({**result, "signatures": len(envelope.signatures)}, as_json=as_json, lines=lines)
