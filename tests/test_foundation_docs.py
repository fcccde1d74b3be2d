"""The documentation is true: its marked examples are run, and what they print is compared."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from sealwright.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"^<!-- test -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
