"""Who is told what a broker does: an address for metrics, a webhook for refusals; and a test of the hook."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli._admin import Json
from sealwright.cli._output import emit
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SettingsError, UnavailableError

Metrics = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Serve /metrics here, to whoever reaches it; default: nowhere."),
]
EventsUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Webhook that is told of refusals, as OCSF events.")
]
EventsSecret = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Secret that events are authenticated with; mode 0600.", exists=True),
]


def watched(
    stack: ExitStack,
    directory: Path,
    metrics: str | None,
    url: str | None,
    secret: Path | None,
    log: Callable[..., None],
) -> dict[str, Any]:
    """Start what watches a broker until `stack` ends; return the options of `open_broker` for it."""
    from sealwright.broker import serve as server
    from sealwright.broker.metrics import Metrics as Counts

    counts = Counts()
    if metrics is not None:
        host, port = server.parse_listen(metrics)
        sock = stack.enter_context(server.bind(host, port))
        stack.enter_context(server.metrics_served(counts, sock))
        log("metrics", port=sock.getsockname()[1])
    options: dict[str, Any] = {"metrics": counts}
    if url is not None or secret is not None:
        sender = _sender(directory, url, secret, counts.events.add)
        stack.enter_context(sender.running())
        options["observers"] = (sender,)
    return options


def events(
    directory: Annotated[Path, typer.Argument(help="The broker's folder.")],
    url: Annotated[str, typer.Option("--events-url", metavar="URL", help="The webhook.")],
    secret: Annotated[
        Path, typer.Option("--events-secret", metavar="FILE", help="Its secret; mode 0600.", exists=True)
    ],
    as_json: Json = False,
) -> None:
    """Send one made-up refusal to a webhook, as the broker would, and say what it answered."""
    sender = _sender(directory, url, secret, lambda _: None)
    status = sender.send(
        {
            "action": "attest",
            "verdict": "refuse",
            "stage": "test",
            "code": "event-test",
            "reason": ["sent by `sealwright broker events`; nothing was refused"],
            "at": rfc3339(datetime.now(UTC).replace(microsecond=0)),
        }
    )
    if status is None or not 200 <= status < 300:
        said = "did not answer" if status is None else f"answered {status}"
        raise UnavailableError(f"the webhook {said}", code="event-refused", stage="events")
    emit({"status": status}, as_json=as_json, lines=[f"answered  {status}"])


def _sender(directory: Path, url: str | None, secret: Path | None, count: Callable[[str], None]) -> Any:
    from sealwright.broker.events import Events, Hook
    from sealwright.broker.settings import BrokerSecrets, Layout

    if url is None or secret is None:
        raise SettingsError(
            "--events-url and --events-secret go together: events without a signature could be anybody's",
            code="event-secret",
        )
    origin = BrokerSecrets.load(Layout(root=directory)).log.name
    return Events(Hook.load(url, secret), origin=origin, count=count)
