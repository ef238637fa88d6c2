"""What every post-training method shares: a causal model as a policy over completions.

Special tokens are never written, except the end token, which closes a completion and is learned like any other token.
The first completion token is scored like the rest: its distribution is what the model predicts after the last token of
the prompt.

Shapes: B texts, L columns (prompt, completion, padding), T tokens of the longest completion, V rows of the unembedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch._functorch import config as functorch

from research_stack.backbones.causal import CausalBackbone
from research_stack.backbones.token_logps import token_logps
from research_stack.data.vocabulary import Vocabulary
from research_stack.posttraining.shared_prompts import hidden_before
from research_stack.require import require
from research_stack.sampling.backbone_reader import BackboneReader
from research_stack.sampling.logits import special_token_bias
from research_stack.training.module import TrainingModule
from research_stack.training.optimization import Optimization
from research_stack.training.sharding import local

if TYPE_CHECKING:
    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)

COMPARED_WEIGHTS = 4096  # numbers of each parameter that are compared to see whether it has moved


class CompletionLogps(NamedTuple):
    """What the policy says of completions: ln p of each token and the entropy of its distribution in nats, and where
    there is a token, all (B, T).
    """

    logp_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor


class Policy(TrainingModule):
    """Base of the post-training methods.

    - model: a causal backbone of one's own or of Hugging Face. vocab: of its tokenizer.

    At the first step of a new run each term of the loss must have a gradient and the weights must move; if not, the run
    stops with one line instead of training for nothing.
    """

    def __init__(self, model: CausalBackbone, vocab: Vocabulary, optimization: Optimization, seed: int) -> None:
        super().__init__(optimization, seed)
        require(model.causal, f"model.causal={model.causal}: a policy writes from left to right; set model.causal=true")
        self.model, self.vocab = model, vocab
        bias_V = special_token_bias(vocab.with_end_written(), len(model.unembedding))
        self.bias_V: Tensor
        self.register_buffer("bias_V", bias_V, persistent=False)
        self._first_weights: dict[str, Tensor] | None = None
        self._unchecked_terms: set[str] = set()
        self._reported_terms: set[str] = set()
        self._had_gradient = False  # whether a term has been seen to have a gradient

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.model.max_length

    def reader(self) -> BackboneReader:
        """For samplers: texts read token by token with a cache."""
        return BackboneReader(self.model, self.bias_V)

    def load_initial_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of another run's policy. Raises ValueError in one line when its model is another
        one.
        """
        weights = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"init_from: that run's model is another one than model ({str(error).splitlines()[-1].strip()})"
            ) from error

    # Log-probabilities ----------------------------------------------------------------------------------------------

    def completion_logps(
        self,
        tokens_BL: Tensor,
        prompt_length_B: Tensor,
        completion_length_B: Tensor,
        temperature: float = 1.0,
        model: CausalBackbone | None = None,
    ) -> CompletionLogps:
        """Log-probabilities of the completions under the live graph, from the ids as they were generated.

        - tokens_BL: prompt, completion, padding. prompt_length_B, completion_length_B: tokens of the prompt and of the
          completion.
        - model: whose log-probabilities; None: the policy's.
        """
        model = self.model if model is None else model
        row_n, step_n, column_n = completion_columns(prompt_length_B, completion_length_B)
        mask_BT = torch.arange(
            int(completion_length_B.max()), device=completion_length_B.device
        ) < completion_length_B.unsqueeze(1)
        hidden_nD = hidden_before(
            model,
            tokens_BL,
            prompt_length_B,
            completion_length_B,
            share=not (model.checkpoint_blocks or self.is_sharded),
        )
        logp_n, entropy_n = token_logps(
            hidden_nD, model.unembedding, tokens_BL[row_n, column_n], self.bias_V, temperature
        )
        return CompletionLogps(_spread(logp_n, mask_BT), _spread(entropy_n, mask_BT), mask_BT)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """No gradients and no dropout."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def compile_blocks(self) -> None:
        """As for every method; a term of the loss may then be asked for its gradient before the step is
        (`check_gradients`).
        """
        functorch.donated_buffer = False
        super().compile_blocks()

    # Devices -------------------------------------------------------------------------------------------------------

    def device_slice(self, count: int) -> slice:
        """This device's part of so many things; parts of devices differ in size by one at most."""
        world, rank = self.trainer.world_size, self.global_rank
        return slice(rank * count // world, (rank + 1) * count // world)

    def gather_objects(self, mine: Any) -> list[Any]:
        """What each device has, in the order of their ranks: tensors, texts, dataclasses and containers of them."""
        if self.trainer.world_size == 1:
            return [mine]
        every: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(every, move_data_to_device(mine, "cpu"))
        return move_data_to_device(every, self.device)

    # The first step ------------------------------------------------------------------------------------------------

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> dict[str, Any]:
        """As for every method. Raises ValueError when nothing is trained."""
        if not self.trainable_parameters():
            raise ValueError("model: no parameter is trained; unfreeze some, or put adapters on it (model.lora)")
        return super().configure_optimizers()

    def on_train_start(self) -> None:
        """Keep some of the weights of a new run, to see whether they move."""
        if self.global_step == 0:  # known from here on: in on_fit_start a resumed run has not read its step yet
            self._first_weights = {name: weight.clone() for name, weight in self._some_weights().items()}
            self._unchecked_terms = {name for name, weight in self.loss_terms.items() if weight}

    def check_gradients(self, sums_P: Tensor, may_vanish: Mapping[str, str]) -> None:
        """Raise ValueError for a term of the loss without a gradient; asked at the start of a new run, until the term
        has had one.

        - sums_P: the parts of the loss with their graph. may_vanish: terms whose gradient may be zero for a good
          reason, and the reason.
        """
        trained = self.trainable_parameters()
        if self.is_sharded:  # no device may ask alone: that something moves must do
            self._unchecked_terms, self._had_gradient = set(), True
        for index, name in enumerate(self.loss_terms):
            if name not in self._unchecked_terms or not torch.is_grad_enabled():
                continue
            live = sums_P[index].requires_grad
            grads = (
                torch.autograd.grad(sums_P[index], list(trained.values()), retain_graph=True, allow_unused=True)
                if live
                else []
            )
            reached = [grad for grad in grads if grad is not None]
            if not reached:
                raise ValueError(
                    f"loss_{name} reaches none of the {len(trained)} trained parameters (the first is"
                    f" {next(iter(trained))}): it would train nothing"
                )
            if not any(bool(grad.any()) for grad in reached):
                if name not in may_vanish:
                    raise ValueError(
                        f"loss_{name} has a gradient of exactly zero at the first step: it would train nothing"
                    )
                if name not in self._reported_terms:
                    log.info("loss_%s has no gradient yet: %s", name, may_vanish[name])
                self._reported_terms.add(name)
                continue
            self._had_gradient = True
            self._unchecked_terms.discard(name)

    def _some_weights(self) -> dict[str, Tensor]:
        """The first numbers of each trained parameter, of this device's part of it."""
        return {
            name: local(parameter.detach()).flatten()[:COMPARED_WEIGHTS]
            for name, parameter in self.trainable_parameters().items()
        }

    def check_weights_moved(self) -> None:
        """Raise ValueError when no weight of a new run has moved in the first step that had a gradient."""
        if self._first_weights is None or not self._had_gradient:
            return
        before, self._first_weights = self._first_weights, None
        if all(torch.equal(weight, before[name]) for name, weight in self._some_weights().items()):
            raise ValueError(f"optimization.lr={self.optimization.lr}: the first step has moved no weight")


def completion_columns(prompt_length_B: Tensor, completion_length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, index in the completion, column) of every completion token, int64 (n,) each, in row-major order."""
    order_T = torch.arange(int(completion_length_B.max()), device=completion_length_B.device)
    row_n, step_n = (order_T < completion_length_B.unsqueeze(1)).nonzero(as_tuple=True)
    return row_n, step_n, prompt_length_B[row_n] + step_n


def _spread(value_n: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T): the values where the mask is true, in row-major order; 0 elsewhere."""
    return torch.zeros(mask_BT.shape, dtype=value_n.dtype, device=value_n.device).masked_scatter(mask_BT, value_n)


def require_room_for_completions(data: TokenData, method: Policy, length: int) -> None:
    """Raise ValueError when the longest prompt and `length` tokens of completion do not fit the model."""
    widths = np.concatenate([data.train.spans[:, 0], data.validation.spans[:, 0]])
    shortest, longest = int(widths.min()), int(widths.max())
    require(
        shortest >= 1,
        f"data={type(data.source).__name__} has {'rows without a prompt' if longest else 'no prompts'}: completions"
        " need something to stand behind; use data=expressions, prompts or another of pairs",
    )
    room = method.max_length - longest
    require(
        length <= room,
        f"method.rollouts.max_completion_length={length} behind the longest prompt of {longest} tokens exceeds"
        f" model.max_length={method.max_length};"
        f" {f'lower it to {room}' if room > 0 else f'raise model.max_length to {longest + length}'}",
    )
