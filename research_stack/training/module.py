"""The training step that all methods share: one optimizer step per batch, exact under any split of the batch.

    batch = B/world rows of step s                                 data/batches.py: a function of (seed, step) alone
    draws = the random numbers of these rows                       streams.py: named by (seed, "corruption", step)
    rows, denominator = prepare(batch, draws)                      the method: corrupted tokens, completions, ...
    denominator = sum over devices                                 total_over_devices
    for micro_batch in split_batch(rows, micro_batches):           optimization.accumulate; more where memory runs out
        terms = loss_sum(micro_batch) / denominator                the method: (), or (P,) for P loss terms
        backward(terms * weights * world)                          the Trainer; DDP averages, fsdp: training/sharding.py
    norm = clip_gradients()                                        training/optimization.py
    stop, before the update, where loss or norm is not finite
    optimizer.step(); scheduler.step()                             training/optimization.py, training/muon.py
    log loss, terms, norm, lr and after_update()                   training/loggers.py
    -- then the callbacks --
    average of the weights, validation, checkpoints, end           training/ema.py, checkpoint.py, ending.py

The step divides by the denominator of the WHOLE batch, over all devices and micro-batches, so gradient accumulation
and data parallelism give the same loss and gradient as one device with one micro-batch, but for dropout inside a
transformer, which is drawn for each micro-batch on each device (a reward model's belongs to the pair). All randomness
comes from streams named by the step, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR

from research_stack.data.batches import Batch
from research_stack.streams import Draws, seed_of
from research_stack.training.memory import BufferSnapshot, StepTooLarge, is_out_of_memory
from research_stack.training.optimization import Optimization, ParameterGroup, clip_norm
from research_stack.training.sharding import gathered, require_shardable, shard

if TYPE_CHECKING:
    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)


class NotFinite(ValueError):
    """The loss or the gradient became NaN or infinite."""


class Blocks(Protocol):
    """What a step asks of the `model` of a method that does not say itself what its blocks and its costs are."""

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Its parts that are called one after another."""
        ...

    def flops_per_token(self, length: int) -> float:
        """Of one forward pass, for a token of a row of `length`."""
        ...


