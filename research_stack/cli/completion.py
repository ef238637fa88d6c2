"""Tab completion: Hydra's own, in the config folders that the typed line names, and the verbs. No torch."""

from __future__ import annotations

import os
import shlex
import sys

from research_stack.cli.command import FOLDERS, Command, folders_of
from research_stack.config.hints import UserError
from research_stack.records import paths

VERBS = ("why", "list")


def answer(command: Command) -> Command | None:
    """Print the verbs and groups that may stand at the end of COMP_LINE, the line that the shell hands over.

    Returns the command that Hydra is to answer for the rest, or None where there is none.
    """
    if not any(o.startswith("query=") for o in command.overrides) or "COMP_LINE" not in os.environ:
        return command
    words, last = typed(os.environ["COMP_LINE"])
    try:
        line = Command.parse(words[1:] if words[:1] in (["why"], ["list"]) else words)
    except UserError:  # half a command
        line = Command()
    if words[:1] == ["list"]:
        sys.stdout.writelines(
            f"{group}\n" for group in ("task", *paths.groups(folders_of(line))) if group.startswith(last)
        )
        return None
    if last.startswith("task="):
        from research_stack.config.tasks import tasks

        sys.stdout.writelines(f"task={name}\n" for name in tasks() if f"task={name}".startswith(last))
        return None
    if not words:
        sys.stdout.writelines(f"{verb}\n" for verb in VERBS if verb.startswith(last))
    flags = {name: value for name, value in line.flags.items() if name in (*FOLDERS, "--config-name")}
    os.environ["COMP_LINE"] = " ".join(["research-stack", *(o for o in line.overrides if " " not in o), last])
    return Command(command.overrides, {**command.flags, **flags})


def typed(line: str) -> tuple[list[str], str]:
    """(whole words behind the program's name, the word that is being typed) of a command line."""
    whole, _, last = line.rpartition(" ")
    try:
        return shlex.split(whole)[1:], last
    except ValueError:  # within quotes
        return whole.split()[1:], last
