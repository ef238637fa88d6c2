"""Check a composed config against the constructors that will get it, without importing any of them.

Keys must be parameters, values must fit simple annotations, and the `require(...)` conditions at the top of a
constructor must hold. What cannot be told from the source passes: it is judged when the object is built. So an
error here is always a true one, and it comes in milliseconds instead of after `import torch`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from research_stack.config import init_from, memory, trainer_keys
from research_stack.config.annotations import arms, fits, is_built, is_node, literals, misfit, written
from research_stack.config.expressions import CannotSay, Evaluator, Opaque
from research_stack.config.hints import UserError, choices, did_you_mean, nearest, one_line
from research_stack.config.inheritance import class_of, definition
from research_stack.config.signatures import Module, Parameter, Signature, UnknownTarget, resolve, signature
from research_stack.config.targets import SPECIAL, refused
from research_stack.records import paths
from research_stack.records.config_hash import flatten, is_movable_path
from research_stack.records.paths import key_of
from research_stack.records.redaction import refuse_masked
from research_stack.records.run_folder import RunFolder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from research_stack.config.compose import Composed, Composer

TASKS = ("train", "eval", "sample", "export", "compare")
WITHOUT_TORCH = (
    "research_stack.data.sources.",
    "research_stack.data.tokenizers",
)  # modules whose classes have `check()`
WHOLE = "research_stack.config.schema.Experiment"  # what a config holds, as a class whose parameters are its keys
#: Nodes that the run hands further arguments, so that it knows itself what they lack.
COMPLETED = ("method", "model", "logger", "trainer")


@dataclass(frozen=True)
class Problem:
    """A mistake: the key it is about, one line about it, and further keys it depends on."""

    key: str
    message: str
    also: tuple[str, ...] = ()

    def named_in(self, typed: Sequence[str]) -> str | None:
        """The first of its keys that the command line sets."""
        return next((k for k in (self.key, *self.also) if any(k == t or k.startswith(t + ".") for t in typed)), None)


# Nodes against signatures ------------------------------------------------------------------------------------------


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every (path, node) with a `_target_` in a plain config."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from nodes(value, f"{path}.{index}")


def check_node(path: str, node: Mapping[str, Any]) -> Iterator[Problem]:
    """The mistakes of one node."""
    target = node["_target_"]
    key = f"{path}._target_"
    if reason := refused(target):
        yield Problem(key, f"{key}={target} {reason}")
        return
    if special := next((name for name in SPECIAL if name in node), None):
        said = f"{path}.{special}={_short(node[special])}"
        yield Problem(f"{path}.{special}", f"{said} cannot be set: nodes are built one way")
        return
    try:
        known = signature(target)
    except UnknownTarget as error:
        name = error.target.rpartition(".")
        near = nearest(name[2], error.names, count=1)
        guess = f"; did you mean '{name[0]}.{near[0]}'?" if near else choices(sorted(error.names), "there are")
        yield Problem(key, f"{key}={target}: {name[0]} has no '{name[2]}'{guess}")
        return
    given = {str(k): v for k, v in node.items() if k != "_target_"}
    problems = [*_keys_and_values(path, known, given), *_missing(path, known, node)]
    yield from problems or conditions(path, known, given)


def _keys_and_values(path: str, known: Signature, given: Mapping[str, Any]) -> Iterator[Problem]:
    for name, value in given.items():
        if name in known.parameters:
            yield from _value_problem(_joined(path, name), known.parameters[name], value, known.module)
        elif not known.open:
            hint = did_you_mean(name, list(known.parameters), "its parameters")
            yield Problem(
                f"{path}.{name}", f"{path}.{name}={_short(value)}: {known.name} has no parameter '{name}'{hint}"
            )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _missing(path: str, known: Signature, node: Mapping[str, Any]) -> Iterator[Problem]:
    """Parameters without a default that the node does not give, where nobody else does."""
    root, _, inner = path.removeprefix("logger.").partition(".")
    known_elsewhere = not inner and (root in COMPLETED or path.startswith("logger."))
    if known_elsewhere or {"_partial_", "_args_"} & set(node):
        return
    if path and path.split(".")[0] not in signature(WHOLE).parameters:
        return
    for name, parameter in known.parameters.items():
        of_the_run = bool(path) and name == "seed"
        if parameter.default is None and name not in node and not of_the_run:
            key = _joined(path, name)
            yield Problem(key, f"{key} is missing: {f'{known.name} needs it' if path else 'every config has one'}")


def _value_problem(key: str, parameter: Parameter, value: Any, where: Module | None) -> Iterator[Problem]:
    default = parameter.default
    implicit = value is None and isinstance(default, ast.Constant) and default.value is None
    if value == "???" or implicit or fits(value, parameter.annotation, where) is not False:
        return
    key, value, annotation, where = misfit(key, value, parameter.annotation, where)
    assert annotation is not None
    if allowed := _choices(annotation, where):
        near = nearest(str(value), [str(a) for a in allowed if a is not None], count=1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        yield Problem(
            key, f"{key}={_short(value)} must be one of {', '.join(dict.fromkeys(map(written, allowed)))}{guess}"
        )
        return
    if is_node(value):
        yield Problem(f"{key}._target_", f"{key}._target_={value['_target_']} must be {_type(annotation)}")
        return
    if any(class_of(arm, where) for arm in arms(annotation)):
        yield _no_node(key, value, _type(annotation))
        return
    kinds = {"NoneType": "null", "str": "a string", "bool": "a boolean", "dict": "a mapping", "list": "a list"}
    kind = kinds.get(type(value).__name__)
    endless = isinstance(value, float) and not math.isfinite(value) and "float" in _type(annotation)
    wanted = "a finite number" if endless else _type(annotation)
    yield Problem(key, f"{key}={_short(value)} must be {wanted}{f', not {kind}' if kind else ''}")


def _no_node(key: str, value: Any, wanted: str) -> Problem:
    """A value where an object is wanted, and what to write instead."""
    if isinstance(value, Mapping):
        return Problem(f"{key}._target_", f"{key}._target_ is missing: it names the class of {key}, a {wanted}")
    if "." not in key:
        choose = f"; to choose an option write `- override /{key}: {value}` under defaults"
        return Problem(key, f"{key}={_short(value)} must be a mapping{choose if isinstance(value, str) else ''}")
    leave = f"; to leave it out: ~{key}" if value is None else " (a mapping with _target_)"
    return Problem(key, f"{key}={_short(value)} must be {wanted}{leave}")


def _type(annotation: ast.expr) -> str:
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return str(annotation.value) if quoted else ast.unparse(annotation)  # type: ignore[attr-defined]


def _choices(annotation: ast.expr, where: Module | None) -> list[Any]:
    """The values of the Literals of an annotation, aliases followed."""
    found = []
    for arm in arms(annotation):
        alias = definition(arm.id, where) if where and isinstance(arm, ast.Name) else None
        is_type = alias is not None and isinstance(alias[1], ast.Subscript | ast.BinOp)
        found += literals(arm if alias is None else alias[1] if is_type else None)  # type: ignore[arg-type]
    return found


def _short(value: Any, most: int = 60) -> str:
    text = written(value)
    return text if len(text) <= most else text[: most - 3] + "..."


# Conditions --------------------------------------------------------------------------------------------------------


def conditions(path: str, known: Signature, given: Mapping[str, Any]) -> Iterator[Problem]:
    """The `require(...)`, and `if ...: raise ValueError(...)`, at the top of a constructor that do not hold."""
    names = _names(known, given)
    for statement in known.body:
        if isinstance(statement, ast.Return | ast.Raise):
            return
        test, message = _condition(statement)
        if test is not None:
            evaluate = Evaluator(names, known.fields)
            try:
                holds = bool(evaluate(test))
            except CannotSay:
                continue
            if not holds:
                yield _violation(path, test, message, evaluate, known)
                return  # as when it is built: the first one counts
        for rebound in _assigned(statement):
            names[rebound] = Opaque


def _names(known: Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the names of the body stand for: the module's constants, defaults, and the config's values."""
    names: dict[str, Any] = {}
    for name, value in known.module.names.items() if known.module else ():
        if isinstance(value, ast.expr):
            names[name] = _literal(value)
    for name, parameter in known.parameters.items():
        names[name] = given[name] if name in given else _literal(parameter.default)
        if is_built(names[name]) or names[name] == "???":
            names[name] = Opaque
    return names


