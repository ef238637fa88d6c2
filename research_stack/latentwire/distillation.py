"""Distillation (Hinton et al. 2015): from the latents a reader shall say of each token of the answer what a teacher
says who has read the text.

For the first K tokens of an answer, T the temperature, p_k the mean of the teachers' softmax(logits / T), q_k the
student's: loss = T^2 sum_rows w sum_k KL(p_k || q_k), over the number of those tokens. T^2 keeps the gradient's size as
T changes.

Shapes: B rows, K tokens of an answer that carry loss, V rows of the unembedding, R readers.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.backbones.pretrained import DIGEST
from research_stack.latentwire.losses import LatentWireLoss, LossInputs, at_least_float32, unique_contexts
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import Prefilled, forward_cached, prefill_text
from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire

RATE = 0.01  # of the running mean of the difficulty


class KD(LatentWireLoss):
    """Kullback-Leibler divergence from teachers who read the context as text, in nats a token.

    - temperature: T.
    - hard_weight: h of the weights w = (1 + h d) / (1 + h m) of the rows. d, the difficulty, is 0 where the student's
      likeliest first token is the answer's, and else the teacher's uncertainty: the entropy of its first token (at
      temperature 1) as a share of ln V. m is the running mean of d over the steps before, for each reader, so that the
      weights are 1 on average, and the pieces of a batch can be weighed one by one. 0: all rows count 1.
    - self_teacher: whether the reader itself is a teacher, without adapters on its weights.
    - teachers: further ones, {reader: {name: Reader}}: frozen, with the reader's vocabulary, and used for nothing else.

    Rows whose answer runs into the prompt count nothing. The gradient is the student's alone.
    """

    needs_context = True

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        hard_weight: float = 0.0,
        self_teacher: bool = True,
        teachers: dict[str, dict[str, FrozenReader]] | None = None,
    ) -> None:
        require(weight >= 0, f"weight={weight} must not be negative; 0 leaves the loss out")
        require(temperature > 0, f"temperature={temperature} must be positive")
        require(hard_weight >= 0, f"hard_weight={hard_weight} must not be negative")
        self.weight, self.temperature, self.hard_weight, self.self_teacher = (
            weight,
            temperature,
            hard_weight,
            self_teacher,
        )
        self.further = {reader: dict(named) for reader, named in (teachers or {}).items()}
        self.teachers: dict[str, dict[str, FrozenReader]] = {}
        self.difficulty: Difficulty | None = None

    def prepare(self, method: LatentWire) -> None:
        """Every reader must have a teacher, and every teacher a reader whose vocabulary it shares (ValueError)."""
        self.method = method
        for name in self.further:
            require(
                name in method.readers,
                f"teachers.{name} belongs to no reader; the readers are {', '.join(method.readers)}",
            )
        for name, reader in method.readers.items():
            self.teachers[name] = {**({"own": reader} if self.self_teacher else {}), **self.further.get(name, {})}
            require(
                bool(self.teachers[name]),
                f"self_teacher={self.self_teacher}: reader {name} has no teacher; name one under teachers.{name}",
            )
            for label, teacher in self.further.get(name, {}).items():
                require(
                    teacher.tokenizer.get_vocab() == reader.tokenizer.get_vocab(),
                    f"teachers.{name}.{label}={teacher.path} must have the vocabulary of its reader, {reader.path}:"
                    " they would say different tokens",
                )
        if self.hard_weight:
            self.difficulty = Difficulty(len(method.readers))
            method.add_module(
                f"difficulty_{next(name for name, own in method.losses.items() if own is self)}", self.difficulty
            )

    def count(self, answer_mask_BA: Tensor, tokens: int) -> Tensor:
        """Tokens."""
        return answer_mask_BA[:, :tokens].sum()

    def __call__(self, inputs: LossInputs) -> Tensor:
        kept_BK = inputs.answer_mask_BA[:, : inputs.tokens]
        taught_BKV, uncertain_B = self.taught(inputs)
        said_BKV = (at_least_float32(inputs.logits_BAV[:, : inputs.tokens]) / self.temperature).log_softmax(-1)
        nats_B = (F.kl_div(said_BKV, taught_BKV.to(said_BKV), reduction="none").sum(-1) * kept_BK).sum(1)
        return self.temperature**2 * (self._weights(inputs, uncertain_B).to(nats_B) * nats_B).sum()

    @torch.no_grad()
    def taught(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """(what the teachers say of the first K tokens, probabilities (B, K, V) at the temperature; (B,) uncertainty in
        0 .. 1 of the first).
        """
        all_BKV = [at_least_float32(self._logits(teacher, inputs)) for teacher in self.teachers[inputs.name].values()]
        taught_BKV = torch.stack([(logits_BKV / self.temperature).softmax(-1) for logits_BKV in all_BKV]).mean(0)
        first_BV = torch.stack([logits_BKV[:, 0].softmax(-1) for logits_BKV in all_BKV]).mean(0)
        return taught_BKV, torch.special.entr(first_BV).sum(-1) / math.log(first_BV.shape[-1])

    def _logits(self, teacher: FrozenReader, inputs: LossInputs) -> Tensor:
        """(B, K, V) behind the context as text, which is read once for all its questions."""
        teacher.to(inputs.logits_BAV.device)
        first_C, which_B = unique_contexts(inputs.rows["context"])
        tokens_CN, lengths_C = (
            inputs.rows[f"context.{inputs.name}"][first_C].tolist(),
            inputs.rows[f"context_mask.{inputs.name}"][first_C].sum(1).tolist(),
        )
        with without_adapters(teacher):
            texts = prefill_text(teacher, [ids[:length] for ids, length in zip(tokens_CN, lengths_C, strict=True)])
            given = Prefilled(texts.cache.select(which_B), texts.mask_BP[which_B])
            hidden_BLD = forward_cached(
                teacher, given, inputs.rows[f"tokens.{inputs.name}"], inputs.rows[f"mask.{inputs.name}"]
            )
        at_BK = inputs.rows[f"answer_index.{inputs.name}"][:, : inputs.tokens]
        return teacher.model.head(hidden_BLD.gather(1, at_BK.unsqueeze(-1).expand(-1, -1, hidden_BLD.shape[-1])))

    @torch.no_grad()
    def _weights(self, inputs: LossInputs, uncertain_B: Tensor) -> Tensor:
        """(B,)."""
        if self.difficulty is None:
            return torch.ones_like(uncertain_B)
        hard_B = (inputs.logits_BAV[:, 0].argmax(-1) != inputs.target_BA[:, 0]) * uncertain_B
        reader = list(self.teachers).index(inputs.name)
        if self.method.training:
            self.difficulty.note(reader, hard_B[inputs.answer_mask_BA[:, 0]])
        return (1 + self.hard_weight * hard_B) / (1 + self.hard_weight * self.difficulty.mean_R[reader])

    def after_update(self) -> None:
        """Move the running mean of the difficulty."""
        if self.difficulty is not None:
            self.difficulty.update(self.method.total_over_devices(self.difficulty.now_R2))

    def describe(self) -> dict[str, Any]:
        """With the teachers of each reader and the hash of each one's config."""
        teachers = {
            name: {label: f"{teacher.path} {config_hash(teacher)}" for label, teacher in named.items()}
            for name, named in self.teachers.items()
        }
        return {
            **super().describe(),
            "temperature": self.temperature,
            "hard_weight": self.hard_weight,
            "teachers": teachers,
        }


