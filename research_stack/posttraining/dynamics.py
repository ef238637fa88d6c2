"""How the diversity of a policy's answers moves while it is trained: fixed prompts, measured every so many steps.

`dynamics.json` in the run folder holds all measurements, with their values per prompt, and where the weights came from,
so that the phases of a policy (SFT, then GRPO) can be drawn as one trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from research_stack.data.module import TokenData
from research_stack.posttraining.answer_metrics import AnswerMetrics
from research_stack.posttraining.policy import Policy
from research_stack.posttraining.scored_completions import unique_prompts
from research_stack.records.files import read_json, write_json
from research_stack.require import require

FILE = "dynamics.json"


class DiversityDynamics(Callback):
    """Measures the policy before the first step, every `every` steps and at the end: the average of its weights
    where one is kept.

    - metrics: what is measured. prompts: `held_out` ones of the validation side, or those `trained` on.
    - max_prompts: prompts at most, spread evenly.
    """

    #: See research_stack.config.smoke.
    smoke = {"every": 3, "max_prompts": 2}

    def __init__(
        self,
        metrics: AnswerMetrics,
        every: int = 50,
        prompts: Literal["held_out", "trained"] = "held_out",
        max_prompts: int = 32,
    ) -> None:
        require(every >= 1, f"every={every} must be at least 1")
        require(max_prompts >= 1, f"max_prompts={max_prompts} must be at least 1")
        self.metrics, self.every, self.prompts, self.max_prompts = metrics, every, prompts, max_prompts
        self._asked: list[Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only policies have answers."""
        if not isinstance(pl_module, Policy):
            raise ValueError(
                f"callbacks.dynamics does not fit method={type(pl_module).__name__}: it measures answers to prompts;"
                " use it with sft, polychromic or grpo"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what training begins with."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is due."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, policy: LightningModule) -> None:
        """One more point; every device could measure, the first one does, of weights that all have put together."""
        assert isinstance(policy, Policy)
        with policy.writing():
            if trainer.is_global_zero:
                self._point(trainer, policy)

    def _point(self, trainer: Trainer, policy: Policy) -> None:
        data: TokenData = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
        if self._asked is None:
            self._asked = unique_prompts(
                data.validation if self.prompts == "held_out" else data.train, self.max_prompts
            )
        prompts = self._asked
        with averaged(trainer, policy):
            found = self.metrics(policy, data.codec, prompts, policy.seed)
        path, step = Path(trainer.default_root_dir) / FILE, int(trainer.global_step)
        kept = read_json(path) if path.is_file() else {"points": []}
        points = [point for point in kept["points"] if point["step"] < step]
        asked = [data.codec.decode(prompt.tolist()) for prompt in prompts]
        write_json(
            path,
            {
                "method": type(policy).__name__,
                "count": self.metrics.num_generations,
                "which": self.prompts,
                "prompts": asked,
                "points": [*points, {"step": step, **found.as_json()}],
            },
        )
        if step:  # nothing can be logged before the first step
            values = {f"dynamics/{name}": band.value for name, band in found.bands.items() if band.n}
            for logger in trainer.loggers:  # Lightning's own log would repeat them until the next measurement
                logger.log_metrics(values, step=step - 1)


@contextmanager
def averaged(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Hold the average of the weights, where one is kept, as validation does: it is what is saved and what a next phase
    begins with.
    """
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    keepers = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    for keeper in keepers:
        keeper.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.on_validation_epoch_end(trainer, module)
