"""What the collateral commands share: options, whom to ask, and how a piece is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import anyio
import typer

from sealwright.appraisal.yaml import load_yaml
from sealwright.cli._files import hex_option
from sealwright.cli._output import note
from sealwright.client.receipt_store import replace_file
from sealwright.client.trust_source import read_file
from sealwright.collateral.cache import Cache, default_folder
from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Need
from sealwright.collateral.needs import dcap_needs, google_needs, snp_needs, thim_needs
from sealwright.collateral.record import Entry, Piece
from sealwright.collateral.service import CollateralService
from sealwright.collateral.sources import Hosts
from sealwright.collateral.surroundings import Progress
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SealwrightError, SettingsError

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Where collateral is kept; default: the user's cache."),
]
HostsFile = Annotated[
    Path | None,
    typer.Option(
        "--hosts", metavar="FILE", help="YAML: hosts to ask in place of the vendors' own.", exists=True
    ),
]
Proxy = Annotated[str | None, typer.Option(metavar="URL", help="Proxy; default: HTTPS_PROXY and NO_PROXY.")]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", help="CAs to believe for TLS, in place of the system's.", exists=True),
]


@dataclass(frozen=True, slots=True)
class Levels:
    """REPORTED_TCB as typed: BL.TEE.SNP.MICROCODE[.FMC]."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @classmethod
    def typed(cls, text: str) -> Levels:
        """Return the levels of an option."""
        parts = text.split(".")
        if not 4 <= len(parts) <= 5 or not all(part.isascii() and part.isdigit() for part in parts):
            raise typer.BadParameter("wanted: BL.TEE.SNP.MICROCODE[.FMC]", param_hint="--tcb")
        return cls(*map(int, parts))


def open_cache(folder: Path | None) -> Cache:
    """Return the cache. Raises UnavailableError."""
    return Cache(folder or default_folder())


def load_hosts(file: Path | None) -> Hosts:
    """Return the hosts to ask. Raises SettingsError."""
    return Hosts() if file is None else validated(Hosts, load_yaml(read_file(file)), SettingsError)


def named_needs(texts: Iterable[str]) -> list[Need]:
    """Return the needs of `--need KIND/KEY`. Raises MessageFormatError."""
    return [Need.named(*text.partition("/")[::2]) for text in texts]


def snp_typed(product: str | None, chip_id: str | None, tcb: str | None, *, vlek: bool) -> Sequence[Need]:
    """Return what an SEV-SNP platform needs, as far as it was typed."""
    if product is None:
        raise typer.BadParameter("give --product: Milan, Genoa or Turin", param_hint="--platform snp")
    if (chip_id is None) != (tcb is None):
        raise typer.BadParameter("--chip-id and --tcb belong together")
    chip = hex_option(chip_id, 64, "--chip-id") or bytes(64)
    levels = Levels.typed(tcb) if tcb else Levels(0, 0, 0, 0)
    return snp_needs(product, chip, levels, vek="vlek" if vlek else "vcek", has_vek=chip_id is None)


def intel_typed(platform: str, fmspc: str | None, ca: str | None, update: str) -> Sequence[Need]:
    """Return what an Intel platform needs."""
    value = hex_option(None if fmspc is None else fmspc.lower(), 6, "--fmspc")
    if value is None or ca not in ("processor", "platform"):
        raise typer.BadParameter(
            "give --fmspc and --ca (processor or platform)", param_hint=f"--platform {platform}"
        )
    return dcap_needs(value, ca, "tdx" if platform == "tdx" else "sgx", update=update)


def typed_needs(platform: str, *, measurement: str | None) -> Sequence[Need]:
    """Return what the platforms need that are named by one word or a measurement."""
    if platform == "azure-snp":
        return thim_needs()
    if platform in ("google-snp", "google-tdx"):
        value = hex_option(measurement, 48, "--measurement")
        if value is None:
            raise typer.BadParameter(
                "give --measurement: MEASUREMENT or MRTD", param_hint=f"--platform {platform}"
            )
        return google_needs("tdx" if platform == "google-tdx" else "sevsnp", value)
    raise typer.BadParameter(
        "wanted: snp, sgx, tdx, azure-snp, google-snp or google-tdx", param_hint="--platform"
    )


