"""reward_card.md: what a reward model was made of, what it reaches on prompts it has not seen, and what it must not be
used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from research_stack.metrics.interval import Estimate

if TYPE_CHECKING:
    from research_stack.posttraining.reward_evaluation import RewardScores
    from research_stack.posttraining.reward_model import RewardModel

SYNTHETIC = (
    "**The data are SYNTHETIC.** Prompts, replies and engagement come from the built-in generator, which plants a known"
    " preference. The numbers below show that the model finds what was planted; they say nothing about people."
)
REAL = (
    "The data were read from files. Whose engagement it is, and whether they agreed to this use, is not known to this"
    " program."
)
CEILING = (
    " The planted preference is what one would predict who knows how the engagement was drawn: the rest is chance."
)
LIMITS = """\
- It predicts engagement, which is what was counted, not whether a reply is true, helpful or harmless.
- It was judged on unseen prompts of the same source. Text of another kind, and above all text that was optimised
  against it, lies outside of what the numbers cover: watch a second measure while training on this reward.
- The encoder reads the beginning of a long text alone, and is blind to what its embedding leaves out (exact numbers,
  negation, code).
- Targets are noisy: part of the variance of engagement is chance, so R2 has a ceiling below 1.
- Intervals are over held-out prompts. They do not cover another training run, another split or another time."""


def card(
    data: Mapping[str, Any],
    method: RewardModel,
    judged: Mapping[str, RewardScores],
    over: Estimate,
    pairs: int,
    prompts: int,
) -> str:
    """The card as Markdown.

    - data: what `ScoredPairs.describe()` says. judged: by name, the model first. over: R2 of the model less that of the
      length.
    - pairs, prompts: held out and judged.
    """
    widths = [method.model.inputs, *(layer.out_features for layer in method.model.layers)]
    loss = "squared error" if method.loss == "mse" else f"Huber's loss beyond {method.delta:g} standard deviations"
    rows = [
        f"| {name} | {show(one.pearson)} | {show(one.spearman)} | {show(one.r2)} | {show(one.pairwise_accuracy)} |"
        f" {one.slope:.2f}"
        f" | {one.calibration_error:.3f} |"
        for name, one in judged.items()
    ]
    facts = {
        "target": (
            "log(1 + engagement), standardised with mean and deviation of the training side "
            f"({float(method.mean):.4f} and {float(method.std):.4f})"
        ),
        "model": f"{' -> '.join(map(str, widths))}, GELU between the layers, {loss}",
        "engagement": data.get("source_engagement", "as the source counts it"),
        "inputs": "embedding of the prompt, then embedding of the reply",
        "encoder": f"`{data['encoder']}`, frozen",
        "data": f"`{data['source']}`" + (f", from {data['path']}" if data["path"] else ""),
        "data fingerprint": f"`{data['fingerprint']}`",
        "split": (
            f"by prompt: {data['train_pairs']:,} pairs of {data['train_prompts']:,} prompts for training,"
            f" {data['validation_pairs']:,} of {data['validation_prompts']:,} held out; {data['duplicates']:,} exact"
            " copies removed"
        ),
    }
    return "\n".join(
        [
            "# Reward model card",
            "",
            SYNTHETIC if data.get("source_synthetic") else REAL,
            "",
            "## What it is",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            "",
            "## What it reaches",
            "",
            f"On {pairs:,} held-out pairs of {prompts:,} prompts; 95 % intervals over prompts.",
            "",
            "| | Pearson | Spearman | R2 | pairwise accuracy | slope | calibration error |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"R2 over the length of the reply alone: {show(over)}. Pairwise accuracy: of two replies to one prompt"
            " that earned differently, how often the better one is predicted higher (.5 is chance)."
            + (CEILING if len(judged) > 3 else ""),
            "",
            "## Limits",
            "",
            LIMITS,
            "",
        ]
    )


def show(estimate: Estimate) -> str:
    """0.612 (0.570 to 0.648)."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
