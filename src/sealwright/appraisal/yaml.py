"""Settings written by people: YAML without its surprises.

Plain mappings, lists and scalars only: no tags, anchors, duplicate keys; dates, `off`, `017`, `1:30` stay text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from sealwright.errors import SettingsError

MAX_YAML = 256 * 1024  # bytes


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses tags, anchors and duplicate keys; all is text but null, true, false, decimals."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise SettingsError("YAML anchors and aliases are not accepted", code="yaml-alias")
        if getattr(event, "tag", None) is not None:
            raise SettingsError("YAML tags are not accepted", code="yaml-tag")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys):
            raise SettingsError("YAML keys must be text", code="yaml-key")
        if len(set(keys)) != len(keys):
            raise SettingsError("a YAML key stands twice", code="duplicate-key")
        return super().construct_mapping(node, deep=deep)


for _name, _form, _first in (
    ("null", r"(?:~|null)?", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"0|-?[1-9][0-9]*", list("-0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), _first)


def load_yaml(raw: bytes) -> dict[str, Any]:
    """Return the mapping in `raw`.

    Raises:
        SettingsError: too large, not UTF-8, not a mapping, or YAML's surprises.
    """
    if len(raw) > MAX_YAML:
        raise SettingsError(f"{len(raw)} bytes are over the limit of {MAX_YAML}", code="too-large")
    try:
        value = yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(value, ensure_ascii=False).encode()  # escapes can write half of a surrogate pair
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as exc:
        raise SettingsError(f"not YAML ({type(exc).__name__})", code="malformed-yaml") from None
    if not isinstance(value, dict):
        raise SettingsError("the file is not a mapping", code="malformed-yaml")
    return value
