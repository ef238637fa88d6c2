"""Which features a method has: the list at the start of a run, and what a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from research_stack.latentwire.features.base import Feature
from research_stack.latentwire.module_dict import TypedModuleDict

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire

#: The features that there are, by the names of their files in conf/method/features.
KNOWN = (
    "adaptive_tokens",
    "coprocessor",
    "deep_prefix",
    "gist",
    "latent_dropout",
    "layer_adapters",
    "lora",
    "reconstruction",
)


def feature_rows(method: LatentWire) -> list[dict[str, Any]]:
    """A row for each feature, also those that are off: {feature, status: on | off, parameters, trained} and what it
    says of itself.
    """
    rows = []
    for name in dict.fromkeys((*KNOWN, *method.features)):
        on = name in method.features
        said = method.features[name].describe() if on else {"parameters": 0, "trained": 0}
        rows.append({"feature": name, "status": "on" if on else "off", **said})
    return rows


def feature_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of `described` as a table for the log."""
    width = max(len("feature"), *(len(row["feature"]) for row in rows))
    return [
        f"{'feature':<{width}}  status  {'parameters':>11}  {'trained':>11}",
        *(
            f"{row['feature']:<{width}}  {row['status']:<6}  {row['parameters']:>11,}  {row['trained']:>11,}"
            for row in rows
        ),
    ]


def refuse_other_features(state: Mapping[str, Any], features: TypedModuleDict[Feature]) -> None:
    """Raise ValueError that names the features whose weights the state dict of a method lacks, or has too many."""
    theirs = {key.split(".")[1] for key in state if key.startswith("features.")}
    ours = {name for name, feature in features.items() if feature.state_dict()}
    missing, surplus = sorted(ours - theirs), sorted(theirs - ours)
    faults = ([f"it lacks {', '.join(missing)}, which this run has"] if missing else []) + (
        [f"it has {', '.join(surplus)}, which this run has not"] if surplus else []
    )
    if faults:
        raise ValueError(f"method.features={sorted(features)} are not those of the checkpoint: {'; '.join(faults)}")