class TrainingModule(LightningModule):
    """Base of all methods.

    - optimization: optimizer, schedule, clipping, accumulation.
    - seed: of all streams.

    A loss of several terms (`loss_terms`) is the sum of weight * term; each term is a sum divided by a denominator of
    its own, and is logged under its name.
    """

    #: {name: weight in the loss} of the sums that `loss_sum` gives; empty where it gives one sum, which is the loss.
    loss_terms: Mapping[str, float] = {}
    #: Whether pairs that share a row (`data.pack`) cannot see one another.
    isolates_packed_pairs: bool = False
    #: Whether rows of one pair are filled with end tokens that it learns to write (`TokenData.serve`): a text of fixed
    #: length ends nowhere else.
    learns_to_stop: bool = False
    #: What `tokens_of` counts, for the progress line.
    counted: str = "tokens"

    def __init__(self, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimization, self.seed = optimization, seed
        self.is_compiled = False
        self.micro_batches = optimization.accumulate  # more once one of them did not fit into memory

    # What a method implements -------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """The rows to compute on, and this device's share of the denominator: a scalar, or (P,) for P loss terms; the
        shares of all devices add up.
        """

    @abstractmethod
    def loss_sum(self, rows: Batch) -> Tensor:
        """The summed loss of these rows with gradient: a scalar, or (P,) for P loss terms."""

    # What a family may override ---------------------------------------------------------------------------------

    def load_initial_weights(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the weights of another run, its state dict. Raises ValueError, opening with `init_from`, when it
        cannot.
        """
        raise ValueError(f"init_from: {type(self).__name__} cannot begin with the weights of another run")

    def check_data(self, data: TokenData) -> None:
        """Raise ValueError, opening with the config key, when this (prepared) data cannot serve the method."""

    def check_devices(self, data: TokenData, devices: int) -> None:
        """Raise ValueError, opening with the config key, when so many devices cannot share a step of the method."""
        dropouts = (part for part in self.modules() if isinstance(part, torch.nn.Dropout))
        if devices > 1 and any(part.training and part.p > 0 for part in dropouts):
            log.info("dropout: each device draws its own, so %d devices agree with one in law, not in numbers", devices)

    def clip_gradients(self) -> Tensor:
        """Clip the gradients by their global norm, which is returned as it was before."""
        return clip_norm(list(self.parameters()), self.optimization.clip)

    def describe(self) -> dict[str, Any]:
        """What is kept with the run beside its config."""
        return {}

    def after_update(self) -> Mapping[str, Tensor]:
        """Called after each optimizer step on every device; numbers to log."""
        return {}

    def term_weights(self, step: int | None) -> Mapping[str, float]:
        """The weight of each loss term at a step, in the order of `loss_terms`; None: in validation."""
        return self.loss_terms

    def optimizer_groups(self) -> Sequence[ParameterGroup] | None:
        """Groups with learning rates of their own, that together hold each trained parameter once; None: all are
        one.
        """
        return None

    def more_micro_batches(self, rows: Batch) -> int | None:
        """Into how many micro-batches to split the rows where `micro_batches` did not fit into memory; None where no
        finer split is possible.
        """
        return min(2 * self.micro_batches, count_rows(rows)) if self.micro_batches < count_rows(rows) else None

    def reset_step(self) -> None:
        """Drop what `loss_sum` has kept of this step for `after_update`, since the step begins again; buffers are
        restored without it.
        """

    def tokens_of(self, batch: Batch) -> int:
        """How much this device has worked on in the last step, for the progress line."""
        return next(iter(batch.values())).numel()

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that see one batch of the data, one after another."""
        return 1

    def training_flops(self, length: int) -> float:
        """Of one token of a row of `length` in training: forward and backward, which costs twice the forward."""
        return 3 * cast("Blocks", self.model).flops_per_token(length)

    def blocks(self) -> Sequence[nn.Module]:
        """The parts of the model that are called one after another.

        Under fsdp each is gathered only while it computes; where compilation is asked for, each is compiled.
        """
        return list(cast("Blocks", self.model).blocks)

    # The step ------------------------------------------------------------------------------------------------------

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """`compute(*arguments)`. All that reads weights in a step goes through here, where fsdp puts them together."""
        return compute(*arguments)

    @property
    def is_sharded(self) -> bool:
        """Whether each device holds a part of the weights (fsdp): then all must call the blocks equally often."""
        return isinstance(self, FSDPModule)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it texts are written.

        Nothing is compiled then, and weights are whole, since each device writes as many tokens as it likes.
        """
        with gathered(self), torch.compiler.set_stance("force_eager") if self.is_compiled else contextlib.nullcontext():
            yield

    def shard_later(self) -> None:
        """Have Lightning cut the weights into shards once the processes have found each other.

        Raises ValueError where they cannot be.
        """
        require_shardable(self, self.optimization.ema)
        self.configure_model = lambda: shard(self, self.blocks())

    def compile_blocks(self) -> None:
        """torch.compile each block. Blocks are alike, so that one compilation serves all."""
        self.is_compiled = True
        for block in self.blocks():
            block.compile()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule over `trainer.max_steps`."""
        optimizer = self.optimization.optimizer(self, self.optimizer_groups())
        factor = self.optimization.factor(int(self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)  # one, that of `configure_optimizers`
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step; returns the batch's loss over all devices, without gradient."""
        step = self.global_step
        self._seed_dropout()
        rows, denominator = self(self.prepare, batch, self.draws("corruption", step, batch))
        denominator = self.total_over_devices(denominator).clamp_min(1)
        weights = self._term_weights(step)
        means = self._gradients(rows, denominator, weights)
        norm = self.clip_gradients()
        means = self.total_over_devices(means)
        loss = (means * weights).sum()
        self._stop_unless_finite(loss, means, norm, step)
        optimizer = self._optimizer()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)  # that of `configure_optimizers`
        numbers = {
            "loss": loss,
            **self._named(means),
            "grad_norm": norm,
            "lr": scheduler.get_last_lr()[0],
            **self.after_update(),
        }
        self.log_dict({f"train/{name}": value for name, value in numbers.items()})
        scheduler.step()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The training loss on held-out rows, always under the same draws, so that steps can be compared."""
        world, rank = self.trainer.world_size, self.global_rank
        total = count_rows(batch) * world
        # Ranks take turns at the validation rows, so that the first batches are those of one device.
        draws = Draws(
            self.seed, "validation", batch_idx, total=total, rows=slice(rank, total, world), device=self.device
        )
        rows, denominator = self(self.prepare, batch, draws)
        summed = self(self.loss_sum, rows).detach().float()
        self._validation = self._validation + torch.stack([summed, denominator.float()], -1)

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        self._validation = torch.zeros(2, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all validation rows of all devices."""
        total, denominator = self.total_over_devices(self._validation).unbind(-1)
        means = total / denominator.clamp_min(1)
        self.log("val/loss", (means * self._term_weights()).sum(), prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in self._named(means).items()})

    # Micro-batches ------------------------------------------------------------------------------------------------

    def _gradients(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        """This device's share of the means of the loss terms, () or (P,), with the gradient of the loss left in the
        parameters.

        A step that does not fit into memory begins again in more micro-batches, which later steps keep. That changes
        no number but the dropout, and statistics that a method takes of each micro-batch.
        """
        before = BufferSnapshot(self) if self.trainer.world_size == 1 else None
        while True:
            try:
                return self._accumulate_gradients(rows, denominator, weights)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._use_more_micro_batches(rows, error)
            # Here the error is gone, and with it the tensors that its frames held.
            self._optimizer().zero_grad(set_to_none=True)
            self.reset_step()
            assert before is not None  # several devices do not begin again
            before.restore()
            self._seed_dropout()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate_gradients(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        micro_batches = list(split_batch(rows, self._micro_batches_of(count_rows(rows))))
        means = torch.zeros((), device=self.device)
        for index, micro_batch in enumerate(micro_batches):
            with self._no_sync(index < len(micro_batches) - 1):
                # Data parallelism averages gradients over devices; the factor makes that a sum.
                terms = self(self.loss_sum, micro_batch) / denominator
                self.manual_backward((terms * weights).sum() * self.trainer.world_size)
            means = means + terms.detach()
        return means

    def _micro_batches_of(self, count: int) -> int:
        """Into how many micro-batches to split so many rows.

        Under fsdp as many on every device, since all must compute equally often.
        """
        if not self.is_sharded or self.micro_batches == 1:
            return self.micro_batches
        fewest = self.trainer.strategy.reduce(torch.tensor(count, device=self.device), reduce_op="min")
        return min(self.micro_batches, max(1, int(fewest)))

    def _use_more_micro_batches(self, rows: Batch, error: RuntimeError) -> None:
        """Raise `micro_batches`. Raises StepTooLarge in one line where that is impossible, or where other devices would
        not do the same.
        """
        count, world, line = count_rows(rows), self.trainer.world_size, str(error).splitlines()[0][:160]
        most = -(-count // self.micro_batches)
        what = (
            f"optimization.accumulate={self.micro_batches}: step {self.global_step} does not fit into memory with"
            f" {most} row{'s' * (most > 1)} at once"
        )
        if world > 1:
            raise StepTooLarge(f"{what} on one of {world} devices; raise it ({line})") from error
        pieces = self.more_micro_batches(rows)
        if pieces is None:
            raise StepTooLarge(
                f"{what}, and cannot be cut finer; take shorter rows or a smaller model ({line})"
            ) from error
        log.warning(
            "step %d does not fit into memory with %d rows at once: from now on the %d rows of a step are cut into %d"
            " pieces, not %d (%s)",
            self.global_step,
            most,
            count,
            pieces,
            self.micro_batches,
            line,
        )
        self.micro_batches = pieces

    def _seed_dropout(self) -> None:
        """Dropout draws from the global stream."""
        torch.manual_seed(seed_of(self.seed, "dropout", self.global_step, self.global_rank))

    def draws(self, stream: str, step: int, batch: Batch) -> Draws:
        """The numbers of this device's rows, out of those drawn for the whole batch."""
        rows, world, rank = count_rows(batch), self.trainer.world_size, self.global_rank
        return Draws(
            self.seed, stream, step, total=rows * world, rows=slice(rank * rows, (rank + 1) * rows), device=self.device
        )

    def _term_weights(self, step: int | None = None) -> Tensor:
        """() or (P,): the weight of each sum in the loss."""
        return torch.tensor(list(self.term_weights(step).values()) or 1.0, device=self.device)

    def _named(self, means: Tensor) -> dict[str, Tensor]:
        """The loss terms by name, `loss_` in front; none for a single sum."""
        return (
            {f"loss_{name}": mean for name, mean in zip(self.loss_terms, means, strict=True)} if self.loss_terms else {}
        )

    def total_over_devices(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all devices."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") if self.trainer.world_size > 1 else value

    def _no_sync(self, yes: bool) -> contextlib.AbstractContextManager[Any]:
        """While accumulating, gradients need not travel between devices before the last micro-batch."""
        model = self.trainer.strategy.model
        return (
            model.no_sync()
            if yes and isinstance(model, torch.nn.parallel.DistributedDataParallel)
            else contextlib.nullcontext()
        )

    def _stop_unless_finite(self, loss: Tensor, means: Tensor, norm: Tensor, step: int) -> None:
        if not bool(torch.isfinite(loss + norm)):
            parts = "".join(f", {name}={float(value)}" for name, value in self._named(means).items())
            raise NotFinite(
                f"loss={float(loss)}{parts} with gradient norm {float(norm)} at step {step}: training stopped before"
                f" the update; the last checkpoint is sound (try a smaller optimization.lr, now {self.optimization.lr},"
                f" or optimization.clip, now {self.optimization.clip})"
            )


def count_rows(rows: Batch) -> int:
    """How many rows there are."""
    return len(next(iter(rows.values())))


def split_batch(rows: Batch, count: int) -> Iterator[Batch]:
    """The rows in `count` micro-batches of nearly equal size; empty ones are left out."""
    total = count_rows(rows)
    bounds = [round(i * total / count) for i in range(count + 1)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop > start:
            yield {name: tensor[start:stop] for name, tensor in rows.items()}
