"""A run: from a composed config to a folder with results.

`run` is what the command line, a sweep, a cluster job and a script all call. Training, evaluation and the report
are stages that hand over through the folder alone: what is evaluated is what was saved.
"""
from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from research_stack import paths, phases, provenance, results
from research_stack.build import build, named, needs, plain, takes, target
from research_stack.results import Result, RunFolder

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from lightning.pytorch.loggers import Logger

    from research_stack.data.module import TokenData
    from research_stack.evaluation.context import Context, Evaluation
    from research_stack.hardware import Hardware
    from research_stack.sampling.sampler import Sampler
    from research_stack.training.module import TrainingModule

log = logging.getLogger(__name__)

WAIT = 5.0  # seconds between two looks at a first phase that another process trains


@dataclass
class Parts:
    """The objects of a run, each built from its own node."""

    hardware: Hardware
    data: TokenData
    method: TrainingModule


def run(cfg: DictConfig, folder: str | Path | None = None) -> Result:
    """Do what `cfg.task` says, in `folder` (default: a new one below outputs/).

    Training goes on from the folder's last checkpoint if it has one. Raises ValueError or OSError with one clear
    line for a mistake of the user's; the folder then says `failed` and keeps what was there.
    """
    tasks: Mapping[str, Callable[[DictConfig, RunFolder], Result]] = {"train": train, "eval": evaluate_run, "sample": sample_run}
    if cfg.task not in tasks:
        raise ValueError(f"task={cfg.task} must be one of {', '.join(tasks)}")
    if cfg.dry_run:
        return describe(cfg, RunFolder(folder if folder is not None else cfg.run or paths.next_run_folder(cfg.name)))
    place = RunFolder(folder if folder is not None else cfg.run or new_folder(cfg.name))
    try:
        return tasks[cfg.task](cfg, place)
    finally:
        with suppress(OSError):  # not empty: something came of it
            place.path.rmdir()


def new_folder(name: str) -> Path:
    """outputs/<name>/<time>, made here and nobody else's."""
    return paths.new_run_folder(name)


# Stages -----------------------------------------------------------------------------------------------------------


def assemble(cfg: DictConfig, codec_of: RunFolder | None = None) -> Parts:
    """Build every object of the run; every constructor has checked its arguments when this returns.

    - codec_of: a trained run that is only to go on from a prompt: its tokenizer is enough, and no corpus is read.
    """
    hardware = build(cfg.hardware, "hardware")
    hardware.apply()
    corruption = build(cfg.corruption, "corruption")
    optimization = build(cfg.optimization, "optimization")
    data = build(cfg.data, "data", seed=cfg.seed)
    with named("data"):
        if codec_of is None:
            data.prepare()
        else:
            facts = results.read_json(codec_of.run_json).get("data") or {}
            data.prepare_codec(codec_of.tokenizer, prompts_only=bool(facts.get("prompts_only")))
    model = build(cfg.model, "model", **taken(cfg, "model", data.for_model() | {"seed": cfg.seed}))
    with named("data"):
        data.check_fit(model, target(cfg.method))
    offers = data.for_method() | {"model": model, "optimization": optimization, "seed": cfg.seed, "max_steps": cfg.trainer.max_steps}
    if takes(cfg.method, "corruption"):
        offers["corruption"] = corruption.bind(data.vocab)
    method = build(cfg.method, "method", **taken(cfg, "method", offers))
    if codec_of is None:
        method.check_data(data)
    data.repeat = method.steps_per_batch
    return Parts(hardware, data, method)


def first_phase(cfg: DictConfig) -> RunFolder:
    """The finished run that this one begins from, trained now where it has not been; a process that trains it already is waited for."""
    phases.check(cfg)
    place = phases.folder_of(cfg)
    if phases.is_folder(cfg.init_from):
        return place
    while not place.result_json.is_file() or place.load_result().status != "ok":
        try:
            log.info("first phase: init_from=%s, in %s", cfg.init_from, place.path)
            run(phases.first_phase(cfg), place.path)
            break
        except results.InUse:
            log.info("waiting for %s, which another process trains", place.path)
            time.sleep(WAIT)
    return place


