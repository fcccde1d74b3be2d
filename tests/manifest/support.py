"""Every file of the manifest through the product: the command line, and the reader of `--endorsements`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.intel.support import collateral
from tests.vector_files import vector, vector_path

from sealwright.audit.given import folder
from sealwright.cli import main
from sealwright.endorsement.roots import pinned
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import FormatError

Case = Mapping[str, Any]
CASES: dict[str, Case] = json.loads((Path(__file__).parent / "cases.json").read_text())
_HELD = ("certificates", "crls", "intel_json", "rims", "ocsp")


def verify(name: str, how: Case, work: Path) -> tuple[int, dict[str, Any]]:
    """Run `sealwright verify --json` on a file; return its exit code and what it prints."""
    options = [f"--{option}={how[option]}" for option in ("type", "at") if option in how]
    options += [f"--outage={kind}" for kind in how.get("outage", ())]
    for one in how.get("endorsements", ()):
        options += [f"--endorsements={path}" for path in served(one, work)]
    if "event_log" in how:
        options.append(f"--event-log={vector_path(how['event_log'])}")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["verify", str(vector_path(name)), *options, "--json"])
    return code, json.loads(printed.getvalue())


def served(name: str, work: Path) -> Sequence[Path]:
    """Return a file of collateral as Intel serves what is in it.

    It is the file itself, but for those of two projects that keep such pieces in a container of their own.
    """
    path = vector_path(name)
    parts = _unpacked(name)
    if parts == (path.read_bytes(),):
        return [path]
    paths = [work / f"{number}-{path.name}" for number in range(len(parts))]
    for one, part in zip(paths, parts, strict=True):
        one.write_bytes(part)
    return paths


@cache
def _unpacked(name: str) -> tuple[bytes, ...]:
    is_container = "fortanix-pcs" in name or name.endswith("tdx_endorsement.bin")
    return tuple(collateral(name)) if is_container else (vector(name),)


def found(code: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run of the command line found, in the words of a case."""
    error = said.get("error") or {}
    listed = [one["code"] for one in said.get("failures", ())]
    result = {"verdict": said["verdict"], "exit": code, "codes": sorted(set(listed))}
    if error.get("stage", "appraisal") != "appraisal":
        result["stage"] = error["stage"]
    if said.get("tcb_status"):
        result["tcb_status"] = said["tcb_status"]
    if said.get("event_log"):
        text = json.dumps(said["event_log"], sort_keys=True).encode()
        result["replay"] = hashlib.sha256(text).hexdigest()
    return result


def sorted_as(name: str) -> dict[str, Any]:
    """Return what the reader of `--endorsements` makes of a file: how many of each, or the code that refuses it."""
    try:
        held = folder(vector_path(name))
    except FormatError as exc:
        return {"holds": exc.code}
    result: dict[str, Any] = {
        "holds": {kind: len(getattr(held, kind)) for kind in _HELD if getattr(held, kind)}
    }
    known = {one.sha256: one.name for one in pinned()}
    names = [known.get(fingerprint(one)) for one in held.certificates]
    return result | ({"pinned": names} if all(names) and names else {})
