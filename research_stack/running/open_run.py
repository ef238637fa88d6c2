"""A finished run, opened: its trained method, data and sampler, ready to measure and to sample from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from research_stack.config.build import build
from research_stack.config.compose import for_run
from research_stack.evaluation.context import Context
from research_stack.records.run_folder import RunFolder
from research_stack.running.assemble import assemble
from research_stack.running.recording import refuse_other_data
from research_stack.training.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from research_stack.evaluation.context import CorruptedDenoiser


def load(folder: str | Path, overrides: Sequence[str] = ()) -> Context:
    """A finished run, ready to measure and to sample from: `load(result.folder, ["sampler=llada"])`.

    - overrides: nodes that replace the saved ones: eval, sampler, hardware.

    Raises ValueError in one line for a folder that is no run, a bad override or a damaged checkpoint.
    """
    return open_run(for_run(folder, overrides), RunFolder(folder))


def open_run(cfg: DictConfig, run_folder: RunFolder, codec_alone: bool = False) -> Context:
    """The trained method of a folder with its data and sampler, ready to measure.

    - codec_alone: there is a prompt to go on from: of the data the tokenizer that the run keeps is enough.
    """
    parts = assemble(cfg, run_folder if codec_alone else None)
    if not codec_alone:
        refuse_other_data(run_folder, parts.data)
    checkpoint = load_checkpoint(run_folder.checkpoints / "last.ckpt")
    try:
        parts.method.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{run_folder.checkpoints / 'last.ckpt'}: the checkpoint is of another model "
            f"({str(error).splitlines()[-1].strip()})"
        ) from error
    device = parts.hardware.device()
    return Context(
        # Each evaluation has said before training that it suits the method (`Evaluation.unsuited`).
        method=cast("CorruptedDenoiser", parts.method.eval().to(device)),
        data=parts.data,
        sampler=build(cfg.sampler, "sampler"),
        folder=run_folder.path,
        seed=cfg.seed,
        device=device,
        autocast=parts.hardware.autocast,
    )
