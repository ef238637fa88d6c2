"""Check whole configs before anything is built: nodes, the keys beside them, memory, and files that must be there."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research_stack.config import memory, trainer_keys
from research_stack.config.annotations import fits
from research_stack.config.check_node import (
    Problem,
    check_keys,
    check_node,
    conditions,
    experiment_signature,
    literal_value,
    missing,
    short,
)
from research_stack.config.composer import Composed, Composer
from research_stack.config.hints import UserError, did_you_mean, one_line
from research_stack.config.nodes import is_node, nodes
from research_stack.config.signatures import UnknownTarget, assigned, resolve, signature
from research_stack.config.tasks import Task, find_task
from research_stack.config.why import Origins, saved_at
from research_stack.records import paths
from research_stack.records.config_hash import flatten, is_movable_path
from research_stack.records.paths import key_of
from research_stack.records.redaction import refuse_masked
from research_stack.records.run_folder import RunFolder

WITHOUT_TORCH = (
    "research_stack.data.sources.",
    "research_stack.data.tokenizers",
)  # modules whose classes have `check()`


def check(cfg: DictConfig | Mapping[str, Any]) -> list[Problem]:
    """Every mistake that can be found from the config and the sources alone."""
    config = _resolved(cfg)
    of_nodes = (p for path, node in nodes(config) for p in check_node(path, node))
    found = [*_unresolved(cfg), *_top(cfg, config), *_conflicts(config), *of_nodes, *_trainer(config)]
    return _with_sizes(config, _first_of_each(found))


def _with_sizes(config: Mapping[str, Any], problems: list[Problem]) -> list[Problem]:
    """The mistakes; where there are none, what no memory holds."""
    return problems or [Problem(key, text, also) for key, text, also in memory.mistakes(config)]


def _first_of_each(problems: Iterable[Problem]) -> list[Problem]:
    """One mistake for each key."""
    return list({p.key: p for p in reversed(list(problems))}.values())[::-1]


def _resolved(cfg: Any) -> dict[str, Any]:
    """The config as plain Python; Unresolved for an interpolation of a key that does not exist."""
    if not OmegaConf.is_config(cfg):
        return dict(cfg)
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise Unresolved(key, f"{key}={raw(cfg, key)}: {one_line(str(error.msg).splitlines()[0])}") from error


class Unresolved(UserError):
    """An interpolation of a key that does not exist."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(key, message)


def raw(cfg: Any, key: str) -> Any:
    """The value of a dotted key as it is written, interpolations unresolved; None if there is none."""
    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(tree, list):
            tree = tree[int(part)] if part.isdecimal() and int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _unresolved(cfg: Any) -> Iterator[Problem]:
    """Keys that must be given (`???`)."""
    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for key, value in sorted(flatten(tree).items()):
        if isinstance(value, str) and value == "???":
            yield Problem(key, f"{key}=??? must be given: add {key}=... to the command")


