"""From a checked config to the objects of a run, each built from its own node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from research_stack.config.build import build, named, needs, takes, target
from research_stack.records.files import read_json
from research_stack.records.run_folder import RunFolder

if TYPE_CHECKING:
    from research_stack.data.module import TokenData
    from research_stack.running.hardware import Hardware
    from research_stack.training.module import TrainingModule


@dataclass
class Parts:
    """The objects of a run, each built from its own node."""

    hardware: Hardware
    data: TokenData
    method: TrainingModule


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
