"""What the keys of lightning.Trainer may hold, beyond what its own annotations say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Keys that belong to other nodes, which would override them without a word.
SET_ELSEWHERE = {
    **dict.fromkeys(("accelerator", "devices", "num_nodes", "precision", "strategy"), "it in hardware"),
    "plugins": "hardware",
    "accumulate_grad_batches": "optimization.accumulate",
    "gradient_clip_val": "optimization.clip",
    "gradient_clip_algorithm": "optimization.clip",
    "callbacks": "callbacks",
    "logger": "logger",
    "default_root_dir": "run",
    "check_val_every_n_epoch": "trainer.val_check_interval",
    "enable_progress_bar": "callbacks.progress",
    "enable_model_summary": "dry_run=true",
    "use_distributed_sampler": "data",
    "max_epochs": "trainer.max_steps",
    "min_epochs": "trainer.max_steps",
    "enable_checkpointing": "callbacks.checkpoints",
}
MOST_STEPS = 10**9  # a step of a millisecond takes twelve days for them
PROFILERS = ("simple", "advanced", "pytorch", "xla")


def _whole(low: int, high: int = MOST_STEPS) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value < high


def _share(value: Any) -> bool:
    return _whole(0)(value) or isinstance(value, float) and 0 <= value <= 1


def _time(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+:\d{2}:\d{2}:\d{2}", value) is not None or _units(value)


def _units(value: Any) -> bool:
    units = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(k in units and _whole(0, 10**6)(v) for k, v in value.items())
        and any(value.values())
    )


#: (whether a value will do, what it must be) of a key.
EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_steps": (_whole(1), f"a whole number of steps, at least 1 and below {MOST_STEPS:,}"),
    "min_steps": (_whole(0), "a whole number of steps"),
    "val_check_interval": (_whole(1), f"a whole number of steps, at least 1 and below {MOST_STEPS:,}"),
    **dict.fromkeys(
        ("limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        (_share, "a whole number of batches, or a share of them in [0.0, 1.0]"),
    ),
    "limit_train_batches": (
        lambda v: _share(v) and v > 0,
        "a whole number of batches above 0, or a share of them in (0.0, 1.0]: nothing would be learnt",
    ),
    "overfit_batches": (_share, "a whole number of batches, or a share of them in [0.0, 1.0]"),
    "fast_dev_run": (
        lambda v: v is False or v == 0,
        "false: it keeps nothing of what is trained; trainer=smoke is a run of seconds",
    ),
    "barebones": (lambda v: v is False, "false: it keeps nothing of what is trained"),
    "max_time": (_time, "days:hours:minutes:seconds as in 00:01:30:00, or a mapping such as {hours: 1}"),
    "num_sanity_val_steps": (_whole(-1), "a whole number, or -1 for all"),
    "log_every_n_steps": (_whole(1), "a whole number of steps, at least 1"),
    "reload_dataloaders_every_n_epochs": (_whole(0), "a whole number"),
    "profiler": (lambda v: v in PROFILERS or isinstance(v, Mapping), f"one of {', '.join(PROFILERS)}"),
    "deterministic": (lambda v: isinstance(v, bool) or v == "warn", "true, false or warn"),
}
REQUIRED = ("max_steps", "val_check_interval")  # Lightning counts epochs without them


def mistakes(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a node of lightning.Trainer."""
    for key, instead in SET_ELSEWHERE.items():
        if key in node:
            yield key, f"cannot be set here; set {instead}"
    for key, (will_do, expected) in EXPECTED.items():
        if (node.get(key) is not None or key in REQUIRED) and not will_do(node.get(key)):
            yield key, f"must be {expected}"
