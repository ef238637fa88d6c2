"""HTML out of nested calls, where text is escaped unless it was made here. Standard library only.

Model output is hostile: a sample may spell a script. So markup is a type of its own (`Html`), every plain string that
goes into an element or an attribute is escaped, and the page forbids everything but its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from typing import Any

FORBIDDEN = re.compile("[^\\t\\n\\x20-\\x7e\\xa0-\\ud7ff\\ue000-\\U0010ffff]")
VOID = {"br", "hr", "meta", "input"}


class Html(str):
    """Finished markup: it is not escaped again."""


Node = str | Html | None | Iterable["Node"]


def clean(text: str) -> str:
    """The text with what no document may hold (control characters but newline and tab, surrogates) as U+FFFD."""
    return FORBIDDEN.sub("\ufffd", text)


def escape(text: Any) -> Html:
    """Any value as clean, escaped text; markup passes through."""
    return text if isinstance(text, Html) else Html(html.escape(clean(str(text)), quote=True))


def join(children: Node) -> Html:
    """Children one after another; None is nothing."""
    if children is None:
        return Html("")
    if isinstance(children, str):
        return escape(children)
    if isinstance(children, int | float):
        return escape(children)
    return Html("".join(join(child) for child in children))


def el(name: str, /, *children: Node, **attributes: Any) -> Html:
    """An element. `class_` is class; underscores in other names are hyphens; None and False leave an attribute out."""
    pairs = (
        (key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(f" {key}" if value is True else f' {key}="{escape(value)}"' for key, value in pairs)
    return Html(f"<{name}{inside}>" if name in VOID and not children else f"<{name}{inside}>{join(children)}</{name}>")


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
    return f"<!doctype html>\n{document}\n"
