"""`sealwright collateral`: fetch, keep and carry what vendors publish about their platforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealwright.cli._collateral import (
    CacheDir,
    CaFile,
    HostsFile,
    Proxy,
    collect,
    described,
    intel_typed,
    line_of,
    load_hosts,
    named_needs,
    open_cache,
    raise_failures,
    show_progress,
    snp_typed,
    typed_needs,
    utc_now,
    write_blobs,
)
from sealwright.cli._files import read_input
from sealwright.cli._group import FILE, Json, group
from sealwright.cli._keys import load_owner_key
from sealwright.cli._output import emit, note
from sealwright.client.receipt_store import replace_file
from sealwright.client.trust_source import read_file
from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Need
from sealwright.collateral.needs import merged
from sealwright.collateral.pack import MAX_PACK, Pack
from sealwright.collateral.peek import needs_of
from sealwright.collateral.record import Piece
from sealwright.collateral.surroundings import Patience
from sealwright.crypto.encoding import b64url_decode, rfc3339
from sealwright.errors import CollateralError, SettingsError

app = group("Fetch, keep and carry what vendors publish: certificates, CRLs, TCB info, RIMs.")
Files = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE", help="Evidence to fetch collateral for.", **FILE)
]
Needs = Annotated[
    list[str] | None, typer.Option("--need", metavar="KIND/KEY", help="One piece, by its name in `list`.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Ask nobody; only the cache answers.")]


@app.command()
def fetch(
    files: Files = None,
    platform: Annotated[
        str | None,
        typer.Option(help="snp, sgx, tdx, azure-snp, google-snp, google-tdx; in place of FILE."),
    ] = None,
    product: Annotated[str | None, typer.Option(help="AMD's: Milan, Genoa, Turin.")] = None,
    chip_id: Annotated[str | None, typer.Option(metavar="HEX", help="CHIP_ID, for its VCEK.")] = None,
    tcb: Annotated[str | None, typer.Option(metavar="LEVELS", help="BL.TEE.SNP.MICROCODE[.FMC]")] = None,
    vlek: Annotated[bool, typer.Option("--vlek", help="The key is the provider's.")] = False,
    fmspc: Annotated[str | None, typer.Option(metavar="HEX", help="Of the PCK certificate.")] = None,
    ca: Annotated[str | None, typer.Option(help="processor or platform.")] = None,
    update: Annotated[str, typer.Option(help="standard, early, or a tcbEvaluationDataNumber.")] = "standard",
    measurement: Annotated[str | None, typer.Option(metavar="HEX", help="MEASUREMENT or MRTD.")] = None,
    need: Needs = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the files, as --endorsements takes them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Ask again, whatever the cache has.")] = False,
    offline: Offline = False,
    cache: CacheDir = None,
    hosts: HostsFile = None,
    proxy: Proxy = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Fetch what evidence needs into the cache. AMD gives one VCEK in ten seconds."""
    wanted = [*named_needs(need or []), *_of_files(files or [], product)]
    if platform == "snp":
        wanted += snp_typed(product, chip_id, tcb, vlek=vlek)
    elif platform in ("sgx", "tdx"):
        wanted += intel_typed(platform, fmspc, ca, update)
    elif platform is not None:
        wanted += typed_needs(platform, measurement=measurement)
    if not wanted:
        raise typer.BadParameter("give FILE, --platform or --need")
    if offline and force:
        raise typer.BadParameter("--force asks vendors, and --offline asks nobody")
    fetcher = None if offline else _fetcher(hosts, proxy, ca_file)
    _collect_and_show(merged(wanted), fetcher, cache, force=force, out=out, as_json=as_json)


