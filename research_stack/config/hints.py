"""Mistakes on the command line and in YAML files, each reported in one line with the nearest valid choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_stack.records.paths import key_of, shown

if TYPE_CHECKING:
    from research_stack.config.composer import Composer


class UserError(ValueError):
    """A mistake of the user's, reported in one line; the command ends with exit code 2 and no traceback."""


def nearest(word: str, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known words most like the given one, best first."""
    return difflib.get_close_matches(word, list(dict.fromkeys(known)), n=count, cutoff=cutoff)


def did_you_mean(word: str, known: Sequence[str], what: str = "") -> str:
    """`; did you mean 'x'?`, or the list of what is known when nothing is near."""
    found = nearest(word, known, count=1)
    if found:
        return f"; did you mean '{found[0]}'?"
    return choices(sorted(known), f"{what or 'the choices'} are")


def choices(known: Sequence[str], lead: str, most: int = 12) -> str:
    """`; <lead> a, b, c, ...`, or nothing."""
    known = list(known)
    if not known:
        return ""
    return f"; {lead} {', '.join(known[:most])}{f' and {len(known) - most} more' if len(known) > most else ''}"


def one_line(text: object) -> str:
    """The text on one line."""
    return " ".join(str(text).split())


@contextmanager
def explained(composer: Composer, overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise inside the block into UserError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(explain(error, composer, overrides)) from error
    except ValueError as error:  # Hydra's own complaints about overrides and defaults lists
        no_choice = "Config group override must be a string or a list" in str(error)
        raise UserError(no_option(composer, overrides) if no_choice else one_line(error)) from error


def explain(error: Exception, composer: Composer, overrides: Sequence[str]) -> str:
    """One line for an error of Hydra, OmegaConf or YAML."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        return yaml_error(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a config file is not UTF-8 text ({one_line(error)})"
    if isinstance(error, OverrideParseException):
        return grammar(error.override, str(error), composer)
    if isinstance(error, MissingConfigException):
        return missing_option(error, composer, overrides)
    text = str(error) or str(error.__cause__ or "")
    if found := re.search(r"Ambiguous value for argument '(.*?)'", text) or re.search(
        r"Sweep parameters '(.*?)' requires --multirun", text
    ):
        return sweep_without_m(found[1])
    if found := re.search(r"Could not override '(.*?)'|config group '(.*?)' does not", text):
        return unknown_key(found[1] or found[2], composer, overrides)
    if found := re.search(r"Could not delete (?:from config\. )?'(.*?)'", text):
        return unknown_key(found[1].partition("=")[0], composer, overrides)
    if found := re.search(r"Could not append to config\. An item is already at '(.*?)'", text):
        override = override_of(found[1], overrides) or f"+{found[1]}"
        return f"{override}: '{found[1]}' exists already; leave out the +"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return general(cause, overrides, text)


def general(error: BaseException, overrides: Sequence[str], text: str) -> str:
    """What is left: bad interpolations, wrong types, and whatever Hydra says in its first line."""
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OmegaConfBaseException):
        key = error.full_key or ""
        message = one_line(str(error.msg or error).split("\n")[0])
        override = override_of(key, overrides) if key else None
        merging = re.search(r"Error merging override (.*)", text)
        lead = override or (merging[1] if merging else key)
        return f"{lead}: {message}" if lead else message
    return one_line(text.split("\nSearch path")[0].split("\nConfig search path")[0])


def override_of(key: str, overrides: Sequence[str]) -> str | None:
    """The command's last override of the key, as it was typed."""
    return next((o for o in reversed(overrides) if key_of(o) == key or o.partition("=")[0] == key), None)


def yaml_error(error: Exception) -> str:
    """`file:line: what is wrong` of a YAML syntax error."""
    mark, problem = vars(error).get("problem_mark"), vars(error).get("problem")
    if mark is None:
        return one_line(error)
    return f"{shown(Path(mark.name))}:{mark.line + 1}: invalid YAML: {one_line(problem)}"


def grammar(override: str, message: str, composer: Composer) -> str:
    """An override that Hydra's grammar does not take."""
    if override.startswith("-"):
        return f"{override} is no option; see research-stack --help"
    if "=" not in override and not override.startswith("~"):
        near = nearest(override, ["why", *top_level(composer)], count=1)
        if override in composer.groups():
            return (
                f"'{override}' lacks '=': write"
                f" {override}=OPTION{choices(composer.groups()[override], 'the options are')}"
            )
        return f"'{override}' lacks '=': overrides are written key=value{f' (as in {near[0]}=...)' if near else ''}"
    reason = one_line(message.split("\nSee https")[0])
    key, _, value = override.partition("=")
    quoted = (
        f"; to take the value as it is, quote it: '{key}=\"{value}\"'"
        if value and not re.search(r"[\"']", value)
        else ""
    )
    return f"{override} cannot be read ({reason}){quoted}"


def sweep_without_m(override: str) -> str:
    """Commas without -m."""
    key, _, value = override.partition("=")
    if re.match(r"(choice|range|interval|glob|shuffle|sort)\(", value):
        return f"{override} has several values: add -m to sweep over them"
    return f"{override} has several values: add -m to sweep over them, or write {key}=[{value}] for a list"


def top_level(composer: Composer) -> list[str]:
    """Every name an override may start with: groups, and the keys of config.yaml."""
    keys = [str(k) for k in composer.default if k != "hydra"] if composer.default is not None else []
    return list(dict.fromkeys([*keys, *(g.split("/")[0] for g in composer.groups())]))


