"""A run: from a composed config to a folder with results.

`run` is what the command line, a sweep, a cluster job and a script all call. Training, evaluation and the report
are stages that hand over through the folder alone: what is evaluated is what was saved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from research_stack.config.build import build, named, needs, plain, takes, target
from research_stack.config.first_phase import check_init_from, first_phase_config, first_phase_folder
from research_stack.config.hints import one_line
from research_stack.records import paths, provenance, terminal
from research_stack.records.escaping import as_config
from research_stack.records.files import append_jsonl, read_json
from research_stack.records.redaction import hand_over, masked
from research_stack.records.run_folder import InUse, Result, RunFolder
from research_stack.running.recording import (
    finished,
    is_finished,
    keep_codec,
    leads,
    log_file,
    measuring,
    recorded,
    refuse_other_codec,
    refuse_other_data,
)

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from research_stack.data.module import TokenData
    from research_stack.evaluation.context import Context, Evaluation
    from research_stack.running.hardware import Hardware
    from research_stack.sampling.sampler import Sampler
    from research_stack.training.loggers import JsonlLogger
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
    tasks: Mapping[str, Callable[[DictConfig, RunFolder], Result]] = {
        "train": train,
        "eval": evaluate_run,
        "sample": sample_run,
        "export": export_run,
    }
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
            said = read_json(codec_of.run_json).get("data") or {}
            data.prepare_codec(codec_of.tokenizer, bool(said.get("prompts_only")), bool(said.get("writes_end")))
    model = build(cfg.model, "model", **taken(cfg, "model", data.for_model() | {"seed": cfg.seed}))
    with named("data"):
        data.check_fit(model, target(cfg.method))
        if codec_of is None:
            data.serve(target(cfg.method))
    offers = data.for_method() | {
        "model": model,
        "optimization": optimization,
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
    }
    if takes(cfg.method, "corruption"):
        offers["corruption"] = corruption.bind(data.vocab)
    method = build(cfg.method, "method", **taken(cfg, "method", offers))
    if codec_of is None:
        method.check_data(data)
    data.repeat = method.steps_per_batch
    return Parts(hardware, data, method)


def first_phase(cfg: DictConfig) -> RunFolder:
    """The finished run that this one begins from, trained now where it has not been; a process that trains it already
    is waited for.
    """
    check_init_from(cfg)
    place = first_phase_folder(cfg)
    if paths.names_folder(cfg.init_from):
        return place
    while not place.result_json.is_file() or place.load_result().status != "ok":
        try:
            log.info("first phase: init_from=%s, in %s", cfg.init_from, place.path)
            run(first_phase_config(cfg), place.path)
            break
        except InUse:
            log.info("waiting for %s, which another process trains", place.path)
            time.sleep(WAIT)
    return place


def refuse_idle(trainer: Mapping[str, Any], callbacks: Mapping[str, Any]) -> None:
    """Raise ValueError for a trainer that trains nothing or the same few batches, or callbacks without a checkpoint."""
    from lightning.pytorch.callbacks import Checkpoint

    if trainer.get("fast_dev_run"):
        raise ValueError(
            f"trainer.fast_dev_run={trainer['fast_dev_run']} keeps no checkpoint and no number; "
            "for a run of seconds use trainer=smoke"
        )
    limit = trainer.get("limit_train_batches")
    if limit not in (None, 1.0) or isinstance(limit, int):
        comes = f"see the same {limit} batches over and over" if limit else "train nothing"
        raise ValueError(
            f"trainer.limit_train_batches={limit} would {comes}: batches are endless here, and "
            "trainer.max_steps says how many are seen"
        )
    if not any(issubclass(target(node), Checkpoint) for node in callbacks.values()):
        raise ValueError(
            "callbacks: none of them keeps a checkpoint, so that nothing of the training would be left; "
            "use callbacks=default, or keep callbacks.checkpoints"
        )


def taken(cfg: DictConfig, group: str, offers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that the class of the node takes. Raises ValueError when it needs one that nobody
    offers.
    """
    missing = needs(cfg[group]) - set(cfg[group]) - set(offers)
    if missing:
        raise ValueError(
            f"{group}={target(cfg[group]).__name__} needs {', '.join(sorted(missing))}, which"
            f" data={target(cfg.data).__name__} does not give: they do not belong together"
        )
    return {name: value for name, value in offers.items() if takes(cfg[group], name)}