def taken(cfg: DictConfig, group: str, offers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that the class of the node takes. Raises ValueError when it needs one that nobody offers."""
    missing = needs(cfg[group]) - set(cfg[group]) - set(offers)
    if missing:
        raise ValueError(f"{group}={target(cfg[group]).__name__} needs {', '.join(sorted(missing))}, which data={target(cfg.data).__name__} does not give: "
                         "they do not belong together")
    return {name: value for name, value in offers.items() if takes(cfg[group], name)}


def train(cfg: DictConfig, place: RunFolder) -> Result:
    """Fit, evaluate, report."""
    from research_stack import worker

    hardware = build(cfg.hardware, "hardware")
    worker.guard(hardware)
    measurements(cfg)  # a mistake in them shows before training, not after
    if worker.is_helper_rank():  # another rank of the same SLURM job keeps the folder
        fit(cfg, place.path)
        return results.Result(place.path, "running")
    if is_finished(cfg, place):
        log.info("%s is finished; run=new trains it again, task=eval measures it", place.path)
        return finished(place)
    begun_from = first_phase(cfg) if cfg.init_from and not (place.checkpoints / "last.ckpt").is_file() else None
    with place.lock(), log_file(place.path / "run.log"), recorded(cfg, place) as metrics:
        if begun_from is not None:
            provenance.add(place.path, {"init_from": str(begun_from.path)})
        if worker.needs_launch(hardware):
            worker.launch(place.path, hardware)
        else:
            fit(cfg, place.path)
        metrics |= evaluate(cfg, place)
        for logger in chosen_loggers(cfg, place):  # training has closed them
            logger.log_metrics(dict(metrics), step=int(cfg.trainer.max_steps))
            logger.finalize("success")
    return finished(place)


def chosen_loggers(cfg: DictConfig, place: RunFolder) -> list[Logger]:
    """The loggers of `cfg.logger`, beside the files that are always written."""
    return [build(node, f"logger.{name}", folder=place.path) for name, node in (plain(cfg.logger) or {}).items()]


def fit(cfg: DictConfig, folder: Path) -> None:
    """Train on this process's device, from the last checkpoint in the folder if there is one."""
    quiet_lightning()
    from research_stack.preemption import Preemption
    from research_stack.training.checkpoint import AtomicCheckpointIO, ConfigInside, load_checkpoint
    from research_stack.training.ema import Ema
    from research_stack.training.loggers import JsonlLogger, RowBeforeCheckpoint

    parts, place = assemble(cfg), RunFolder(folder)
    last = place.checkpoints / "last.ckpt"
    step = load_checkpoint(last)["global_step"] if last.is_file() else 0
    if cfg.init_from and not step:
        first = phases.folder_of(cfg)
        parts.method.begin_from(load_checkpoint(first.checkpoints / "last.ckpt")["state_dict"])
        refuse_other_codec(first, parts.data)
        log.info("beginning with the weights of %s", first.path)
    parts.data.start_step = step
    if step:
        refuse_other_data(place, parts.data)
    if leads():
        keep_codec(parts.data, place, anew=not step)
        provenance.add(place.path, {"data": parts.data.describe(), "model": model_facts(parts), "method": parts.method.describe()})
    loggers = [JsonlLogger(place.path, start_step=step), *chosen_loggers(cfg, place)]
    callbacks = [build(node, f"callbacks.{name}") for name, node in plain(cfg.callbacks).items()]
    callbacks = [RowBeforeCheckpoint(loggers[0]), ConfigInside(plain(cfg)), *([Ema(cfg.optimization.ema)] if cfg.optimization.ema else []), *callbacks]
    trainer = build(
        cfg.trainer, "trainer", default_root_dir=str(place.path), logger=loggers,
        callbacks=[*callbacks, Preemption(place.path)], enable_progress_bar=False,
        enable_model_summary=False, check_val_every_n_epoch=None, use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO(), *parts.hardware.plugins()], **parts.hardware.trainer_arguments())
    if step:
        log.info("resuming %s at step %d", place.path, step)
    started, first = time.monotonic(), step
    trainer.fit(parts.hardware.compiled(parts.method), datamodule=parts.data, ckpt_path=str(last) if step else None,
                weights_only=True)
    seconds = time.monotonic() - started
    if trainer.is_global_zero and trainer.global_step > first:
        log.info("trained %d steps in %.0f s", trainer.global_step - first, seconds)


