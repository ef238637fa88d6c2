"""Polychromic SFT: cross entropy of the replies minus lambda times the diversity of what the policy itself would
answer.

    loss = CE(replies) - lambda * E[f(y_1, ..., y_n)]

with f the diversity of a set of n completions of one prompt, or, gated by quality, their mean reward times it. A
diversity computed from sampled texts is a plain number without a gradient. Two terms that have one:

- `score`: the score function. grad E[f] = E[sum_i A_i grad ln p(y_i)] up to the factor that the advantage's scale says,
  with A_i the set-marginal advantage of f (`advantages.SetMarginal`). Unbiased.
- `soft`: a differentiable surrogate. Each token of a completion is replaced by the mean embedding under the policy's
  law there; f is the mean cosine distance of the completions' mean embeddings. The prefixes are held fixed, so
  its gradient is not that of E[f].

Shapes: B pairs of the batch, P prompts of them with N completions each (B = P N), L columns, T most tokens of a
completion, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from research_stack.backbones.causal import CausalBackbone
from research_stack.data.batches import Batch
from research_stack.data.tokenizers import Codec
from research_stack.data.vocabulary import Vocabulary
from research_stack.posttraining.advantages import Advantage
from research_stack.posttraining.policy import completion_columns, require_room_for_completions
from research_stack.posttraining.rewards.base import Reward
from research_stack.posttraining.rollout import Rollouts
from research_stack.posttraining.scored_completions import ScoredCompletions, distances, generate_and_score, prompts_of
from research_stack.posttraining.sft import SFT
from research_stack.require import require
from research_stack.streams import Draws
from research_stack.training.module import count_rows
from research_stack.training.optimization import Optimization

if TYPE_CHECKING:
    from research_stack.backbones.sentence import SentenceEncoder
    from research_stack.data.module import TokenData

CHUNK = 512  # positions whose laws over the vocabulary are held at once


class PolychromicSFT(SFT):
    """SFT whose policy is also asked to keep its answers apart.

    - diversity_coef: lambda. group: N; of every N pairs of a batch the first one's prompt is answered N times.
    - advantage: set-marginal, of reward times diversity, or of diversity alone. reward: of the answers.
    - gated: diversity counts as far as answers are right; False: every answer counts as right, garbage included.
    - estimator: of the gradient of diversity, `score` or `soft`; `soft` weighs each pair of answers by the product of
      their rewards.
    - diversity_start: share of the steps before the diversity term begins: a policy that writes noise is diverse
      enough.
    - encoder: of texts, for advantages that ask for distances.
    """

    #: See research_stack.config.smoke.
    smoke = {"num_generations": 8}

    def __init__(
        self,
        model: CausalBackbone,
        vocab: Vocabulary,
        codec: Codec,
        optimization: Optimization,
        seed: int,
        rollouts: Rollouts,
        advantage: Advantage,
        reward: Reward,
        gated: bool = True,
        diversity_coef: float = 0.5,
        num_generations: int = 16,
        estimator: Literal["score", "soft"] = "score",
        diversity_start: float = 0.0,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        super().__init__(model, vocab, optimization, seed)
        require(
            num_generations >= 2,
            f"num_generations={num_generations} must be at least 2: diversity is a property of several answers",
        )
        require(num_generations <= 10_000, f"num_generations={num_generations} must be at most 10,000")
        require(
            diversity_coef > 0,
            f"diversity_coef={diversity_coef} must be above 0; without diversity it is experiment=sft",
        )
        require(diversity_coef <= 1000, f"diversity_coef={diversity_coef} must be at most 1000")
        require(0 <= diversity_start < 1, f"diversity_start={diversity_start} must lie in [0, 1)")
        advantage.check(num_generations)
        reward.check()
        if advantage.needs == "distances" and encoder is None:
            raise ValueError(
                f"encoder=null must be a sentence encoder: advantage={type(advantage).__name__} asks how far answers"
                " are apart"
            )
        self.codec, self.rollouts, self.advantage, self.reward = codec, rollouts, advantage, reward
        self.gated, self.num_generations, self.estimator = gated, num_generations, estimator
        self.diversity_start, self.encoder = diversity_start, encoder
        self.loss_terms = {"reply": 1.0, "diversity": -diversity_coef}
        self._numbers: dict[str, Tensor] = {}

    def check_data(self, data: TokenData) -> None:
        """As SFT; the batch must hold whole groups, and completions must fit the model."""
        super().check_data(data)
        require_room_for_completions(data, self, self.rollouts.max_completion_length)
        require(
            data.batch_size % self.num_generations == 0,
            f"data.batch_size={data.batch_size} must be a multiple of method.num_generations={self.num_generations}:"
            " one prompt of every so"
            " many pairs is answered",
        )

    def check_devices(self, data: TokenData, devices: int) -> None:
        """Each device's share of a batch must be of whole groups, and its pieces too where they count."""
        super().check_devices(data, devices)
        require(
            data.batch_size % (devices * self.num_generations) == 0,
            f"data.batch_size={data.batch_size} on {devices} devices must be a multiple of {devices} x "
            f"method.num_generations={self.num_generations}: a group stays on one device",
        )
        self._check_pieces(data.batch_size // devices)

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """The pairs, and a completion beside each; denominators: reply tokens, completions."""
        rows, replies_1 = super().prepare(batch, draws)
        if self._waits() or not self.training:  # validation is of the replies alone
            return rows, torch.cat([replies_1, torch.ones_like(replies_1)])
        prompts = prompts_of(batch)[:: self.num_generations]
        u_PNT = draws.uniform(self.rollouts.max_completion_length).unflatten(0, (len(prompts), self.num_generations))
        found = generate_and_score(self, self.codec, self.rollouts, self.reward, prompts, u_PNT)
        answer_id_PN = found.answer_ids()
        quality_PN = found.reward_PN if self.gated else torch.ones_like(found.reward_PN)
        advantage_PN = self._advantages(found, quality_PN, answer_id_PN, draws.generator)
        different_PNN = (answer_id_PN.unsqueeze(2) != answer_id_PN.unsqueeze(1)).float()
        self._numbers = {
            "reward": found.reward_PN.mean(),
            "different_pairs": different_PNN.sum((1, 2)).mean() / (self.num_generations * (self.num_generations - 1)),
        }
        own = {f"own_{name}": tensor for name, tensor in found.rollout.rows().items()}
        count_1 = replies_1.new_tensor([quality_PN.numel()])
        return {
            **rows,
            **own,
            "advantage": advantage_PN.flatten().float(),
            "quality": quality_PN.flatten().float(),
        }, torch.cat([replies_1, count_1])

    def _advantages(
        self, found: ScoredCompletions, quality_PN: Tensor, answer_id_PN: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(P, N) of this device's groups, out of those of all devices."""
        mine = [quality_PN, answer_id_PN]
        if self.encoder is not None and self.advantage.needs == "distances":
            mine.append(distances(found.texts, self.encoder).to(self.device))
        every = [torch.cat(parts) for parts in zip(*self.gather_objects(mine), strict=True)]
        return self.advantage(*every, generator=generator)[self.device_slice(len(every[0]))]

    def _check_pieces(self, pairs: int) -> None:
        """Raise ValueError where the pieces of a step would cut a group apart that `soft` looks at as a whole."""
        groups, pieces = pairs // self.num_generations, self.optimization.accumulate
        require(
            self.estimator == "score" or groups % pieces == 0,
            f"optimization.accumulate={pieces} must divide the {groups} groups of a step: estimator={self.estimator}"
            " cannot cut a group apart; choose another, or estimator=score",
        )

    def more_micro_batches(self, rows: Batch) -> int | None:
        """As for every method; with estimator=soft into pieces of whole groups."""
        if self.estimator == "score":
            return super().more_micro_batches(rows)
        groups = count_rows(rows) // self.num_generations
        return next((pieces for pieces in range(2 * self.micro_batches, groups + 1) if groups % pieces == 0), None)

    def _waits(self) -> bool:
        """Whether the diversity term has not begun."""
        return self.trainer.max_steps > 0 and self.global_step < self.diversity_start * self.trainer.max_steps

    def loss_sum(self, rows: Batch) -> Tensor:
        """(2,) the summed cross entropy of the replies, and what diversity is the gradient of."""
        reply = self.reply(rows)
        if "advantage" not in rows:
            return torch.stack([reply, reply.detach() * 0])
        sums_P = torch.stack([reply, self._scored(rows) if self.estimator == "score" else self._soft(rows)])
        self.check_reply_gradient(rows, sums_P, {"diversity": "all sets of answers are equally good"})
        return sums_P

    def _scored(self, rows: Batch) -> Tensor:
        """sum_i A_i ln p(y_i) over the completions."""
        scores = self.completion_logps(
            rows["own_tokens"], rows["own_prompt_length"], rows["own_completion_length"], self.rollouts.temperature
        )
        return (rows["advantage"] * scores.logp_BT.sum(1)).sum()

    def _soft(self, rows: Batch) -> Tensor:
        """N times the sum over whole groups of the gated mean cosine distance of their completions' soft embeddings."""
        mean_BD = F.normalize(self.soft_embeddings(rows), dim=-1)
        total = mean_BD.new_zeros(())
        for start in range(0, len(mean_BD) - self.num_generations + 1, self.num_generations):
            e_ND, quality_N = (
                mean_BD[start : start + self.num_generations],
                rows["quality"][start : start + self.num_generations],
            )
            weight_NN = quality_N.unsqueeze(1) * quality_N
            weight_NN = weight_NN - weight_NN.diag().diag()
            total = total + self.num_generations * (weight_NN * (1 - e_ND @ e_ND.T)).sum() / (
                self.num_generations * (self.num_generations - 1)
            )
        return total

    def soft_embeddings(self, rows: Batch) -> Tensor:
        """(B, D): mean over a completion's positions of the mean (constant) embedding under the policy's law there."""
        row_n, step_n, column_n = completion_columns(rows["own_prompt_length"], rows["own_completion_length"])
        hidden_BLD = self.model.read(rows["own_tokens"][:, :-1])
        exact = torch.promote_types(self.model.unembedding.dtype, torch.float32)
        table_VD = self.model.unembedding.detach().to(exact)
        table_VD = table_VD - table_VD.mean(0)

        def expected(hidden_cD: Tensor) -> Tensor:
            logits_cV = self.model.head(hidden_cD).to(exact) / self.rollouts.temperature + self.bias_V
            return logits_cV.softmax(-1) @ table_VD

        soft_nD = torch.cat(
            [checkpoint(expected, part, use_reentrant=False) for part in hidden_BLD[row_n, column_n - 1].split(CHUNK)]
        )
        sums_BD = soft_nD.new_zeros(len(hidden_BLD), soft_nD.shape[-1]).index_add(0, row_n, soft_nD)
        return sums_BD / rows["own_completion_length"].unsqueeze(1)

    def after_update(self) -> Mapping[str, Tensor]:
        """What the policy's own answers were like, means over devices."""
        super().after_update()
        return {
            name: self.total_over_devices(value.float()) / self.trainer.world_size
            for name, value in self._numbers.items()
        }