def train(cfg: DictConfig, place: RunFolder) -> Result:
    """Fit, evaluate, report."""
    from research_stack.running import worker

    hardware = build(cfg.hardware, "hardware")
    worker.guard(hardware)
    measurements(cfg)  # a mistake in them shows before training, not after
    refuse_idle(plain(cfg.trainer), plain(cfg.callbacks) or {})
    if worker.is_helper_rank():  # another rank of the same SLURM job keeps the folder
        fit(cfg, place.path)
        return Result(place.path, "running")
    if is_finished(cfg, place):
        log.info("%s is finished; run=new trains it again, task=eval measures it", place.path)
        return finished(place)
    begun_from = first_phase(cfg) if cfg.init_from and not (place.checkpoints / "last.ckpt").is_file() else None
    with place.lock(), log_file(place.path / "run.log"):
        if not is_finished(cfg, place):  # another process may have ended it while this one came here
            with recorded(cfg, place) as metrics:
                if begun_from is not None:
                    provenance.add(place.path, {"init_from": str(begun_from.path)})
                if worker.needs_launch(hardware):
                    worker.launch(place.path, hardware, hand_over(plain(cfg)))
                else:
                    fit(cfg, place.path)
                metrics |= evaluate(cfg, place)
            for logger in chosen_loggers(cfg, place, refuse=False):  # the run is ok, whatever they do
                logger.log_metrics(dict(metrics), step=place.load_result().steps)
                logger.finalize("success")
    return finished(place)


def chosen_loggers(cfg: DictConfig, place: RunFolder, refuse: bool = True) -> list[Logger]:
    """The loggers of `cfg.logger`, beside the files that are always written; what goes wrong in them is a warning.

    - refuse: raise ValueError for one that its config node makes impossible.
    """
    from research_stack.training.outside import GuardedLogger

    makers = {
        f"logger.{name}": partial(build, node, f"logger.{name}", folder=place.path)
        for name, node in (plain(cfg.logger) or {}).items()
    }
    return [GuardedLogger(where, make, refuse) for where, make in makers.items()]


def fit(cfg: DictConfig, folder: Path) -> None:
    """Train on this process's device, from the last checkpoint in the folder if there is one; none is trained again.

    Raises Stopped when a callback or `trainer.max_time` ended it below `trainer.max_steps`.
    """
    quiet_lightning()
    from research_stack.training.checkpoint import AtomicCheckpointIO, load_checkpoint
    from research_stack.training.ending import EndOfTraining, has_ended
    from research_stack.training.loggers import JsonlLogger

    place = RunFolder(folder)
    last = place.checkpoints / "last.ckpt"
    saved = load_checkpoint(last) if last.is_file() else {}
    step = saved.get("global_step", 0)
    length = saved["config"]["trainer"]["max_steps"] if saved else cfg.trainer.max_steps
    if has_ended(saved, cfg.trainer.max_steps):
        log.info("%s is trained, %d steps: evaluations and report are left to do", place.path, step)
        if leads():
            rows = JsonlLogger(place.path, start_step=step)
            rows.open()
            rows.finalize("success")
            place.trained(step)
        return
    del saved  # its weights
    outside = chosen_loggers(cfg, place) if leads() else []
    parts = assemble(cfg)
    parts.method.check_devices(parts.data, parts.hardware.processes)
    if cfg.init_from and not step:
        first = first_phase_folder(cfg)
        parts.method.load_initial_weights(load_checkpoint(first.checkpoints / "last.ckpt")["state_dict"])
        refuse_other_codec(first, parts.data)
        log.info("beginning with the weights of %s", first.path)
    parts.data.start_step = step
    if step:
        refuse_other_data(place, parts.data)
    if leads():
        keep_codec(parts.data, place, anew=not step)
        provenance.add(
            place.path, {"data": parts.data.describe(), "model": model_facts(parts), "method": parts.method.describe()}
        )
    rows = JsonlLogger(place.path, start_step=step)
    rows.open()
    trainer = build(
        cfg.trainer,
        "trainer",
        default_root_dir=str(place.path),
        logger=[rows, *outside],
        callbacks=watchers(cfg, place, rows, length),
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO(), *parts.hardware.plugins()],
        **parts.hardware.trainer_arguments(),
    )
    if step:
        log.info("resuming %s at step %d", place.path, step)
    started, first = time.monotonic(), step
    trainer.fit(
        parts.hardware.compiled(parts.method),
        datamodule=parts.data,
        ckpt_path=str(last) if step else None,
        weights_only=True,
    )
    seconds = time.monotonic() - started
    EndOfTraining.require(trainer, first)
    if trainer.is_global_zero:
        log.info("trained %d steps in %.0f s", trainer.global_step - first, seconds)
        place.trained(trainer.global_step)


