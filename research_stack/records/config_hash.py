"""The hash of a config, and in what two configs differ, both of the keys that can change the numbers of a run.

No torch, no hydra.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from research_stack.records.redaction import masked

ABSENT = "(absent)"  # the value of a key that one of two configs lacks, in `differing_keys`

# Keys that change where, when or how visibly a run happens but not its numbers: left out of the config hash.
# Of `hardware` only the precision is kept: devices, threads and resources change nothing but rounding.
NOT_HASHED = (
    "task",
    "run",
    "runs",
    "prompt",
    "format",
    "dry_run",
    "smoke",
    "name",
    "logger",
    "callbacks",
    "launcher",
    "sweep",
    "debug",
    "hydra",
    "experiment",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.default_root_dir",
    "trainer.max_time",
    "data.cache_dir",
)
HASHED_HARDWARE = ("precision",)
MAX_STEPS = "trainer.max_steps"  # the one hashed key that a run which has begun may be given anew, if it grows
# Last parts of keys that say where something lies, not what it is: `data.path`, `model.path`, `data.source.template`,
# ...
PATH_KEYS = ("path", "template", "squad", "hotpotqa", "nq", "run")
# The nodes whose paths are judged by a fingerprint when they are opened (corpus, tokenizer, frozen models). Their
# texts count in the hash, since they name points and first phases, but not where a folder's own config is compared.
FINGERPRINTED = ("data.", "model.", "method.readers.")


def plain_config(config: Any) -> dict[str, Any]:
    """A config as plain, resolved Python: a mapping passes through, a DictConfig is resolved."""
    if isinstance(config, Mapping) and not hasattr(config, "_metadata"):
        return dict(config)
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: leaf}; lists of plain values are leaves, lists of mappings are numbered, empty ones are leaves."""
    if isinstance(tree, Mapping) and tree:
        pairs = tree.items()
    elif isinstance(tree, list | tuple) and any(isinstance(v, Mapping) for v in tree):
        pairs = enumerate(tree)
    else:
        return {prefix: tree}
    return {k: v for key, node in pairs for k, v in flatten(node, f"{prefix}.{key}" if prefix else str(key)).items()}


def class_names(config: Any) -> list[str]:
    """The `_target_`s of a plain config, each once: those of evaluations first, then of callbacks and the method."""
    first = ("eval", "callbacks", "method")

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            if isinstance(node.get("_target_"), str):
                yield node["_target_"]
            for key in sorted(node, key=lambda key: first.index(key) if key in first else len(first)):
                yield from walk(node[key])
        elif isinstance(node, list | tuple):
            for value in node:
                yield from walk(value)

    return list(dict.fromkeys(walk(config)))


def is_hashed(key: str) -> bool:
    """Whether a dotted config key can change the numbers of a run."""
    if key.startswith("hardware."):
        return key.split(".")[1] in HASHED_HARDWARE
    return key != "hardware" and not any(key == k or key.startswith(k + ".") for k in NOT_HASHED)


def is_path(key: str, value: Any = "") -> bool:
    """Whether a dotted key, and its value, say where something lies: files, folders, a name on the hub."""
    texts = [value] if isinstance(value, str) else value
    named = "." in key and key.rpartition(".")[2] in PATH_KEYS
    return named and isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)


def is_movable_path(key: str, value: Any = "") -> bool:
    """Whether it is a location that may change without the run being another: a fingerprint judges what lies there."""
    return key.startswith(FINGERPRINTED) and is_path(key, value)


def hashed_keys(config: Any) -> dict[str, Any]:
    """{dotted key: value} of the keys that can change the numbers; secrets are masked, as in a saved config."""
    return {key: value for key, value in flatten(masked(plain_config(config))).items() if is_hashed(key)}


def canonical(value: Any) -> Any:
    """1.0 and 1 are the same setting; tuples are lists; NaN and infinity have names."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if math.isfinite(value) else repr(value)
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    return value


def config_hash(config: Any) -> str:
    """12 hexadecimal digits of SHA-256 over the canonical JSON of `hashed_keys(config)`; the seed counts."""
    leaves = {key: canonical(value) for key, value in hashed_keys(config).items()}
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) where two configs differ in what changes the numbers, sorted by key.

    That something lies in another folder does not count.
    """
    a, b = hashed_keys(old), hashed_keys(new)
    pairs = ((key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted(a.keys() | b.keys()))
    changed = ((key, x, y) for key, x, y in pairs if canonical(x) != canonical(y))
    return [(key, x, y) for key, x, y in changed if not (is_movable_path(key, x) and is_movable_path(key, y))]


def extension(old: Any, new: Any) -> tuple[int, int] | None:
    """(steps before, steps now) where a config differs from an earlier one by more steps alone; None otherwise."""
    differing = differing_keys(old, new)
    if [key for key, _, _ in differing] != [MAX_STEPS]:
        return None
    _, before, now = differing[0]
    return (before, now) if isinstance(before, int) and isinstance(now, int) and before < now else None


def differences(old: Any, new: Any, typed: Sequence[str] = ()) -> str:
    """The first four keys in which two configs differ, as text, those that were typed before all others; "" for none.

    - typed: keys of the command line, of groups too.
    """
    own = [key.replace("/", ".") for key in typed]

    def order(row: tuple[str, Any, Any]) -> tuple[bool, bool]:
        return row[0] not in own, not any(row[0].startswith(f"{key}.") for key in own)

    differing = sorted(differing_keys(old, new), key=order)
    shown = "; ".join(f"{key}: {there} there, {here} now" for key, there, here in differing[:4])
    return shown + (f"; and {len(differing) - 4} more" if len(differing) > 4 else "")
