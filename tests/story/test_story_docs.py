"""The page of attacks is what the demo and the tests do."""

from __future__ import annotations

import re

from tests.story.support import PAGE, ROOT, TESTED, rows

from sealwright.cli.explain import explanations


def test_the_page_shows_every_attack_and_no_other() -> None:
    table = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    assert table == rows(), "write into the page:\n" + "\n".join(rows())


def test_every_named_test_is_there() -> None:
    for _, where in TESTED.values():
        file, _, name = where.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / "story" / file).read_text(), re.MULTILINE)


def test_every_code_is_explained_with_its_exit_code() -> None:
    known: dict[str, set[str]] = {}
    for row in explanations():
        known.setdefault(row.code, set()).add(row.exit)
    for line in rows()[2:]:
        _, _, by, code, exit_code, _ = (cell.strip() for cell in line.split("|")[:6])
        if exit_code != "–":
            assert exit_code in known[code.strip("`")], (by, code)