def watchers(cfg: DictConfig, place: RunFolder, rows: JsonlLogger, length: int) -> list[Callback]:
    """The callbacks of `cfg.callbacks` between our own, in the order in which they act.

    - length: `trainer.max_steps` of the part that the run goes on from.
    """
    from research_stack.running.preemption import Preemption
    from research_stack.training.checkpoint import ConfigInside
    from research_stack.training.ema import Ema
    from research_stack.training.ending import EndOfTraining, Learning, Longer, MonitorCheck
    from research_stack.training.loggers import RowBeforeCheckpoint

    chosen = {name: build(node, f"callbacks.{name}") for name, node in plain(cfg.callbacks).items()}
    longer = [Longer(length, cfg.trainer.max_steps)] if length != cfg.trainer.max_steps else []
    ema = [Ema(cfg.optimization.ema)] if cfg.optimization.ema else []
    own = [RowBeforeCheckpoint(rows), MonitorCheck(chosen), Learning(), *longer, ConfigInside(masked(plain(cfg))), *ema]
    return [*own, *chosen.values(), EndOfTraining(), Preemption(place.path)]


def quiet_lightning() -> None:
    """Keep Lightning's advice (more loader workers, other loggers, srun) out of the log; errors still come."""
    import warnings

    import lightning  # noqa: F401  sets up the handlers that are taken down here

    warnings.filterwarnings("ignore", module="lightning|torch.utils.data|transformers")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.handlers.clear()  # it would print beside our own log


def evaluate(cfg: DictConfig, place: RunFolder, again: bool = False) -> dict[str, float]:
    """Every evaluation of `cfg.eval` on the last checkpoint: {"<name>/<key>": value}, each kept when it is made.

    - again: whether the run has ended: result.json then says which evaluations, of which config, were made since.

    One that fails does not keep the others from being made; the first error is raised when all have been tried.
    """
    evaluations, _ = measurements(cfg)
    if not evaluations:
        return {}
    context, metrics, errors = open_run(cfg, place), {}, []
    for name, evaluation in evaluations.items():
        started = time.monotonic()
        try:
            with context.inference():
                found = evaluation(context)
        except Exception as error:
            log.error("eval %s failed: %s", name, one_line(error) or type(error).__name__)
            errors.append(error)
            continue
        own = {f"{name}/{key}": float(value) for key, value in found.items()}
        place.merge_metrics(own, measured={name: plain(cfg.eval[name])} if again else None)
        metrics |= own
        log.info("eval %s: %.1f s", name, time.monotonic() - started)
    if errors:
        raise errors[0]
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
    from research_stack.config.compose import for_run

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
        raise ValueError(
            f"{place.checkpoints / 'last.ckpt'}: the checkpoint is of another model "
            f"({str(error).splitlines()[-1].strip()})"
        ) from error
    device = parts.hardware.device()
    return Context(
        method=parts.method.eval().to(device),
        data=parts.data,
        sampler=build(cfg.sampler, "sampler"),
        folder=place.path,
        seed=cfg.seed,
        device=device,
        autocast=parts.hardware.autocast,
    )


