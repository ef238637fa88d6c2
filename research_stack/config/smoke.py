"""debug=smoke: any experiment in seconds, every part of it made small by its own word.

conf/debug/smoke.yaml sets the number of steps and `smoke: true`. A class says beside its code what else takes long: its
attribute `smoke` maps parameters to values for a trial, and is read from the source, like everything that is known of a
config before a run. So a method, a data set or an evaluation of somebody else's is made small as ours are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research_stack.config.nodes import nodes
from research_stack.config.signatures import UnknownTarget, class_attribute
from research_stack.records.paths import key_of, names_folder


def shrink(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Make the composed config small, in place: parameters as their classes say, but those that the command line sets.

    Its name is marked, so that no trial lies among the real runs. The model of a run that begins with the weights
    of a given folder keeps its size.
    """
    typed = [key_of(override) for override in overrides]
    if "name" not in typed:
        cfg.name = f"{cfg.name}_smoke"
    begun_from = cfg.get("init_from")
    kept = ("model",) if begun_from and names_folder(str(begun_from)) else ()
    for path, node in nodes(OmegaConf.to_container(cfg, resolve=False)):
        if path.split(".")[0] in kept:
            continue
        for name, small in _declared(node).items():
            key = f"{path}.{name}"
            if name in node and not any(key == t or key.startswith(f"{t}.") for t in typed if "." in t):
                OmegaConf.update(cfg, key, smaller(OmegaConf.select(cfg, key), small), merge=False)


def smaller(value: Any, small: Any) -> Any:
    """The value for a trial: the smaller of two numbers, else the declared one, since null means no limit."""
    numbers = [v for v in (value, small) if isinstance(v, int | float) and not isinstance(v, bool)]
    return min(numbers) if len(numbers) == 2 else small


def _declared(node: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        declared = class_attribute(str(node["_target_"]), "smoke")
    except UnknownTarget:  # the check tells of it
        return {}
    return declared if isinstance(declared, Mapping) else {}
