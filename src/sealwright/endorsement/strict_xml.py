"""A small, strict reader of XML, and its canonical form (C14N 1.1, inclusive, without comments).

Read is what signed RIM files need: elements, attributes, namespaces, text. DTDs, entities of one's own, comments,
processing instructions, CDATA sections and `xml:` attributes are refused, so that no reader can see another document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from xml.parsers import expat

from sealwright.errors import EvidenceFormatError

MAX_XML = 256 * 1024  # bytes
MAX_DEPTH = 8
MAX_ELEMENTS = 4096
MAX_NAMESPACES = 16  # in force at one element
MAX_ATTRIBUTES = 64  # of one element, namespace declarations included
_NAME = re.compile(r"(?:([A-Za-z_][\w.-]*):)?([A-Za-z_][\w.-]*)", re.ASCII)
QName = tuple[str, str]  # namespace and local name
_URI = re.compile(r"[!#$%()*+,./0-9:;=?@A-Z\[\]_a-z~-]*", re.ASCII)
_TEXT = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("\r"): "&#xD;"}
_VALUE = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord('"'): "&quot;",
    ord("\t"): "&#x9;",
    ord("\n"): "&#xA;",
    ord("\r"): "&#xD;",
}


@dataclass(slots=True, eq=False)
class Element:
    """One element. `name` and the keys of `written` are as in the file, with their prefix."""

    name: str
    tag: QName
    attributes: Mapping[
        QName, str
    ]  # without namespace declarations; those without a prefix are in no namespace
    written: Mapping[QName, str]  # the attributes' names
    scope: Mapping[str, str]  # prefix to namespace, as in force here; "": the default
    children: list[Element | str] = field(default_factory=list)

    @property
    def elements(self) -> list[Element]:
        """The children that are elements; text between them has to be white space.

        Raises:
            EvidenceFormatError: `malformed-xml`.
        """
        if any(isinstance(child, str) and child.strip(" \t\r\n") for child in self.children):
            _refuse(f"text between the elements of {self.name}")
        return [child for child in self.children if isinstance(child, Element)]

    @property
    def text(self) -> str:
        """The text of an element that has no elements.

        Raises:
            EvidenceFormatError: `malformed-xml`.
        """
        if any(isinstance(child, Element) for child in self.children):
            _refuse(f"elements in {self.name}, which holds text")
        return "".join(child for child in self.children if isinstance(child, str))


def parse_xml(raw: bytes) -> Element:
    """Return the root of the document in `raw`, which is UTF-8.

    Raises:
        EvidenceFormatError: `malformed-xml`, `too-large`, `too-deep`.
    """
    if len(raw) > MAX_XML:
        raise EvidenceFormatError(f"XML of {len(raw)} bytes is over {MAX_XML}", code="too-large")
    if not raw.startswith(b"<"):
        _refuse("no element at the start")
    builder = _Builder()
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    parser.XmlDeclHandler = _declaration
    for handler in _FORBIDDEN:
        setattr(parser, handler, _forbidden(handler))
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as exc:
        raise EvidenceFormatError(f"not XML: {expat.ErrorString(exc.code)}", code="malformed-xml") from None
    if builder.root is None:
        _refuse("no element")
    return builder.root


def canonical_xml(element: Element, *, without: Element | None = None) -> bytes:
    """Return the canonical form of `element` as the apex of a subtree, namespaces in force there included.

    Args:
        without: an element below it that is left out with all it holds (the enveloped signature).
    """
    return "".join(_canonical(element, {}, without)).encode()


_FORBIDDEN = (
    "StartDoctypeDeclHandler",
    "EntityDeclHandler",
    "ExternalEntityRefHandler",
    "SkippedEntityHandler",
    "UnparsedEntityDeclHandler",
    "NotationDeclHandler",
    "CommentHandler",
    "ProcessingInstructionHandler",
    "StartCdataSectionHandler",
)


class _Builder:
    """Builds the tree from expat's events, within the limits."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._elements = 0

    def start(self, name: str, pairs: list[str]) -> None:
        """A start tag, with names and values in turn."""
        self._elements += 1
        if len(self._open) >= MAX_DEPTH or self._elements > MAX_ELEMENTS or len(pairs) > 2 * MAX_ATTRIBUTES:
            raise EvidenceFormatError("XML with too many levels, elements or attributes", code="too-deep")
        element = _element(name, pairs, self._open[-1].scope if self._open else {})
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, name: str) -> None:
        """An end tag."""
        self._open.pop()

    def characters(self, data: str) -> None:
        """Text, in pieces that belong together."""
        self._open[-1].children.append(data)


def _element(name: str, pairs: list[str], outer: Mapping[str, str]) -> Element:
    found = dict(zip(pairs[::2], pairs[1::2], strict=True))
    declared = {_prefix(key, value): value for key, value in found.items() if key.startswith("xmlns")}
    scope = {**outer, **declared} if declared else outer
    if len(scope) > MAX_NAMESPACES:
        raise EvidenceFormatError("XML with too many namespaces", code="too-deep")
    written = {_resolve(key, scope, default=False): key for key in found if not key.startswith("xmlns")}
    if len(written) + len(declared) != len(found):
        _refuse(f"an attribute of {name} stands twice")
    attributes = {qname: found[key] for qname, key in written.items()}
    return Element(name, _resolve(name, scope, default=True), attributes, written, scope)


def _prefix(key: str, value: str) -> str:
    """Return the prefix that an attribute `xmlns` or `xmlns:…` declares."""
    if not _URI.fullmatch(value):  # others are written differently by different libraries
        _refuse("a namespace that is not a plain URI")
    if key == "xmlns":
        return ""
    prefix = key.removeprefix("xmlns:")
    if prefix == key or not value or prefix.startswith("xml") or not _NAME.fullmatch(prefix) or ":" in prefix:
        _refuse(f"a namespace declaration {key} that is not allowed")
    return prefix


def _resolve(name: str, scope: Mapping[str, str], *, default: bool) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        _refuse("a name that is not an ASCII name")
    prefix, local = match[1] or "", match[2]
    if not prefix:
        return scope.get("", "") if default else "", local
    if prefix not in scope:
        _refuse(f"the prefix {prefix} is not declared")
    return scope[prefix], local


def _canonical(element: Element, rendered: Mapping[str, str], without: Element | None) -> Iterator[str]:
    yield f"<{element.name}"
    for prefix, uri in sorted(element.scope.items()) if element.scope is not rendered else ():
        if rendered.get(prefix, "") != uri:
            yield f' {"xmlns:" + prefix if prefix else "xmlns"}="{uri.translate(_VALUE)}"'
    for qname, name in sorted(element.written.items()):
        yield f' {name}="{element.attributes[qname].translate(_VALUE)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield child.translate(_TEXT)
        elif child is not without:
            yield from _canonical(child, element.scope, without)
    yield f"</{element.name}>"


def _declaration(version: str, encoding: str | None, _standalone: int) -> None:
    if version != "1.0" or (encoding or "UTF-8").upper() != "UTF-8":
        _refuse("an XML declaration that is not of XML 1.0 in UTF-8")


def _forbidden(handler: str) -> Callable[..., Any]:
    def refuse(*_: object) -> None:
        _refuse(f"XML with what is not allowed here ({handler.removesuffix('Handler')})")

    return refuse


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-xml")