def quiet_lightning() -> None:
    """Keep Lightning's advice (more loader workers, other loggers, srun) out of the log; errors still come."""
    import warnings

    import lightning  # noqa: F401  sets up the handlers that are taken down here

    warnings.filterwarnings("ignore", module="lightning|torch.utils.data|transformers")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.handlers.clear()  # it would print beside our own log


def evaluate(cfg: DictConfig, place: RunFolder) -> dict[str, float]:
    """Every evaluation of `cfg.eval` on the folder's last checkpoint; {"<name>/<key>": value}."""
    evaluations, _ = measurements(cfg)
    if not evaluations:
        return {}
    context, metrics = open_run(cfg, place), {}
    for name, evaluation in evaluations.items():
        started = time.monotonic()
        with context.inference():
            found = evaluation(context)
        metrics |= {f"{name}/{key}": float(value) for key, value in found.items()}
        log.info("eval %s: %.1f s", name, time.monotonic() - started)
    return metrics


def measurements(cfg: DictConfig) -> tuple[dict[str, Evaluation], Sampler]:
    """The evaluations of `cfg.eval` by name, and the sampler, built.

    Raises ValueError for an evaluation that cannot measure the method.
    """
    nodes, method = plain(cfg.eval) or {}, target(cfg.method)
    evaluations: dict[str, Evaluation] = {name: build(node, f"eval.{name}") for name, node in nodes.items()}
    for name, evaluation in evaluations.items():
        if reason := evaluation.unsuited(method):
            raise ValueError(f"eval.{name} does not fit method={method.__name__}: {reason}")
    return evaluations, build(cfg.sampler, "sampler")


def load(folder: str | Path, overrides: Sequence[str] = ()) -> Context:
    """A finished run, ready to measure and to sample from: `load(result.folder, ["sampler=llada"])`.

    - overrides: nodes that replace the saved ones: eval, sampler, hardware.

    Raises ValueError in one line for a folder that is no run, a bad override or a damaged checkpoint.
    """
    from research_stack.compose import for_run

    return open_run(for_run(folder, overrides), RunFolder(folder))


def open_run(cfg: DictConfig, place: RunFolder, codec_alone: bool = False) -> Context:
    """The trained method of a folder with its data and sampler, ready to measure.

    - codec_alone: there is a prompt to go on from: of the data the tokenizer that the run keeps is enough.
    """
    from research_stack.evaluation.context import Context
    from research_stack.training.checkpoint import load_checkpoint

    parts = assemble(cfg, place if codec_alone else None)
    if not codec_alone:
        refuse_other_data(place, parts.data)
    checkpoint = load_checkpoint(place.checkpoints / "last.ckpt")
    try:
        parts.method.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{place.checkpoints / 'last.ckpt'}: the checkpoint is of another model "
                         f"({str(error).splitlines()[-1].strip()})") from error
    device = parts.hardware.device()
    return Context(method=parts.method.eval().to(device), data=parts.data, sampler=build(cfg.sampler, "sampler"),
                   folder=place.path, seed=cfg.seed, device=device, autocast=parts.hardware.autocast)