def _top(cfg: Any, config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys of config.yaml itself."""
    whole = experiment_signature()
    given = {str(key): value for key, value in config.items() if key in whole.parameters}
    problems = [*check_keys("", whole, given), *missing("", whole, config)]
    yield from problems or conditions("", whole, given)
    try:
        task = find_task(config.get("task", "train"))
    except UserError as error:
        yield Problem("task", str(error))
        return
    yield from _of_task(task, config)
    known = (*whole.parameters, *task.keys, "hydra")
    unread = [str(key) for key in config if key not in known]
    if unread:
        referred = _referred(cfg)
        yield from (_unread(key, config[key], known) for key in unread if key not in referred)


def _of_task(task: Task, config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys that the function of a task takes; what it cannot do without must be given."""
    known = signature(task.run) if task.keys else None
    for name, parameter in task.keys.items():
        value = config.get(name)
        if value is None and parameter.default is None and fits(None, parameter.annotation, None) is not True:
            yield Problem(name, f"{name} is missing: task={task.name} needs {name}=...")
        elif name in config and known is not None:
            yield from check_keys("", known, {name: value})


def _referred(cfg: Any) -> set[str]:
    """Top-level keys that interpolations name."""
    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    return set(re.findall(r"\$\{(\w+)", json.dumps(tree, default=str)))


def _unread(key: str, value: Any, known: Sequence[str]) -> Problem:
    """A key that nothing reads: of a file that lacks its package line, or misspelt."""
    group = {name.split("/")[0] for name in paths.groups([paths.CONF])}
    if key in group and isinstance(value, Mapping):
        inner = f"{key}.{next(iter(value), '')}"
        return Problem(inner, f"{inner}: nothing reads it there; a file of {key}/ begins with `# @package _global_`")
    first = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else key
    return Problem(first, f"{key}={short(value)}: nothing reads this key{did_you_mean(key, known, 'the keys')}")


def _trainer(config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys of lightning.Trainer."""
    node = config.get("trainer")
    if is_node(node) and node["_target_"] == "lightning.Trainer":
        for key, text in trainer_keys.mistakes(node):
            said = f"={short(node[key])} {text}" if key in node else f" is missing: it {text}"
            yield Problem(f"trainer.{key}", f"trainer.{key}{said}")


def _conflicts(config: Any, path: str = "") -> Iterator[Problem]:
    """Nodes side by side of which a class names the other in its `conflicts`, each pair once."""
    if not isinstance(config, Mapping):
        return
    named = {str(name): _named_conflicts(node) for name, node in config.items()}
    for name, others in named.items():
        for other in others:
            if other in named and (name < other or name not in named[other]):
                yield Problem(f"{path}{name}", f"{path}{name} cannot be used with {path}{other}: choose one of them")
    for name, node in config.items():
        yield from _conflicts(node, f"{path}{name}.")


def _named_conflicts(node: Any) -> Sequence[str]:
    """The class attribute `conflicts` of a node's target, as the source writes it."""
    try:
        found = resolve(str(node["_target_"])) if isinstance(node, Mapping) and "_target_" in node else None
    except UnknownTarget:  # reported as such
        return ()
    if found is None or not isinstance(found.node, ast.ClassDef):
        return ()
    expression = next(assigned(found.node.body, "conflicts"), None)
    value = literal_value(expression) if expression is not None else ()
    return [str(name) for name in value] if isinstance(value, list | tuple) else ()


def check_inputs(cfg: Any, config: Mapping[str, Any], seen: set[str]) -> Problem | None:
    """Let the data's source (or each of its sources) and tokenizer look whether their files are there, if their modules
    do without torch.

    - cfg, config: the config as composed, and as plain Python.
    - seen: descriptions of nodes that were found well; one that is in it is not looked at again.
    """
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    several = {
        f"sources.{name}": node
        for name, node in (data.get("sources") or {}).items()
        if isinstance(node, Mapping) and node.get("path", "") is not None
    }
    for part, node in {"source": data.get("source"), "tokenizer": data.get("tokenizer"), **several}.items():
        name = json.dumps(node, sort_keys=True, default=str)
        if not isinstance(node, Mapping) or name in seen:
            continue
        try:
            refuse_masked(node, f"data.{part}")
            _look(node)
        except (ValueError, OSError) as error:
            return _input_problem(cfg, f"data.{part}", node, one_line(error).removeprefix(f"{part}."))
        seen.add(name)
    return None


def _look(node: Mapping[str, Any]) -> None:
    """Build the node and call its `check()`."""
    home = signature(str(node.get("_target_"))).module
    if home is not None and home.name.startswith(WITHOUT_TORCH):
        kind = vars(import_module(home.name))[str(node["_target_"]).rpartition(".")[2]]
        kind(**{k: v for k, v in node.items() if k != "_target_"}).check()


def _input_problem(cfg: Any, path: str, node: Mapping[str, Any], text: str) -> Problem:
    lead = re.match(r"([A-Za-z_]\w*)=", text)
    if lead is None or lead[1] not in node:
        return Problem(path, f"{path}: {text}")
    key = _origin(cfg, f"{path}.{lead[1]}")
    return Problem(key, f"{key}{text[len(lead[1]) :]}")


def _origin(cfg: Any, key: str) -> str:
    """The key that a key copies by interpolation (`path: ${data.path}`), or itself.

    In a saved config, which has no interpolations, the shortest that names the same file.
    """
    value = raw(cfg, key)
    if link := re.fullmatch(r"\$\{([\w.]+)\}", str(value)):
        return link[1]
    same = (k for k, v in flatten(raw(cfg, "data")).items() if v == value and is_movable_path(f"data.{k}", v))
    return min((f"data.{k}" for k in same), key=len, default=key)


def check_points(points: Sequence[Composed], composer: Composer) -> None:
    """Check config and inputs of every point. Raises UserError for the first mistake, with where it was set."""
    seen: set[str] = set()
    done: set[str] = set()
    for number, point in enumerate(points, start=1):
        problems = _problems(point, done, seen)
        if problems:
            raise UserError(_described(problems, point, composer, number, len(points)))


def _problems(point: Composed, done: set[str], seen: set[str]) -> list[Problem]:
    problems = list(_unresolved(point.cfg))
    if problems:
        return problems
    try:
        config = _resolved(point.cfg)
    except Unresolved as error:
        return [error.problem]
    problems += [*_top(point.cfg, config), *_conflicts(config)]
    for path, node in nodes(config):
        name = path + json.dumps(node, sort_keys=True, default=str)
        if name not in done:  # the points of a sweep share most of their nodes
            found = list(check_node(path, node))
            problems += found
            if not found:
                done.add(name)
    problems = _with_sizes(config, _first_of_each([*problems, *_trainer(config)]))
    unread = problems or not find_task(config["task"]).takes_folder or _reads_no_corpus(config)
    source = None if unread else check_inputs(point.cfg, config, seen)
    typed = [key_of(o) for o in point.overrides]  # what the command says comes first
    problems.sort(key=lambda p: p.named_in(typed) is None)
    return [*problems, *([source] if source else [])]


def _reads_no_corpus(config: Mapping[str, Any]) -> bool:
    """Whether a saved run is only to go on from a prompt: the tokenizer that it keeps is enough."""
    prompted = config.get("task") == "sample" and bool(config.get("prompt"))
    return prompted and RunFolder(str(config["run"])).tokenizer.is_dir()


def _described(problems: Sequence[Problem], point: Composed, composer: Composer, number: int, count: int) -> str:
    first = problems[0]
    try:
        typed = [key_of(o) for o in point.overrides]
        named = first.named_in(typed)
        if point.saved is not None and not named:
            source = saved_at(point.saved, first.key)
        else:
            source = Origins(composer, point.overrides).where(named or first.key)
    except (HydraException, OSError):
        source = ""
    notes = [source] if source else []
    if point.saved is not None and not named and is_movable_path(first.key):
        notes.append(f"if it has moved, say where it is: {first.key}=...")
    notes += [f"point {number} of {count}: {' '.join(point.overrides)}"] if count > 1 else []
    notes += [f"and {len(problems) - 1} more mistakes"] if len(problems) > 2 else []
    notes += ["and one more mistake"] if len(problems) == 2 else []
    return first.message + (f" ({'; '.join(notes)})" if notes else "")
