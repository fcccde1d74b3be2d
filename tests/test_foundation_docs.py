"""The documentation is true: its marked examples are run, and what they print is compared."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.vector_files import vector_path

from sealwright.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"^<!-- test -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_STEP = re.compile(r"^<!-- run -->\n```sh\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_EVIDENCE = "<!-- needs: real evidence -->"  # such a page finds it in the folder `evidence`
_PORTS = ("8420", "8443")  # what pages listen on; a test takes free ones
_LIMIT_S = 180


class Example(NamedTuple):
    """One command of a page, and all that it should print on stdout (`…` stands for anything)."""

    page: str
    command: str
    output: str


def examples(page: str, text: str) -> list[Example]:
    """Return the commands of the ```console blocks that `<!-- test -->` precedes."""
    found = []
    for block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(page, command, output))
    return found


EXAMPLES = [e for path in PAGES for e in examples(str(path.relative_to(ROOT)), path.read_text("utf-8"))]


class Step(NamedTuple):
    """A ```sh block that `<!-- run -->` precedes, and all it should print: the ```text block after it."""

    script: str
    output: str


def steps(text: str, ports: dict[str, str]) -> list[Step]:
    """Return the steps of a page, each listening port replaced."""
    for name, port in ports.items():
        text = text.replace(f":{name}", f":{port}")
    return [Step(script, output) for script, output in _STEP.findall(text)]


RUN = [path for path in PAGES if _STEP.search(path.read_text("utf-8"))]


def matches(wanted: str, got: str) -> bool:
    """Return whether `got` is `wanted`, where each `…` in it stands for any text."""
    pattern = ".*".join(re.escape(part) for part in wanted.strip().split("…"))
    return re.fullmatch(pattern, got.strip(), re.DOTALL) is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.page}: {example.command}")
def test_example(
    example: Example, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(example.command)
    assert program == "sealwright", "an example that is tested runs `sealwright`"
    main(arguments)
    assert matches(example.output, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(_LIMIT_S + 30)
@pytest.mark.skipif(sys.platform != "linux", reason="enclaves and brokers run on Linux")
@pytest.mark.parametrize("page", RUN, ids=lambda path: path.name)
def test_page(page: Path, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    if _EVIDENCE in text:
        evidence = vector_path("tdx/dcap-qvl/tdx_quote").parents[2]
        (tmp_path / "page").mkdir()
        shutil.copytree(evidence / "tdx/dcap-qvl", tmp_path / "page/evidence/tdx/dcap-qvl")
    wanted = steps(text, {name: str(_free_port()) for name in _PORTS})
    said, ended = run_steps(wanted, tmp_path)
    for step, got in zip(wanted, said, strict=False):
        assert matches(step.output, got), f"{step.script}\nwanted:\n{step.output}\ngot:\n{got}"
    assert (len(said), ended) == (len(wanted), 0), f"the page stopped in:\n{wanted[len(said) - 1].script}"


def run_steps(wanted: list[Step], folder: Path) -> tuple[list[str], int]:
    """Run the steps in one bash, ended by the first command that fails; return what each step printed."""
    mark = "=== the next step ==="
    script = "".join(f"{step.script}\necho '{mark}'\n" for step in wanted)
    home = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{home}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(home.parent),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    printed = folder / "printed"
    work = folder / "page"
    work.mkdir(exist_ok=True)
    with printed.open("wb") as out:
        bash = subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            bash.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            bash.kill()
            bash.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(bash.pid, signal.SIGTERM)  # servers that the page did not end
    said = printed.read_text("utf-8").split(f"{mark}\n")
    return (said if bash.returncode else said[:-1]), bash.returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_page_runner_can_fail(tmp_path: Path) -> None:
    page = (
        "<!-- run -->\n```sh\nX=1\necho $X:8420\n```\n```text\n1:9\n```\n\n<!-- run -->\n```sh\nfalse\n```\n"
    )
    wanted = steps(page, {"8420": "9"})
    assert wanted == [Step("X=1\necho $X:9\n", "1:9\n"), Step("false\n", "")]
    said, ended = run_steps(wanted, tmp_path)
    assert (said[0], ended) == ("1:9\n", 1)
    assert RUN, "no page is run"


def test_the_runner_can_fail() -> None:
    (first, second) = examples("p", "<!-- test -->\n```console\n$ sealwright a\nx … z\n$ sealwright b\n```\n")
    assert (first.command, second.output) == ("sealwright a", "")
    assert matches(first.output, "x y\n z\n")
    assert not matches(first.output, "x y")
    assert EXAMPLES, "no example is marked in any page"


def test_no_page_names_a_path_of_one_machine() -> None:
    named = [
        str(path) for path in PAGES if re.search(r"(?<![\w.])/(root|home|work)/", path.read_text("utf-8"))
    ]
    assert named == []
