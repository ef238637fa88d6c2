"""Where a key of the config comes from: every file and line that sets it, in the order of composition.

`research-stack why trainer.max_steps` prints them; error messages name the one that won.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from research_stack.records.paths import key_of, shown

if TYPE_CHECKING:
    from research_stack.config.composer import Composer

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Origin:
    """One setting of a key: `where` is file:line or the command line."""

    key: str
    where: str
    value: str


@dataclass(frozen=True)
class Line:
    """A leaf or node of a YAML file."""

    key: str
    number: int
    value: str


@cache
def lines_of(path: Path) -> tuple[Line, ...]:
    """Every dotted key of a YAML file with its line number and the value as written; nodes have an empty value."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return tuple(_walk(root, "", text)) if isinstance(root, yaml.MappingNode) else ()


def _walk(node: yaml.MappingNode, prefix: str, text: str) -> list[Line]:
    found = []
    for key, value in node.value:
        if not prefix and key.value == "defaults":
            continue
        name = f"{prefix}.{key.value}" if prefix else str(key.value)
        nested = isinstance(value, yaml.MappingNode) and value.value
        shown_value = "" if nested else " ".join(text[value.start_mark.index : value.end_mark.index].split())
        found.append(Line(name, key.start_mark.line + 1, shown_value))
        found += _walk(value, name, text) if nested else []
    return found


@cache
def defaults_of(path: Path) -> tuple[tuple[str, str, bool, int], ...]:
    """(group, option, whether it is an override, line) of a YAML file's defaults list."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    items = (
        next((v.value for k, v in root.value if k.value == "defaults"), [])
        if isinstance(root, yaml.MappingNode)
        else []
    )
    found = []
    for item in items:
        if isinstance(item, yaml.MappingNode):
            key, value = item.value[0]
            words = key.value.split()
            option = ",".join(v.value for v in value.value) if isinstance(value, yaml.SequenceNode) else value.value
            found.append((words[-1].partition("@")[0], option, "override" in words, item.start_mark.line + 1))
    return tuple(found)


class Origins:
    """Where the keys of one composition are set."""

    def __init__(self, composer: Composer, overrides: Sequence[str]) -> None:
        self.composer, self.overrides = composer, list(overrides)

    @cached_property
    def _composition(self) -> Any:
        from hydra.types import RunMode

        return self.composer.loader.compute_defaults_list(self.composer.config_name, self.overrides, RunMode.MULTIRUN)

    @cached_property
    def files(self) -> list[tuple[Path, str]]:
        """(file, package it is put in), in the order of composition."""
        found = []
        for default in self._composition.defaults:
            if default.config_path is None or default.config_path.startswith("hydra/"):
                continue
            path = self._file(default.config_path)
            if path is not None:
                found.append((path, default.package or ""))
        return found

    def _file(self, config_path: str) -> Path | None:
        name = config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"
        return next((folder / name for folder in self.composer.folders if (folder / name).is_file()), None)

    def of(self, key: str) -> list[Origin]:
        """Every setting of the key, the winner last; a key that is a group is set by defaults lists."""
        if key in self.composer.groups():
            return self._of_group(key)
        return self._of_key(key)

    def _of_key(self, key: str) -> list[Origin]:
        found = []
        for path, package in self.files:
            for line in lines_of(path):
                full = f"{package}.{line.key}" if package else line.key
                if full == key or (not line.value and full.startswith(key + ".")) or _inside(key, full, line.value):
                    found.append(Origin(full, f"{shown(path)}:{line.number}", line.value))
        exact = [p for p in found if p.value]
        return (exact or found[:0] or [p for p in found if p.key == key]) + self._of_command(key)

    def _of_command(self, key: str) -> list[Origin]:
        found = []
        for override in self.overrides:
            name, _, value = override.partition("=")
            if (
                key_of(override) == key
                or key.startswith(key_of(override) + ".")
                and key_of(override) not in self.composer.groups()
            ):
                found.append(Origin(key, COMMAND_LINE, f"{name}={value}" if value else override))
        return found

    def _of_group(self, group: str) -> list[Origin]:
        found = []
        seen = list(dict.fromkeys(path for path, _ in self.files))
        primary = self._file(self.composer.config_name)
        for path in [*([primary] if primary else []), *(p for p in seen if p != primary)]:
            for name, option, is_override, number in defaults_of(path):
                parent = self._parent(path)
                absolute = name.lstrip("/") if name.startswith("/") or not parent else f"{parent}/{name}"
                if absolute == group:
                    found.append((is_override, Origin(group, f"{shown(path)}:{number}", option)))
        choice = self._composition.overrides.known_choices.get(group)
        found.sort(key=lambda pair: (pair[0], pair[1].value == choice))
        return [p for _, p in found] + self._of_command(group)

    def _parent(self, path: Path) -> str:
        folder = next(f for f in self.composer.folders if path.is_relative_to(f))
        parent = path.parent.relative_to(folder).as_posix()
        return "" if parent == "." else parent

    def where(self, key: str) -> str:
        """What set the key last, or the nearest node above it; "" if nothing does."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            found = self._of_key(name) or ([] if length > 1 else self._of_group(name))
            if found:
                return found[-1].where
        return ""


def saved_at(config_yaml: Path, key: str) -> str:
    """file:line of a key, or of the nearest node above it, in the config of a saved run."""
    numbers = {line.key: line.number for line in lines_of(config_yaml)}
    parts = key.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((f"{shown(config_yaml)}:{numbers[name]}" for name in above if name in numbers), shown(config_yaml))


def _inside(key: str, full: str, value: str) -> bool:
    """Whether a leaf above the key (a list, an empty node) sets it."""
    return bool(value) and key.startswith(full + ".")


def report(key: str, overrides: Sequence[str], composer: Composer) -> str:
    """The answer of `research-stack why KEY`: one line per setting, the last one marked; UserError for unknown keys."""
    from omegaconf import OmegaConf

    from research_stack.config.hints import UserError, did_you_mean
    from research_stack.records.config_hash import flatten

    cfg = composer.compose(overrides).cfg
    origins = Origins(composer, overrides).of(key)
    if not origins:
        keys = list(flatten(OmegaConf.to_container(cfg)))
        inner = {".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)}
        raise UserError(f"why {key}: nothing sets that key{did_you_mean(key, [*keys, *inner, *composer.groups()])}")
    width = max(len(p.where) for p in origins)
    rows = [f"{p.where:<{width}}  {p.value or _named(p, key)}" for p in origins]
    rows[-1] += "   <- wins"
    known = OmegaConf.select(cfg, key)
    if re.search(r"\$\{", origins[-1].value):
        rows.append(f"{'':<{width}}  = {known}")
    return "\n".join(rows)


def _named(origin: Origin, key: str) -> str:
    return f"{origin.key.removeprefix(key + '.')}: ..." if origin.key != key else f"{origin.key}: ..."
