"""pass@k and diversity of a trained policy, on the prompts it was trained on and on held-out ones.

Writes tables/passk.csv (every number with its interval), tables/passk_curve.csv (pass@k over k) and
tables/passk_prompts.csv (a line a prompt, with its most frequent correct answers), and samples.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from research_stack.evaluation.context import Context
from research_stack.metrics.passk import SHARE, over_prompts, pass_at_k
from research_stack.posttraining.answer_metrics import AnswerMetrics, Measurement
from research_stack.posttraining.policy import Policy
from research_stack.posttraining.scored_completions import unique_prompts
from research_stack.records.csv_tables import write_table
from research_stack.require import require

SHOWN = 3  # answers of a prompt in its line


class PassK:
    """Metrics of answers to prompts of both sides of the split.

    - metrics: what is measured. max_prompts: prompts of each side at most, spread evenly.
    """

    #: See research_stack.config.smoke.
    smoke = {"max_prompts": 2}

    def __init__(self, metrics: AnswerMetrics, max_prompts: int = 64) -> None:
        require(max_prompts >= 1, f"max_prompts={max_prompts} must be at least 1")
        self.metrics, self.max_prompts = metrics, max_prompts

    def unsuited(self, method: type) -> str | None:
        """Only policies answer prompts."""
        return (
            None
            if issubclass(method, Policy)
            else "it has no answers to prompts; measure a run of experiment=sft, polychromic or grpo"
        )

    def __call__(self, context: Context) -> dict[str, float]:
        """The means over prompts; those of held-out prompts begin with `held_out_`."""
        policy, data = context.method, context.data
        assert isinstance(policy, Policy)
        sides = {
            "trained": unique_prompts(data.train, self.max_prompts),
            "held_out": unique_prompts(data.validation, self.max_prompts),
        }
        asked = {side: [data.codec.decode(prompt.tolist()) for prompt in prompts] for side, prompts in sides.items()}
        found = {side: self.metrics(policy, data.codec, prompts, context.seed) for side, prompts in sides.items()}
        self._write(context.folder, asked, found)
        return {
            ("held_out_" if side == "held_out" else "") + name: band.value
            for side, measured in found.items()
            for name, band in measured.bands.items()
            if band.n
        }

    def _write(self, folder: Path, asked: Mapping[str, Sequence[str]], found: Mapping[str, Measurement]) -> None:
        bands = [[side, name, *band] for side, measured in found.items() for name, band in measured.bands.items()]
        columns = ["prompts", "metric", "value", "low", "high", "n", "undefined"]
        write_table(folder, "passk", bands, columns, digits=None)
        ks = [2**power for power in range(20) if 2**power <= self.metrics.num_generations]
        curve = [
            [side, k, *over_prompts(pass_at_k(self.metrics.num_generations, measured.correct_PN.sum(1), k), SHARE)[:3]]
            for side, measured in found.items()
            for k in ks
        ]
        write_table(folder, "passk_curve", curve, ["prompts", "k", "pass", "low", "high"], digits=None)
        lines = [
            [side, one_line(prompt), self.metrics.num_generations, *_line(texts, correct_N)]
            for side, measured in found.items()
            for prompt, texts, correct_N in zip(asked[side], measured.texts, measured.correct_PN, strict=True)
        ]
        columns = ["prompts", "prompt", "answers", "correct", "unique_correct", "most_frequent_correct"]
        write_table(folder, "passk_prompts", lines, columns)


def _line(texts: Sequence[str], correct_N: np.ndarray) -> list[object]:
    """How many are correct, how many unique ones, and the most frequent of them."""
    correct = Counter(text for text, good in zip(texts, correct_N, strict=True) if good)
    return [
        sum(correct.values()),
        len(correct),
        "  ".join(f"{one_line(text)} x{count}" for text, count in correct.most_common(SHOWN)),
    ]


def one_line(text: str) -> str:
    """The text with everything that does not print escaped, line breaks above all: programs that read tables end a row
    there.
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