def _literal(node: ast.expr | None) -> Any:
    try:
        return Opaque if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return Opaque


def _condition(statement: ast.stmt) -> tuple[ast.expr | None, ast.expr | None]:
    """(what must hold, message) of a statement, (None, None) if it is no check."""
    if isinstance(statement, ast.Expr) and isinstance(call := statement.value, ast.Call):
        if ast.unparse(call.func) in ("require", "require.require") and len(call.args) == 2:
            return call.args[0], call.args[1]
    if isinstance(statement, ast.If) and len(statement.body) == 1 and isinstance(error := statement.body[0], ast.Raise):
        made = error.exc
        if isinstance(made, ast.Call) and ast.unparse(made.func) == "ValueError" and len(made.args) == 1:
            return ast.UnaryOp(ast.Not(), statement.test), made.args[0]
    return None, None


def _assigned(statement: ast.stmt) -> set[str]:
    """Names that hold something else after the statement; `self.x` counts as x only in dataclasses."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if ast.unparse(node.value) == "self" and not isinstance(statement, ast.Assign) else "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__" and len(node.args) == 3:
            found.add(node.args[1].value if isinstance(node.args[1], ast.Constant) else "")
    return found


def _violation(path: str, test: ast.expr, message: ast.expr | None, evaluate: Evaluator, known: Signature) -> Problem:
    try:
        text = one_line(evaluate(message)) if message is not None else ""
    except CannotSay:
        text = ""
    text = text or f"the arguments must satisfy {ast.unparse(test)}"
    lead = re.match(r"([A-Za-z_]\w*)(\[\w+\])?=", text)
    names = [
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(test) if isinstance(n, ast.Name | ast.Attribute)
    ]
    used = [n for n in names if n in known.parameters]
    name = lead[1] if lead and lead[1] in known.parameters else None
    key, *also = dict.fromkeys(_joined(path, n) for n in ([name] if name else []) + used) or [path]
    return Problem(key, _joined(path, text) if name else f"{path or 'config'}: {text}", tuple(also))


# Whole configs -----------------------------------------------------------------------------------------------------


def check(cfg: DictConfig | Mapping[str, Any]) -> list[Problem]:
    """Every mistake that can be told from the config and the sources alone."""
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
    """The config as plain Python; Unresolved for an interpolation that leads nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not OmegaConf.is_config(cfg):
        return dict(cfg)
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise Unresolved(key, f"{key}={raw(cfg, key)}: {one_line(str(error.msg).splitlines()[0])}") from error


