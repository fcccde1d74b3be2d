"""The how-to is true: its example is run, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

from sealwright.appraisal.rego_text import _PURE

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_example_prints_what_the_page_says() -> None:
    pytest.importorskip("regopy", reason="the extra `rego` is not installed")
    page = (DOCS / "how-to" / "use-trustee-policies.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (wanted,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        exec(compile(code, "use-trustee-policies.md", "exec"), {})
    assert printed.getvalue() == wanted


def test_the_specification_lists_the_built_ins() -> None:
    text = (DOCS / "spec" / "rego.md").read_text("utf-8")
    listed: set[str] = set()
    for namespace, names in re.findall(r"`([a-z0-9]+)\.(\{[a-z0-9_,]+\}|\*|[a-z0-9_]+)`", text):
        every = {one.split(".")[1] for one in _PURE if one.startswith(f"{namespace}.")}
        listed |= {
            f"{namespace}.{name}" for name in (every if names == "*" else names.strip("{}").split(","))
        }
    assert listed >= _PURE
    assert not {name for name in listed if name.split(".")[0] in {one.split(".")[0] for one in _PURE}} - _PURE
