"""Writes docs/configuration.md: every group, every option and every key, from the config files and the docstrings.

python docs/make_configuration.py           # write the page
python docs/make_configuration.py --check   # exit code 1 where it is out of date

The meaning of a key is the comment behind it in its YAML file; where there is none, what the docstring of the class
named by `_target_` says of that parameter.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from research_stack.cli.listing import first_sentence
from research_stack.records.paths import CONF, groups

PAGE = Path(__file__).parent / "configuration.md"
LEAD = """# Configuration

Every group, its options and their keys. Written by `python docs/make_configuration.py` from the files in `conf/` and
the docstrings of the classes they name; a test holds it against both.

```bash
research-stack GROUP=OPTION                  # choose an option: model=small, data/tokenizer=bytes
research-stack KEY=VALUE                     # set a key: model.dim=256, 'corruption.mask_ratio=[.3,.7]'
research-stack +KEY=VALUE                    # set a parameter that the option does not list
research-stack why KEY                       # every file and line that sets it, and which one wins
research-stack list GROUP                    # the options of a group, one sentence each
```

`null` is "none" or "choose for me", `???` must be given, `${a.b}` is the value of another key. A key whose default is
the name of a class stands for an object; the rows below it are its parameters.
"""
#: Parameters that the program hands to a constructor: nobody sets them in a config.
HANDED = {"seed", "vocab", "codec", "model", "optimization", "corruption", "source", "n_real"}


class Key(NamedTuple):
    """One line of a config file that sets a key."""

    path: tuple[str, ...]
    value: Any
    comment: str


# Config files ---------------------------------------------------------------------------------------------------


def header(file: Path) -> tuple[str, list[str]]:
    """What the comment above the first key says, and the commands in it."""
    said, commands = [], []
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#   "):
            commands.append(line[4:].strip())
        elif line.startswith("# ") and not line.startswith("# @package"):
            said.append(line[2:].strip())
    return " ".join(said), commands


def comment_of(lines: list[str], number: int) -> str:
    """The comment behind a line, and the lines of nothing but comment that go on with it."""
    found = re.search(r"\s#\s(.*)$", lines[number])
    said = [found[1]] if found else []
    for line in lines[number + 1 :] if found else ():
        if not re.match(r"\s{8,}#\s", line):
            break
        said.append(line.strip("# "))
    return " ".join(said)


def keys_of(node: yaml.Node, lines: list[str], above: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys of a mapping, those of mappings inside it too."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        path = (*above, str(key.value))
        comment = comment_of(lines, key.start_mark.line)
        if path == ("defaults",):
            continue
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield Key(path, None, comment)
            yield from keys_of(value, lines, path)
        else:
            text = "\n".join(lines)[value.start_mark.index : value.end_mark.index]
            yield Key(path, one_line(re.sub(r"\s#\s.*", "", text)), comment)


def one_line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def defaults_of(file: Path) -> list[tuple[str, str]]:
    """The defaults list as (group, option): ("", option) for a file of the same group, `_self_` left out."""
    listed = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    pairs = [("", e) if isinstance(e, str) else next(iter(e.items())) for e in listed if e != "_self_"]
    return [(group, f"[{', '.join(o)}]" if isinstance(o, list) else str(o)) for group, o in pairs]


def is_global(file: Path) -> bool:
    """Whether the keys of the file are those of the whole config, not of its group."""
    return "@package _global_" in file.read_text()


@cache
def inherited(group: str, option: str) -> dict[tuple[str, ...], Key]:
    """{path below the group, or in the whole config for a global file: key} of an option, its defaults included."""
    file = CONF / group / f"{option}.yaml"
    found: dict[tuple[str, ...], Key] = {}
    for chosen, names in defaults_of(file):
        own, _, package = chosen.removeprefix("override ").partition("@")
        inner = own.removeprefix("/") if own.startswith("/") else "/".join(filter(None, (group, own)))
        place = package.split(".") if package else inner.split("/") if own.startswith("/") else own.split("/")
        for name in names.strip("[]").split(", ") if names != "[]" else ():
            above, _, at = name.partition("@")  # a file of the same group, at a node of this one
            if not (CONF / inner / f"{above}.yaml").is_file():
                continue
            prefix = tuple(at.split(".")) if at else () if own == "" else tuple(place)
            prefix = () if is_global(CONF / inner / f"{above}.yaml") else prefix
            found |= {(*prefix, *path): key for path, key in inherited(inner, above).items()}
    for path, key in own_keys(file).items():
        before = found.get(path)
        found[path] = key._replace(comment=key.comment or before.comment) if before else key
    return found


@cache
def own_keys(file: Path) -> dict[tuple[str, ...], Key]:
    """{path: key} of one file."""
    text = file.read_text()
    return {key.path: key for key in keys_of(yaml.compose(text) or yaml.MappingNode("", []), text.splitlines())}


# Docstrings -----------------------------------------------------------------------------------------------------


def class_of(target: str | None) -> type | None:
    """The class of a `_target_`."""
    if not target or "${" in target:
        return None
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


@cache
def documented(target: str) -> dict[str, str]:
    """{parameter: what the docstrings of the class and its bases say of it}."""
    found: dict[str, str] = {}
    for owner in getattr(class_of(target), "__mro__", ()):
        for text in (owner.__dict__.get("__doc__"), getattr(owner.__dict__.get("__init__"), "__doc__", None)):
            for name, said in parameters_in(inspect.cleandoc(text or "")):
                found.setdefault(name, said)
    return found


def parameters_in(text: str) -> Iterator[tuple[str, str]]:
    """(parameter, meaning) of the bullets `- name: meaning` of a docstring, or of the Args of one in Google's style."""
    bullets = re.findall(r"^- (.*?)(?=\n\n|\n- |\n\S|\Z)", text, re.DOTALL | re.MULTILINE)
    google = re.findall(r"^    (\w+: .*?)(?=\n\n|\n    \w+: |\Z)", text, re.DOTALL | re.MULTILINE)
    for bullet in bullets or google:
        for part in re.split(r"(?<=\.) (?=\w+(?:, \w+)*: )", one_line(bullet)):
            names, colon, meaning = part.partition(": ")
            if colon and re.fullmatch(r"\w+(?:(?:, | and )\w+)*", names):
                yield from ((name, meaning) for name in re.split(", | and ", names))


