"""A verdict as one page: no scripts, no fonts, nothing from elsewhere; it can be mailed, printed and archived.

Everything in it is escaped: names in evidence are chosen by others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #0a7d4f; --bad: #b3261e; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.verdict { padding: .8rem 1rem; border-left: .4rem solid var(--dim); background: #8881; font-size: 1.1rem; }
.allowed { border-color: var(--good); } .refused { border-color: var(--bad); }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .25rem .6rem .25rem 0;
vertical-align: top; } td:first-child { color: var(--dim); white-space: nowrap; width: 14rem; }
code { font: 12.5px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
ol.tree { list-style: none; padding-left: 0; } ol.tree ol { list-style: none; padding-left: 1.2rem;
border-left: 1px solid var(--line); } .bad { color: var(--bad); } .dim { color: var(--dim); }
@media print { body { max-width: none; margin: 0; } }
"""


def page(result: Mapping[str, Any], *, explanations: Mapping[str, tuple[str, str]]) -> str:
    """Return an HTML page of a verdict.

    Args:
        result: as `sealwright verify --json` prints it.
        explanations: cause and fix of codes.
    """
    body = "\n".join(_body(result, explanations))
    title = f"{result['verdict']}: {result['file']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _body(result: Mapping[str, Any], known: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    yield f"<h1>{_text(result['file'])}</h1>"
    yield f'<p class="verdict {_text(result["verdict"])}">{_sentence(result)}</p>'
    yield _table(
        {
            "confidential": "yes" if result["confidential"] else "NO",
            "as of": result["at"],
            "holds until": result["until"] or "–",
            "fresh": "yes" if result["fresh"] else "not checked: no expected report data or nonce",
            "TCB status": result["tcb_status"] or "–",
            "advisories": ", ".join(result["advisories"]) or "–",
        }
    )
    if result["failures"]:
        yield "<h2>Why it is refused</h2>"
        for failure in result["failures"]:
            cause, fix = known.get(failure["code"], ("", ""))
            yield f'<p><b class="bad">{_text(failure["message"])}</b> <code>{_text(failure["code"])}</code>'
            yield f"<br>{_text(cause)}<br>{_text(fix)}</p>" if cause else "</p>"
    for name, part in result["parts"].items():
        yield from _part(name, part)
    if result["boot"]:
        yield "<h2>What booted</h2>"
        yield "<pre><code>" + _text("\n".join(result["boot"])) + "</code></pre>"
    yield '<p class="dim">Made by sealwright. This page proves nothing by itself: verify the evidence again.</p>'


def _sentence(result: Mapping[str, Any]) -> str:
    return {
        "refused": "Genuine, and refused.",
        "allowed": "Genuine, and allowed by the policy.",
        "genuine": "Genuine. Whether it is allowed was not checked: there was no policy.",
        "read": "Read. Nothing is proved.",
    }[result["verdict"]]


def _part(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{_text(name)}: {_text(part['platform'])}</h2>"
    yield _tree(part["proofs"], part)
    for condition in part["conditions"]:
        yield f'<p class="bad">{_text(condition["text"])} <code>{_text(condition["code"])}</code></p>'
    yield "<h3>Registers</h3>" + _table(part["registers"])
    yield "<h3>Claims</h3>" + _table({key: value for key, value in part["claims"].items() if key != "boot"})
    if part["collateral"]:
        yield "<h3>Collateral</h3>" + _table({one["kind"]: _collateral(one) for one in part["collateral"]})
    for sentence in part["not_proved"]:
        yield f"<p>Does not prove: {_text(sentence)}</p>"


def _tree(proofs: Sequence[Mapping[str, Any]], part: Mapping[str, Any]) -> str:
    known = "pinned in this package" if part["vendor_root"] else "NOT the vendor's"
    inner = f"<li>root {known}: <code>{_text(part['root'])}</code></li>"
    for proof in reversed(proofs):
        until = f" until {proof['until']}" if proof["until"] else ""
        line = f"{proof['what']}, by {proof['by']}{until}"
        inner = f'<li>{_text(line)}<ol class="tree">{inner}</ol></li>'
    return f'<ol class="tree">{inner}</ol>'


def _collateral(one: Mapping[str, Any]) -> str:
    if not one["present"]:
        return "not there; decided without it, as asked"
    stale = f"; {one['stale_s']} s past its next update, as asked" if one["stale_s"] else ""
    return f"{one['age_s'] // 86400} days old, until {one['next_update'] or 'no stated end'}{stale}"


def _table(rows: Mapping[str, Any]) -> str:
    shown = (
        f"<tr><td>{_text(name)}</td><td><code>{_text(value)}</code></td></tr>"
        for name, value in rows.items()
        if value not in (None, [], {}, "")
    )
    return f"<table>{''.join(shown)}</table>"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {item}" for name, item in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return escape(
        "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in str(value))
    )
