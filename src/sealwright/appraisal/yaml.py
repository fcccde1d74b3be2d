"""Settings written by people: YAML without its surprises.

Plain mappings, lists and scalars only: no tags, anchors, duplicate keys or dates turned into objects.
"""

from __future__ import annotations

from typing import Any

import yaml

from sealwright.errors import SettingsError

MAX_YAML = 256 * 1024  # bytes


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases and duplicate keys and leaves times as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise SettingsError("YAML anchors and aliases are not accepted", code="yaml-alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys):
            raise SettingsError("YAML keys must be text", code="yaml-key")
        if len(set(keys)) != len(keys):
            raise SettingsError("a YAML key stands twice", code="duplicate-key")
        return super().construct_mapping(node, deep=deep)


def load_yaml(raw: bytes) -> dict[str, Any]:
    """Return the mapping in `raw`.

    Raises:
        SettingsError: too large, not UTF-8, not a mapping, or YAML's surprises.
    """
    if len(raw) > MAX_YAML:
        raise SettingsError(f"{len(raw)} bytes are over the limit of {MAX_YAML}", code="too-large")
    try:
        value = yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as exc:
        raise SettingsError(f"not YAML ({type(exc).__name__})", code="malformed-yaml") from None
    if not isinstance(value, dict):
        raise SettingsError("the file is not a mapping", code="malformed-yaml")
    return value
