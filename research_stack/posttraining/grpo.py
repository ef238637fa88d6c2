"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): learning from a reward on completions of
one's own.

A step draws N completions for each prompt, rewards them, turns rewards into advantages within each group and takes
optimizer steps on the policy loss. Log-probabilities are those of the generated ids, the first completion token
included, under a live graph.

    loss = policy + beta * KL(policy, reference) - entropy * H(policy)

The completions of a step are the same on any number of devices: each device answers its share of the prompts, all see
all answers and choose among them alike, and each learns from its share of each minibatch.

Shapes: P prompts, N completions of each, B = P * N texts, T most tokens of a completion, L columns.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from research_stack.backbones.causal import CausalBackbone
from research_stack.data.batches import Batch
from research_stack.data.tokenizers import Codec
from research_stack.data.vocabulary import Vocabulary
from research_stack.metrics.passk import pass_at_k
from research_stack.posttraining.advantages import Advantage
from research_stack.posttraining.objectives import PolicyLoss, k3
from research_stack.posttraining.policy import CompletionLogps, Policy, require_room_for_completions
from research_stack.posttraining.rewards.base import Reward
from research_stack.posttraining.rewards.composite import mean_of_parts
from research_stack.posttraining.rollout import Rollouts
from research_stack.posttraining.scored_completions import ScoredCompletions, distances, generate_and_score, prompts_of
from research_stack.require import require
from research_stack.streams import Draws
from research_stack.training.optimization import Optimization
from research_stack.training.sharding import full_tensor

if TYPE_CHECKING:
    from research_stack.backbones.sentence import SentenceEncoder
    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)

MAX_REFERENCE_K3 = (
    1e-5  # k3 of a token, in nats, by which a reference that is the policy may differ from it: both read the same rows
)
WARN_EVERY = 20  # steps at least between two lines that say that no group tells answers apart


