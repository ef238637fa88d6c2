"""What a `_target_` takes, read from its source without importing it.

`import lightning` costs seconds; parsing the one file that defines a class costs milliseconds. Names are followed
through `__init__` files (imports, aliases, lazy `__getattr__` maps), constructors through base classes, dataclass
fields are parameters. Whatever cannot be followed with certainty is *open*: it accepts anything, so that a check
built on this never raises a false alarm.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research_stack.records.paths import PACKAGE

HARMLESS_DECORATORS = {"_defaults_from_env_vars", "staticmethod", "classmethod", "override", "torch.no_grad"}
PLAIN_BASES = {"object", "ABC", "Protocol", "Generic", "abc.ABC", "typing.Protocol", "typing.Generic"}


class UnknownTarget(ValueError):
    """The name does not exist; `names` are those that do in the same module."""

    def __init__(self, target: str, names: list[str]) -> None:
        super().__init__(target)
        self.target, self.names = target, names


@dataclass(frozen=True)
class Parameter:
    """One parameter: annotation and default as they stand in the source, None where there is none."""

    name: str
    annotation: ast.expr | None = None
    default: ast.expr | None = None


@dataclass(frozen=True)
class Signature:
    """What a class or function takes.

    - open: further keys may be right (**kwargs, or something that could not be followed).
    - body: the statements that run when it is built (of `__init__`, or of a dataclass's `__post_init__`).
    - fields: whether `self.NAME` in the body is the parameter NAME (dataclasses).
    """

    name: str
    module: Module | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = True
    body: tuple[ast.stmt, ...] = ()
    fields: bool = False


@dataclass(frozen=True)
class Found:
    """A class or function and the module that defines it."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """A parsed source file: what each top-level name is bound to."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    @property
    def package(self) -> str:
        """What a relative import counts from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def names(self) -> dict[str, ast.AST | tuple[str, str | None]]:
        """{name: definition, assigned expression, or (module, attribute) of an import}; the last binding wins."""
        found: dict[str, ast.AST | tuple[str, str | None]] = {}
        for statement in _flat(self.tree.body):
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[statement.name] = statement
            elif isinstance(statement, ast.ImportFrom):
                source = self._absolute(statement)
                found.update({a.asname or a.name: (source, a.name) for a in statement.names if a.name != "*"})
            elif isinstance(statement, ast.Import):
                for alias in statement.names:
                    found[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0],
                        None,
                    )
            elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                found.update({t.id: statement.value for t in targets if isinstance(t, ast.Name)})
        return found

    @cached_property
    def stars(self) -> list[str]:
        """Modules of `from module import *`."""
        imports = (s for s in _flat(self.tree.body) if isinstance(s, ast.ImportFrom))
        return [self._absolute(s) for s in imports if any(a.name == "*" for a in s.names)]

    @cached_property
    def leaky(self) -> bool:
        """Whether it may hold names that cannot be seen: a module `__getattr__`, changed sys.modules or globals()."""
        text = ast.unparse(self.tree)
        return "__getattr__" in self.names or "sys.modules[" in text or "globals()" in text

    @cached_property
    def public(self) -> list[str]:
        """Classes, functions and re-exports that a config may name."""
        keep = (ast.ClassDef, ast.FunctionDef, tuple)
        return [n for n, what in self.names.items() if isinstance(what, keep) and not n.startswith("_")]

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        base = self.package.split(".")
        base = base[: len(base) - (statement.level - 1)]
        return ".".join([*base, *([statement.module] if statement.module else [])])

    def lazy(self, name: str) -> tuple[str, str] | None:
        """(module, attribute) of a name that a module-level `__getattr__` gets from a dict literal."""
        for value in self.names.values():
            if isinstance(value, ast.Dict):
                for key, item in zip(value.keys, value.values, strict=True):
                    parts = _strings(item)
                    if isinstance(key, ast.Constant) and key.value == name and parts:
                        source = parts[0]
                        bare = self.package + "." + source.lstrip(".")
                        source = bare if source.startswith(".") or module(bare) else source
                        if source.rpartition(".")[2] == name and module(source) is None:
                            source = source.rpartition(".")[0]
                        if module(source):
                            return source, parts[1] if len(parts) > 1 else name
        return None


def _strings(node: ast.expr) -> list[str]:
    items = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    return [i.value for i in items if isinstance(i, ast.Constant) and isinstance(i.value, str)]


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those inside if, try and with included."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                yield from _flat(getattr(statement, part, []))
        for handler in statement.handlers if isinstance(statement, ast.Try) else ():
            yield from _flat(handler.body)


@cache
def module(name: str) -> Module | None:
    """The parsed module, or None where there is no such source file."""
    root, *rest = name.split(".")
    base = package_folder(root)
    if base is None or not all(part.isidentifier() for part in rest):
        return None
    path = base.joinpath(*rest)
    for candidate in (path / "__init__.py", *([path.with_name(path.name + ".py")] if rest else [])):
        if candidate.is_file():
            try:
                return Module(name, candidate)
            except (SyntaxError, UnicodeDecodeError):
                return None
    return None


@cache
def package_folder(name: str) -> Path | None:
    """The folder of a top-level package, found without importing it; None where there is none."""
    if name == "research_stack":
        return PACKAGE
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _known(name: str) -> bool:
    """Whether a module of that name exists in source, compiled, or as a folder."""
    root, *rest = name.split(".")
    base = package_folder(root)
    if base is None:
        return False
    path = base.joinpath(*rest)
    return path.is_dir() or any(path.parent.glob(f"{path.name}.*"))


def attribute(where: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Found | Module | None:
    """What the name in a module is; None if that cannot be followed. Raises UnknownTarget if there is no such name."""
    if (where.name, name) in seen:
        return None
    seen |= {(where.name, name)}
    what = where.names.get(name)
    if isinstance(what, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return Found(where, what)
    if isinstance(what, ast.Name) and what.id != name:
        return attribute(where, what.id, seen)
    if isinstance(what, tuple):
        source, original = what
        return _imported(source, original, seen)
    if what is not None:
        return None
    if where.path.name == "__init__.py" and _known(f"{where.name}.{name}"):
        return module(f"{where.name}.{name}")
    if "__getattr__" in where.names and (lazy := where.lazy(name)):
        return _imported(*lazy, seen)
    for source in where.stars:
        origin = module(source)
        if origin is None:
            return None
        try:
            return attribute(origin, name, seen)
        except UnknownTarget:
            continue
    if where.leaky:
        return None
    raise UnknownTarget(f"{where.name}.{name}", where.public)


def _imported(source: str, name: str | None, seen: frozenset[tuple[str, str]]) -> Found | Module | None:
    origin = module(source)
    if origin is None or name is None:
        return origin
    try:
        return attribute(origin, name, seen)
    except UnknownTarget:  # `from x import y` that runs must exist: bound in a way not seen here
        return None


def resolve(target: str) -> Found | None:
    """The class or function a dotted target names; None if that cannot be followed; UnknownTarget if there is none."""
    parts = target.split(".")
    where: Module | Found | None = module(parts[0])
    if where is None:
        return None
    for index, part in enumerate(parts[1:], start=1):
        if isinstance(where, Module):
            if where.path.name == "__init__.py" and part not in where.names and index < len(parts) - 1:
                deeper = module(f"{where.name}.{part}")
                if deeper is None and not _known(f"{where.name}.{part}") and not (where.leaky or where.stars):
                    raise UnknownTarget(f"{where.name}.{part}", [*where.public, *_submodules(where)])
                if deeper is None:
                    return None
                where = deeper
            else:
                where = attribute(where, part)
        elif isinstance(where, Found) and isinstance(where.node, ast.ClassDef):
            method = next((s for s in where.node.body if isinstance(s, ast.FunctionDef) and s.name == part), None)
            where = Found(where.module, method) if method is not None else None
        if where is None:
            return None
    return where if isinstance(where, Found) else None


def _submodules(where: Module) -> list[str]:
    return [p.stem for p in where.path.parent.iterdir() if p.is_dir() or p.suffix == ".py"]


@cache
def signature(target: str) -> Signature:
    """What the target takes. Raises UnknownTarget when it certainly does not exist."""
    found = resolve(target)
    name = target.rpartition(".")[2]
    if found is None:
        return Signature(name)
    if isinstance(found.node, ast.ClassDef):
        return _of_class(found, name) or Signature(name, found.module, open=False)
    is_method = isinstance(resolve(target.rpartition(".")[0]) if "." in target else None, Found)
    return _of_function(found.module, found.node, name, skip=1 if is_method else 0)


def _of_function(where: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, skip: int) -> Signature:
    if any(ast.unparse(d).partition("(")[0] not in HARMLESS_DECORATORS for d in node.decorator_list):
        return Signature(name, where)
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(arguments.defaults)), *arguments.defaults]
    pairs = [
        *list(zip(positional, defaults, strict=True))[skip:],
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    parameters = {a.arg: Parameter(a.arg, a.annotation, d) for a, d in pairs}
    return Signature(name, where, parameters, arguments.kwarg is not None, tuple(node.body))


def _of_class(found: Found, name: str) -> Signature | None:
    """The constructor of a class: its own, its dataclass fields, or the first inherited one; None if it has none."""
    where, node = found.module, found.node
    assert isinstance(node, ast.ClassDef)
    methods = {s.name: s for s in node.body if isinstance(s, ast.FunctionDef)}
    if "__init__" in methods:
        own = _of_function(where, methods["__init__"], name, skip=1)
        return replace(own, body=tuple(part for statement in own.body for part in _with_base(found, own, statement)))
    if "__new__" in methods or node.keywords:
        return Signature(name, where)
    if any(ast.unparse(d).partition("(")[0].endswith("dataclass") for d in node.decorator_list):
        return _of_dataclass(found, name)
    if node.decorator_list:
        return Signature(name, where)
    for base in node.bases:
        text = ast.unparse(base).partition("[")[0]
        if text in PLAIN_BASES:
            continue
        if text in ("NamedTuple", "typing.NamedTuple"):
            return Signature(name, where, _fields(node), open=False)
        parent = _base(where, base)
        if parent is None:
            return Signature(name, where)
        inherited = _of_class(parent, name)
        if inherited is not None:
            return inherited
    return None


def _with_base(found: Found, own: Signature, statement: ast.stmt) -> Sequence[ast.stmt]:
    """The statement; of `super().__init__(a, b)` that of the base, where each of its parameters that the call gives is
    given the parameter of the same name. Only what names nothing but those parameters is taken over.
    """
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "super().__init__":
        return [statement]
    bases = [base for node in found.node.bases if (base := _base(found.module, node))]  # type: ignore[union-attr]
    above = _of_class(bases[0], own.name) if len(bases) == 1 else None
    if above is None or above.open or above.fields:
        return [statement]
    given = [*zip(above.parameters, call.args, strict=False), *((word.arg, word.value) for word in call.keywords)]
    same = {name for name, value in given if isinstance(value, ast.Name) and value.id == name in own.parameters}
    known = {"require", *same, *(name for name in dir(builtins) if name not in found.module.names)}
    used = ((s, {n.id for n in ast.walk(s) if isinstance(n, ast.Name)}) for s in above.body)
    return [s for s, names in used if isinstance(s, ast.Expr) and names <= known] or [statement]


def _base(where: Module, base: ast.expr) -> Found | None:
    """The class of a base expression if it is defined in this package; others are not followed."""
    name = base.value if isinstance(base, ast.Subscript) else base
    if not isinstance(name, ast.Name):
        return None
    try:
        found = attribute(where, name.id)
    except UnknownTarget:
        return None
    if not isinstance(found, Found) or not isinstance(found.node, ast.ClassDef):
        return None
    return found if found.module.name.split(".")[0] == where.name.split(".")[0] else None


def _of_dataclass(found: Found, name: str) -> Signature:
    parameters: dict[str, Parameter] = {}
    body: tuple[ast.stmt, ...] = ()
    assert isinstance(found.node, ast.ClassDef)
    for base in reversed(found.node.bases):
        if ast.unparse(base).partition("[")[0] in PLAIN_BASES:
            continue
        parent = _base(found.module, base)
        above = _of_class(parent, name) if parent else Signature(name)
        if above is not None:
            if above.open or not above.fields:
                return Signature(name, found.module)
            parameters |= above.parameters
            body = above.body
    parameters |= _fields(found.node)
    own = [s for s in found.node.body if isinstance(s, ast.FunctionDef) and s.name == "__post_init__"]
    return Signature(name, found.module, parameters, False, tuple(own[0].body) if own else body, fields=True)


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    """Annotated names of a dataclass or NamedTuple body that its constructor takes."""
    found = {}
    for s in node.body:
        if (
            not isinstance(s, ast.AnnAssign)
            or not isinstance(s.target, ast.Name)
            or "ClassVar" in ast.unparse(s.annotation)
        ):
            continue
        default = s.value
        if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
            options = {k.arg: k.value for k in default.keywords}
            if isinstance(i := options.get("init"), ast.Constant) and i.value is False:
                continue
            default = options.get("default")
        found[s.target.id] = Parameter(s.target.id, s.annotation, default)
    return found


def class_attribute(target: str, name: str) -> Any:
    """The value of a class's own or inherited attribute, if the source gives it as a literal; None otherwise.

    Raises UnknownTarget when the class certainly does not exist.
    """
    found = resolve(target)
    while found is not None and isinstance(found.node, ast.ClassDef):
        for expression in assigned(found.node.body, name):
            return _literal(expression)
        parents = [parent for base in found.node.bases if (parent := _base(found.module, base)) is not None]
        found = parents[0] if parents else None
    return None


def assigned(body: Sequence[ast.stmt], name: str) -> Iterator[ast.expr]:
    """The expressions that statements of a body bind to this name alone."""
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if [ast.unparse(target) for target in targets] == [name]:
                yield statement.value


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
