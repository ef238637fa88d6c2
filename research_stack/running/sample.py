"""What is asked of a finished run beside numbers: texts (task=sample), and its model in other formats (task=export)."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from research_stack.config.build import build, target
from research_stack.evaluation.exporting import export
from research_stack.evaluation.samples import Samples
from research_stack.records import paths, terminal
from research_stack.records.files import append_jsonl
from research_stack.records.run_folder import Result, RunFolder
from research_stack.running.open_run import open_run

log = logging.getLogger(__name__)


def sample_run(cfg: DictConfig, run_folder: RunFolder) -> Result:
    """task=sample: decode with `cfg.sampler`, from `cfg.prompt` if given; texts go to standard output and
    samples.jsonl.
    """
    if reason := build(cfg.sampler, "sampler").unsuited(target(cfg.method)):
        raise ValueError(f"task=sample: {reason}")
    context = open_run(cfg, run_folder, codec_alone=bool(cfg.prompt) and run_folder.tokenizer.is_dir())
    samples = Samples(samplers={}, count=1 if cfg.prompt else 3, prompts=[cfg.prompt] if cfg.prompt else None)
    with context.inference():
        rows = samples.decode(context, name=context.sampler.name, sampler=context.sampler)
    append_jsonl(run_folder.samples_jsonl, rows)  # before they are shown: a terminal may refuse what it cannot write
    for row in rows:
        terminal.write(f"{row['prompt']}{row['text']}\n{'-' * 40}\n")
    return run_folder.load_result()


def export_run(cfg: DictConfig, run_folder: RunFolder) -> Result:
    """task=export: the run's model and tokenizer as a folder of transformers or PEFT, export/<format> in the run's
    folder.
    """
    context, folder = open_run(cfg, run_folder), run_folder.path / "export" / cfg.format
    difference = export(context, folder)
    log.info("read back, its logits differ by at most %.1e nats", difference)
    terminal.write(f"{paths.shown(folder)}\n")
    return run_folder.load_result()
