"""`sealwright log`: exit codes and results on stdout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.tlog.support import POLICY, SIGNER, entry, filled, witness

from sealwright.cli import main
from sealwright.tlog.note import Note
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof

KEY = SIGNER.vkey.encode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    filled(tmp_path / "log", 300).close()
    return tmp_path / "log"


def _run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["log", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_show(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "show", log, "--json")
    doc = json.loads(out)
    assert (code, doc["origin"], doc["size"], doc["verified"]) == (0, SIGNER.name, 300, False)
    code, out, _ = _run(capsys, "show", log, 256)
    assert code == 0
    assert "entry 256" in out
    assert "not verified" in out
    assert json.loads(_run(capsys, "show", log, 7, "--json")[1])["text"] == "entry 7"
    assert _run(capsys, "show", log, 300)[0] == 2


def test_prove_by_index_and_by_entry(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.tlog-proof"
    assert _run(capsys, "prove", log, 42, "-o", out)[0] == 0
    assert LogProof.parse(out.read_bytes()).verify(entry(42), POLICY).index == 42
    wanted = tmp_path / "entry"
    wanted.write_bytes(entry(299))
    assert json.loads(_run(capsys, "prove", log, "--entry", wanted, "-o", out, "--json")[1])["index"] == 299
    assert LogProof.parse(out.read_bytes()).verify(entry(299), POLICY).index == 299
    wanted.write_bytes(b"never logged")
    code, _, err = _run(capsys, "prove", log, "--entry", wanted, "-o", out)
    assert code == 10
    assert "log-entry-unknown" in err
    assert _run(capsys, "prove", log, "-o", out)[0] == 2
    assert _run(capsys, "prove", log, 300, "-o", out)[0] == 2


def test_a_damaged_log_gives_no_proof(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = log / "tile/0/001.p/44"
    raw = tile.read_bytes()
    tile.write_bytes(raw[:32] + bytes(32) + raw[64:])
    out = tmp_path / "x.tlog-proof"
    assert _run(capsys, "prove", log, 256, "-o", out)[0] == 10
    assert not out.exists()


def test_verify(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "verify", log, "--key", KEY, "--json")
    doc = json.loads(out)
    assert (code, doc["verified"], doc["size"], doc["quorum"]) == (0, True, 300, "none")
    previous = tmp_path / "previous"
    shutil.copy(log / "checkpoint", previous)
    code, out, _ = _run(capsys, "verify", log, "--key", KEY, "--previous", previous)
    assert code == 0
    assert "continues the checkpoint of 300 entries" in out
    filled(tmp_path / "short", 299).close()
    code, _, err = _run(capsys, "verify", tmp_path / "short", "--key", KEY, "--previous", previous)
    assert code == 10
    assert "log-rolled-back" in err
    (log / "tile/entries/000").write_bytes(b"\0\1x")
    assert _run(capsys, "verify", log, "--key", KEY)[0] == 65
    (log / "tile/entries/000").unlink()
    code, _, err = _run(capsys, "verify", log, "--key", KEY)
    assert code == 10
    assert "log-entries-missing" in err


def test_verify_with_a_policy(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cosigner = witness(1)
    policy = tmp_path / "policy"
    policy.write_text(f"log {KEY}\nwitness w {cosigner.vkey.encode()}\nquorum w\n")
    code, _, err = _run(capsys, "verify", log, "--policy", policy)
    assert code == 10
    assert "quorum-not-met" in err
    note = Note.parse((log / "checkpoint").read_bytes())
    signatures = (*note.signatures, cosigner.sign(note.unverified_text, time_s=2**62))
    (log / "checkpoint").write_bytes(
        Note(unverified_text=note.unverified_text, signatures=signatures).encode()
    )
    LogPolicy.parse(policy.read_bytes())
    code, out, _ = _run(capsys, "verify", log, "--policy", policy, "--json")
    assert code == 0
    assert json.loads(out)["cosignatures"] == [{"witness": "witness1.example", "time": 2**62}]
    assert _run(capsys, "verify", log)[0] == 2
    assert _run(capsys, "verify", log, "--key", "nonsense")[0] == 65


def test_every_code_is_documented() -> None:
    import re

    from tests.tlog.support import ROOT

    sources = [*(ROOT / "src/sealwright/tlog").glob("*.py"), ROOT / "src/sealwright/cli/log.py"]
    text = "\n".join(path.read_text() for path in sources)
    used = set(re.findall(r'code="([a-z0-9-]+)"', text)) | {"log-entries-missing", "log-tile-missing"}
    pages = "\n".join((ROOT / f"docs/reference/errors/{page}.md").read_text() for page in ("log", "common"))
    assert used - set(re.findall(r"^\| `([a-z0-9-]+)`", pages, re.MULTILINE)) == set()
