"""The commands of the pages exist, with the options that they are given; actions are pinned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sealwright.cli._commands import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docs/how-to/release.md", "docs/how-to/roll-out-a-build.md"]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = {"release", "rollout", "log"}


def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        for block in _BLOCK.findall((ROOT / page).read_text("utf-8")):
            for line in (
                block.replace("\\\n", " ")
                .replace("$B", "--broker U --token-file F")
                .replace("$S", "--key K --log L --log-key F --operator N")
                .splitlines()
            ):
                words = shlex.split(line, comments=True)
                if words[:1] == ["sealwright"] and words[1] in OURS:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_page_uses_options_that_there_are(words: list[str]) -> None:
    group = load(words[0])
    command = group.commands[words[1]]  # type: ignore[union-attr]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
    assert given <= known
    required = {
        param.opts[0] for param in command.params if param.required and param.opts[0].startswith("--")
    }
    assert required <= given


def test_the_pages_have_commands() -> None:
    assert {tuple(words[:2]) for words in commands()} >= {("release", "verify"), ("rollout", "retire")}


def test_every_action_is_pinned_by_commit_and_no_job_has_more_than_it_needs() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", one) for one in used)
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert text.count("id-token: write") == 1
    # Nothing that others choose is put into a shell.
    for run in re.findall(r"run: \|?(.*?)(?=\n      - |\n\n|\Z)", text, re.DOTALL):
        assert "${{" not in run