def missing_option(error: Any, composer: Composer, overrides: Sequence[str]) -> str:
    """`model=tinny`: a group has no such option."""
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    options = composer.groups().get(group) or list(error.options or ())
    option = option.removesuffix(".yaml")
    if not group:
        return one_line(str(error).split("Config search path")[0])
    if group == "hydra/launcher" and option.startswith("submitit"):
        return "launcher=slurm needs the submitit launcher: pip install 'research-stack[slurm]'"
    where = "command line" if override_of(group, overrides) else named_in(group, option, composer)
    return no_such_option(group, option, options, where)


def no_such_option(group: str, option: str, options: Sequence[str], where: str) -> str:
    """A group's option there is none of."""
    near = nearest(option, options, count=1)
    guess = f" did you mean '{near[0]}'?" if near else ""
    return (
        f"{group}={option}: there is no such {group};{guess}{choices(options, ' the choices are').lstrip(';')}"
        f" ({where})"
    )


def no_option(composer: Composer, overrides: Sequence[str]) -> str:
    """`model=null`: a group that gets neither an option nor a list of them."""
    known = composer.groups()
    chosen = [(o, o.partition("=")[2]) for o in overrides if key_of(o) in known]
    wrong = next((o for o, option in chosen if option not in known[key_of(o)]), "a group")
    options = choices(known.get(key_of(wrong), []), "the choices are")
    return f"{wrong}: a group takes the name of an option{options} (command line)"


def named_in(group: str, option: str, composer: Composer) -> str:
    """file:line of the defaults list that names an option (any, for ""), or the folder it was looked for in."""
    for folder in composer.folders:
        for file in sorted(folder.rglob("*.yaml")):
            inside = group.removeprefix(file.parent.relative_to(folder).as_posix() + "/")
            names = "|".join(re.escape(name) for name in dict.fromkeys((group, inside)))
            ends = rf"(?:\[(?:[^\]#]*,)?\s*)?['\"]?{re.escape(option)}['\"]?\s*(?:[,\]#]|$)" if option else ""
            wanted = re.compile(rf"^\s*-\s*(?:override\s+|optional\s+)*/?(?:{names})(?:@[\w.]+)?\s*:\s*{ends}")
            for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                if wanted.match(line):
                    return f"{shown(file)}:{number}"
    return shown(composer.conf / group)


def unknown_key(key: str, composer: Composer, overrides: Sequence[str]) -> str:
    """`modle=tiny`, `model.drop_out=.1`: nothing of that name to override."""
    from omegaconf import DictConfig, OmegaConf

    override = override_of(key, overrides)
    if override is None:  # a defaults list of a file says `override /key: ...`
        group = key.partition("@")[0].lstrip("/")
        return (
            f"{group}: there is no such group to override{did_you_mean(group, list(composer.groups()), 'the groups')}"
            f" ({named_in(group, '', composer)})"
        )
    value = override.partition("=")[2]
    if override.startswith("~"):
        return (
            f"{override}: there is no '{key}' to delete{did_you_mean(key, top_level(composer), 'the keys')} (command"
            " line)"
        )
    head, *rest = key.split(".")
    if not rest and head in top_level(composer):
        return f"{override}: '{head}' has no such keys; to add them write ++{override.lstrip('+')} (command line)"
    if not rest or head not in (*top_level(composer), "hydra"):
        found = nearest(head, top_level(composer), count=1)
        if not found:
            return (
                f"{override}: there is no '{head}' in the config{choices(top_level(composer), 'its keys are', most=30)}"
                " (command line)"
            )
        fixed = ".".join([found[0], *rest])
        return f"{override}: there is no '{head}' in the config; did you mean '{fixed}={value}'? (command line)"
    cfg = without(override, composer, overrides)
    node, walked = cfg, []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            break
        walked.append(part)
        node = OmegaConf.select(node, part)
    if walked == key.split("."):  # a value in braces
        return f"{override}: '{key}' lacks a key of these braces; to add one, write ++{key}.KEY=VALUE (command line)"
    missing, parent = key.split(".")[len(walked)], ".".join(walked)
    if not isinstance(node, DictConfig):
        return f"{override}: '{parent}' is a value, it has no keys (command line)"
    return f"{override}: {of_node(node, parent, missing, override)} (command line)"


def of_node(node: Any, parent: str, missing: str, override: str) -> str:
    """What a node has instead of a key it lacks: the parameters of its target, or its keys."""
    from research_stack.config.signatures import UnknownTarget, signature

    keys = [str(k) for k in node if not str(k).startswith("_")]
    target = node.get("_target_")
    if isinstance(target, str):
        try:
            known = signature(target)
        except UnknownTarget:
            known = None
        if known is not None and missing in known.parameters:
            return f"{known.name} takes '{missing}', which the config does not set; add a +: +{override.lstrip('+')}"
        if known is not None and not known.open:
            return (
                f"{known.name} has no parameter"
                f" '{missing}'{did_you_mean(missing, list(known.parameters), 'its parameters')}"
            )
    return (
        f"{parent} has no key '{missing}'{did_you_mean(missing, keys, 'its keys')}; to add one, write"
        f" +{override.lstrip('+')}"
    )


def without(override: str, composer: Composer, overrides: Sequence[str]) -> Any:
    """The config of the command without one override; if that has a mistake too, of its choices of groups alone; else
    the default config.
    """
    from hydra.errors import HydraException

    rest = [o for o in overrides if o != override and "," not in o]
    for candidate in (rest, [o for o in rest if o.partition("=")[0].partition("@")[0] in composer.groups()]):
        try:
            return composer.load(candidate)
        except HydraException:
            continue
    return composer.default if composer.default is not None else {}