class Unresolved(UserError):
    """An interpolation that leads nowhere."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(key, message)


def raw(cfg: Any, key: str) -> Any:
    """The value of a dotted key as it is written, interpolations unresolved; None if there is none."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(tree, list):
            tree = tree[int(part)] if part.isdecimal() and int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _unresolved(cfg: Any) -> Iterator[Problem]:
    """Keys that must be given (`???`)."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for key, value in sorted(flatten(tree).items()):
        if isinstance(value, str) and value == "???":
            yield Problem(key, f"{key}=??? must be given: add {key}=... to the command")


def _top(cfg: Any, config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys of config.yaml itself."""
    task = config.get("task", "train")
    if task not in TASKS:
        yield Problem(
            "task",
            (
                f"task={_short(task)} must be one of {', '.join(TASKS)}{did_you_mean(str(task), TASKS)}"
                if nearest(str(task), TASKS)
                else f"task={_short(task)} must be one of {', '.join(TASKS)}"
            ),
        )
    whole = signature(WHOLE)
    given = {str(key): value for key, value in config.items() if key in whole.parameters}
    problems = [*_keys_and_values("", whole, given), *_missing("", whole, config)]
    yield from problems or conditions("", whole, given)
    unread = [str(key) for key in config if key not in whole.parameters and key != "hydra"]
    if unread:
        referred = _referred(cfg)
        yield from (_unread(key, config[key], list(whole.parameters)) for key in unread if key not in referred)