@app.command()
def refresh(
    every: Annotated[bool, typer.Option("--all", help="Also what is not due yet.")] = False,
    cache: CacheDir = None,
    hosts: HostsFile = None,
    proxy: Proxy = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Ask again for everything in the cache that is due or stale."""
    now = utc_now()
    entries = [
        entry.need()
        for entry in open_cache(cache).entries()
        if every or described(entry, now)["state"] != "fresh"
    ]
    _collect_and_show(merged(entries), _fetcher(hosts, proxy, ca_file), cache, force=True, as_json=as_json)


@app.command("list")
def list_(cache: CacheDir = None, as_json: Json = False) -> None:
    """List what is in the cache, with its age. Nothing is verified."""
    now = utc_now()
    entries = list(open_cache(cache).entries())
    emit(
        {"entries": [described(entry, now) for entry in entries]},
        as_json=as_json,
        lines=[line_of(entry, now) for entry in entries] or ["the cache is empty"],
    )


@app.command("pack")
def pack_(
    out: Annotated[Path, typer.Argument(metavar="PACK", help="The file to write.")],
    files: Files = None,
    need: Needs = None,
    key: Annotated[Path | None, typer.Option(help="Sign with this key, from `owner-key new`.")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Take also what is past its next update.")] = False,
    cache: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Write a collateral pack from the cache: all of it, or what FILE and --need ask for."""
    kept = open_cache(cache)
    now = utc_now()
    wanted = merged([*named_needs(need or []), *_of_files(files or [], None)]) or [
        entry.need() for entry in kept.entries()
    ]
    pieces = [_from_cache(kept.get(one, used=False), one) for one in wanted if one.facts.kept]
    left_out = [piece for piece in pieces if piece.stale(now) and not stale]
    for piece in left_out:
        note(f"left out  {piece.need}: past its next update; `collateral refresh`, or --stale")
    pieces = [piece for piece in pieces if piece not in left_out]
    if not pieces:
        raise CollateralError("nothing to pack: fetch first", code="collateral-missing", stage="pack")
    keys = [] if key is None else [load_owner_key(key)]
    raw = Pack.of(pieces, created=max([now, *[piece.fetched for piece in pieces]]), keys=keys).encode()
    try:
        replace_file(out, raw)
    except OSError as exc:
        raise SettingsError(f"cannot write {out}: {exc.strerror}", code="unwritable-file") from exc
    result: dict[str, object] = {
        "pack": str(out),
        "bytes": len(raw),
        "signed": key is not None,
        "entries": [described(piece, now) for piece in pieces],
    }
    lines = [line_of(piece, now) for piece in pieces]
    word = "signed" if key else "NOT signed"
    emit(result, as_json=as_json, lines=[*lines, f"{out}: {len(pieces)} pieces, {len(raw)} bytes, {word}"])


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="PACK", help="A collateral pack.", **FILE)],
    signer: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Public key (base64url) that must have signed it."),
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take a pack that nobody vouches for.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check and show it; import nothing.")] = False,
    cache: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Check a collateral pack and put it into the cache. A newer piece there stays."""
    if bool(signer) == unsigned:
        raise typer.BadParameter("give either --signer or --unsigned")
    pack = Pack.parse(read_file(file, limit=MAX_PACK))
    if signer:
        pack.verify([_public_key(text) for text in signer])
    now = utc_now()
    # Nothing was fetched later than now: a date of the pack's own making must not keep newer pieces out of the cache.
    pieces = [replace(piece, fetched=min(piece.fetched, now)) for piece in pack.pieces()]
    kept = None if check else open_cache(cache)
    taken = [] if kept is None else [piece.need for piece in pieces if kept.put(piece)]
    entries = [described(piece, now) | {"imported": piece.need in taken} for piece in pieces]
    result: dict[str, object] = {
        "pack": str(file),
        "created": rfc3339(pack.manifest.created),
        "signature_checked": bool(signer),
        "entries": entries,
    }
    lines = [line_of(piece, now) for piece in pieces]
    word = "checked only" if check else f"{len(taken)} of {len(pieces)} imported, the others are not newer"
    emit(result, as_json=as_json, lines=[*lines, f"{file}: {word}"])


def _of_files(files: Sequence[Path], product: str | None) -> list[Need]:
    return [need for file in files for need in needs_of(read_input(file), product=product)]


def _fetcher(hosts: Path | None, proxy: str | None, ca_file: Path | None) -> Fetcher:
    patience = Patience(longest_queue_s=24 * 3600)  # somebody sits there and sees how long it takes
    return Fetcher(load_hosts(hosts), proxy=proxy, ca_file=ca_file, patience=patience, progress=show_progress)


def _collect_and_show(
    needs: Sequence[Need],
    fetcher: Fetcher | None,
    cache: Path | None,
    *,
    force: bool,
    as_json: bool,
    out: Path | None = None,
) -> None:
    async def run() -> list[Piece]:
        pieces, failures = await collect(needs, open_cache(cache), fetcher, force=force)
        raise_failures(failures)
        return pieces

    pieces = anyio.run(run)
    now = utc_now()
    for piece in pieces:
        if piece.stale(now):
            note(
                f"stale     {piece.need}: its next update was due, and whoever was asked serves no newer one"
            )
    result: dict[str, object] = {"entries": [described(piece, now) for piece in pieces]}
    lines = [line_of(piece, now) for piece in pieces] or ["nothing to do"]
    if out is not None:
        result["files"] = write_blobs(out, pieces)
    emit(result, as_json=as_json, lines=lines)


def _from_cache(piece: Piece | None, need: Need) -> Piece:
    if piece is None:
        raise CollateralError(
            f"{need} is not in the cache: `sealwright collateral fetch` first",
            code="collateral-missing",
            stage="pack",
        )
    return piece


def _public_key(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(b64url_decode(text, length=32, error=SettingsError))
