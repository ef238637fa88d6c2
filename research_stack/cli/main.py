"""The `research-stack` command: compose, check everything, then hand over to Hydra. Imports no torch.

Every point of a command is composed and checked before the first one starts. Mistakes are one line on standard
error and exit code 2; a failed point of a sweep is exit code 1, Ctrl-C is 130; only a bug shows a traceback.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from research_stack.cli import completion, listing
from research_stack.cli.command import Command, complain, composer_of, folders_of
from research_stack.config import packages
from research_stack.config.hints import UserError
from research_stack.records import redaction, terminal
from research_stack.running import outlet

SHOWING = ("--cfg", "--info", "--shell-completion", "--hydra-help", "--version")
EXAMPLES = (
    ("research-stack", "train and measure the default experiment"),
    ("research-stack experiment=llada trainer=short", "another experiment, another budget"),
    ("research-stack model.dim=256 seed=2", "change any key"),
    ("research-stack -m sweep=corruption_matrix seed=1,2", "a sweep: commas are points, [a,b] is a list"),
    ("research-stack run=FOLDER", "go on with an interrupted run"),
    ("research-stack task=eval run=FOLDER eval=likelihood", "measure a finished run"),
    ('research-stack task=sample run=FOLDER prompt="..."', "sample from it"),
    ("research-stack task=compare 'runs=[A,B]'", "one table of several runs"),
    ("research-stack dry_run=true", "show config, parameters, memory, steps; train nothing"),
    ("research-stack why trainer.max_steps", "every file and line that sets a key"),
    ("research-stack list model", "what each option of a group is"),
    ("research-stack --cfg job", "print the composed config"),
    ('eval "$(research-stack -sc install=bash)"', "tab completion (also zsh, fish)"),
)
OPTIONS = (
    ("-m, --multirun", "sweep over every combination of the values given with commas"),
    ("-c, --cfg job|all", "print the composed config and stop (--resolve: interpolations too; -p NODE: one node)"),
    ("-i, --info [WHAT]", "config|defaults|defaults-tree|searchpath|plugins"),
    ("-cd, --config-dir D", "a further config folder"),
    ("-h, --help [GROUP]", "this, or what each option of a group is"),
    ("-sc", "shell completion (install=bash|zsh|fish)"),
    ("--hydra-help", "Hydra's own help"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code.

    Without arguments those of the process are taken, and its output is made safe first (`outlet`).
    """
    if argv is not None:
        return answered(list(argv))
    outlet.open_streams()
    return outlet.exit_code(answered(sys.argv[1:]))


def answered(arguments: Sequence[str]) -> int:
    """The exit code of a command; mistakes are reported in one line."""
    packages.search_working_directory()
    for argument in arguments:
        redaction.redact_override(argument)  # what it holds is masked from here on
    sys.excepthook = redaction.excepthook
    try:
        return dispatch(arguments)
    except UserError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return complain("interrupted", code=130)
    except (ValueError, OSError) as error:
        from research_stack.running.errors import is_mistake, message_of

        if not is_mistake(error):
            raise
        return complain(message_of(error))


def dispatch(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    if arguments and arguments[0] == "why":
        return why(arguments[1:])
    if arguments and arguments[0] == "list":
        return listed(Command.parse(arguments[1:]))
    command = Command.parse(arguments)
    if "--help" in command.flags:
        return listed(command) if any("=" not in o for o in command.overrides) else usage(command)
    if "--cfg" in command.flags and command.flags["--cfg"] not in ("job", "hydra", "all"):
        raise UserError(f"--cfg {command.flags['--cfg']}: must be one of job, hydra, all")
    if "--shell-completion" in command.flags:
        rest = completion.answer(command)
        return show(rest) if rest is not None else 0
    if any(flag in command.flags for flag in SHOWING):
        return show(command)
    for verb in ("why", "list"):
        if verb in command.overrides:
            behind = "KEY [overrides]" if verb == "why" else "[GROUP]"
            raise UserError(f"'{verb}' comes first: research-stack {verb} {behind}")
    from research_stack.cli import launch

    composer = composer_of(command)
    return launch.sweep(command, composer) if command.multirun else launch.single(command, composer)


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def usage(command: Command) -> int:
    """The answer of --help."""
    sys.stdout.write(f"""\
Usage: research-stack [-m] [key=value ...]
       research-stack why KEY [key=value ...]
       research-stack list [GROUP]

{listing.columns(EXAMPLES, width())}

Tasks (task=NAME, train by default):
{listing.all_tasks(width())}

Groups (group=option; research-stack list GROUP says what each option is):
{listing.all_groups(folders_of(command), width())}

Options:
{listing.columns(OPTIONS, width())}
""")
    return 0


def listed(command: Command) -> int:
    """`research-stack list [GROUP]` and `research-stack --help GROUP`: what there is to choose from."""
    folders, groups = folders_of(command), [o for o in command.overrides if "=" not in o]
    options = [
        listing.all_tasks(width(), writes=True) if group == "task" else listing.options_of(group, folders, width())
        for group in groups
    ]
    sys.stdout.writelines(f"{text}\n" for text in options or [listing.all_groups(folders, width())])
    return 0


def why(arguments: Sequence[str]) -> int:
    """`research-stack why KEY [overrides]`."""
    from research_stack.config.why import report

    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise UserError("why needs a key: research-stack why trainer.max_steps [overrides]")
    command = Command.parse(arguments[1:])
    terminal.write(report(arguments[0], command.overrides, composer_of(command)) + "\n")
    return 0


def show(command: Command) -> int:
    """--cfg, --info, completion and the like: Hydra's own, with our one-line errors."""
    from research_stack.cli.launch import hand_over

    def runs_nothing(cfg: object) -> None:
        """Hydra shows and stops before it."""

    with hydra_errors(command):
        hand_over(runs_nothing, command.hydra_arguments(), command.overrides)
    return 0


@contextmanager
def hydra_errors(command: Command) -> Iterator[None]:
    """One-line errors for what Hydra raises while it composes; only then is a composer of ours made."""
    try:
        yield
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        from research_stack.config import hints

        if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError | ValueError):
            raise
        if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
            raise UserError(str(error)) from error
        raise UserError(hints.explain(error, composer_of(command), command.overrides)) from error
