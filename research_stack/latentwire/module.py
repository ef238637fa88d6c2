"""LatentWire: a context as a short message of bytes that several different frozen language models can answer questions
from.

Encoder, pooling and quantiser make the numbers of the wire's latents, shared ones first, then those of each reader
alone; each reader's adapter makes of shared and own latents what it reads in the context's place. Trained are encoder,
pooling, adapters and what the features add; the readers' weights never change.

Shapes: B rows, N bytes, M latents that a reader gets, d dimensions of a latent, A tokens of an answer, L tokens of
prompt and answer.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research_stack.data.batches import Batch
from research_stack.data.questions.question import Question
from research_stack.latentwire import wire as bytes_of_wire
from research_stack.latentwire.adapter import HINTS, Adapter
from research_stack.latentwire.curriculum import Curriculum, Stage
from research_stack.latentwire.encoder import ByteEncoder, Pooling, as_bytes
from research_stack.latentwire.features.base import AdapterOutput, Feature, ParameterGroup, StepSettings
from research_stack.latentwire.features.listing import feature_lines, feature_rows, refuse_other_features
from research_stack.latentwire.late_readers import state_with_late_readers
from research_stack.latentwire.losses import LatentWireLoss, LossInputs, unique_contexts
from research_stack.latentwire.module_dict import TypedModuleDict
from research_stack.latentwire.quantize import Quantizer
from research_stack.latentwire.reader import FrozenReader, padded
from research_stack.latentwire.receiver import Condition, Prefilled, forward_cached, prefill_latents
from research_stack.require import require
from research_stack.streams import Draws, generator
from research_stack.training.module import TrainingModule, split_batch
from research_stack.training.optimization import Optimization

if TYPE_CHECKING:
    from research_stack.data.questions.module import QuestionData

log = logging.getLogger(__name__)


class LatentWire(TrainingModule):
    """Contexts to latents to the answers of frozen readers.

    - model: the encoder. quantizer: what becomes of its numbers on the wire.
    - readers: the frozen models, by name. num_latents: what a reader gets, of which `num_private` are its own.
      latent_dim: d.
    - losses, features: by name; a loss of weight 0 is left out. questions: of the data, numbered as in its batches.
    - loss_tokens: K, of an answer that carry loss. train_encoder: false trains adapters and features alone.
    - pooling_heads: of the pooling. adapter_dim, adapter_layers, adapter_heads, positions_per_latent: of the adapters.
    - length_hint: whether a length of the answer travels with the latents, one byte that the sender predicts.
    - questions_per_context: questions of each context that a training batch holds; a context is encoded once for all of
      them.
    - stages: of the training, with latents and weights of the losses of their own (`Stage`); null: none. Validation,
      and what is sent unless another number of latents is asked for, are always as in the last one.
    - lr_factors: of `optimization.lr`, for `encoder` and `adapter`; features have their own.
    - trained_on: numbers of the questions of the training side, None for all: nothing else is read before the training.
      max_steps: of the training; if it is known, stages without a step are refused at once.
    """

    counted = "questions"

    def __init__(
        self,
        model: ByteEncoder,
        quantizer: Quantizer,
        readers: Mapping[str, FrozenReader],
        losses: Mapping[str, LatentWireLoss],
        questions: Sequence[Question],
        optimization: Optimization,
        seed: int,
        features: Mapping[str, Feature] | None = None,
        num_latents: int = 32,
        num_private: int = 8,
        latent_dim: int = 16,
        loss_tokens: int = 6,
        train_encoder: bool = True,
        pooling_heads: int = 4,
        adapter_dim: int = 128,
        adapter_layers: int = 1,
        adapter_heads: int = 4,
        positions_per_latent: int = 1,
        length_hint: bool = False,
        questions_per_context: int = 1,
        stages: Sequence[Stage | Mapping[str, Any]] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        trained_on: Sequence[int] | None = None,
        max_steps: int | None = None,
    ) -> None:
        require(num_private >= 0, f"num_private={num_private} must not be negative")
        require(
            num_latents > num_private,
            f"num_latents={num_latents} must be more than num_private={num_private}: what is left is"
            " what the readers share",
        )
        require(num_latents <= 256, f"num_latents={num_latents} must be at most 256")
        require(1 <= latent_dim <= 256, f"latent_dim={latent_dim} must lie in 1 .. 256")
        require(loss_tokens >= 1, f"loss_tokens={loss_tokens} must be at least 1")
        require(loss_tokens <= 10_000, f"loss_tokens={loss_tokens} must be at most 10,000")
        require(questions_per_context >= 1, f"questions_per_context={questions_per_context} must be at least 1")
        require(
            questions_per_context <= 10_000, f"questions_per_context={questions_per_context} must be at most 10,000"
        )
        require(
            pooling_heads >= 1 and model.dim % pooling_heads == 0,
            f"pooling_heads={pooling_heads} must divide the encoder's dim={model.dim}",
        )
        require(
            adapter_heads >= 1 and adapter_dim >= 1 and adapter_dim % adapter_heads == 0,
            f"adapter_heads={adapter_heads} must divide adapter_dim={adapter_dim}",
        )
        super().__init__(optimization, seed)
        require(len(readers) >= 1, f"readers={list(readers)} must name at least one")
        self.curriculum, self.lr_factors = Curriculum(stages), {"encoder": 1.0, "adapter": 1.0} | dict(lr_factors or {})
        require(len(self.lr_factors) == 2, f"lr_factors={lr_factors} must be of encoder and adapter alone")
        self.losses: dict[str, LatentWireLoss] = {
            name: loss for name, loss in losses.items() if loss.weight > 0 or self.curriculum.uses(name)
        }
        require(bool(self.losses), f"losses={list(losses)} must hold one with a weight above 0")
        chosen = dict(features or {})
        refuse_conflicts(chosen)
        self.model, self.quantizer, self.readers, self.questions = (
            model,
            quantizer.bind(latent_dim),
            TypedModuleDict(readers),
            questions,
        )
        self.num_latents, self.num_private, self.latent_dim, self.loss_tokens, self.adapter_dim = (
            num_latents,
            num_private,
            latent_dim,
            loss_tokens,
            adapter_dim,
        )
        self.train_encoder, self.length_hint, self.questions_per_context = (
            train_encoder,
            length_hint,
            questions_per_context,
        )
        self.questions_of_context: dict[str, list[int]] = {}  # of the training side
        for number in range(len(questions)) if trained_on is None else map(int, trained_on):
            self.questions_of_context.setdefault(questions[number].context, []).append(number)
        self.pooling = Pooling(model.dim, self.num_shared + num_private * len(readers), latent_dim, pooling_heads, seed)
        self.length_head = make_length_head(latent_dim, seed) if length_hint else None
        self.adapters = TypedModuleDict(
            {
                name: Adapter(
                    reader,
                    num_latents,
                    latent_dim,
                    adapter_dim,
                    adapter_layers,
                    adapter_heads,
                    positions_per_latent,
                    length_hint,
                    seed,
                    name,
                )
                for name, reader in readers.items()
            }
        )
        for part in (model, self.pooling) if not train_encoder else ():
            part.requires_grad_(False)
        self.features = TypedModuleDict(chosen)
        for name, feature in chosen.items():
            try:
                feature.build_modules(self)
            except ValueError as error:
                raise ValueError(f"features.{name}.{error}") from error
        for loss in self.losses.values():
            loss.prepare(self)
        if any(feature.replaces_vectors for feature in chosen.values()) and not any(
            loss.needs_vectors for loss in self.losses.values()
        ):
            for (
                adapter
            ) in self.adapters.values():  # what nothing reads has no gradient, and several devices wait for one
                adapter.mean_D.requires_grad_(False)
                adapter.size.requires_grad_(False)
                adapter.leave.requires_grad_(False)
        self.loss_terms = {name: loss.weight for name, loss in self.losses.items()} | {
            k: w for f in chosen.values() for k, w in f.weights().items()
        }
        if length_hint:
            self.loss_terms["hint"] = 1.0
        self.curriculum.bind(
            {name: loss.weight for name, loss in losses.items()} | self.loss_terms, num_latents, num_private
        )
        if max_steps is not None:
            self.curriculum.ends(max_steps)
        self.weights_token: str | None = None
        self.first_correct: dict[
            str, Tensor
        ] = {}  # by reader: (first tokens that were the likeliest, those that count) of the step so far

    @property
    def num_shared(self) -> int:
        """Latents that all readers get."""
        return self.num_latents - self.num_private

    @property
    def final_num_latents(self) -> int:
        """Latents that are sent when the training is over: `num_latents`, or those of the last stage."""
        return self.curriculum.num_latents(None, 0, self.num_latents)

    @staticmethod
    def least_numbers(
        rows: int, questions_per_context: int, num_latents: int, latent_dim: int, adapter_dim: int, adapter_layers: int
    ) -> int:
        """Weights of an adapter and the latents of a step at the very least; the check reads it."""
        return (
            2 * adapter_layers * adapter_dim * adapter_dim
            + rows * num_latents * (latent_dim + adapter_dim)
            + rows * questions_per_context
        )

    def name_of(self, reader: FrozenReader) -> str:
        """What the config calls it."""
        return next(name for name, own in self.readers.items() if own is reader)

    def some_contexts(self, count: int) -> list[str]:
        """Different contexts of the training side, spread evenly."""
        texts = list(self.questions_of_context)
        return [texts[i * len(texts) // min(count, len(texts))] for i in range(min(count, len(texts)))]

    # From bytes to what a reader sees -------------------------------------------------------------------------------

    def latent_index(self, reader: str, num_latents: int) -> Tensor:
        """(M,) int64: which of the pooling's latents go to the reader when so many are sent: the first shared ones,
        then its own.
        """
        require(
            self.num_private < num_latents <= self.num_latents,
            f"num_latents={num_latents} must lie in {self.num_private + 1} .. {self.num_latents}: more than the"
            " private part, at most what was trained",
        )
        own = self.num_shared + self.num_private * list(self.readers).index(reader)
        return torch.tensor(
            [*range(num_latents - self.num_private), *range(own, own + self.num_private)], device=self.device
        )

    def raw(self, bytes_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """(B, all latents, d): the encoder's numbers before the quantiser."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.pooling(self.model(bytes_BN, mask_BN)).float()

    def predicted_hint(self, latents_BMd: Tensor) -> Tensor | None:
        """Logits (B, lengths) of the answer's length, from the latents alone; None without hints."""
        return None if self.length_head is None else self.length_head(latents_BMd.mean(1))

    def adapt(
        self, reader: str, latents_BMd: Tensor, index_M: Tensor, hint_B: Tensor | None = None, **more: Any
    ) -> AdapterOutput:
        """What the reader's adapter makes of its latents; `index_M` as in `latent_index`."""
        local_M = torch.where(
            index_M < self.num_shared, index_M, self.num_shared + (index_M - self.num_shared) % max(1, self.num_private)
        )
        adapter = self.adapters[reader]
        states_BPH = adapter(latents_BMd, local_M, hint_B)
        position_ids_P = (
            local_M.unsqueeze(1) * adapter.positions_per_latent
            + torch.arange(adapter.positions_per_latent, device=local_M.device)
        ).flatten()
        return AdapterOutput(
            latents_BMd=latents_BMd, index_M=index_M, states_BPH=states_BPH, position_ids_P=position_ids_P, **more
        )

    def condition(self, reader: str, sent: AdapterOutput) -> Condition:
        """What the reader is given: vectors, as the features change them."""
        condition = Condition(vectors_BPD=self.adapters[reader].vectors(sent.states_BPH))
        for feature in self.features.values():
            condition = feature.condition(reader, sent, condition)
        return condition

    def prefill(self, reader: str, sent: AdapterOutput) -> Prefilled:
        """The reader's cache with the latents in it."""
        return prefill_latents(self.readers[reader], self.condition(reader, sent), len(sent.latents_BMd))

    # The wire -------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Of the weights that sender and receiver must share; messages of another encoder are refused."""
        if self.weights_token is None:
            digest = hashlib.sha256()
            for name, tensor in self.state_dict().items():
                digest.update(
                    name.encode()
                    + tensor.detach().cpu().contiguous().flatten()[:4096].view(torch.uint8).numpy().tobytes()
                )
            self.weights_token = digest.hexdigest()[:16]
        return self.weights_token

    def salt(self, reader: str) -> bytes:
        """What the check byte of messages to this reader is keyed with."""
        return bytes_of_wire.salt_of(self.fingerprint(), reader)

    @torch.no_grad()
    def encode(self, contexts: list[str], reader: str, num_latents: int | None = None) -> list[bytes]:
        """The messages to one reader. Raises ValueError for a context that is empty or longer than the encoder
        reads.
        """
        check_contexts(contexts, self.model.max_length)
        bytes_BN, mask_BN = (t.to(self.device) for t in as_bytes(contexts))
        raw_BMd = self.raw(bytes_BN, mask_BN)[:, self.latent_index(reader, num_latents or self.final_num_latents)]
        logits_BH = self.predicted_hint(self.quantizer(raw_BMd))
        hints = None if logits_BH is None else logits_BH.argmax(-1).tolist()
        return bytes_of_wire.messages(self.quantizer, raw_BMd, self.salt(reader), hints)

    @torch.no_grad()
    def decode(self, messages: list[bytes], reader: str) -> AdapterOutput:
        """What the reader's adapter makes of messages of one size. Raises ValueError for one that is damaged or for
        somebody else.
        """
        found = [bytes_of_wire.decode(message, self.salt(reader)) for message in messages]
        latents_BMd = torch.stack([message.latents() for message in found]).to(self.device)
        require(
            latents_BMd.shape[2] == self.latent_dim,
            f"message holds latents of {latents_BMd.shape[2]} numbers, and this receiver knows {self.latent_dim}",
        )
        hints = (
            None
            if found[0].length_hint is None
            else torch.tensor([message.length_hint for message in found], device=self.device)
        )
        return self.adapt(reader, latents_BMd, self.latent_index(reader, latents_BMd.shape[1]), hints)

    def train(self, mode: bool = True) -> LatentWire:
        """As torch does it; weights that may have changed since have another fingerprint. A sender that is not trained
        keeps its statistics.
        """
        self.weights_token = None
        super().train(mode)
        self.quantizer.train(mode and self.train_encoder)
        return self

    # Training -------------------------------------------------------------------------------------------------------

    def check_data(self, data: QuestionData) -> None:
        """Contexts must not be empty nor longer than the encoder reads."""
        check_contexts(
            [q.context for q in self.questions], self.model.max_length, "; raise it, or set data.long=window or drop"
        )

    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """Bytes of the contexts; for each reader prompt and answer, and which tokens are the answer's."""
        asked = [self.questions[i] for number in batch["question"].tolist() for i in self._with_others(number)]
        step = self._step_started()
        bytes_BN, mask_BN = as_bytes([q.context for q in asked])
        known = {text: number for number, text in enumerate(dict.fromkeys(q.context for q in asked))}
        rows = {"bytes": bytes_BN, "mask": mask_BN, "context": torch.tensor([known[q.context] for q in asked])}
        rows |= self._once_over_devices(asked)
        for name, reader in self.readers.items():
            of_reader = reader_inputs(reader, asked, draws) | (
                context_inputs(reader, asked) if any(loss.needs_context for loss in self.losses.values()) else {}
            )
            rows |= {f"{key}.{name}": tensor for key, tensor in of_reader.items()}
        rows = {name: tensor.to(self.device) for name, tensor in rows.items()}
        self._now = step
        return rows, self._denominators(rows, step)

    def _once_over_devices(self, asked: Sequence[Question]) -> Batch:
        """share (B,): one over the number of devices that encode the row's context.

        Nothing where no statistics of a batch are taken.
        """
        if self.trainer.world_size == 1 or not (self.training and self.quantizer.of_batch):
            return {}
        mine = [
            self.questions_of_context[q.context][0] for q in asked
        ]  # a context's first question stands for it everywhere
        every: list[list[int]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(every, mine)
        return {"share": torch.tensor([1 / sum(number in set(held) for held in every) for number in mine])}

    def _with_others(self, number: int) -> list[int]:
        """A question and, in training, those of its context that follow it, `questions_per_context` in all where there
        are so many.
        """
        if not self.training or self.questions_per_context == 1:
            return [number]
        same = self.questions_of_context[self.questions[number].context]
        at = same.index(number)
        return [*same[at:], *same[:at]][: self.questions_per_context]

    def tokens_of(self, batch: Batch) -> int:
        """Questions of the step."""
        return sum(len(self._with_others(number)) for number in batch["question"].tolist())

    def _step_started(self) -> StepSettings:
        number, total = self.global_step if self.training else None, int(self.trainer.max_steps)
        step = StepSettings(
            number, total, self.curriculum.num_latents(number, total, self.num_latents), self.loss_tokens
        )
        for feature in self.features.values():
            feature.on_batch_start(step)
        return step

    def term_weights(self, step: int | None) -> Mapping[str, float]:
        """What the losses count in a step: those of its stage."""
        return self.curriculum.weights(step, int(self.trainer.max_steps), self.loss_terms)

    def _denominators(self, rows: Batch, step: StepSettings) -> Tensor:
        """(P,) what the sums of `parts` are divided by."""
        counts = [rows[f"answer_mask.{name}"] for name in self.readers]
        of_losses = [
            sum(loss.count(answer_mask_BA, step.tokens) for answer_mask_BA in counts) for loss in self.losses.values()
        ]
        rest = len(self.loss_terms) - len(of_losses)
        each = torch.tensor(float(len(rows["bytes"]) * len(self.readers)), device=self.device)
        return torch.stack(
            [torch.as_tensor(c, dtype=torch.float32, device=self.device) for c in of_losses] + [each] * rest
        )

    def loss_sum(self, rows: Batch) -> Tensor:
        """(P,) the sums of the losses over rows and readers."""
        first_C, which_B = unique_contexts(rows["context"])
        raw_CMd = self.raw(rows["bytes"][first_C], rows["mask"][first_C])
        # Numbers that share a scale must be those of one message, which holds a reader's latents alone.
        together = self.quantizer.format.groups(1) == 0
        latents_BMd = self.quantizer(raw_CMd, self._shares(rows, first_C))[which_B] if together else None
        return self._sums(rows, raw_CMd[which_B], latents_BMd)

    @staticmethod
    def _shares(rows: Batch, first_C: Tensor) -> Tensor | None:
        """(C,) what each context counts in statistics of a batch; None: all 1."""
        return rows["share"][first_C] if "share" in rows else None

    def _sums(self, rows: Batch, raw_BMd: Tensor, latents_BMd: Tensor | None) -> Tensor:
        sums: dict[str, Tensor] = {}
        for name in self.readers:
            for part, value in self._of_reader(name, raw_BMd, latents_BMd, rows).items():
                sums[part] = sums[part] + value if part in sums else value
        return torch.stack([sums[part] for part in self.loss_terms])

    def _accumulate_gradients(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        """As for every method; where the quantiser takes statistics of a batch, they are those of the whole batch, not
        of a piece.

        The contexts are encoded piece by piece without a graph, the readers' pieces leave their gradients at the
        latents, and the encoder runs once more, with a graph, to take them on (GradCache, Gao et al. 2021).
        """
        if self.micro_batches == 1 or not self.quantizer.of_batch:
            return super()._accumulate_gradients(rows, denominator, weights)
        with self._no_sync(True):
            means = self._through_latents(rows, denominator, weights)
        if self.trainer.world_size > 1 and not self.is_sharded:
            self._mean_gradients()
        return means

    def _mean_gradients(self) -> None:
        """Make gradients that stayed on their devices the mean over them, as a last backward pass does elsewhere."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(self.total_over_devices(parameter.grad) / self.trainer.world_size)

    def _through_latents(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        first_C, which_B = unique_contexts(rows["context"])
        pieces = min(len(first_C), self._micro_batches_of(len(first_C)))
        parts = [(rows["bytes"][some], rows["mask"][some]) for some in first_C.tensor_split(pieces)]
        with torch.no_grad():
            raw_CMd = torch.cat([self(self.raw, *part) for part in parts])
        raw_CMd.requires_grad_()
        latents_CMd = self.quantizer(raw_CMd, self._shares(rows, first_C))
        leaf_CMd, means = latents_CMd.detach().requires_grad_(), torch.zeros((), device=self.device)
        for piece in split_batch({**rows, "which": which_B}, self._micro_batches_of(len(which_B))):
            part = self(self._sums, piece, raw_CMd[piece["which"]], leaf_CMd[piece["which"]]) / denominator
            self.manual_backward((part * weights).sum() * self.trainer.world_size)
            means = means + part.detach()
        self.manual_backward(latents_CMd, leaf_CMd.grad)
        if self.train_encoder:
            assert raw_CMd.grad is not None  # a leaf, and the quantiser has just passed its gradient on
            for part, gradient in zip(parts, raw_CMd.grad.split([len(part[0]) for part in parts]), strict=True):
                self.manual_backward(self(self.raw, *part), gradient)
        return means

    def _of_reader(self, name: str, raw_BMd: Tensor, latents_BMd: Tensor | None, rows: Batch) -> dict[str, Tensor]:
        index_M = self.latent_index(name, self._now.num_latents)
        answer_mask_BA, target_BA = rows[f"answer_mask.{name}"], rows[f"target.{name}"]
        own_BMd = self.quantizer(raw_BMd[:, index_M]) if latents_BMd is None else latents_BMd[:, index_M]
        hint_B, found = None, {}
        if (logits_BH := self.predicted_hint(own_BMd)) is not None:
            length_B = answer_mask_BA.sum(1).clamp_max(HINTS - 1)
            found["hint"], hint_B = F.cross_entropy(logits_BH, length_B, reduction="sum"), logits_BH.argmax(-1)
        sent = self.adapt(name, own_BMd, index_M, hint_B, bytes_BN=rows["bytes"], mask_BN=rows["mask"])
        logits_BAV = self.answer_logits(name, self.prefill(name, sent), rows)
        if self.training:
            self._noted(name, logits_BAV[:, 0], target_BA[:, 0], answer_mask_BA[:, 0])
        given = LossInputs(
            name, sent, raw_BMd[:, index_M], logits_BAV, target_BA, answer_mask_BA, self._now.tokens, rows
        )
        found |= {key: loss(given) for key, loss in self.losses.items()}
        for feature in self.features.values():
            found |= feature.on_loss_aggregate(given)
        return found

    def answer_logits(self, name: str, given: Prefilled, rows: Batch) -> Tensor:
        """(B, A, V): what the reader says of each token of the answer, behind the prompt."""
        reader, answer_index_BA = self.readers[name], rows[f"answer_index.{name}"]
        hidden_BLD = forward_cached(reader, given, rows[f"tokens.{name}"], rows[f"mask.{name}"])
        return reader.model.head(
            hidden_BLD.gather(1, answer_index_BA.unsqueeze(-1).expand(-1, -1, hidden_BLD.shape[-1]))
        )

    def _noted(self, name: str, first_BV: Tensor, target_B: Tensor, answer_mask_B: Tensor) -> None:
        """Count how often the first token is the likeliest, for the log."""
        correct_B = (first_BV.argmax(-1) == target_B) & answer_mask_B
        self.first_correct[name] = self.first_correct.get(name, 0) + torch.stack([correct_B.sum(), answer_mask_B.sum()])

    def after_update(self) -> Mapping[str, Tensor]:
        """FirstTok@1 on the batch, and what the features say."""
        said = {f"first1_{name}": right / asked.clamp_min(1) for name, (right, asked) in self.first_correct.items()}
        self.first_correct = {}
        for name, feature in self.features.items():
            feature.after_update()
            said |= {
                f"{name}/{key}": torch.tensor(float(value), device=self.device)
                for key, value in feature.metrics_snapshot().items()
            }
        for loss in self.losses.values():
            loss.after_update()
        return said | (
            {"num_latents": torch.tensor(float(self._now.num_latents), device=self.device)}
            if len(self.curriculum)
            else {}
        )

    def reset_step(self) -> None:
        """What was kept of the step."""
        self.first_correct = {}
        for feature in self.features.values():
            feature.reset_step()

    def load_initial_weights(self, state: Mapping[str, Tensor]) -> None:
        """Encoder and quantiser of another run, and all of the readers that both have; a reader that joins late begins
        with an adapter of its own.

        It is sent what the other run's first reader was, private latents included. Raises ValueError for other sizes
        and other features.
        """
        refuse_other_features(state, self.features)
        self.load_state_dict(state_with_late_readers(self, state))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does it. Raises ValueError that names the features a checkpoint lacks or has too many."""
        refuse_other_features(state_dict, self.features)
        self.weights_token = None
        rows = {name for name, parameter in self.named_parameters() if parameter.ndim == 1}
        scalars = {name: tensor.reshape(1) for name, tensor in state_dict.items() if tensor.ndim == 0 and name in rows}
        return super().load_state_dict({**state_dict, **scalars}, strict, assign)  # older checkpoints hold some of them

    def describe(self) -> dict[str, Any]:
        """The losses, with the teachers' config hashes, and every feature: on or off, with its parameters."""
        return {"losses": {name: loss.describe() for name, loss in self.losses.items()}, "features": feature_rows(self)}

    def on_fit_start(self) -> None:
        """List the features."""
        if self.global_rank == 0:
            for line in feature_lines(feature_rows(self)):
                log.info(line)

    def training_flops(self, length: int) -> float:
        """Of one byte of a context in training, the readers left out."""
        return 3 * self.model.flops_per_token(length)

    # Optimizer ------------------------------------------------------------------------------------------------------

    def optimizer_groups(self) -> list[ParameterGroup]:
        """All that is trained, part by part and feature by feature."""
        encoder, adapter = self.lr_factors["encoder"], self.lr_factors["adapter"]
        whole = [p for p in self.model.parameters() if p.requires_grad]
        whole += [p for p in self.pooling.parameters() if p is not self.pooling.gate_M1]
        found = (
            [
                ParameterGroup("encoder", whole, encoder),
                ParameterGroup("gates", [self.pooling.gate_M1], encoder, decay=False),
            ]
            if self.train_encoder
            else []
        )
        rest = [] if self.length_head is None else list(self.length_head.parameters())
        found += [
            ParameterGroup(f"adapter.{name}", [p for p in own.parameters() if p.requires_grad], adapter)
            for name, own in self.adapters.items()
        ] + ([ParameterGroup("hint", rest)] if rest else [])
        for name, feature in self.features.items():
            found += [replace(group, name=f"{name}.{group.name}") for group in feature.on_optimizer_build()]
        return found


def refuse_conflicts(features: Mapping[str, Feature]) -> None:
    """Raise ValueError for features that cannot be used together."""
    for name, feature in features.items():
        for other in feature.conflicts:
            if other in features:
                raise ValueError(f"features.{name} cannot be used with features.{other}: choose one of them")


def check_contexts(contexts: Sequence[str], longest: int, way_out: str = "") -> None:
    """Raise ValueError for an empty context, or one of more bytes than the encoder reads."""
    for context in dict.fromkeys(contexts):
        require(bool(context.strip()), f"context={context!r} is empty: there is nothing to send")
        if (size := len(context.encode())) > longest:
            raise ValueError(
                f"model.max_length={longest} is less than the {size} bytes of a context ({context[:40]!r}...){way_out}"
            )


def make_length_head(latent_dim: int, seed: int) -> nn.Linear:
    """Latents to logits of the answer's length, its weights from the stream (seed, "hint")."""
    head = nn.Linear(latent_dim, HINTS)
    nn.init.normal_(head.weight, std=latent_dim**-0.5, generator=generator(seed, "hint"))
    nn.init.zeros_(head.bias)
    return head


def context_inputs(reader: FrozenReader, asked: Sequence[Question]) -> dict[str, Tensor]:
    """The contexts as one reader has them: context (B, C), context_mask (B, C) where there is a token."""
    context_BC, mask_BC = padded([reader.token_ids(q.context) for q in asked], reader.eos_id, left=False)
    return {"context": context_BC, "context_mask": mask_BC}


def reader_inputs(reader: FrozenReader, asked: Sequence[Question], draws: Draws) -> dict[str, Tensor]:
    """Prompt and answer of each question for one reader: tokens and told (B, L), at (B, A) the places that say the
    answer's tokens, target (B, A), counts (B, A) where there is one. Of several answers the first counts. A row whose
    answer runs into its prompt counts nothing.
    """
    prompts = [reader.prompt_ids(q.question) for q in asked]
    answers = [reader.answer_ids(q.question, q.answers[0]) or [] for q in asked]
    tokens_BL, mask_BL = padded([p + a[:-1] for p, a in zip(prompts, answers, strict=True)], reader.eos_id, left=False)
    target_BA, answer_mask_BA = padded(answers, reader.eos_id, left=False)
    answer_index_BA = torch.tensor([len(p) - 1 for p in prompts]).unsqueeze(1) + torch.arange(target_BA.shape[1])
    return {
        "tokens": tokens_BL,
        "mask": mask_BL,
        "answer_index": answer_index_BA.clamp_max(tokens_BL.shape[1] - 1),
        "target": target_BA,
        "answer_mask": answer_mask_BA,
    }
