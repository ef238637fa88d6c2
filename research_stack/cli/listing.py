"""What there is to choose from: groups, and each option of a group with the first sentence of its file. No hydra."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from research_stack.config.hints import UserError, did_you_mean
from research_stack.records import paths

SENTENCE = re.compile(r"(?<! al)\.(?:\s|$)")  # its end, which that of "et al." is not
LEAST = 30  # columns for the right-hand column; where fewer are left it goes on a line of its own


def columns(rows: Iterable[tuple[str, str]], width: int, indent: str = "  ") -> str:
    """Two columns within the width, the right one wrapped at blanks."""
    rows = list(rows)
    left = max((len(name) for name, _ in rows if len(name) + len(indent) + 2 + LEAST <= width), default=0)
    lines: list[str] = []
    for name, text in rows:
        inner = " " * (len(indent) + (left + 2 if len(name) <= left else 6))
        wrapped = textwrap.wrap(text, max(width - len(inner), LEAST), break_long_words=False, break_on_hyphens=False)
        if len(name) <= left:
            lines.append(f"{indent}{name:<{left}}  {wrapped.pop(0) if wrapped else ''}".rstrip())
        else:
            lines.append(f"{indent}{name}")
        lines += [f"{inner}{line}" for line in wrapped]
    return "\n".join(lines)


def first_sentence(file: Path) -> str:
    """The first sentence of comment of a config file, without `#`; "" if it has none before its first key."""
    said: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.strip()
        comment = text.lstrip("# ")
        command = text.startswith("#   ")
        if (text and not text.startswith("#")) or (said and (command or not comment)):
            break
        if comment and not comment.startswith("@package"):
            said.append(comment)
    return SENTENCE.split(" ".join(said), maxsplit=1)[0]


def all_groups(folders: Sequence[Path], width: int) -> str:
    """Every group with the names of its options."""
    return columns(((group, ", ".join(options)) for group, options in paths.groups(folders).items()), width)


def all_tasks(width: int, writes: bool = False) -> str:
    """Every task with what it does, and with `writes` what comes of it."""
    from research_stack.config.tasks import tasks

    rows = [
        (name, task.help + (f"; writes {task.writes}" if writes and task.writes else ""))
        for name, task in tasks().items()
    ]
    return columns(rows, width)


def options_of(group: str, folders: Sequence[Path], width: int) -> str:
    """Every option of the group, with the first sentence of its file; UserError for a group there is none of."""
    known, group = paths.groups(folders), group.strip("/").rstrip("=")
    if group not in known:
        raise UserError(f"list {group}: there is no such group{did_you_mean(group, list(known), 'the groups')}")
    files = {
        option: next(f for folder in folders if (f := folder / group / f"{option}.yaml").is_file())
        for option in known[group]
    }
    return columns(((f"{group}={option}", first_sentence(file)) for option, file in files.items()), width)