def evaluate_run(cfg: DictConfig, place: RunFolder) -> Result:
    """task=eval: measure a finished run; result.json and report gain the new numbers. Several at once take turns."""
    from research_stack.reporting import write_report

    with place.lock(measuring(place)), log_file(place.path / "run.log"):
        provenance.tell_changes(place)
        try:
            evaluate(cfg, place, again=True)
        finally:  # what was measured before an error is kept, and shown
            write_report(place.path)
            provenance.history(place.path, cfg, task="eval")
    return finished(place)


def sample_run(cfg: DictConfig, place: RunFolder) -> Result:
    """task=sample: decode with `cfg.sampler`, from `cfg.prompt` if given; texts go to standard output and
    samples.jsonl.
    """
    from research_stack.evaluation.samples import Samples

    if reason := build(cfg.sampler, "sampler").unsuited(target(cfg.method)):
        raise ValueError(f"task=sample: {reason}")
    context = open_run(cfg, place, codec_alone=bool(cfg.prompt) and place.tokenizer.is_dir())
    samples = Samples(samplers={}, count=1 if cfg.prompt else 3, prompts=[cfg.prompt] if cfg.prompt else None)
    with context.inference():
        rows = samples.decode(context, name=context.sampler.name, sampler=context.sampler)
    append_jsonl(place.samples_jsonl, rows)  # before they are shown: a terminal may refuse what it cannot write
    for row in rows:
        terminal.write(f"{row['prompt']}{row['text']}\n{'-' * 40}\n")
    return place.load_result()


def export_run(cfg: DictConfig, place: RunFolder) -> Result:
    """task=export: the run's model and tokenizer as a folder of transformers or PEFT, export/<format> in the run's
    folder.
    """
    from research_stack.evaluation.exporting import export

    context, folder = open_run(cfg, place), place.path / "export" / cfg.format
    difference = export(context, folder)
    log.info("read back, its logits differ by at most %.1e nats", difference)
    terminal.write(f"{paths.shown(folder)}\n")
    return place.load_result()


# Before a run -----------------------------------------------------------------------------------------------------


def model_facts(parts: Parts) -> dict[str, Any]:
    """Parameters, and the bytes that weights, gradients, optimizer and average take: the average is of all weights,
    trained or not.
    """
    from research_stack.training.optimization import state_bytes

    method, every = parts.method, list(parts.method.parameters())
    parameters, trained = sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in every)
    gradients = sum(p.numel() * p.element_size() for p in every if p.requires_grad)
    optimizer = state_bytes(method.optimization.optimizer(method, method.optimizer_groups()))
    states = weights + gradients + optimizer + (weights if method.optimization.ema else 0)
    tokens = parts.data.batch_size * parts.data.sequence_length
    return {
        "parameters": parameters,
        "trained": trained,
        "state_bytes": states,
        "tokens_per_step": tokens,
        "flops_per_step": tokens * parts.method.training_flops(parts.data.sequence_length),
    }


def describe(cfg: DictConfig, place: RunFolder) -> Result:
    """dry_run=true: the config, and what the run would cost; nothing is trained or written."""
    refuse_idle(plain(cfg.trainer), plain(cfg.callbacks) or {})
    parts = assemble(cfg)
    parts.method.check_devices(parts.data, parts.hardware.processes)
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
        **{
            f"data {key}": f"{value:,}" if isinstance(value, int | float) else str(value) for key, value in data.items()
        },
    }
    width = max(map(len, rows))
    terminal.write(OmegaConf.to_yaml(as_config(masked(plain(cfg)))) + "\n")
    terminal.write("".join(f"{key:<{width}}  {value}\n" for key, value in rows.items()))
    return Result(place.path, "ok", {"parameters": float(facts["parameters"]), "tokens": float(tokens)})
