"""The optimizer, its schedule and what else belongs to a step: clipping, accumulation, the weight average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from research_stack.require import require
from research_stack.training.muon import CombinedOptimizer, Muon, hidden_matrices
from research_stack.training.sharding import full_tensor

MOMENTS: dict[type[torch.optim.Optimizer], int] = {torch.optim.AdamW: 2, Muon: 1}  # tensors of a parameter's size


@dataclass
class ParameterGroup:
    """Parameters with a learning rate of their own.

    - factor: of `optimization.lr`. decay: False for what has more than one dimension and is no matrix: no weight decay.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    factor: float = 1.0
    decay: bool = True


class Optimization:
    """AdamW, or Muon beside it, with linear warmup, then cosine or warmup-stable-decay.

    - lr: peak learning rate. final_ratio: the last learning rate as a share of it.
    - betas, eps, weight_decay: AdamW (Loshchilov & Hutter 2019); decay acts on matrices only, never on norms,
      biases or embeddings.
    - optimizer: `adamw`, or `muon`: the matrices inside `nn.Linear` modules, both dimensions above 1 and no
      (un)embedding, go to Muon (Jordan et al. 2024; momentum 0.95, Nesterov), all else to AdamW. Muon's updates are
      scaled to the RMS of AdamW's (0.2 sqrt(larger dimension), Liu et al. 2025, arXiv 2502.16982), so that one lr and
      one decay serve both.
    - warmup_steps: linear from 0; a value below 1 is a share of all steps.
    - schedule: `cosine`, `wsd` (constant, then linear decay over the last `decay_share` of the steps) or `constant`.
    - clip: largest global gradient norm (2-norm over all parameters); null for no clipping.
    - accumulate: pieces into which each device cuts its share of the batch. It saves memory and changes no
      number but dropout's: the loss stays the sum over the whole batch divided by the whole batch's denominator.
    - ema: decay of the exponential moving average of the weights used for evaluation; 0 turns it off.
    """

    def __init__(
        self,
        lr: float = 3e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        warmup_steps: float = 0.05,
        schedule: Literal["cosine", "wsd", "constant"] = "cosine",
        final_ratio: float = 0.1,
        decay_share: float = 0.2,
        clip: float | None = 1.0,
        accumulate: int = 1,
        ema: float = 0.999,
        optimizer: Literal["adamw", "muon"] = "adamw",
    ) -> None:
        require(lr > 0, f"lr={lr} must be positive")
        require(lr <= 1_000, f"lr={lr} must be at most 1,000")
        require(len(betas) == 2, f"betas={betas} must be two numbers")
        require(0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"betas={betas} must lie in [0, 1)")
        require(0 <= final_ratio <= 1, f"final_ratio={final_ratio} must lie in [0, 1]")
        require(0 < decay_share <= 1, f"decay_share={decay_share} must lie in (0, 1]")
        require(warmup_steps >= 0, f"warmup_steps={warmup_steps} must not be negative")
        require(warmup_steps < float("inf"), f"warmup_steps={warmup_steps} must be finite: no step would learn")
        require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")
        require(weight_decay <= 1_000, f"weight_decay={weight_decay} must be at most 1,000")
        require(clip is None or clip > 0, f"clip={clip} must be positive, or null for no clipping")
        require(accumulate >= 1, f"accumulate={accumulate} must be at least 1")
        require(accumulate <= 100_000, f"accumulate={accumulate} must be at most 100,000")
        require(0 <= ema < 1, f"ema={ema} must lie in [0, 1); 0 turns the average off")
        self.lr, self.betas, self.eps, self.weight_decay = lr, (float(betas[0]), float(betas[1])), eps, weight_decay
        self.warmup_steps, self.schedule, self.final_ratio, self.decay_share = (
            warmup_steps,
            schedule,
            final_ratio,
            decay_share,
        )
        self.clip, self.accumulate, self.ema, self.algorithm = clip, accumulate, ema, optimizer

    def optimizer(self, module: nn.Module, groups: Sequence[ParameterGroup] | None = None) -> torch.optim.Optimizer:
        """The optimizer of the module's trainable parameters.

        - groups: each gets `param_groups` of its own (matrices of Muon, decayed, not decayed) with its name and its
          learning rate.

        Raises ValueError when Muon would have nothing to do, and when the groups do not hold each trained parameter
        once.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        no_decay = embeddings | {id(p) for group in groups or () if not group.decay for p in group.parameters}
        decayed = {id(p) for p in trained if p.ndim >= 2 and id(p) not in no_decay}
        hidden = hidden_matrices(module) if self.algorithm == "muon" else []
        if self.algorithm == "muon" and not hidden:
            raise ValueError(
                "optimization.optimizer=muon has no matrix to train: no trainable nn.Linear of more than one input and"
                " output but embeddings; use adamw"
            )
        if groups is None:
            parts = [(trained, {})]
        else:
            require_each_once(module, groups)
            parts = [
                ([p for p in group.parameters if p.requires_grad], {"name": group.name, "lr": self.lr * group.factor})
                for group in groups
            ]
        taken = {id(p) for p in hidden}
        of_muon = [
            {"params": own, **more} for own, more in ((_within(hidden, part), more) for part, more in parts) if own
        ]
        of_adamw = [
            group
            for part, more in parts
            for group in self._decayed_apart([p for p in part if id(p) not in taken], decayed, more)
        ]
        adamw = (
            torch.optim.AdamW(of_adamw, lr=self.lr, betas=self.betas, eps=self.eps, fused=True) if of_adamw else None
        )
        if not of_muon:
            if adamw is None:
                raise ValueError("optimization: no parameter is trained")
            return adamw
        muon = Muon(of_muon, lr=self.lr, weight_decay=self.weight_decay)
        return CombinedOptimizer(muon) if adamw is None else CombinedOptimizer(muon, adamw)

    def _decayed_apart(
        self, trained: list[nn.Parameter], decayed: set[int], more: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Groups of the parameters whose ids are in `decayed`, and of the rest; empty ones are left out."""
        groups = [
            {"params": [p for p in trained if id(p) in decayed], "weight_decay": self.weight_decay, **more},
            {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0, **more},
        ]
        return [group for group in groups if group["params"]]

    def factor(self, total_steps: int) -> Callable[[int], float]:
        """The learning rate of step s (0-based) as a share of `lr`."""
        warmup = self.warmup_steps if self.warmup_steps >= 1 else math.ceil(self.warmup_steps * total_steps)
        shapes = {"cosine": self._cosine, "wsd": self._wsd, "constant": lambda progress: 1.0}
        shape = shapes[self.schedule]

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return shape(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

        return at

    def _cosine(self, progress: float) -> float:
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    def _wsd(self, progress: float) -> float:
        left = min(1.0, (1 - progress) / self.decay_share)
        return self.final_ratio + (1 - self.final_ratio) * left


def clip_norm(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Clip gradients to a 2-norm over all of them; the norm before, which is that of all shards where they are cut."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)
    return full_tensor(norm)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the moments that the optimizer keeps from its first step on: two of each parameter with AdamW, one
    with Muon.
    """
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else (optimizer,)
    return sum(
        MOMENTS[type(part)] * p.numel() * p.element_size()
        for part in parts
        for group in part.param_groups
        for p in group["params"]
    )


def require_each_once(module: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Raise ValueError unless the groups have different names, factors above 0 and together each trained parameter of
    the module once.
    """
    names = [group.name for group in groups]
    require(len(set(names)) == len(names), f"groups={names} must have different names")
    for group in groups:
        require(group.factor > 0, f"factor={group.factor} of group {group.name} must be positive")
    groups_of: dict[int, list[str]] = {}
    for group in groups:
        for parameter in group.parameters:
            groups_of.setdefault(id(parameter), []).append(group.name)
    for name, parameter in module.named_parameters():
        where = groups_of.get(id(parameter), [])
        if parameter.requires_grad and len(where) != 1:
            raise ValueError(
                f"groups={names} must hold each trained parameter once: {name} is in"
                f" {' and in '.join(where) or 'none of them'}"
            )


def _within(parameters: Iterable[nn.Parameter], part: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the parameters that are of the part, in their own order."""
    own = {id(p) for p in part}
    return [p for p in parameters if id(p) in own]
