"""MiniGPT, and the same model with confidence: it predicts at each position what its own next choice will cost.

Pass 1 reads the real tokens x_{<=i} with the confidences a_{<=i} and is trained with cross entropy against x_{i+1}. In
pass 2, without a graph, the model's own token y_{i+1}, drawn from pass 1, stands at i + 1 with the confidence c_i (see
`branches`); the cross entropy of what it then predicts against the real x_{i+2} is the future loss f_i. The head is
trained to predict it: loss = CE + alpha * mean (c_i - f_i)^2. `dense` does so at every position, `last` at the last one
only, as in the original idea.

Shapes: B sequences of S tokens = L positions and the h (horizon) tokens behind; n branches of a sequence; D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from research_stack.backbones.attention import KVCache, StandardAttention
from research_stack.backbones.linear_loss import linear_loss
from research_stack.backbones.transformer import Transformer
from research_stack.data.batches import Batch
from research_stack.data.vocabulary import Vocabulary
from research_stack.lookahead.branches import (
    KERNEL_NAMES,
    Branches,
    Kernel,
    Prefix,
    RecordingAttention,
    gather_positions,
)
from research_stack.lookahead.generation import CachedReader
from research_stack.lookahead.gradient_limit import GradientNorms, limit_gradient
from research_stack.lookahead.heads import HEADS
from research_stack.lookahead.previous import Normaliser, confidence_features, shift_right, zero_at_document_end
from research_stack.require import require
from research_stack.sampling.categorical import draw
from research_stack.sampling.logits import special_token_bias
from research_stack.streams import Draws
from research_stack.training.module import TrainingModule
from research_stack.training.optimization import Optimization, clip_norm

if TYPE_CHECKING:
    from research_stack.data.module import TokenData

HORIZON = 2  # x_{i+2} is what a choice at i + 1 is judged by


class MiniGPT(TrainingModule):
    """A causal language model: cross entropy of the next token at every position whose next token is a real one.

    - model: a causal backbone. vocab: special tokens are never predicted: their logits are -inf.
    - horizon: h; a row's last h tokens are only targets, so that MiniGPT and lookahead learn from the same positions.
    """

    loss_terms: Mapping[str, float] = {"lm": 1.0}
    predicts_loss = False  # whether there are confidences

    def __init__(
        self, model: Transformer, vocab: Vocabulary, optimization: Optimization, seed: int, horizon: int = HORIZON
    ) -> None:
        super().__init__(optimization, seed)
        require(horizon >= 2, f"horizon={horizon} must be at least 2: a choice at i + 1 is judged by the loss at i + 2")
        self.model, self.vocab, self.horizon = model, vocab, horizon
        self.bias_V: Tensor
        self.register_buffer("bias_V", special_token_bias(vocab), persistent=False)

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.model.max_length

    @property
    def reads_confidence(self) -> bool:
        """Whether a token reads the confidence before it."""
        return False

    def reader(self) -> CachedReader:
        """For samplers: texts read token by token with a cache."""
        return CachedReader(self)

    def check_data(self, data: TokenData) -> None:
        """The model must be causal, and rows must hold three positions and the tokens behind them."""
        require(
            self.model.causal,
            f"model.causal={self.model.causal}: a model of the next token must be causal; set model.causal=true",
        )
        positions = data.sequence_length - self.horizon
        require(
            positions >= 3,
            f"data.sequence_length={data.sequence_length} leaves {positions} positions before the {self.horizon} tokens"
            f" that method.horizon={self.horizon} looks ahead; at least 3 are needed: set"
            f" data.sequence_length={self.horizon + 3} or more",
        )

    def training_flops(self, length: int) -> float:
        return super().training_flops(length) * (length - self.horizon) / length

    # Training ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Targets and where they count."""
        weight_BL = self.next_counts(batch)
        return {"tokens": batch["tokens"], "weight": weight_BL}, weight_BL.sum().unsqueeze(0)

    def next_counts(self, batch: Batch) -> Tensor:
        """(B, L) float32: 1 where the next token is real, no prompt and no padding."""
        return batch["eligible"][:, 1 : batch["tokens"].shape[1] - self.horizon + 1].float()

    def loss_sum(self, rows: Batch) -> Tensor:
        """(1,) the summed cross entropy."""
        length = rows["weight"].shape[1]
        reading = self.read(rows["tokens"][:, :length])
        return torch.stack([self.next_token(reading.hidden_BLD, rows["tokens"][:, 1 : length + 1], rows["weight"])[0]])

    def next_token(
        self, hidden_BLD: Tensor, target_BL: Tensor, weight_BL: Tensor, u_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(weighted sum of cross entropies, nats_BL, own_BL) where the weight is not 0, from one look at the logits.

        - u_BL: uniform numbers that draw the own tokens; None: none are drawn. Elsewhere nats are 0 and own tokens the
          targets.
        """
        counts_BL = weight_BL > 0
        target_n, u_n = target_BL[counts_BL], None if u_BL is None else u_BL[counts_BL]
        nats_n = torch.zeros(
            len(target_n), device=target_n.device, dtype=torch.promote_types(hidden_BLD.dtype, torch.float32)
        )
        own_n = target_n.clone()

        def token_losses(logits_cV: Tensor, part: slice) -> Tensor:
            losses_c = F.cross_entropy(logits_cV, target_n[part], reduction="none")
            nats_n[part] = losses_c.detach()
            if u_n is not None:
                own_n[part] = draw(logits_cV.detach(), u_n[part], trusted=self.training)  # the step looks at its loss
            return losses_c

        total = linear_loss(
            hidden_BLD[counts_BL], self.model.unembedding, weight_BL[counts_BL], token_losses, self.bias_V
        )
        nats_BL, own_BL = torch.zeros_like(weight_BL, dtype=nats_n.dtype), target_BL.clone()
        nats_BL[counts_BL], own_BL[counts_BL] = nats_n, own_n
        return total, nats_BL, own_BL

    # Reading and branching -----------------------------------------------------------------------------------------

    def read(self, tokens_BL: Tensor, previous_BL: Tensor | None = None) -> Prefix:
        """Pass 1: the real tokens, each with the confidence before it."""
        attention_fn = RecordingAttention(
            StandardAttention(causal=True, dropout=self.model.dropout if self.training else 0.0)
        )
        return Prefix(
            self.model.forward_at(tokens_BL, slice(0, tokens_BL.shape[1]), attention_fn, self.condition(previous_BL)),
            attention_fn.pairs,
        )

    @torch.no_grad()
    def branch(
        self,
        branches: Branches,
        own_Bn: Tensor,
        confidence_Bn: Tensor | None,
        depth: int = 1,
        keep_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Pass 2: (hidden states (B, n, D), confidences (B, n)) of the own tokens, which stand `depth` behind their
        prefix.

        - confidence_Bn: predicted at the token before each, in nats, which the branch reads if its prefix did; None
          for a model that has none. keep_B: 0 at sequences that read zeros; None: all read theirs.
        """
        positions = slice(depth, depth + own_Bn.shape[1]) if branches.at_Bn is None else branches.at_Bn + depth
        previous_Bn = None if confidence_Bn is None else self.normalised(confidence_Bn) * self.reads_confidence
        if previous_Bn is not None and keep_B is not None:
            previous_Bn = previous_Bn * keep_B.unsqueeze(1)
        hidden_BnD = self.model.forward_at(own_Bn, positions, branches, self.condition(previous_Bn))
        return hidden_BnD, self.confidence(hidden_BnD)

    @torch.no_grad()
    def future(
        self, reading: Prefix, own_BL: Tensor, confidence_BL: Tensor | None, rows: Batch, kernel: Kernel = "auto"
    ) -> Tensor:
        """(B, n) future loss f_i in nats: mean cross entropy against x_{i+2}, ..., x_{i+h} behind own tokens.

        - own_BL: y_{i+1} for each i. confidence_BL: c_i in nats; None for a model that has none.
        - rows: tokens (B, S), counts (B, n) where f_i is wanted, u (B, L, h - 1) that draw further own tokens; at (B,
          n) if the branches stand at some positions only; keep (B,) if some sequences read zeros.
        """
        at_Bn, length = rows.get("at"), own_BL.shape[1]
        branches, total_Bn = Branches(reading.pairs, at_Bn, kernel), torch.zeros((), device=own_BL.device)
        own_Bn, confidence_Bn = (
            gather_positions(own_BL, at_Bn),
            None if confidence_BL is None else gather_positions(confidence_BL, at_Bn),
        )
        for depth in range(1, self.horizon):
            hidden_BnD, confidence_Bn = self.branch(branches, own_Bn, confidence_Bn, depth, rows.get("keep"))
            goal_Bn = gather_positions(rows["tokens"][:, depth + 1 : depth + 1 + length], at_Bn)
            u_Bn = gather_positions(rows["u"][..., depth], at_Bn) if depth + 1 < self.horizon else None
            _, nats_Bn, own_Bn = self.next_token(hidden_BnD, goal_Bn, rows["counts"], u_Bn)
            total_Bn = total_Bn + nats_Bn
        return total_Bn / (self.horizon - 1)

    def future_counts(self, batch: Batch) -> Tensor:
        """(B, L) float32: 1 where x_{i+1}, ..., x_{i+h} are real tokens of the document of x_i, no prompt and no
        padding.
        """
        eligible_BS, length = batch["eligible"], batch["tokens"].shape[1] - self.horizon
        inside_BL = batch["tokens"][:, :length] != self.vocab.end
        for k in range(1, self.horizon + 1):
            inside_BL = inside_BL & eligible_BS[:, k : k + length]
        return inside_BL.float()

    def advance(self, tokens_BL: Tensor, previous_BL: Tensor | None, cache: KVCache) -> tuple[Tensor, Tensor | None]:
        """(hidden states, confidences) of tokens that follow those in the cache."""
        hidden_BLD = self.model(tokens_BL, cache=cache, condition_BLC=self.condition(previous_BL))
        return hidden_BLD, self.confidence(hidden_BLD)

    # What a model with confidence does besides ---------------------------------------------------------------------

    def previous(self, tokens_BL: Tensor, first_B: Tensor | None = None) -> Tensor | None:
        """(B, L) what each token reads of the confidence before it, normalised; None for a model that reads none."""
        return None

    def condition(self, previous_BL: Tensor | None) -> Tensor | None:
        """(B, L, C) what the blocks read; None for nothing."""
        return None

    def normalised(self, confidence_BL: Tensor) -> Tensor:
        """Confidences as they are fed in."""
        return confidence_BL

    def confidence(self, hidden_BLD: Tensor) -> Tensor | None:
        """(B, L) float32 predicted future losses in nats, without graph; None without a head."""
        return None


class Lookahead(MiniGPT):
    """ConfidenceAwareGPT and its two-pass training.

    - alpha: weight of the confidence loss; 0 trains the language model alone.
    - lookahead: `dense`, a branch at every position; `last`, at the last position of a row only.
    - head: scalar, softplus or two_hot (`heads`). head_width: units of its hidden layer; 0: none; None: as many as
      the parameters allow that the backbone spares (`model.spared`), so that all in all there are as many as in
      MiniGPT.
    - detach: the head reads the hidden states without sending a gradient into the trunk.
    - max_gradient_ratio: largest norm of the confidence gradient at the last hidden states, as a share of the language
      model's, for each sequence; None: no limit. Parameters of the head are clipped apart from the others in any
      case.
    - target: whose token stands at i + 1: the model's `own`, or the `real` one (then no second pass is needed).
    - previous: what a_i is. `zeros`; `shift`: c_{i-1} of `passes` passes before, without graph, the first with zeros
      (Jacobi iteration, exact after L - 1); `rollout`: token by token, as in generation (slow); `carry`: shift, and the
      first position of a row goes on from the row before, which needs data.order=contiguous.
    - dropout: probability with which a sequence is trained with zeros instead.
    - fraction: share of the positions that get a branch, drawn anew for each sequence and step.
    - kernel: how branches attend (`branches`).
    """

    predicts_loss = True

    def __init__(
        self,
        model: Transformer,
        vocab: Vocabulary,
        optimization: Optimization,
        seed: int,
        horizon: int = HORIZON,
        alpha: float = 1.0,
        lookahead: Literal["dense", "last"] = "dense",
        head: Literal["scalar", "softplus", "two_hot"] = "scalar",
        head_width: int | None = None,
        detach: bool = False,
        max_gradient_ratio: float | None = 0.3,
        target: Literal["own", "real"] = "own",
        previous: Literal["zeros", "shift", "rollout", "carry"] = "shift",
        passes: int = 1,
        dropout: float = 0.1,
        fraction: float = 1.0,
        kernel: Kernel = "auto",
    ) -> None:
        require(alpha >= 0, f"alpha={alpha} must not be negative: it weighs a loss")
        require(
            head_width is None or head_width >= 0,
            f"head_width={head_width} must be at least 0, or null; 0: no hidden layer",
        )
        require(
            max_gradient_ratio is None or max_gradient_ratio > 0,
            f"max_gradient_ratio={max_gradient_ratio} must be positive, or null for no limit; "
            "method.detach=true sends no gradient at all",
        )
        require(passes >= 1, f"passes={passes} must be at least 1; method.previous=zeros makes none")
        require(passes <= 100, f"passes={passes} must be at most 100")
        require(0 <= dropout <= 1, f"dropout={dropout} must lie in [0, 1]")
        require(0 < fraction <= 1, f"fraction={fraction} must lie in (0, 1]")
        require(kernel in KERNEL_NAMES, f"kernel={kernel} must be one of {', '.join(KERNEL_NAMES)}")
        require(
            not (lookahead == "last" and fraction < 1),
            f"fraction={fraction} with lookahead=last: there is only one position",
        )
        require(
            not (lookahead == "last" and target == "real"),
            "target=real with lookahead=last: the token after the last position is not read",
        )
        super().__init__(model, vocab, optimization, seed, horizon)
        self.alpha, self.lookahead, self.detach, self.max_gradient_ratio, self.target = (
            alpha,
            lookahead,
            detach,
            max_gradient_ratio,
            target,
        )
        self.previous_mode, self.passes, self.dropout, self.fraction = previous, passes, dropout, fraction
        self.kernel: Kernel = kernel
        self.loss_terms = {"lm": 1.0, "confidence": alpha}
        self.head = HEADS[head](
            model.dim, model.spared_parameters // model.dim if head_width is None else head_width, seed
        )
        self.normaliser = Normaliser()
        self._norms, self._carried = GradientNorms(), None
        self._sums: list[Tensor] = []
        self._last: list[Tensor] = []

    @property
    def reads_confidence(self) -> bool:
        return self.previous_mode != "zeros" and self.model.condition_dim > 0

    def check_data(self, data: TokenData) -> None:
        """`carry` needs rows that go on from each other, overlapping by the horizon, on one device."""
        super().check_data(data)
        fits = data.order == "contiguous" and data.overlap == self.horizon
        require(
            self.previous_mode != "carry" or fits,
            f"method.previous=carry with data.order={data.order}, data.overlap={data.overlap}: each row must go on "
            f"from the one before; set data.order=contiguous data.overlap={self.horizon}",
        )

    def clip_gradients(self) -> Tensor:
        """The head, whose squared error can be large, and the rest are each clipped by their own norm."""
        norms = [clip_norm(list(part.parameters()), self.optimization.clip) for part in (self.model, self.head)]
        return torch.linalg.vector_norm(torch.stack(norms))

    def training_flops(self, length: int) -> float:
        """MiniGPT's, the passes for the confidences, and the branches (a forward pass each, the former without
        logits).
        """
        positions, plain = length - self.horizon, self.model.flops_per_token(length, logits=False)
        passes = (1 if self.previous_mode == "rollout" else self.passes) if self.reads_confidence else 0
        share = 1 / positions if self.lookahead == "last" else self.fraction
        branches = 0.0 if self.target == "real" else share * (self.horizon - 1) * self.model.flops_per_token(length)
        return super().training_flops(length) + (passes * plain + branches) * positions / length

    # Training ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Targets, where each loss counts, and all random numbers of the step."""
        weight_BL, counts_BL = self.next_counts(batch), self.future_counts(batch)
        length = weight_BL.shape[1]
        u_BLh = draws.uniform(length, self.horizon - 1)  # drawn first: other options must not change the own tokens
        at_Bn = self._positions(draws, length)
        keep_B = (
            (draws.uniform() >= self.dropout).float()
            if self.training
            else torch.ones(len(weight_BL), device=weight_BL.device)
        )
        if self.target == "real":  # the last h - 1 positions would need losses behind the last one
            counts_BL[:, length - self.horizon + 1 :] = 0
        rows = {
            "tokens": batch["tokens"],
            "weight": weight_BL,
            "counts": gather_positions(counts_BL, at_Bn),
            "u": u_BLh,
            "keep": keep_B,
            **({} if at_Bn is None else {"at": at_Bn}),
            **self._first(batch),
        }
        return rows, torch.stack([weight_BL.sum(), rows["counts"].sum()])

    def _positions(self, draws: Draws, length: int) -> Tensor | None:
        """(B, n) where branches stand, ascending; None for everywhere."""
        if self.lookahead == "last":
            return torch.full((len(draws.uniform()), 1), length - 1, device=draws.device)
        if self.fraction == 1:
            return None
        count = max(1, round(self.fraction * length))
        return draws.uniform(length).argsort(1)[:, :count].sort(1).values

    def _first(self, batch: Batch) -> Batch:
        """What the first position of each row reads: nothing, or with `carry` the last confidence of the row
        before.
        """
        if self.previous_mode != "carry" or "fresh" not in batch:
            return {}
        carried_B = (
            torch.zeros(len(batch["tokens"]), device=self.device)
            if self._carried is None
            else self._carried.to(self.device)
        )
        return {"first": carried_B.masked_fill(batch["fresh"], 0.0)}

    def loss_sum(self, rows: Batch) -> Tensor:
        """(2,) the summed cross entropy and the summed confidence loss."""
        at_Bn, length = rows.get("at"), rows["weight"].shape[1]
        tokens_BL, target_BL = rows["tokens"][:, :length], rows["tokens"][:, 1 : length + 1]
        previous_BL = self.previous(tokens_BL, rows.get("first")) * rows["keep"].unsqueeze(1)
        reading = self.read(tokens_BL, previous_BL)
        for_lm_BLD, for_head_BLD = limit_gradient(reading.hidden_BLD, self.max_gradient_ratio, self._norms)
        lm, nats_BL, own_BL = self.next_token(
            for_lm_BLD, target_BL, rows["weight"], None if self.target == "real" else rows["u"][..., 0]
        )
        raw = self.head(reading.hidden_BLD.detach() if self.detach else for_head_BLD)
        confidence_BL = self.head.prediction(raw.detach())
        if self.target == "real":
            future_Bn = mean_of_next(nats_BL, self.horizon)
        else:
            future_Bn = self.future(reading, own_BL, confidence_BL, rows, self.kernel)
        raw_n = raw if at_Bn is None else raw.gather(1, at_Bn.unsqueeze(-1).expand(-1, -1, raw.shape[-1]))
        self._add_statistics(rows, previous_BL, confidence_BL, future_Bn)
        return torch.stack([lm, (self.head.losses(raw_n, future_Bn) * rows["counts"]).sum()])

    def _add_statistics(self, rows: Batch, previous_BL: Tensor, confidence_BL: Tensor, future_Bn: Tensor) -> None:
        """Sums for the log and the running statistics; they add up over pieces and devices."""
        if not self.training:
            return
        counts_Bn, confidence_Bn = rows["counts"], gather_positions(confidence_BL, rows.get("at"))
        tokens_BL = rows["tokens"][:, : confidence_BL.shape[1]]
        previous_next_BL = zero_at_document_end(self.normaliser(confidence_BL), tokens_BL, self.vocab.end)
        moved_BL = (previous_next_BL[:, :-1] - previous_BL[:, 1:]) * rows["keep"].unsqueeze(1)
        values = [
            counts_Bn,
            counts_Bn * confidence_Bn,
            counts_Bn * confidence_Bn.square(),
            counts_Bn * future_Bn,
            counts_Bn * future_Bn.square(),
            moved_BL.square(),
            rows["keep"] * moved_BL.shape[1],
        ]
        self._sums.append(torch.stack([value.sum().float() for value in values]))
        self._last.append(previous_next_BL[:, -1])

    def reset_step(self) -> None:
        """The sums of this step."""
        self._sums, self._last = [], []
        self._norms.take()

    def after_update(self) -> Mapping[str, Tensor]:
        """Move the running statistics; mean and spread of predicted and actual, gradient norms of both parts, and
        `fixed_point`: rms change in nats of the confidences between the pass they were fed from and the next."""
        n, c, cc, f, ff, moved, kept = self.total_over_devices(torch.stack(self._sums).sum(0))
        n = n.clamp_min(1)
        mean, variance, deviation = c / n, (cc / n - (c / n).square()).clamp_min(0), self.normaliser.deviation
        numbers = {
            "confidence_mean": mean,
            "confidence_std": variance.sqrt(),
            "future_mean": f / n,
            "future_std": (ff / n - (f / n).square()).clamp_min(0).sqrt(),
            "fixed_point": (moved / kept.clamp_min(1)).sqrt() * deviation,
        }
        squares = self._norms.take()
        if squares is not None:
            lm, confidence = self.total_over_devices(squares).sqrt() / self.trainer.world_size
            numbers |= {"grad_lm": lm, "grad_confidence": confidence}
        self.normaliser.update(mean, variance)
        self._carried = torch.cat(self._last)
        self._sums, self._last = [], []
        return numbers

    def on_fit_start(self) -> None:
        """Refuse what a checkpoint could not restore."""
        require(
            self.previous_mode != "carry" or self.trainer.world_size == 1,
            f"method.previous=carry with {self.trainer.world_size} devices: a checkpoint keeps what one device carries;"
            " set hardware.devices=1 or method.previous=shift",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `carry` hands to the next row."""
        checkpoint["carried"] = self._carried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self._carried = checkpoint.get("carried")

    # Confidence ----------------------------------------------------------------------------------------------------

    def confidence(self, hidden_BLD: Tensor) -> Tensor:
        return self.head.prediction(self.head(hidden_BLD)).detach()

    def normalised(self, confidence_BL: Tensor) -> Tensor:
        return self.normaliser(confidence_BL)

    def condition(self, previous_BL: Tensor | None) -> Tensor | None:
        if previous_BL is None or not self.model.condition_dim:
            return None
        return confidence_features(previous_BL, self.model.condition_dim)

    @torch.no_grad()
    def previous(self, tokens_BL: Tensor, first_B: Tensor | None = None) -> Tensor:
        """(B, L) a_i, normalised, by `self.previous_mode`; a_0 is `first_B` (None: 0)."""
        previous_BL = torch.zeros(tokens_BL.shape, device=tokens_BL.device, dtype=self.model.unembedding.dtype)
        if first_B is not None:
            previous_BL[:, 0] = first_B
        if not self.reads_confidence:
            return previous_BL
        if self.previous_mode == "rollout":
            return self._rollout(tokens_BL, previous_BL[:, 0])
        for _ in range(self.passes):
            hidden_BLD = self.model.forward_at(
                tokens_BL, slice(0, tokens_BL.shape[1]), StandardAttention(causal=True), self.condition(previous_BL)
            )
            previous_BL = shift_right(
                self.normaliser(self.confidence(hidden_BLD)), previous_BL[:, 0], tokens_BL, self.vocab.end
            )
        return previous_BL

    def _rollout(self, tokens_BL: Tensor, first_B: Tensor) -> Tensor:
        """Token by token with the cache: what generation feeds in."""
        cache, read = self.model.new_cache(), [first_B]
        for token_B1 in tokens_BL[:, :-1].split(1, dim=1):
            _, confidence_B1 = self.advance(token_B1, read[-1].unsqueeze(1), cache)
            read.append(zero_at_document_end(self.normaliser(confidence_B1), token_B1, self.vocab.end)[:, 0])
        return torch.stack(read, dim=1)


def mean_of_next(nats_BL: Tensor, horizon: int) -> Tensor:
    """(B, L) mean of the next horizon - 1 losses behind each position; 0 where they are not all there."""
    length = nats_BL.shape[1]
    padded = F.pad(nats_BL.detach(), (0, horizon - 1))
    return torch.stack([padded[:, k : k + length] for k in range(1, horizon)]).mean(0)
