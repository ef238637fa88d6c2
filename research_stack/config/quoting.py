"""Texts of the command line that stand for themselves: prompts, and the folders that the program prints. No torch.

Hydra reads what follows `=` by a grammar of its own, in which commas, brackets, quotes, `=` and `${...}` mean
something. A prompt means only itself, and so does the name of a file or folder: both are handed over quoted. With -m a
comma ends the name of a folder, unless a folder is there whose name goes on behind it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from research_stack.config.hints import UserError
from research_stack.records.config_hash import is_movable_path, is_path
from research_stack.records.escaping import escaped
from research_stack.records.paths import expanded, key_of

FOLDERS = ("run", "init_from")
NO_FOLDER = ("", "null", "new")
PLAIN = r"(?!(?i:null|true|false|nan|inf|[-+.\d]+)$)[\w./\-][\w./\-]*"  # read by Hydra as the text it is


def quoted(value: Path | str) -> str:
    """A text as Hydra's grammar, and then OmegaConf, give it back unchanged."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(escaped(str(value)), Quote.single).with_quotes()


def as_text(overrides: Sequence[str], multirun: bool) -> list[str]:
    """The overrides with prompts and folders quoted. Raises UserError for a prompt that no config can hold."""
    if any(key_of(override) == "task" for override in overrides):
        from research_stack.config.tasks import with_task_keys  # the table is read only where a task is chosen

        overrides = with_task_keys(overrides)
    words = [_written(override, multirun) for override in overrides]
    return with_settable_paths(words) if _of_a_run(words) else words


def with_settable_paths(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command about a saved run: its paths (`data.path=...`) are set whatever is composed."""
    return [f"++{o.lstrip('+')}" if is_movable_path(key_of(o)) and not o.startswith("~") else o for o in overrides]


def _of_a_run(overrides: Sequence[str]) -> bool:
    return any(key_of(o) == "run" and o.partition("=")[2] not in NO_FOLDER for o in overrides)


def require_utf8(text: str, name: str) -> str:
    """The text; UserError where the terminal sent bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text: byte 0x{ord(text[error.start]) - 0xDC00:02x} at character {error.start}"
        ) from None
    return text


def _written(override: str, multirun: bool) -> str:
    name, (key, equals, value) = key_of(override), override.partition("=")
    if not equals or override.startswith("~"):
        return override
    if name == "prompt":
        if value == "???":
            raise UserError("prompt=??? is how a config says that a value is missing: put a blank before or behind it")
        return f"{key}={quoted(require_utf8(value, 'prompt'))}"
    if name in FOLDERS:
        return f"{key}={_folders(value, NO_FOLDER) if multirun else _folder(value)}"
    if name == "runs" and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{_folders(value[1:-1])}]"
    if is_path(name) and not re.fullmatch(PLAIN, value):
        found = _pieces(value) if multirun else [value]
        return f"{key}={','.join(map(_plain, found))}" if all(map(_is_there, found)) else override
    return override


def _folder(value: str) -> str:
    """One folder (or one phrase that names a first phase) as Hydra reads it."""
    if value in NO_FOLDER or _is_quoted(value):
        return value
    several = len(found := _pieces(value)) > 1 and not _is_there(value) and all(map(_is_there, found))
    return ",".join(map(_plain, found)) if several else _plain(value)  # several: Hydra says that they need -m


def _folders(value: str, keep: Sequence[str] = ()) -> str:
    """Several, with commas between; those of `keep` mean none."""
    found = _pieces(value)
    hydras = re.search(r"[\[\]{}()'\"]", value) and not all(map(_is_there, found))  # choice(...), lists, quoted texts
    return (
        value
        if hydras
        else ",".join(_folder(piece) if piece in keep or not _is_there(piece) else _plain(piece) for piece in found)
    )


def _pieces(value: str) -> list[str]:
    """The value cut at its commas, but for those in the name of something that is there."""
    parts, found = value.split(","), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _is_there(",".join(parts[:n]))), 1)
        found.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    return found


def _is_there(value: str) -> bool:
    """Whether there is a file or folder of that name or pattern."""
    path = str(expanded(value.strip()))
    return bool(path) and (os.path.lexists(path) or (glob.has_magic(path) and any(glob.iglob(path))))


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and not _is_there(value)


def _plain(value: str) -> str:
    return value if re.fullmatch(PLAIN, value, flags=re.ASCII) else quoted(value)