class Difficulty(nn.Module):
    """Running mean of the rows' difficulty for each reader; the first 100 steps count alike. Part of a checkpoint."""

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.mean_R: Tensor
        self.now_R2: Tensor
        self.steps: Tensor
        self.register_buffer("mean_R", torch.zeros(readers))
        self.register_buffer("now_R2", torch.zeros(readers, 2))  # sum and rows of this step, piece by piece
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def note(self, reader: int, hard_n: Tensor) -> None:
        """Add rows of this step."""
        self.now_R2[reader] += torch.stack([hard_n.sum(), hard_n.new_tensor(len(hard_n))]).to(self.now_R2)

    def update(self, total_R2: Tensor) -> None:
        """Move towards the mean of a step, from the sums over all devices; a step without rows of a reader moves
        nothing of it.
        """
        step_R = torch.where(total_R2[:, 1] > 0, total_R2[:, 0] / total_R2[:, 1].clamp_min(1), self.mean_R)
        self.mean_R.lerp_(step_R, (1.0 / (self.steps + 1)).clamp_min(RATE).to(self.mean_R))
        self.steps += 1
        self.now_R2.zero_()


def without_adapters(reader: FrozenReader) -> AbstractContextManager[None]:
    """Within it, the reader's weights are those it was loaded with."""
    return reader.model.without_adapters() if reader.model.kept_names() else nullcontext()


def config_hash(reader: FrozenReader) -> str:
    """12 hexadecimal digits of SHA-256 over the model's config and the digest of its weights; where they lie plays no
    part.
    """
    config = {
        key: value
        for key, value in reader.model.own.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    digest = reader.model.state_dict()[DIGEST].tolist()
    return hashlib.sha256(json.dumps([config, digest], sort_keys=True, default=str).encode()).hexdigest()[:12]
