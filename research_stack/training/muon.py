"""Muon for the hidden matrices beside AdamW for the rest, as one optimizer with one schedule and one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix nearly orthogonal,
so that an update moves all its directions alike. That means something for a matrix between two hidden spaces only:
tables of tokens, biases, norms and single outputs stay with AdamW.

torch's Muon iterates in bfloat16 on every device. A CPU without bfloat16 products emulates them: 20 times the seconds,
more than all the rest of a small model's step. `Muon` iterates in float32 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from research_stack.training.machine import cpu_multiplies_bf16
from research_stack.training.sharding import on_full_tensor


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices that Muon takes, each once: those held by an `nn.Linear`, both dimensions above 1.

    Left out: a matrix that is an `nn.Embedding`'s too, and the unembedding of a Hugging Face model, which is an
    `nn.Linear` that `get_output_embeddings()` names. Parameters outside an `nn.Linear`, such as our own unembedding,
    are never taken.
    """
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    heads = [find() for m in module.modules() if callable(find := getattr(m, "get_output_embeddings", None))]
    tables |= {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    held = {id(p): p for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    return [p for key, p in held.items() if key not in tables and p.requires_grad and p.ndim == 2 and min(p.shape) > 1]


class Muon(torch.optim.Muon):
    """torch's Muon with updates as large as AdamW's (`match_rms_adamw`), iterated on a CPU in the dtype that it
    multiplies fast.

    - on_cpu: that dtype; None: bfloat16 where the CPU has products of it, else float32. Other devices iterate in
      bfloat16.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float, on_cpu: torch.dtype | None = None
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.on_cpu = on_cpu or (torch.bfloat16 if cpu_multiplies_bf16() else torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As torch does it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        wanted = gradient.lerp(average, momentum) if group["nesterov"] else average
        dtype = self.on_cpu if parameter.device.type == "cpu" else torch.bfloat16
        coefficients, steps, eps = group["ns_coefficients"], group["ns_steps"], group["eps"]
        update = on_full_tensor(lambda matrix: orthogonal(matrix.to(dtype), coefficients, steps, eps), wanted)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix (m, n) with all singular values near 1, by the quintic Newton-Schulz iteration of Jordan et al.
    (2024), in its own dtype.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers of different parameters that step as one.

    Lightning counts a training step for every optimizer that steps; a schedule and a checkpoint want one too. So
    `param_groups` are the very groups of the parts, one part after another, and `state` is one dictionary for all.

    - parts: optimizers without a parameter in common (ValueError otherwise).
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._link()

    def _link(self) -> None:
        """Hand each part its groups and the common state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            mine = list(islice(groups, len(part.param_groups)))
            part.__setstate__(
                {"state": self.state, "param_groups": mine}
            )  # also adds settings that an older torch did not save

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every part once; returns what the closure returns, which is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave. Raises ValueError when its groups are not of these sizes."""
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._link()
