"""The axes along which runs differ, found from their configs.

Keys that always change together are one axis: a group choice such as `corruption=uniform` changes dozens of keys and is
shown by the one that reads best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research_stack.records.config_hash import ABSENT, canonical

PRESET = "ablation"  # a group whose choices change keys anywhere: where it was swept, it says best what differs
LEAVES_SHOWN = 3  # keys of one group choice that are shown each by itself (mask_ratio, corruption_rate)
TARGET = "._target_"


@dataclass
class SweepAxis:
    """A column of settings.

    - name: a dotted config key, a group where its class or its choice differs, or "name".
    - values: one per run.
    - hidden: the config keys that change along with it.
    """

    name: str
    values: list[Any]
    hidden: list[str] = field(default_factory=list)


def find_axes(
    configs: Sequence[Mapping[str, Any]], names: Sequence[Any], choices: Sequence[Mapping[str, str]]
) -> list[SweepAxis]:
    """What the runs differ in, as few readable axes that still tell apart all that differs.

    - configs: flat, of each run; names: of the experiments; choices: {group: name} of the groups that were chosen.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    columns = {key: [config.get(key, ABSENT) for config in configs] for key in keys}
    classes: dict[tuple[int, ...], list[str]] = {}  # keys by the partition of the points that they make
    for key, column in columns.items():
        if len(set(partition := partition_of(column))) > 1:
            classes.setdefault(partition, []).append(key)
    preset = [choice.get(PRESET) for choice in choices]
    own = partition_of(preset)
    under = [part for part in classes if None not in preset and _refines(own, part)]
    axes = [SweepAxis(PRESET, preset, [key for part in under for key in classes.pop(part)])] if under else []
    dependent = _dependent(classes, columns)
    labels = {"name": list(names)}
    labels |= {
        group: [choice.get(group) for choice in choices]
        for group in dict.fromkeys(key.partition(".")[0] for key in keys)
    }
    for partition, keys in classes.items():
        if partition not in dependent:
            hidden = [key for part, owner in dependent.items() if owner == partition for key in classes[part]]
            axes += _represent(partition, keys, columns, labels, hidden)
    return axes


def _dependent(
    classes: Mapping[tuple[int, ...], list[str]], columns: Mapping[str, list[Any]]
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """{partition: another that implies it} for keys that only some choice of a class has, such as a class's own
    arguments.
    """
    owners = [p for p, keys in classes.items() if any(_is_target(key) and ABSENT not in columns[key] for key in keys)]
    partial = [p for p, keys in classes.items() if all(ABSENT in columns[key] for key in keys)]
    return {p: next(o for o in owners if _refines(o, p)) for p in partial if any(_refines(o, p) for o in owners)}


def partition_of(column: Sequence[Any]) -> tuple[int, ...]:
    """The number of the distinct value at each position: [.3, .5, .3] -> (0, 1, 0)."""
    texts = [json.dumps(canonical(value), sort_keys=True, default=str) for value in column]
    order = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return tuple(order[text] for text in texts)


def _refines(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Whether the coarse partition is a function of the fine one."""
    return len(set(zip(fine, coarse, strict=True))) == len(set(fine))


def _is_target(key: str) -> bool:
    return key.endswith(TARGET)


def _represent(
    partition: tuple[int, ...],
    keys: list[str],
    columns: Mapping[str, list[Any]],
    labels: Mapping[str, list[Any]],
    hidden: list[str],
) -> list[SweepAxis]:
    """The axis, or few axes, that stand for keys that change together; the first one lists the rest as hidden.

    In this order: a few plain settings; the choice of one group, as it was typed; the class of a group; the name of
    the experiment; the setting that lies nearest to the top.
    """
    classes = [key for key in keys if _is_target(key) and key.count(".") == 1]  # a whole group's class
    leaves = [key for key in keys if not _is_target(key) and ABSENT not in columns[key]]
    groups = {key.partition(".")[0] for key in keys}
    fitting = {
        name: values for name, values in labels.items() if None not in values and partition_of(values) == partition
    }
    typed = [group for group in groups if len(groups) == 1 and group in fitting]
    if not classes and 1 <= len(leaves) <= LEAVES_SHOWN and len(keys) <= 2 * LEAVES_SHOWN:
        axes = [SweepAxis(key, columns[key]) for key in leaves]
    elif typed:
        axes = [SweepAxis(typed[0], fitting[typed[0]])]
    elif classes and (len(classes) == 1 or "name" not in fitting):
        axes = [SweepAxis(classes[0].removesuffix(TARGET), _short_names(columns[classes[0]]))]
    elif "name" in fitting:
        axes = [SweepAxis("name", fitting["name"])]
    else:
        best = min(leaves or keys, key=lambda key: key.count("."))
        axes = [SweepAxis(best, _short_names(columns[best]) if _is_target(best) else columns[best])]
    shown = {axis.name for axis in axes} | {axis.name + TARGET for axis in axes}
    axes[0].hidden = [key for key in [*keys, *hidden] if key not in shown]
    return axes


def _short_names(targets: Sequence[str]) -> list[str]:
    """The classes' own names where they tell the targets apart, else the whole dotted paths."""
    short = [str(target).rpartition(".")[2] for target in targets]
    return short if len(set(short)) == len(set(targets)) else list(targets)


def shortest(axis: str, axes: Sequence[str]) -> str:
    """The shortest dotted ending of the axis that no other axis shares."""
    parts = axis.split(".")
    endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next(e for e in endings if sum(other == e or other.endswith("." + e) for other in axes) == 1)