def unlisted(target: str, listed: set[str]) -> dict[str, str]:
    """{parameter: default} of the class that the option leaves alone, but for those the program hands over."""
    found = class_of(target)
    if found is None or not target.startswith("research_stack."):
        return {}
    parameters = inspect.signature(found).parameters.values()
    plain = (None, bool, int, float, str, tuple)
    return {
        p.name: written(p.default)
        for p in parameters
        if p.default is not p.empty
        and (p.default is None or isinstance(p.default, plain[1:]))
        and p.name not in listed | HANDED
    }


def written(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(written(v) for v in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def target_at(keys: Mapping[tuple[str, ...], Key], path: tuple[str, ...]) -> str | None:
    """The `_target_` of a node."""
    found = keys.get((*path, "_target_"))
    return found.value if found else None


# The page -------------------------------------------------------------------------------------------------------


def page() -> str:
    """The whole page."""
    known = groups([CONF])
    index = ["| group | options |", "| --- | --- |"]
    parts = ["## Keys of no group", table(CONF / "config.yaml", (), own_keys(CONF / "config.yaml"))]
    for group, options in known.items():
        links = ", ".join(f"[{option}](#{anchor(f'{group}={option}')})" for option in options)
        index.append(f"| [`{group}`](#{anchor(f'Group {group}')}) | {links} |")
        parts += [f"## Group {group}", *(described(group, option) for option in options)]
    return "\n\n".join([LEAD.strip(), "\n".join(index), *parts]) + "\n"


def described(group: str, option: str) -> str:
    """Heading, what the file says of itself, what it builds on, its keys."""
    file, keys = CONF / group / f"{option}.yaml", inherited(group, option)
    said, commands = header(file)
    lead = first_sentence(file)
    rest = said[len(lead) :].lstrip(". ")
    parts = [f"### {group}={option}", f"**{escaped(lead)}.**" + (f" {escaped(rest)}" if rest else "")]
    if commands:
        parts.append("\n".join(["```bash", *commands, "```"]))
    if target := target_at(keys, ()):
        parts.append(f"`{target}`" + (f": {sentence(target)}" if sentence(target) else ""))
    bases = [f"{group}={o.partition('@')[0]}" for g, o in defaults_of(file) if not g]
    choices = [f"{full(group, g)}={o}" for g, o in defaults_of(file) if g and not g.startswith("optional")]
    if bases:
        parts.append(f"Like {', '.join(map(code, bases))}, but for what follows.")
    if choices:
        parts.append(f"Chooses {', '.join(map(code, choices))}.")
    parts.append(table(file, () if is_global(file) else tuple(group.split("/")), keys))
    return "\n\n".join(filter(None, parts))


def full(group: str, chosen: str) -> str:
    """The group of an entry of a defaults list as one types it."""
    name = chosen.removeprefix("override ")
    return name.removeprefix("/") if name.startswith("/") else f"{group}/{name}"


def table(file: Path, package: tuple[str, ...], keys: Mapping[tuple[str, ...], Key]) -> str:
    """One row a key that the file sets; below it, the parameters that nothing sets."""
    rows, more = [], []
    for path, key in own_keys(file).items():
        if path[-1] == "_target_":
            above = ".".join((*package, *path[:-1]))
            listed = {p[len(path) - 1] for p in keys if len(p) >= len(path) and p[: len(path) - 1] == path[:-1]}
            more += [code(f"+{above}.{name}={value}") for name, value in unlisted(key.value, listed).items()]
            continue
        made, (meaning, at) = own_keys(file).get((*path, "_target_")), meaning_of(path, package, keys)
        if key.value is None and not made and not key.comment:
            continue
        default = code(made.value.rpartition(".")[2]) if made else "" if key.value is None else code(key.value)
        rows.append((code(".".join((*package, *path))), default, meaning or (sentence(made.value) if made else at)))
    lines = ["| key | default | meaning |", "| --- | --- | --- |"] if rows else []
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    if more:
        lines += ["", f"Further parameters: {', '.join(more)}."]
    return "\n".join(lines).strip()


def meaning_of(path: tuple[str, ...], package: tuple[str, ...], keys: Mapping[tuple[str, ...], Key]) -> tuple[str, str]:
    """(what the comment or the docstring says of a key, what another option's file says of the same key)."""
    if keys[path].comment:
        return keys[path].comment, ""
    if (target := target_at(keys, path[:-1])) and path[-1] in documented(target):
        return documented(target)[path[-1]], ""
    return "", elsewhere((*package, *path))


@cache
def elsewhere(path: tuple[str, ...]) -> str:
    """The meaning of a key of the whole config, from config.yaml or the first option of its group that has it."""
    if root := own_keys(CONF / "config.yaml").get(path):
        return root.comment
    for group, options in groups([CONF]).items():
        parts = tuple(group.split("/"))
        for option in options if group in ("trainer", path[0]) or path[: len(parts)] == parts else ():
            inner = path if is_global(CONF / group / f"{option}.yaml") else path[len(parts) :]
            keys = inherited(group, option)
            if inner in keys and keys[inner].comment:
                return keys[inner].comment
            if inner in keys and (target := target_at(keys, inner[:-1])) and inner[-1] in documented(target):
                return documented(target)[inner[-1]]
    return ""


def code(text: str) -> str:
    """The text as code."""
    return f"`{text}`"


def sentence(target: str) -> str:
    """The first sentence of a class's docstring."""
    doc = inspect.getdoc(class_of(target)) or ""
    return one_line(re.split(r"(?<=[.:])(?:\s|$)", doc, maxsplit=1)[0]) if target.startswith("research_stack.") else ""


def anchor(heading: str) -> str:
    """The fragment GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def escaped(text: str) -> str:
    """Text in which no word in angle brackets, underscores or stars is markup."""
    return re.sub(r"(?<!`)([<>*])", r"\\\1", text)


def main() -> int:
    """Write or check the page; the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
