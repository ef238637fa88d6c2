"""HTML out of nested calls, where text is escaped unless it was made here. Standard library only.

Model output is hostile: a sample may spell a script. So markup is a type of its own, every plain string that goes into
an element or an attribute is escaped, and the page forbids everything but its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

FORBIDDEN = re.compile("[^\\t\\n\\x20-\\x7e\\xa0-\\ud7ff\\ue000-\\U0010ffff]")
VOID = {"br", "hr", "meta", "input"}


class Html(str):
    """Finished markup: it is not escaped again."""


@dataclass(frozen=True, eq=False)
class Element:
    """An element, its children not yet written: so what a page holds, a chart for example, can be found in it."""

    name: str
    children: tuple[Node, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return join(self)

    def __html__(self) -> Html:
        """The finished markup."""
        pairs = (
            (key.rstrip("_").replace("_", "-"), value)
            for key, value in self.attributes.items()
            if value is not None and value is not False
        )
        inside = "".join(f" {key}" if value is True else f' {key}="{escape(value)}"' for key, value in pairs)
        if self.name in VOID and not self.children:
            return Html(f"<{self.name}{inside}>")
        return Html(f"<{self.name}{inside}>{join(self.children)}</{self.name}>")


# What may stand in a page: text, markup, an element, whatever has `__html__` (a chart), numbers, and lists of these.
Node = Any


def clean(text: str) -> str:
    """The text with what no document may hold (control characters but newline and tab, surrogates) as U+FFFD."""
    return FORBIDDEN.sub("\ufffd", text)


def escape(text: Any) -> Html:
    """Any value as clean, escaped text; markup passes through."""
    return text if isinstance(text, Html) else Html(html.escape(clean(str(text)), quote=True))


def join(node: Node) -> Html:
    """A node, or nodes one after another, as markup; None is nothing."""
    if node is None:
        return Html("")
    if hasattr(node, "__html__"):
        return node.__html__()
    if isinstance(node, str | int | float) or not isinstance(node, Iterable):
        return escape(node)
    return Html("".join(join(child) for child in node))


def walk(node: Node) -> Iterator[Any]:
    """Every node at and below one that is neither text nor a list, in the order of the page."""
    if isinstance(node, str | int | float) or node is None:
        return
    if isinstance(node, Element):
        yield node
        yield from walk(node.children)
    elif isinstance(node, Iterable):
        for child in node:
            yield from walk(child)
    else:
        yield node


def el(name: str, /, *children: Node, **attributes: Any) -> Element:
    """An element. `class_` is class; underscores in other names are hyphens; None and False leave an attribute out."""
    return Element(name, children, attributes)


def data_island(identity: str, value: Any) -> Html:
    """JSON for the page's script, which no text in it can end."""
    text = (
        json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return Html(f'<script type="application/json" id="{escape(identity)}">{text}</script>')


def page(title: str, body: Node, style: str, script: str) -> str:
    """The whole document. Only this style and this script (by its hash) may act, and nothing is ever loaded."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action"
        " 'none'"
    )
    head = [
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        Html(f"<style>{style}</style>"),
    ]
    document = el(
        "html", el("head", head), "\n", el("body", el("main", body), Html(f"<script>{script}</script>")), lang="en"
    )
    return f"<!doctype html>\n{join(document)}\n"
