"""What is kept at the end of each stage of a curriculum: a checkpoint, and the numbers that were logged last."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeGuard

from lightning.pytorch import Callback, LightningModule, Trainer

from research_stack.latentwire.module import LatentWire
from research_stack.records.files import read_jsonl, write_json
from research_stack.records.run_folder import RunFolder
from research_stack.training.checkpoint import Checkpoints, validation_follows

log = logging.getLogger(__name__)


class StageHandoff(Callback):
    """Writes `checkpoints/stage-<n>.ckpt` and `stages/<n>.json` where stage n (from 1) ends; each file is whole or
    absent.

    Both are written behind that step's validation, where there is one, and before `last.ckpt`, so that a killed run
    that goes on from there has them. Other methods, and runs without stages, are left alone.
    """

    def __init__(self) -> None:
        self._handed_over_at = -1  # a run that is stopped validates once more

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which stages there are. Raises ValueError, opening with `method.stages`, for one without a step."""
        if not _has_stages(pl_module):
            return
        try:
            ends = pl_module.curriculum.ends(int(trainer.max_steps))
        except ValueError as error:
            raise ValueError(f"method.{error}") from error
        for number, (first, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            log.info(
                "stage %d of %d: steps %d to %d, %s",
                number,
                len(ends),
                first + 1,
                end,
                _summary(_settings_of_step(trainer, pl_module, first)),
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand over, unless validation comes first."""
        if not validation_follows(trainer):
            self._hand_over(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over."""
        if not trainer.sanity_checking:
            self._hand_over(trainer, pl_module)

    def _hand_over(self, trainer: Trainer, method: LightningModule) -> None:
        """Write both files if a stage ends at this step."""
        if not _has_stages(method):
            return
        step, ends = trainer.global_step, method.curriculum.ends(int(trainer.max_steps))
        if step not in ends or step == self._handed_over_at:
            return
        self._handed_over_at = step
        number = ends.index(step) + 1
        done = _settings_of_step(trainer, method, step - 1)
        follows = None if step == ends[-1] else _settings_of_step(trainer, method, step)
        trainer.save_checkpoint(Checkpoints.path(trainer, f"stage-{number}"))
        if trainer.is_global_zero:
            steps = [0, *ends][number - 1 : number + 1]
            row = {"stage": number, "steps": steps, **done, "next": follows, "metrics": _metrics(trainer)}
            write_json(Path(trainer.default_root_dir) / "stages" / f"{number}.json", row)
            log.info(
                "stage %d of %d ends at step %d (%s)%s",
                number,
                len(ends),
                step,
                _summary(done),
                f"; next {_summary(follows)}" if follows else "",
            )


def _has_stages(method: LightningModule) -> TypeGuard[LatentWire]:
    return isinstance(method, LatentWire) and len(method.curriculum) > 0


def _settings_of_step(trainer: Trainer, method: LatentWire, step: int) -> dict[str, Any]:
    """Number of latents and weights of a step."""
    total = int(trainer.max_steps)
    return {
        "num_latents": method.curriculum.num_latents(step, total, method.num_latents),
        "weights": dict(method.curriculum.weights(step, total, method.loss_terms)),
    }


def _summary(settings: dict[str, Any]) -> str:
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings["weights"].items() if weight)
    return f"{settings['num_latents']} latents, {weights}"


def _metrics(trainer: Trainer) -> dict[str, float]:
    """The last value of each number logged so far, earlier parts of a resumed run included."""
    path = RunFolder(trainer.default_root_dir).metrics_jsonl
    rows = read_jsonl(path) if path.is_file() else []
    found = {name: value for row in rows if row["step"] <= trainer.global_step for name, value in row.items()}
    found = found or {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value for name, value in found.items() if name.startswith(("train/", "val/"))}
