"""Secrets masked in whatever is written: by the key they stand under, by their own form, as a URL's password, and by
their value. No torch, no hydra.

Texts of ours (commands, errors, log lines, configs) are searched for all four. What else a run writes, samples and
tables of a corpus of code among it, may rightly say `token = x`: there only values are masked that are known to be
secrets, those of environment variables whose names say so and those that a config or a command held.

A masked value of a config is gone from the run's folder. Whatever is made of it is refused, by `refuse_masked`, until
it is given again.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

from research_stack.records.terminal import visible

MASK = "***"
MASKED = "***masked***"  # in a saved config, where it must differ from any text
SHORTEST = 8  # characters of a value that is looked for in other texts: a shorter one occurs in many by chance
HANDED = "RESEARCH_STACK_SECRETS"  # in the environment of the processes of a run: what its config.yaml lacks

# Words of a name, as in HF_TOKEN, api_key, wandbApiKey, that say it holds a secret; those that take it back; and
# parts that always say so.
_SECRET = {"token", "key", "auth", "authorization", "passphrase"}
_HARMLESS = {
    "mask",
    "pad",
    "end",
    "eos",
    "bos",
    "sep",
    "cls",
    "unk",
    "first",
    "last",
    "new",
    "start",
    "per",
    "max",
    "min",
    "public",
    "file",
    "path",
    "dir",
    "type",
    "id",
    "sort",
    "primary",
    "foreign",
    "field",
    "sock",
}
_ALWAYS = ("password", "passwd", "secret", "credential", "apikey")
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
_NAME = re.compile(r"([\w.\-]+)([\"']?\s*[=:]\s*)")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,;})\]]+")
_FORM = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w\-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}"
    r"|xox[abps]-[\w\-]{10,}|AKIA[0-9A-Z]{16})"
)
_URL = re.compile(r"(://[^/\s:@]*:)([^@/\s]+)@")

_met: set[str] = set()  # secrets that configs and commands of this process held


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the name of a config key or an environment variable says that it holds a secret."""
    last = name.rpartition(".")[2]
    words = {word.lower() for word in _WORD.findall(last)}
    if words & _HARMLESS or words in ({"key"}, set()):
        return False
    return bool(words & _SECRET) or any(part in last.lower() for part in _ALWAYS)


def redact(text: str) -> str:
    """A text of ours with secrets masked: `api_key=...`, `hf_...`, `https://user:password@host`, and known values."""
    text = redact_values(text)  # whole, before the first word of one is masked by its name
    return _URL.sub(rf"\1{MASK}@", _FORM.sub(MASK, _pairs(text)))


def _pairs(text: str) -> str:
    """Masked by their names; in prose, `token: x` is none."""
    kept, at = [], 0
    for name in _NAME.finditer(text):
        prose = name[1] in _SECRET and name[2].strip() == ":"
        value = _VALUE.match(text, name.end())
        if (
            name.start() < at
            or prose
            or not is_secret_name(name[1])
            or value is None
            or value[0] in ("null", "None", MASK, MASKED)
        ):
            continue
        kept, at = [*kept, text[at : name.end()], MASK], value.end()
    return "".join([*kept, text[at:]])


def redact_override(override: str) -> str:
    """An argument of a command with its secrets masked; all of the value of a key that holds one, blanks included."""
    key, sign, value = override.partition("=")
    if sign and value not in ("", "null") and is_secret_name(key.split("@")[0]):
        _remember([value.strip("'\"")])
        return f"{key}={MASK}"
    _remember(found for _, found in _URL.findall(override))
    return redact(override)


def redact_values(text: str) -> str:
    """Any text with the values masked that are known to be secrets, in the spelling of JSON, HTML and URLs too."""
    pattern = _pattern(_known())
    return pattern.sub(MASK, text) if pattern is not None else text


def _known() -> tuple[str, ...]:
    """The secrets that this process knows of."""
    return tuple(
        sorted(
            {
                *_met,
                *(value for name, value in os.environ.items() if is_secret_name(name) and _looks_secret(name, value)),
            }
        )
    )


def _looks_secret(name: str, value: str) -> bool:
    """Whether a variable's value may be looked for in any text.

    It is no path and no list, and where the name only says `key` or `token` no plain word.
    """
    if len(value) < SHORTEST or value[0] in "/~{[.":
        return False
    return (
        any(part in name.lower() for part in _ALWAYS)
        or not value.replace("_", "").replace("-", "").isalpha()
        or value != value.lower()
    )


@lru_cache(maxsize=8)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    forms = {
        form
        for s in secrets
        for form in (
            s,
            json.dumps(s)[1:-1],
            json.dumps(s, ensure_ascii=False)[1:-1],
            html.escape(s),
            quote(s, safe=""),
            quote_plus(s),
        )
    }
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def _remember(secrets: Iterator[str] | Sequence[str]) -> None:
    _met.update(secret for secret in secrets if len(secret) >= SHORTEST and MASK not in secret)


# Configs ---------------------------------------------------------------------------------------------------------


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain config with its secrets masked; from now on they are masked in other texts too."""
    _masked(config, "")  # what comes further down may be repeated further up
    return _masked(config, "")


def _masked(config: Any, key: str) -> Any:
    if isinstance(config, Mapping):
        return {name: part if name == "_target_" else _masked(part, str(name)) for name, part in config.items()}
    if isinstance(config, list | tuple):
        return [_masked(part, key) for part in config]
    if not isinstance(config, str) or config in ("", "???", MASKED):
        return config
    if is_secret_name(key):
        _remember([config])
        return MASKED
    _remember([*_FORM.findall(config), *(password for _, password in _URL.findall(config))])
    pattern, text = _pattern(_known()), _URL.sub(rf"\1{MASKED}@", _FORM.sub(MASKED, config))
    return pattern.sub(MASKED, text) if pattern is not None else text


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every string at and below a plain value."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}.{index}")
    elif isinstance(value, str):
        yield path, value


def filled(value: Any, lost: Mapping[str, str], path: str = "") -> Any:
    """The plain value with other texts at these paths."""
    if isinstance(value, Mapping):
        return {key: filled(part, lost, f"{path}.{key}" if path else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [filled(part, lost, f"{path}.{index}") for index, part in enumerate(value)]
    return lost.get(path, value)


def refuse_masked(value: Any, path: str) -> None:
    """Raise ValueError for a text that was masked when the run was saved: whatever is made of it needs the real one."""
    for where, text in leaves(value, path):
        if MASKED in text:
            raise ValueError(
                f"{where}={text}: a secret in it was masked when the run was saved; give it again: ++{where}=..."
            )


def hand_over(config: Mapping[str, Any]) -> dict[str, str]:
    """What other processes of the run need in their environment to have the config's secrets: {} where it has none."""
    hidden = dict(leaves(masked(config)))
    lost = {path: text for path, text in leaves(config) if hidden[path] != text}
    return {HANDED: json.dumps(lost)} if lost else {}


def handed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The saved config with the secrets that the launching process handed over."""
    return filled(config, json.loads(os.environ.get(HANDED, "{}")))


# Logs ------------------------------------------------------------------------------------------------------------


class Formatter(logging.Formatter):
    """Log lines, and the traces below them, without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished text, masked."""
        return visible(redact(super().format(record)))


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`: the trace of a bug on standard error, masked."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