def _referred(cfg: Any) -> set[str]:
    """Top-level keys that interpolations name."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    return set(re.findall(r"\$\{(\w+)", json.dumps(tree, default=str)))


def _unread(key: str, value: Any, known: Sequence[str]) -> Problem:
    """A key that nothing reads: of a file that lacks its package line, or misspelt."""
    group = {name.split("/")[0] for name in paths.groups([paths.CONF])}
    if key in group and isinstance(value, Mapping):
        inner = f"{key}.{next(iter(value), '')}"
        return Problem(inner, f"{inner}: nothing reads it there; a file of {key}/ begins with `# @package _global_`")
    first = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else key
    return Problem(first, f"{key}={_short(value)}: nothing reads this key{did_you_mean(key, known, 'the keys')}")


def _trainer(config: Mapping[str, Any]) -> Iterator[Problem]:
    """The keys of lightning.Trainer."""
    node = config.get("trainer")
    if is_node(node) and node["_target_"] == "lightning.Trainer":
        for key, text in trainer_keys.mistakes(node):
            said = f"={_short(node[key])} {text}" if key in node else f" is missing: it {text}"
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
    """The class attribute `conflicts` of a node's target, as it stands in the source."""
    try:
        found = resolve(str(node["_target_"])) if isinstance(node, Mapping) and "_target_" in node else None
    except UnknownTarget:  # it is told of as such
        return ()
    for statement in found.node.body if found is not None and isinstance(found.node, ast.ClassDef) else ():
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        if [ast.unparse(target) for target in targets] == ["conflicts"] and statement.value is not None:
            value = _literal(statement.value)
            return [str(name) for name in value] if isinstance(value, list | tuple) else ()
    return ()


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

    In a saved config, which has no interpolations, the shortest that names the same place.
    """
    value = raw(cfg, key)
    if link := re.fullmatch(r"\$\{([\w.]+)\}", str(value)):
        return link[1]
    same = (k for k, v in flatten(raw(cfg, "data")).items() if v == value and is_movable_path(f"data.{k}", v))
    return min((f"data.{k}" for k in same), key=len, default=key)


def preflight(points: Sequence[Composed], composer: Composer) -> None:
    """Check every point of a command; raises UserError for the first mistake, with its place and its point."""
    seen: set[str] = set()
    done: set[str] = set()
    for number, point in enumerate(points, start=1):
        problems = _problems(point, done, seen)
        if problems:
            raise UserError(_told(problems, point, composer, number, len(points)))


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
    if not problems and config.get("init_from"):
        init_from.check(point.cfg)
    unread = problems or config.get("task") == "compare" or _reads_no_corpus(config)
    source = None if unread else check_inputs(point.cfg, config, seen)
    typed = [key_of(o) for o in point.overrides]  # what the command says comes first
    problems.sort(key=lambda p: p.named_in(typed) is None)
    return [*problems, *([source] if source else [])]


def _reads_no_corpus(config: Mapping[str, Any]) -> bool:
    """Whether a saved run is only to go on from a prompt: the tokenizer that it keeps is enough."""
    prompted = config.get("task") == "sample" and bool(config.get("prompt"))
    return prompted and RunFolder(str(config["run"])).tokenizer.is_dir()


def _told(problems: Sequence[Problem], point: Composed, composer: Composer, number: int, count: int) -> str:
    from hydra.errors import HydraException

    from research_stack.config.why import Origins, saved_at

    first = problems[0]
    try:
        typed = [key_of(o) for o in point.overrides]
        named = first.named_in(typed)
        if point.saved is not None and not named:
            place = saved_at(point.saved, first.key)
        else:
            place = Origins(composer, point.overrides).where(named or first.key)
    except (HydraException, OSError):
        place = ""
    notes = [place] if place else []
    if point.saved is not None and not named and is_movable_path(first.key):
        notes.append(f"if it has moved, say where it is: {first.key}=...")
    notes += [f"point {number} of {count}: {' '.join(point.overrides)}"] if count > 1 else []
    notes += [f"and {len(problems) - 1} more mistakes"] if len(problems) > 2 else []
    notes += ["and one more mistake"] if len(problems) == 2 else []
    return first.message + (f" ({'; '.join(notes)})" if notes else "")