class GRPO(Policy):
    """A policy that is trained on rewards of its own completions.

    - codec: makes texts of ids, for the reward. reward: of a completion. rollouts: how completions are
      drawn.
    - advantage: from a group's rewards to what each completion counts. loss: of the policy.
    - num_generations: N, completions of a prompt.
    - num_groups: groups a step learns from; more prompts in a batch are spare: groups whose rewards are all equal are
      replaced by the next prompts' as long as there are some (dynamic sampling, Yu et al. 2025, arXiv 2503.14476).
      None: all prompts of the batch.
    - beta: weight of the penalty k3 on the distance to the reference, whose tokens are weighed as those of the loss.
    - reference: `copy` of the policy at the start, the model without its `adapters`, or `none`. ref_model_sync_steps:
      steps after which the copy moves, by `ref_model_mixup_alpha`, towards the policy; 0: never.
    - entropy_coef: weight of the bonus on the entropy of the distribution of a token, its mean over all tokens that
      carry loss, whatever the loss.
    - num_iterations: passes over the completions of a step; num_mini_batches: optimizer steps of a pass.
    - mask_truncated_completions: completions that were cut off carry no loss.
    - encoder: of texts, for advantages that ask for distances between answers.
    """

    #: See research_stack.config.smoke.
    smoke = {"num_generations": 4}

    def __init__(
        self,
        model: CausalBackbone,
        vocab: Vocabulary,
        codec: Codec,
        optimization: Optimization,
        seed: int,
        reward: Reward,
        rollouts: Rollouts,
        advantage: Advantage,
        loss: PolicyLoss,
        num_generations: int = 16,
        num_groups: int | None = None,
        beta: float = 0.0,
        reference: Literal["copy", "adapters", "none"] = "copy",
        ref_model_sync_steps: int = 0,
        ref_model_mixup_alpha: float = 1.0,
        entropy_coef: float = 0.0,
        num_iterations: int = 1,
        num_mini_batches: int = 1,
        mask_truncated_completions: bool = False,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        super().__init__(model, vocab, optimization, seed)
        require(
            num_generations >= 2,
            f"num_generations={num_generations} must be at least 2: a completion is judged by the others of its group",
        )
        require(num_generations <= 10_000, f"num_generations={num_generations} must be at most 10,000")
        require(
            num_groups is None or num_groups >= 1,
            f"num_groups={num_groups} must be at least 1, or null for all prompts of a batch",
        )
        require(num_groups is None or num_groups <= 1_000_000, f"num_groups={num_groups} must be at most 1,000,000")
        require(beta >= 0, f"beta={beta} must be at least 0")
        require(beta <= 1000, f"beta={beta} must be at most 1000")
        require(0 <= entropy_coef <= 1000, f"entropy_coef={entropy_coef} must be at least 0 and at most 1000")
        require(beta == 0 or reference != "none", f"beta={beta} needs a reference: reference=copy or adapters")
        require(ref_model_sync_steps >= 0, f"ref_model_sync_steps={ref_model_sync_steps} must be at least 0")
        require(
            ref_model_sync_steps == 0 or reference == "copy",
            f"ref_model_sync_steps={ref_model_sync_steps} needs reference=copy",
        )
        require(0 < ref_model_mixup_alpha <= 1, f"ref_model_mixup_alpha={ref_model_mixup_alpha} must lie in (0, 1]")
        require(num_iterations >= 1, f"num_iterations={num_iterations} must be at least 1")
        require(num_iterations <= 10_000, f"num_iterations={num_iterations} must be at most 10,000")
        require(num_mini_batches >= 1, f"num_mini_batches={num_mini_batches} must be at least 1")
        require(num_mini_batches <= 1_000_000, f"num_mini_batches={num_mini_batches} must be at most 1,000,000")
        advantage.check(num_generations)
        reward.check()
        if advantage.needs == "distances" and encoder is None:
            raise ValueError(
                f"encoder=null must be a sentence encoder: advantage={type(advantage).__name__} asks how far answers"
                " are apart"
            )
        self.codec, self.reward, self.rollouts, self.advantage, self.policy_loss = (
            codec,
            reward,
            rollouts,
            advantage,
            loss,
        )
        self.num_generations, self.num_groups, self.beta, self.entropy_coef = (
            num_generations,
            num_groups,
            beta,
            entropy_coef,
        )
        self.ref_model_sync_steps, self.ref_model_mixup_alpha, self.num_iterations, self.num_mini_batches = (
            ref_model_sync_steps,
            ref_model_mixup_alpha,
            num_iterations,
            num_mini_batches,
        )
        self.mask_truncated_completions, self.encoder, self.reference_source = (
            mask_truncated_completions,
            encoder,
            reference,
        )
        self.loss_terms = {
            "policy": 1.0,
            **({"kl": beta} if beta else {}),
            **({"entropy": -entropy_coef} if entropy_coef else {}),
        }
        self.reference = self._frozen() if beta and reference == "copy" else None
        if beta and reference == "adapters":
            _require_adapters(model)
        self.rows: Batch | None = None  # what the current completions gave, for the steps that go over them again
        self._numbers: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._warned = -WARN_EVERY

    def _frozen(self) -> CausalBackbone:
        return copy.deepcopy(self.model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> GRPO:
        """The reference stays in eval mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def load_initial_weights(self, state: Mapping[str, Tensor]) -> None:
        """The policy, and with it the reference, begins as another run's policy."""
        super().load_initial_weights(state)
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())

    def blocks(self) -> list[nn.Module]:
        """Those of the policy and of the reference."""
        return [*super().blocks(), *([] if self.reference is None else self.reference.blocks)]

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps on the completions of one batch of prompts."""
        return self.num_iterations * self.num_mini_batches

    @staticmethod
    def least_numbers(rows: int, num_generations: int) -> int:
        """Of the completions of a step at the very least; the check reads it."""
        return rows * num_generations

    def check_data(self, data: TokenData) -> None:
        """Prompts must leave room for completions, and there must be as many of them as groups, and completions for
        every minibatch.
        """
        require_room_for_completions(data, self, self.rollouts.max_completion_length)
        require(
            self.num_groups is None or self.num_groups <= data.batch_size,
            f"method.num_groups={self.num_groups} must be at most data.batch_size={data.batch_size}",
        )
        completions = self._completions(data)
        require(
            self.num_mini_batches <= completions,
            f"method.num_mini_batches={self.num_mini_batches} must be at most the {completions} completions of a step",
        )

    def check_devices(self, data: TokenData, devices: int) -> None:
        """Each device needs a completion of every minibatch."""
        super().check_devices(data, devices)
        completions = self._completions(data)
        most = completions // devices
        require(
            self.num_mini_batches <= most,
            f"method.num_mini_batches={self.num_mini_batches} must be at most {most} on {devices} devices: each needs"
            " one of "
            f"the {completions} completions of a step for every minibatch",
        )
        least, pieces = completions // self.num_mini_batches // devices, self.optimization.accumulate
        require(
            devices == 1 or pieces <= least,
            f"optimization.accumulate={pieces} must be at most {least} on {devices} devices, the completions that each "
            "has of a minibatch: all cut theirs into as many pieces",
        )

    def _completions(self, data: TokenData) -> int:
        return (self.num_groups or data.batch_size) * self.num_generations

    def training_flops(self, length: int) -> float:
        """Of a prompt's group, by the tokens of a row of `length`: writing costs one forward pass, as do the old policy
        and the reference's, learning three.
        """
        whole = length + self.rollouts.max_completion_length
        drawn = 1 + (self.steps_per_batch > 1) + (self.beta > 0)
        passes = drawn / self.steps_per_batch + 3 / self.num_mini_batches
        return self.num_generations * passes * whole / length * self.model.flops_per_token(whole)

    def tokens_of(self, batch: Batch) -> int:
        """Tokens of completions."""
        return 0 if self.rows is None else int(self.rows["completion_length"].sum()) // self.num_mini_batches

    # A batch of completions ----------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """This step's share of the completions, drawn anew where the steps on the last ones are done; and the
        denominators.
        """
        turn = self.global_step % self.steps_per_batch
        if turn == 0 or self.rows is None:
            self.rows = self.experience(batch, draws)
        now_B = self.rows["mini_batch"] == turn % self.num_mini_batches
        rows = {name: tensor[now_B] for name, tensor in self.rows.items()}
        mask_BT = self._mask(rows)
        of_policy, tokens = (
            self.policy_loss.denominator(mask_BT, self.rollouts.max_completion_length),
            mask_BT.sum().float(),
        )
        return rows, torch.stack([tokens if name == "entropy" else of_policy for name in self.loss_terms])

    def experience(self, batch: Batch, draws: Draws) -> Batch:
        """This device's share of the completions of all devices' prompts, with their advantages, one row each."""
        prompts = [prompt for theirs in self.gather_objects(prompts_of(batch)) for prompt in theirs]
        draws = draws.whole()
        found = self._dynamic_sampling(
            prompts, draws.uniform(self.num_generations, self.rollouts.max_completion_length)
        )
        answer_id_PN = found.answer_ids()
        distance_PNN = self._distances(found) if self.advantage.needs == "distances" else None
        advantage_PN = self.advantage(found.reward_PN, answer_id_PN, distance_PNN, draws.generator)
        rows = self._split_over_devices({**found.rollout.rows(), "advantage": advantage_PN.flatten().float()})
        rows |= self._frozen_logps(rows)
        self._numbers = self._describe(found, answer_id_PN, advantage_PN)
        return rows

    def _split_over_devices(self, rows: Batch) -> Batch:
        """This device's rows of each minibatch, and of which one each is."""
        count, parts = len(rows["tokens"]), []
        for number in range(self.num_mini_batches):
            start, stop = number * count // self.num_mini_batches, (number + 1) * count // self.num_mini_batches
            mine = self.device_slice(stop - start)
            parts.append({name: tensor[start:stop][mine] for name, tensor in rows.items()})
            parts[-1]["mini_batch"] = torch.full_like(parts[-1]["completion_length"], number)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _dynamic_sampling(self, prompts: Sequence[Tensor], u_PNT: Tensor) -> ScoredCompletions:
        """The completions to learn from: groups of equal rewards give way to those of spare prompts as long as there
        are some.
        """
        wanted = len(prompts) if self.num_groups is None else min(self.num_groups, len(prompts))
        kept, asked = self.generate_and_score_all(prompts[:wanted], u_PNT[:wanted]), wanted
        while asked < len(prompts) and (same := kept.zero_std_P.nonzero()[:, 0].tolist()):
            more = slice(asked, asked + len(same))
            fresh, asked = self.generate_and_score_all(prompts[more], u_PNT[more]), min(more.stop, len(prompts))
            differ = (~fresh.zero_std_P).nonzero()[:, 0].tolist()
            kept = kept.replaced(same[: len(differ)], fresh, differ, self.vocab.pad)
        return kept

    def generate_and_score_all(self, prompts: Sequence[Tensor], u_PNT: Tensor) -> ScoredCompletions:
        """Completions of prompts that all devices know, each device's share of them drawn by it."""
        mine = self.device_slice(len(prompts))
        with self.writing():  # on every device: one without a prompt has weights that the others need, too
            own = self.generate_and_score(prompts[mine], u_PNT[mine]) if mine.start < mine.stop else None
        parts = self.gather_objects(own)
        return ScoredCompletions.joined([part for part in parts if part is not None], self.vocab.pad)

    def _distances(self, found: ScoredCompletions) -> Tensor:
        """(P, N, N) between the answers of each group; each device reads its share of the groups."""
        assert self.encoder is not None
        mine = found.texts[self.device_slice(len(found.texts))]
        parts = self.gather_objects(distances(mine, self.encoder).to(self.device) if mine else None)
        return torch.cat([part for part in parts if part is not None])

    def generate_and_score(self, prompts: Sequence[Tensor], u_PNT: Tensor) -> ScoredCompletions:
        """Completions of these prompts and their rewards."""
        return generate_and_score(self, self.codec, self.rollouts, self.reward, prompts, u_PNT)

    def _frozen_logps(self, rows: Batch) -> Batch:
        """Log-probabilities (B, T) of the completions under the policy that drew them and under the reference."""
        found: Batch = {}
        begins = "kl" in self._unchecked_terms and self.global_step == 0
        with self.eval_mode():
            own_BT = self._logps(rows).logp_BT if self.steps_per_batch > 1 or begins else None
            if self.beta:
                with self.model.without_adapters() if self.reference_source == "adapters" else nullcontext():
                    found["ref_logp"] = self._logps(rows, self.reference).logp_BT
        if begins and own_BT is not None:
            furthest = float(k3(found["ref_logp"], own_BT).max())
            require(
                furthest <= MAX_REFERENCE_K3,
                f"reference={self.reference_source}: at the first step the reference must be the policy, and a"
                " token's k3 is"
                f" {furthest:.3g}; reference=copy is the policy that the run begins with",
            )
        return found if self.steps_per_batch == 1 or own_BT is None else {**found, "old_logp": own_BT}

    def _logps(self, rows: Batch, model: CausalBackbone | None = None) -> CompletionLogps:
        return self.completion_logps(
            rows["tokens"], rows["prompt_length"], rows["completion_length"], self.rollouts.temperature, model
        )

    def _mask(self, rows: Batch) -> Tensor:
        """(B, T) the tokens that carry loss."""
        length = int(rows["completion_length"].max())
        mask_BT = torch.arange(length, device=rows["completion_length"].device) < rows["completion_length"].unsqueeze(1)
        return mask_BT & rows["terminated"].unsqueeze(1) if self.mask_truncated_completions else mask_BT

    # The loss ------------------------------------------------------------------------------------------------------

    def loss_sum(self, rows: Batch) -> Tensor:
        """(P,) sums of the parts over these completions."""
        scores, mask_BT = self._logps(rows), self._mask(rows)
        length = mask_BT.shape[1]
        old_BT = rows["old_logp"][:, :length] if "old_logp" in rows else scores.logp_BT.detach()
        policy_BT, clipped_BT = self.policy_loss.per_token(scores.logp_BT, old_BT, rows["advantage"], mask_BT)
        weight_BT = self.policy_loss.weights(mask_BT)
        terms = {"policy": policy_BT, "entropy": scores.entropy_BT}
        if "ref_logp" in rows:
            terms["kl"] = k3(rows["ref_logp"][:, :length], scores.logp_BT, mask_BT)
        terms = {name: term_BT.masked_fill(~mask_BT, 0.0) for name, term_BT in terms.items()}
        weighed = [terms[name] if name == "entropy" else weight_BT * terms[name] for name in self.loss_terms]
        sums_P = torch.stack([term_BT.sum() for term_BT in weighed])
        self._count(terms | {"clip_ratio": clipped_BT.float()}, mask_BT)
        if bool(self._unchecked_terms) and bool(mask_BT.any()):
            self.check_gradients(
                sums_P, {"kl": "the reference is the policy", "policy": "no group has answers of different rewards"}
            )
        return sums_P

    def _count(self, terms: Mapping[str, Tensor], mask_BT: Tensor) -> None:
        """Add to the sums that are logged as means per token."""
        found = {name: value_BT.detach()[mask_BT].sum() for name, value_BT in terms.items() if name != "policy"} | {
            "tokens": mask_BT.sum()
        }
        self._sums = {name: self._sums.get(name, 0) + value for name, value in found.items()}

    def reset_step(self) -> None:
        """The sums of this step."""
        self._sums = {}

    # What is logged ------------------------------------------------------------------------------------------------

    def _describe(self, found: ScoredCompletions, answer_id_PN: Tensor, advantage_PN: Tensor) -> dict[str, Tensor]:
        """Numbers of the completions of all devices."""
        reward_PN, rollout = found.reward_PN, found.rollout
        unique_P = torch.stack([(answer_id_PN == index).any(1) for index in range(self.num_generations)]).sum(0)
        same = found.zero_std_P.float().mean()
        if self.global_rank == 0 and not bool(advantage_PN.any()) and self.global_step - self._warned >= WARN_EVERY:
            self._warned = self.global_step
            log.warning(
                "step %d: in all %d groups the answers have equal rewards (mean reward %.3g), so that there is nothing"
                " to learn from; try another method.rollouts.temperature, a larger method.num_generations or easier"
                " prompts",
                self.global_step,
                len(reward_PN),
                reward_PN.mean(),
            )
        parts = (
            {
                f"reward_{name}": torch.tensor(mean, device=self.device)
                for name, mean in mean_of_parts(found.parts).items()
            }
            if len(found.parts) > 1
            else {}
        )
        return parts | {
            "reward": reward_PN.mean(),
            "reward_std": reward_PN.std(1).mean(),
            "frac_reward_zero_std": same,
            "unique_fraction": unique_P.float().mean() / self.num_generations,
            "completion_length": rollout.completion_length_B.float().mean(),
            "truncated": (~rollout.terminated_B).float().mean(),
            "mean_abs_advantage": advantage_PN.abs().mean(),
        }

    def after_update(self) -> Mapping[str, Tensor]:
        """Means over the tokens of all devices of what was counted in this step, and what the completions are like."""
        self.check_weights_moved()
        sums, self._sums = self._sums, {}
        tokens = self.total_over_devices(sums.pop("tokens")).clamp_min(1)
        means = {name: self.total_over_devices(value) / tokens for name, value in sums.items()}
        if (
            self.reference is not None
            and self.ref_model_sync_steps
            and self.global_step % self.ref_model_sync_steps == 0
        ):
            self._sync()
        return means | {name: value.float() for name, value in self._numbers.items()}

    @torch.no_grad()
    def _sync(self) -> None:
        assert self.reference is not None
        for theirs, ours in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            if ours.requires_grad:  # the rest is the same for both, and may be no numbers (quantised)
                weights = ours if isinstance(theirs, DTensor) else full_tensor(ours)
                theirs.lerp_(weights.to(theirs.dtype), self.ref_model_mixup_alpha)

    # Validation ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        super().on_validation_epoch_start()
        self._correct: list[Tensor] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Completions of held-out prompts, always from the same random numbers."""
        world, rank = self.trainer.world_size, self.global_rank
        total = len(batch["tokens"]) * world
        draws = Draws(
            self.seed, "validation", batch_idx, total=total, rows=slice(rank, total, world), device=self.device
        )
        prompts = prompts_of(batch)
        reward_PN = self.generate_and_score(
            prompts, draws.uniform(self.num_generations, self.rollouts.max_completion_length)
        ).reward_PN
        self._correct.append((reward_PN >= 1).sum(1))
        self._validation = (
            self._validation
            + torch.stack([reward_PN.mean(1).sum(), torch.tensor(float(len(prompts)), device=self.device)]).float()
        )

    def on_validation_epoch_end(self) -> None:
        """Log the mean reward, its opposite as the loss, and pass@k: the chance that one of k answers has a reward of
        at least 1.
        """
        total, count = self.total_over_devices(self._validation)
        correct = torch.cat(self._correct).cpu().numpy()
        ks = [k for k in (1, 8, 32) if k <= self.num_generations]
        passed = {
            f"val/pass@{k}": torch.tensor(
                float(np.sum(pass_at_k(self.num_generations, correct, k))), device=self.device
            )
            for k in ks
        }
        self.log("val/loss", -total / count, prog_bar=True)
        self.log_dict(
            {
                "val/reward": total / count,
                **{name: self.total_over_devices(value) / count for name, value in passed.items()},
            }
        )

    # Resuming ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Completions that are still in use belong to the state of the run: those of every device, and what was logged
        of them.
        """
        if self.rows is not None and self.global_step % self.steps_per_batch:
            checkpoint["completions"] = move_data_to_device(self.gather_objects([self.rows, self._numbers]), "cpu")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them. Raises ValueError for another number of devices than that which drew them."""
        if (every := checkpoint.get("completions")) is None:
            return
        world = self.trainer.world_size
        require(
            len(every) == world,
            f"hardware.devices={world} must be {len(every)}: the run stopped between two steps on completions that"
            f" {len(every)} devices hold",
        )
        rows, self._numbers = every[self.global_rank]
        require(
            "mini_batch" in rows,
            "run: it stopped between two steps on completions of an earlier version; train it anew with run=new",
        )
        self.rows = rows

    def on_train_start(self) -> None:
        """Completions that were loaded follow the model to its device."""
        super().on_train_start()
        self.rows = None if self.rows is None else {name: tensor.to(self.device) for name, tensor in self.rows.items()}
        self._numbers = {name: tensor.to(self.device) for name, tensor in self._numbers.items()}


def _require_adapters(model: CausalBackbone) -> None:
    """Raise ValueError for a model without adapters."""
    try:
        with model.without_adapters():
            pass
    except ValueError as error:
        raise ValueError(f"reference=adapters needs adapters, and {error}; use reference=copy") from error