def evaluate_run(cfg: DictConfig, place: RunFolder) -> Result:
    """task=eval: measure a finished run; its result.json and report gain the new numbers."""
    from research_stack.reporting import write_report

    with place.lock(), log_file(place.path / "run.log"):
        place.merge_metrics(evaluate(cfg, place), measured=plain(cfg.eval))
        write_report(place.path)
        provenance.history(place.path, cfg, task="eval")
    return finished(place)


def sample_run(cfg: DictConfig, place: RunFolder) -> Result:
    """task=sample: decode with `cfg.sampler`, from `cfg.prompt` if given; texts go to standard output and samples.jsonl."""
    from research_stack.evaluation.samples import Samples

    if reason := build(cfg.sampler, "sampler").unsuited(target(cfg.method)):
        raise ValueError(f"task=sample: {reason}")
    context = open_run(cfg, place, codec_alone=bool(cfg.prompt) and place.tokenizer.is_dir())
    samples = Samples(samplers={}, count=1 if cfg.prompt else 3, prompts=[cfg.prompt] if cfg.prompt else None)
    with context.inference():
        rows = samples.decode(context, name=context.sampler.name, sampler=context.sampler)
    results.append_jsonl(place.samples_jsonl, rows)  # before they are shown: a terminal may refuse what it cannot write
    for row in rows:
        sys.stdout.write(f"{row['prompt']}{row['text']}\n{'-' * 40}\n")
    return place.load_result()


# What a run leaves behind -----------------------------------------------------------------------------------------


@contextmanager
def recorded(cfg: DictConfig, place: RunFolder) -> Iterator[dict[str, float]]:
    """Keep the folder's status, provenance, history and report true, however the block ends."""
    from research_stack.reporting import write_report

    resumed = (place.checkpoints / "last.ckpt").is_file()
    if results.is_run(place) and resumed:
        refuse_another(cfg, place)
    place.write_config(cfg)
    provenance.begin(place.path, cfg)
    place.start(results.config_hash(cfg), resumed=resumed)
    metrics: dict[str, float] = {}
    try:
        yield metrics
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            place.interrupted(steps_done(place)) if stopped else place.fail(error, steps_done(place))
            provenance.history(place.path, cfg)
            write_report(place.path)
        except Exception as second:  # must not hide what went wrong first
            log.error("the end of %s could not be recorded: %s", place.path, second, exc_info=not isinstance(second, OSError))
        raise
    place.finish(metrics, steps_done(place))
    provenance.history(place.path, cfg)
    write_report(place.path)


def is_finished(cfg: DictConfig, place: RunFolder) -> bool:
    """Whether the folder holds this very run with status ok."""
    if not results.is_run(place) or not place.result_json.is_file():
        return False
    result = place.load_result()
    if result.status != "ok":
        return False
    moved = not results.differing_keys(place.read_config(), cfg)  # the same but for where its files lie
    return moved or result.hash == results.config_hash(cfg)


def refuse_other_data(place: RunFolder, data: TokenData) -> None:
    """Raise ValueError when the corpus or its tokenizer is not the one the run was trained on: ids would mean other tokens."""
    trained = (results.read_json(place.run_json).get("data") or {}).get("fingerprint") if place.run_json.is_file() else None
    if trained not in (None, data.fingerprint):
        raise ValueError(f"data: the corpus has changed since {place.path} was trained on it (fingerprint {trained} then, "
                         f"{data.fingerprint} now); bring the old one back, or train anew with run=new")


def refuse_other_codec(first: RunFolder, data: TokenData) -> None:
    """Raise ValueError when the weights to begin with were trained on ids of another tokenizer."""
    theirs, ours = (results.read_json(first.run_json).get("data") or {}).get("codec"), data.describe().get("codec")
    if theirs not in (None, ours):
        raise ValueError(f"init_from={first.path} was trained with another tokenizer than data.tokenizer gives here: the ids would mean other tokens")


