"""Which Rego text may be evaluated at all: no clock, chance, environment or network. Spec: docs/spec/rego.md, "Text".

The engine has built-ins that answer differently each time or tell of the machine (`time.now_ns`, `opa.runtime`). Whoever
reads a policy should not have to look for them, so a name of the built-ins' namespaces is refused unless it is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_POLICY = 64 * 1024  # characters
_NAMESPACES = frozenset(
    [
        "array",
        "base64",
        "base64url",
        "bits",
        "crypto",
        "glob",
        "graph",
        "graphql",
        "hex",
        "http",
        "internal",
        "io",
        "json",
        "net",
        "numbers",
        "object",
        "opa",
        "providers",
        "rand",
        "regex",
        "semver",
        "strings",
        "time",
        "units",
        "urlquery",
        "uuid",
        "yaml",
    ]
)
_PURE = frozenset(
    [
        "array.concat",
        "array.reverse",
        "array.slice",
        "base64.decode",
        "base64.encode",
        "base64.is_valid",
        "base64url.decode",
        "base64url.encode",
        "bits.and",
        "bits.lsh",
        "bits.negate",
        "bits.or",
        "bits.rsh",
        "bits.xor",
        "crypto.sha256",
        "hex.decode",
        "hex.encode",
        "json.filter",
        "json.is_valid",
        "json.marshal",
        "json.remove",
        "json.unmarshal",
        "object.filter",
        "object.get",
        "object.keys",
        "object.remove",
        "object.subset",
        "object.union",
        "object.union_n",
        "regex.is_valid",
        "regex.match",
        "regex.split",
        "semver.compare",
        "semver.is_valid",
        "strings.any_prefix_match",
        "strings.any_suffix_match",
        "strings.reverse",
    ]
)
_BARE = frozenset({"print", "trace", "walk", "with"})  # `with` can put one function in another's place
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"|`[^`]*`|#[^\n]*|[A-Za-z_][A-Za-z0-9_]*|\s+|.', re.DOTALL)
_PUNCTUATION = frozenset("()[]{}.,:;=<>!+-*/%&|")  # no `$`: what stands in a template string is evaluated
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def check_text(policy: str) -> str:
    """Return `policy`, proved to use listed built-ins alone.

    Raises:
        ValueError: a character that Rego needs not, a quote without its end, or a built-in that is not listed.
    """
    if _CONTROL.search(policy):
        raise ValueError("the policy has a control character")
    tokens = [token for token in _TOKEN.findall(policy) if not token.isspace() and token[0] != "#"]
    for token in tokens:
        if not token[0].isalnum() and token[0] not in '_"`' and token not in _PUNCTUATION:
            raise ValueError(f"the policy has `{token}` outside texts and comments")
        if token in ('"', "`") or not token[0].isascii():
            raise ValueError(
                "the policy has a quote without its end, or a letter that is not ASCII outside texts"
            )
    for name in _names(tokens):
        if name in _BARE or (name.split(".")[0] in _NAMESPACES and name not in _PURE):
            raise ValueError(f"the policy uses `{name}`, which is not among the built-ins admitted here")
    return policy


def _names(tokens: Sequence[str]) -> Iterator[str]:
    """Yield every name with what follows it after dots; not what only follows a dot or bracket itself."""
    for place, token in enumerate(tokens):
        if not (token[0].isalpha() or token[0] == "_") or (place and tokens[place - 1] == "."):
            continue
        name, next_ = token, place + 1
        while tokens[next_ : next_ + 1] == ["."]:
            name += "." + "".join(tokens[next_ + 1 : next_ + 2])
            next_ += 2
        yield name
