"""What a config needs in memory at the very least, computed before anything is allocated.

A class that may grow large says so in a static method `least_numbers`: how many float32 numbers its objects, or one
step with them, keep at once for sure. Its parameters are those of the constructor, or `rows` and `tokens` of a step's
piece. The one expression it returns is read from the source, as `require` lines are; what cannot be computed passes.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from research_stack.config.expressions import CannotSay, Evaluator
from research_stack.config.inheritance import lineage, made_by
from research_stack.config.nodes import nodes
from research_stack.config.signatures import Found, signature

FORMULA = "least_numbers"
NO_MACHINE = 2**50  # bytes; where the machine that will run is another one
SMALL = 2**32  # bytes that are not worth asking a GPU for


def mistakes(config: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(key to change, what is wrong, further keys it depends on) of each node that no memory holds."""
    step = _step(config)
    for path, node in nodes(config):
        made = made_by(node)
        formula = _formula(made) if made is not None else None
        if formula is None:
            continue
        names = _names(node, formula, step)
        needed, limit = _bytes(formula, names), _limit(config)
        if needed > max(SMALL, limit):
            keys = [key for name in _by_weight(formula, names) for key in _keys(path, name, config)]
            value = _value(config, keys[0]) if keys else ""
            yield (
                keys[0] if keys else path,
                (
                    f"{keys[0] if keys else path}={value}: at least {_written(needed)} of memory would be needed, "
                    f"and there are {_written(limit)}"
                ),
                tuple(keys[1:]),
            )


def _bytes(formula: ast.FunctionDef, names: Mapping[str, Any]) -> int:
    """What the formula comes to, in bytes; 0 where it cannot be computed."""
    returned = formula.body[-1]
    assert isinstance(returned, ast.Return) and returned.value is not None
    try:
        return 4 * int(Evaluator(names)(returned.value))
    except (CannotSay, TypeError, OverflowError):
        return 0


def _by_weight(formula: ast.FunctionDef, names: Mapping[str, Any]) -> list[str]:
    """The names that are numbers, first the one whose being 1 would save most."""
    least = {
        name: [1] * len(value) if isinstance(value, list) else 1
        for name, value in names.items()
        if isinstance(value, int | list) and value != 1
    }
    return sorted(least, key=lambda name: _bytes(formula, {**names, name: least[name]}))


def _keys(path: str, name: str, config: Mapping[str, Any]) -> list[str]:
    """The keys of the config that a name of a formula means, the larger first."""
    if name not in ("rows", "tokens"):
        return [f"{path}.{name}"] if _value(config, f"{path}.{name}") != "" else []
    found = [f"data.{key}" for key in ("batch_size", "sequence_length")[: 2 if name == "tokens" else 1]]
    return sorted((key for key in found if _value(config, key) != ""), key=lambda key: -int(_value(config, key)))


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part, "") if isinstance(config, Mapping) else ""
    return config


def _step(config: Mapping[str, Any]) -> dict[str, int]:
    """Rows, and tokens of them, that a device computes at once."""
    data, optimization, hardware = (config.get(name) for name in ("data", "optimization", "hardware"))
    rows, length = (_number(data, name, 1) for name in ("batch_size", "sequence_length"))
    pieces = (
        _number(optimization, "accumulate", 1) * _number(hardware, "devices", 1) * _number(hardware, "num_nodes", 1)
    )
    return {"rows": max(1, rows // max(1, pieces)), "tokens": max(1, rows * length // max(1, pieces))}


def _number(node: Any, name: str, otherwise: int) -> int:
    value = node.get(name) if isinstance(node, Mapping) else None
    return value if isinstance(value, int) and value > 0 else otherwise


@cache
def _formula(made: Found) -> ast.FunctionDef | None:
    """The `least_numbers` of a class, its own or inherited, if it is one expression."""
    for ancestor in lineage(made, into=frozenset()):
        for statement in ancestor.node.body if isinstance(ancestor, Found) else ():
            if (
                isinstance(statement, ast.FunctionDef)
                and statement.name == FORMULA
                and isinstance(statement.body[-1], ast.Return)
            ):
                return statement
    return None


def _names(node: Mapping[str, Any], formula: ast.FunctionDef, step: Mapping[str, int]) -> dict[str, Any]:
    """What the names of the formula stand for: values of the node, defaults, 1 where only the run knows."""
    parameters = signature(str(node["_target_"])).parameters
    found: dict[str, Any] = {}
    for argument in formula.args.args:
        name = argument.arg
        if name in step or name in node:
            found[name] = step[name] if name in step else node[name]
        else:
            default = parameters[name].default if name in parameters else None
            found[name] = default.value if isinstance(default, ast.Constant) else 1
    return found


# The machine ------------------------------------------------------------------------------------------------------


def _limit(config: Mapping[str, Any]) -> int:
    """Bytes of the memory that the run will have: of a GPU where one is chosen, else of this machine."""
    hardware = config.get("hardware")
    hardware = hardware if isinstance(hardware, Mapping) else {}
    if hardware.get("submit") and "SLURM_JOB_ID" not in os.environ:
        return NO_MACHINE
    of_gpu = gpu_bytes() if hardware.get("accelerator") == "gpu" else None
    return of_gpu or (NO_MACHINE if hardware.get("accelerator") == "gpu" else machine_bytes())


@cache
def machine_bytes() -> int:
    """Bytes of this machine's memory, or of what a container may use of it."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return NO_MACHINE
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    share = Path("/sys/fs/cgroup/memory.max")
    text = share.read_text().strip() if share.is_file() else "max"
    return whole if text == "max" else min(whole, int(text))


@cache
def gpu_bytes() -> int | None:
    """Bytes of the largest GPU's memory as its driver tells them; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    process = subprocess.run(
        [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    found = [int(line) for line in process.stdout.split() if line.isdecimal()]
    return max(found) * 2**20 if found else None


def _written(count: int) -> str:
    """Bytes as a person reads them."""
    size, unit = float(min(count, 10**30)), 0
    while size >= 1024 and unit < 8:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB', 'ZiB', 'YiB')[unit]}"
