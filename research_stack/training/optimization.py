"""The optimizer, its schedule and what else belongs to a step: clipping, accumulation, the weight average."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from research_stack.require import require
from research_stack.training.muon import Together, hidden_matrices


class Optimization:
    """AdamW, or Muon beside it, with linear warmup, then cosine or warmup-stable-decay.

    - lr: peak learning rate. final_ratio: the last learning rate as a share of it.
    - betas, eps, weight_decay: AdamW (Loshchilov & Hutter 2019); decay acts on matrices only, never on norms,
      biases or embeddings.
    - optimizer: `adamw`, or `muon`: the matrices inside `nn.Linear` modules, both dimensions above 1 and no (un)embedding,
      go to Muon (Jordan et al. 2024; momentum 0.95, Nesterov), all else to AdamW. Muon's updates are scaled to the RMS of
      AdamW's (0.2 sqrt(larger dimension), Liu et al. 2025, arXiv 2502.16982), so that one lr and one decay serve both.
    - warmup_steps: linear from 0; a value below 1 is a share of all steps.
    - schedule: `cosine`, `wsd` (constant, then linear decay over the last `decay_share` of the steps) or `constant`.
    - clip: largest global gradient norm (2-norm over all parameters); null for no clipping.
    - accumulate: pieces into which each device cuts its share of the batch. It saves memory and changes no
      number: the loss stays the sum over the whole batch divided by the whole batch's denominator.
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
        require(len(betas) == 2, f"betas={betas} must be two numbers")
        require(0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"betas={betas} must lie in [0, 1)")
        require(0 <= final_ratio <= 1, f"final_ratio={final_ratio} must lie in [0, 1]")
        require(0 < decay_share <= 1, f"decay_share={decay_share} must lie in (0, 1]")
        require(warmup_steps >= 0, f"warmup_steps={warmup_steps} must not be negative")
        require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")
        require(clip is None or clip > 0, f"clip={clip} must be positive, or null for no clipping")
        require(accumulate >= 1, f"accumulate={accumulate} must be at least 1")
        require(0 <= ema < 1, f"ema={ema} must lie in [0, 1); 0 turns the average off")
        require(optimizer in ("adamw", "muon"), f"optimizer={optimizer} must be adamw or muon")
        self.lr, self.betas, self.eps, self.weight_decay = lr, (float(betas[0]), float(betas[1])), eps, weight_decay
        self.warmup_steps, self.schedule, self.final_ratio, self.decay_share = (
            warmup_steps, schedule, final_ratio, decay_share)
        self.clip, self.accumulate, self.ema, self.algorithm = clip, accumulate, ema, optimizer

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the module's trainable parameters; ValueError when Muon would have nothing to do."""
        trained = [p for p in module.parameters() if p.requires_grad]
        embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        decayed = {id(p) for p in trained if p.ndim >= 2 and id(p) not in embeddings}
        if self.algorithm == "adamw":
            return self._adamw(trained, decayed)
        hidden = hidden_matrices(module)
        if not hidden:
            raise ValueError("optimization.optimizer=muon has no matrix to train: no trainable nn.Linear of more than one input and output "
                             "but embeddings; use adamw")
        muon = torch.optim.Muon(hidden, lr=self.lr, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw")
        taken = {id(p) for p in hidden}
        others = [p for p in trained if id(p) not in taken]
        return Together(muon, self._adamw(others, decayed)) if others else Together(muon)

    def _adamw(self, trained: list[nn.Parameter], decayed: set[int]) -> torch.optim.AdamW:
        """Fused AdamW in two groups: the parameters whose ids are in `decayed`, and the rest."""
        groups = [
            {"params": [p for p in trained if id(p) in decayed], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

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
