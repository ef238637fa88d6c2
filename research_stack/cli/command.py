"""A command line parsed: Hydra's flags and the overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.config.hints import UserError, choices, nearest
from research_stack.config.packages import conf_folders
from research_stack.config.quoting import as_text
from research_stack.records import paths, terminal
from research_stack.records.redaction import redact

if TYPE_CHECKING:
    from research_stack.config.composer import Composer

SWITCHES = {
    "-m": "--multirun",
    "-r": "--run",
    "-sc": "--shell-completion",
    "-h": "--help",
    "--hydra-help": "--hydra-help",
    "--version": "--version",
    "--resolve": "--resolve",
}
VALUED = {"-c": "--cfg", "-p": "--package", "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}
FOLDERS = ("--config-path", "--config-dir")


@dataclass
class Command:
    """A parsed command line: overrides, and Hydra's flags as {long name: value}."""

    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep."""
        return "--multirun" in self.flags

    def hydra_arguments(self) -> list[str]:
        """The flags as Hydra reads them."""
        return [part for name, value in self.flags.items() for part in (name, value) if part]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Command:
        """Sort arguments into flags and overrides; UserError for a flag there is none of."""
        command, rest = cls(), list(arguments)
        while rest:
            word = rest.pop(0)
            name, glued, value = word.partition("=") if word.startswith("--") else (word, "", "")
            name = (SWITCHES | VALUED | {"-i": "--info"}).get(name, name)
            if not word.startswith("-") or word == "-":
                command.overrides.append(word)
            elif name == "--info":
                command.flags[name] = value or (rest.pop(0) if rest and rest[0].isidentifier() else "all")
            elif name in VALUED.values():
                if not glued and not rest:
                    raise UserError(f"{word} needs a value")
                value = value if glued else rest.pop(0)
                command.flags[name] = _config_folder(word.partition("=")[0], value) if name in FOLDERS else value
            elif name in SWITCHES.values():
                command.flags[name] = ""
            else:
                known = [*SWITCHES.values(), *VALUED.values(), "--info"]
                raise UserError(
                    f"{word} is no option{choices(nearest(word, known, count=1), 'did you mean')}; see research-stack"
                    " --help"
                )
        command.overrides = as_text(command.overrides, command.multirun)
        return command


def composer_of(command: Command) -> Composer:
    """A composer over the config folders of the command."""
    from research_stack.config.composer import CONFIG, Composer

    extra = command.flags.get("--config-dir")
    conf = Path(command.flags.get("--config-path", str(paths.CONF)))
    return Composer(
        conf, Path(extra) if extra else None, command.flags.get("--config-name", CONFIG).removesuffix(".yaml")
    )


def folders_of(command: Command) -> list[Path]:
    """The config folders of the command, as far as that goes without Hydra where nothing names another one."""
    searched = any(paths.key_of(o) == "hydra.searchpath" for o in command.overrides)
    if not searched and not set(FOLDERS) & set(command.flags):
        return [paths.CONF, *conf_folders()]
    composer = composer_of(command)
    composer.search(command.overrides)
    return composer.folders


def _config_folder(word: str, value: str) -> str:
    """The folder of a flag, relative to the working directory; UserError where there is none."""
    folder = paths.expanded(value.removeprefix("file://")).absolute()
    if not folder.is_dir():
        raise UserError(f"{word} {value}: no such folder")
    return str(folder)


def complain(message: str, code: int = 2) -> int:
    """Write one line on standard error and return the exit code."""
    said = terminal.visible(redact(" ".join(message.split())))
    sys.stderr.write(f"research-stack: {'error: ' if code == 2 else ''}{said}\n")
    return code