def show_progress(event: Progress) -> None:
    """Print one event on stderr."""
    wait = f" in {event.seconds:.0f} s" if event.seconds >= 1 else ""
    note(f"{event.event:<9} {event.need}{wait}{': ' + event.text if event.text else ''}")


async def collect(
    needs: Sequence[Need], cache: Cache, fetcher: Fetcher | None, *, force: bool
) -> tuple[list[Piece], list[tuple[Need, SealwrightError]]]:
    """Return the pieces there are, and what could not be had. Kinds with queues of their own wait side by side."""
    pieces: list[Piece] = []
    failures: list[tuple[Need, SealwrightError]] = []

    async def one(need: Need) -> None:
        try:
            pieces.append(await service.get(need, fresh=True, force=force))
        except SealwrightError as exc:
            failures.append((need, exc))

    async with (
        fetcher or nullcontext(),
        CollateralService(cache, fetcher) as service,
        anyio.create_task_group() as tasks,
    ):
        for need in needs:
            tasks.start_soon(one, need)
    return sorted(pieces, key=lambda piece: piece.need), sorted(failures, key=lambda pair: pair[0])


def raise_failures(failures: Sequence[tuple[Need, SealwrightError]]) -> None:
    """Raise the first failure, after all were noted; its message says how many there are."""
    for need, error in failures:
        note(f"failed    {need}: {error}  [{error.code}]")
    if failures:
        raise failures[0][1]


def write_blobs(folder: Path, pieces: Iterable[Piece]) -> list[str]:
    """Write the blobs as files; return their names. Raises SettingsError.

    What `--endorsements DIR` does not take goes into the folder `apart` in it.
    """
    written = []
    try:
        for piece in pieces:
            into = folder if piece.need.facts.in_bag else folder / "apart"
            into.mkdir(parents=True, exist_ok=True)
            for number, blob in enumerate(piece.blobs):
                path = into / file_name(piece.need, number, blob)
                replace_file(path, blob)
                written.append(path.relative_to(folder).as_posix())
    except OSError as exc:
        raise SettingsError(f"cannot write {folder}: {exc.strerror}", code="unwritable-file") from exc
    return written


def file_name(need: Need, number: int, blob: bytes) -> str:
    """Return a name for a blob: what it is, and an ending that says its form."""
    start = blob.lstrip()[:1]
    ending = {b"{": "json", b"<": "xml", b"-": "pem", b"\x30": "der"}.get(start, "bin")
    key = "-".join(part[:16] for part in need.parts)
    return f"{need.kind}-{key}{'' if number == 0 else f'-issuer{number}'}.{ending}"


def described(piece: Piece | Entry, now: datetime) -> dict[str, object]:
    """Return a piece for programs."""
    one = piece if isinstance(piece, Piece) else piece_of_entry(piece)
    return {
        "kind": one.need.kind,
        "key": one.need.key,
        "state": one.state(now),
        "fetched": rfc3339(one.fetched),
        "issued": None if one.issued is None else rfc3339(one.issued),
        "next_update": None if one.next_update is None else rfc3339(one.next_update),
        "age_s": int(max(timedelta(0), one.age(now)).total_seconds()),
        "stale_s": int(one.stale(now).total_seconds()),
        "sha256": [digest.hex() for digest in (piece.entry() if isinstance(piece, Piece) else piece).blobs],
    }


def line_of(piece: Piece | Entry, now: datetime) -> str:
    """Return a piece for people."""
    one = piece if isinstance(piece, Piece) else piece_of_entry(piece)
    until = "for good" if one.next_update is None else f"until {rfc3339(one.next_update)}"
    return f"{one.state(now):<6} {until:<26} {one.need}"


def piece_of_entry(entry: Entry) -> Piece:
    """Return a piece without its blobs, to tell its state."""
    return Piece(
        need=entry.need(),
        blobs=(),
        fetched=entry.fetched,
        issued=entry.issued,
        next_update=entry.next_update,
    )


def utc_now() -> datetime:
    """Return the time of this machine, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
