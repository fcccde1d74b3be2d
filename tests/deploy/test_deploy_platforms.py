"""The recipes: policies that are read, tests that are there, and no claim that nobody has proved."""

from __future__ import annotations

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from sealwright.appraisal.policy import KeyPolicy
from sealwright.cli._commands import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "platforms"
RECIPES = sorted(
    set(PAGES.glob("*.md")) - {PAGES / name for name in ("index.md", "identity.md", "validated.md")}
)
_POLICY = re.compile(r"^<!-- policy: ([\w, -]+) -->\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[ /($])sealwright ((?:[a-z$-][\w./$*-]*)(?: [^|;&<>#)]*)?)")
_VALUES = {"MRTD": 48, "RTMR1": 48, "RTMR2": 48, "MEASUREMENT": 48, "PCR": 32, "ROOT": 32, "CODE": 32}
_HEAD = """\
format: sealwright-policy/v1
version: 1
created: "2026-01-01T00:00:00Z"
expires: "2026-01-01T12:00:00Z"
lease_s: 600
config: {digests: ["DIGEST"]}
"""
POLICIES = [
    (page.name, names, text) for page in RECIPES for names, text in _POLICY.findall(page.read_text("utf-8"))
]


def policy(names: str, text: str) -> KeyPolicy:
    """Return the policy of a page, its placeholders filled."""
    lengths = {**_VALUES, **({"PCR": 48} if names == "nitro" else {})}
    for name, length in lengths.items():
        text = text.replace(f'"{name}"', f'"{"5e" * length}"')
    return KeyPolicy.load((_HEAD.replace("DIGEST", "c0" * 32) + text).encode())


@pytest.mark.parametrize(
    ("page", "names", "text"), POLICIES, ids=lambda value: value if ".md" in value else ""
)
def test_every_policy_of_a_recipe_is_read(page: str, names: str, text: str) -> None:
    made = policy(names, text)
    named = {name.strip() for name in names.split(",")}
    platforms = set(made.to_json()["platforms"])
    assert {"tpm" if name == "vtpm" else name for name in platforms} == named, page
    assert made.require_hardware is (named != {"software"})


def test_a_policy_with_a_fault_is_not_read() -> None:
    _, names, text = POLICIES[0]
    with pytest.raises(Exception, match="unheard"):
        policy(names, text.replace("config_register", "unheard_register"))


def test_every_platform_has_a_policy_somewhere() -> None:
    named = {name.strip() for _, names, _ in POLICIES for name in names.split(",")}
    assert named >= {"software", "snp", "tdx", "tpm", "nitro", "az-snp-vtpm", "az-tdx-vtpm"}


@pytest.mark.parametrize("page", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_what_nobody_has_tried(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "**Untested on hardware" in "\n".join(text.splitlines()[:4])
    for heading in ("## Known troubles", "xpected"):
        assert heading in text, heading
    assert re.search(r"\]\(https://", text)


def test_xml_is_xml() -> None:
    text = (PAGES / "bare-metal.md").read_text("utf-8")
    found = re.findall(r"^```xml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [ElementTree.fromstring(one).tag for one in found] == ["domain", "launchSecurity"]


def test_a_validated_configuration_names_a_stored_report() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (PAGES / "validated.md").read_text("utf-8").splitlines()
        if line.startswith("|")
    ][2:]
    for row in rows:
        report = ROOT / "tests" / "reports" / row[-1].strip("`")
        assert (report / "evidence.json").exists(), row
        verified = json.loads((report / "verify.json").read_text())
        assert verified["verdict"] == "genuine", row


@cache
def _tests() -> dict[str, set[str]]:
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = {
            node.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        found[str(path.relative_to(ROOT / "tests"))] = names
    return found


def test_every_test_that_the_identity_page_names_is_there() -> None:
    text = (PAGES / "identity.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    assert [(file, name) for file, name in named if name not in _tests().get(file, set())] == []


def test_every_cell_of_the_identity_page_is_shown_or_says_why_not() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (PAGES / "identity.md").read_text("utf-8").splitlines()
        if line.startswith("|") and not line.startswith(("|--", "| platform"))
    ]
    assert len(rows) == 10
    for platform, *cells in rows:
        assert len(cells) == 3
        for cell in cells:
            assert "::" in cell or "not shown" in cell or cell == "–", platform
            if "not shown" in cell:
                assert re.search(r"not shown[^:]*: \w", cell), f"{platform}: why?"


def commands(page: Path) -> list[list[str]]:
    """Return the words of every `sealwright …` in the sh blocks of a page."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        text = re.sub(r"\\\n", " ", block)
        for line in text.splitlines():
            if not re.search(r"\b(helm|kubectl|namespace)\b", line):  # there it is a release's name
                found += [shlex.split(part, comments=True) for part in _COMMAND.findall(line)]
    return found


@pytest.mark.parametrize("page", [*RECIPES, ROOT / "docs/how-to/deploy.md"], ids=lambda path: path.name)
def test_every_command_of_a_page_exists(page: Path) -> None:
    for words in commands(page):
        command: Any = load(words.pop(0))
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, words


def test_commands_are_found() -> None:
    found = [words[:2] for page in [*RECIPES, ROOT / "docs/how-to/deploy.md"] for words in commands(page)]
    assert found.count(["image", "predict"]) >= 6
    assert ["image", "oci-verify"] in found
    assert ["enclave", "measure"] in found


def test_the_chart_values_on_a_page_are_yaml() -> None:
    text = (PAGES / "kata.md").read_text("utf-8")
    (values,) = re.findall(r"<<'END'\n(.*?)^END$", text, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(values)["enclaves"]["chat"]["runtimeClassName"] == "kata-qemu-snp"