def keep_codec(data: LightningDataModule, place: RunFolder, anew: bool) -> None:
    """Keep the tokenizer in the run's folder, whole or not at all: it is enough to sample when the corpus is gone."""
    from research_stack.data.module import TokenData

    if not isinstance(data, TokenData) or (place.tokenizer.is_dir() and not anew):
        return
    for part in (*place.path.glob(".tmp-*-tokenizer"), place.tokenizer):  # of a killed process, of a run of nothing
        shutil.rmtree(part, ignore_errors=True)
    part = place.path / f".tmp-{os.getpid()}-tokenizer"
    part.mkdir()
    data.codec.save(part)
    os.rename(part, place.tokenizer)


def leads() -> bool:
    """Whether this process is the first of the run's ranks, the one that writes the folder."""
    from research_stack import worker

    return not worker.is_helper_rank() and int(os.environ.get("RANK", "0")) == 0


def refuse_another(cfg: DictConfig, place: RunFolder) -> None:
    """Raise ValueError when the folder holds a run of another config."""
    differing = results.differing_keys(place.read_config(), cfg)
    if differing:
        shown = "; ".join(f"{key}: {old} there, {new} now" for key, old, new in differing[:4])
        raise ValueError(f"run={place.path} was started with another config ({shown}"
                         f"{f'; and {len(differing) - 4} more' if len(differing) > 4 else ''})")


def finished(place: RunFolder) -> Result:
    """The folder's result, and its summary on standard output."""
    from research_stack.reporting import summary

    sys.stdout.write(summary(place.path) + "\n")
    return place.load_result()


def steps_done(place: RunFolder) -> int:
    """Optimizer steps logged so far."""
    rows = results.read_jsonl(place.metrics_jsonl)
    return max((row["step"] for row in rows), default=0)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also write the log's lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


# Before a run -----------------------------------------------------------------------------------------------------


def model_facts(parts: Parts) -> dict[str, Any]:
    """Parameters, and the bytes that weights, gradients, optimizer and average take."""
    parameters = sum(p.numel() for p in parts.method.parameters())
    trained = sum(p.numel() for p in parts.method.parameters() if p.requires_grad)
    states = 4 * parameters + trained * (4 + 8 + (4 if parts.method.optimization.ema else 0))
    tokens = parts.data.batch_size * parts.data.sequence_length
    return {"parameters": parameters, "trained": trained, "state_bytes": states, "tokens_per_step": tokens,
            "flops_per_step": tokens * parts.method.training_flops(parts.data.sequence_length)}


def describe(cfg: DictConfig, place: RunFolder) -> Result:
    """dry_run=true: the config, and what the run would cost; nothing is trained or written."""
    parts = assemble(cfg)
    measurements(cfg)
    facts, data = model_facts(parts), parts.data.describe()
    batch, length = parts.data.batch_size, parts.data.sequence_length
    tokens = cfg.trainer.max_steps * batch * length
    rows = {
        "folder": str(place.path),
        "parameters": f"{facts['parameters']:,}",
        "weights, gradients, optimizer, average": f"{facts['state_bytes'] / 2**20:,.0f} MiB",
        "steps": f"{cfg.trainer.max_steps:,} of {batch} sequences x {length} tokens ({tokens:,} tokens)",
        "training FLOPs": f"{cfg.trainer.max_steps * facts['flops_per_step']:.2e}",
        **{f"data {key}": f"{value:,}" if isinstance(value, int | float) else str(value) for key, value in data.items()},
    }
    width = max(map(len, rows))
    sys.stdout.write(OmegaConf.to_yaml(cfg, resolve=True) + "\n")
    sys.stdout.writelines(f"{key:<{width}}  {value}\n" for key, value in rows.items())
    return results.Result(place.path, "ok", {"parameters": float(facts["parameters"]), "tokens": float(tokens)})
