"""What a `_target_` may name: classes defined in this package or in one the user has opted into, and of Lightning the
Trainer and the callbacks.

A config is data that people mail to each other, and building it calls what it names. So functions are never allowed,
nor what a module has only imported. A package of one's own is opted into (see `packages`). No torch, no hydra; nothing
that is named is imported here.
"""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from typing import Any

from research_stack.config.hints import nearest
from research_stack.config.packages import OWN, VARIABLE, packages
from research_stack.config.signatures import Found, UnknownTarget, module, resolve

TRAINERS = ("lightning.Trainer", "lightning.pytorch.Trainer")
CALLBACKS = "lightning.pytorch.callbacks"
LIBRARIES = (
    "lightning",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "hydra",
    "omegaconf",
    "numpy",
)  # nobody's own project
SPECIAL = ("_args_", "_partial_", "_recursive_", "_convert_")  # keys that would change how Hydra builds a node


def refused(target: Any) -> str | None:
    """Why a config may not name this target, as far as its name and the sources tell; None where nothing forbids it."""
    if not isinstance(target, str):
        return f"must be the dotted name of a class, not of type {type(target).__name__}"
    top, known = target.partition(".")[0], packages()
    if top not in known and not _of_lightning(target):
        return _outside(target, known)
    if top in known and top != OWN and find_spec(top) is None:
        return f"cannot be imported: there is no package '{top}' in the working directory or on PYTHONPATH"
    origin = imported_from(target)
    if origin is not None and origin.partition(".")[0] not in (known if top in known else (top,)):
        return f"is {origin}, which only is imported there: a config may name classes defined in {', '.join(known)}"
    try:
        found = resolve(target)
    except UnknownTarget:  # the check tells of it with the nearest name
        return None
    if isinstance(found, Found) and not isinstance(found.node, ast.ClassDef):
        return "is a function: a config may name classes only"
    return None


def refused_object(found: Any) -> str | None:
    """Why what a target led to may not be built: the same rules, held against the object itself."""
    if not isinstance(found, type):
        return f"is a {type(found).__name__}: a config may name classes only"
    home = f"{found.__module__}.{found.__qualname__}"
    if (
        found.__module__.partition(".")[0] in packages()
        or home == "lightning.pytorch.trainer.trainer.Trainer"
        or _is_callback(found)
    ):
        return None
    allowed = f"classes defined in {', '.join(packages())}, {TRAINERS[0]} and {CALLBACKS} alone"
    return f"is {home}, which a config may not name: {allowed}"


def _is_callback(found: type) -> bool:
    if not found.__module__.startswith(f"{CALLBACKS}."):
        return False
    from lightning.pytorch import Callback

    return issubclass(found, Callback)


def _of_lightning(target: str) -> bool:
    return target in TRAINERS or target.startswith(f"{CALLBACKS}.")


def _outside(target: str, known: tuple[str, ...]) -> str:
    top = target.partition(".")[0]
    near = nearest(target, TRAINERS, count=1, cutoff=0.8)
    own = top not in sys.stdlib_module_names and top not in LIBRARIES
    hint = (
        f"; did you mean '{near[0]}'?"
        if near
        else f"; if {top} is a package of your own, opt in to its code: {VARIABLE}={top}"
        if own
        else ""
    )
    return f"lies outside what a config may name: classes of {', '.join(known)}, {TRAINERS[0]} and {CALLBACKS}{hint}"


def imported_from(target: str) -> str | None:
    """The name that a target refers to where its module only imports it, followed to the end; else None."""
    name, seen = target, set()
    while name not in seen:
        seen.add(name)
        step = _next(name)
        if step is None:
            return name if name != target else None
        name = step
    return None


def _next(name: str) -> str | None:
    """The name with its first imported or aliased part replaced by what that refers to."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        where = module(".".join(parts[:count]))
        if where is None:
            continue
        part, rest = parts[count], parts[count + 1 :]
        what = where.names.get(part)
        if isinstance(what, ast.Name):
            return ".".join([where.name, what.id, *rest])
        found = (
            what
            if isinstance(what, tuple)
            else where.lazy(part)
            if what is None and "__getattr__" in where.names
            else None
        )
        return None if found is None else ".".join([source for source in found if source] + rest)
    return None
