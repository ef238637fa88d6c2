"""The training step every family shares: one optimizer step per batch, exact under any cut of the batch.

A family says how a batch becomes work (`prepare`) and what the summed loss of some rows is (`loss_sum`). The
step divides by the denominator of the WHOLE batch, over all devices and pieces, so gradient accumulation and
data parallelism give the same loss and gradient as one device with one piece, but for dropout inside a transformer,
which is drawn for each piece on each device (a reward model's belongs to the pair). All randomness comes from streams
named by the step, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from research_stack.data.batches import Batch
from research_stack.streams import Draws, seed_of
from research_stack.training.memory import Statistics, TooLarge, is_out_of_memory
from research_stack.training.optimization import Group, Optimization
from research_stack.training.sharding import gathered, refuse_uncuttable, shard, whole

if TYPE_CHECKING:
    from research_stack.data.module import TokenData

log = logging.getLogger(__name__)


class NotFinite(ValueError):
    """The loss or the gradient became NaN or infinite."""


class TrainingModule(LightningModule):
    """Base of all methods.

    - optimization: optimizer, schedule, clipping, accumulation.
    - seed: of all streams.

    A loss of several parts (`parts`) is the sum of weight * part; each part is a sum divided by a denominator of its
    own, and is logged under its name.
    """

    #: {name: weight in the loss} of the sums that `loss_sum` gives; empty for a single one, which is the loss.
    parts: Mapping[str, float] = {}
    #: Whether pairs that share a row (`data.pack`) cannot see one another.
    keeps_pairs_apart: bool = False
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
        self.pieces = optimization.accumulate  # more once a piece did not fit into memory

    # What a family implements -------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, batch: Batch, draws: Draws) -> tuple[Batch, Tensor]:
        """The rows to compute on, and this device's share of the denominator: a scalar, or (P,) for P parts; shares add
        up.
        """

    @abstractmethod
    def loss_sum(self, rows: Batch) -> Tensor:
        """The summed loss of these rows with gradient: a scalar, or (P,) for P parts."""

    # What a family may say besides ---------------------------------------------------------------------------------

    def begin_from(self, state: Mapping[str, Tensor]) -> None:
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

    def clipped_apart(self) -> Sequence[Sequence[torch.nn.Parameter]]:
        """Groups of parameters whose gradients are clipped each by its own norm; together all that are trained."""
        return [list(self.parameters())]

    def describe(self) -> dict[str, Any]:
        """What is kept with the run beside its config."""
        return {}

    def after_update(self) -> Mapping[str, Tensor]:
        """Called after each optimizer step on every device; numbers to log."""
        return {}

    def weights_at(self, step: int | None) -> Mapping[str, float]:
        """What the parts count at an optimizer step, in the order of `parts`; None: in validation, the same whenever it
        comes.
        """
        return self.parts

    def optimizer_groups(self) -> Sequence[Group] | None:
        """Groups with learning rates of their own, that together hold each trained parameter once; None: all are
        one.
        """
        return None

    def finer(self, rows: Batch) -> int | None:
        """Into how many pieces to cut the rows when `pieces` were too large for the memory; None when no finer cut is
        possible.
        """
        return min(2 * self.pieces, count_rows(rows)) if self.pieces < count_rows(rows) else None

    def forget(self) -> None:
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
        return 3 * self.model.flops_per_token(length)

    def blocks(self) -> Sequence[nn.Module]:
        """The parts of the model that are called one after another.

        Under fsdp each is gathered only while it computes; where compilation is asked for, each is compiled.
        """
        return list(self.model.blocks)

    # The step ------------------------------------------------------------------------------------------------------

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """`compute(*arguments)`. All that reads weights in a step goes through here, where fsdp puts them together."""
        return compute(*arguments)

    @property
    def is_cut(self) -> bool:
        """Whether each device holds a part of the weights (fsdp): then all must call the blocks equally often."""
        return isinstance(self, FSDPModule)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it texts are written.

        Nothing is compiled then, and weights are whole, since each device writes as many tokens as it likes.
        """
        with gathered(self), torch.compiler.set_stance("force_eager") if self.is_compiled else contextlib.nullcontext():
            yield

    def cut_later(self) -> None:
        """Have Lightning cut the weights into shards once the processes have found each other.

        Raises ValueError where they cannot be.
        """
        refuse_uncuttable(self, self.optimization.ema)
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
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step; returns the batch's loss over all devices, without gradient."""
        step = self.global_step
        self._seed_dropout()
        rows, denominator = self(self.prepare, batch, self.draws("corruption", step, batch))
        denominator = self.total_over_devices(denominator).clamp_min(1)
        weights = self._part_weights(step)
        means = self._gradients(rows, denominator, weights)
        norm = self._clip()
        means = self.total_over_devices(means)
        loss = (means * weights).sum()
        self._stop_unless_finite(loss, means, norm, step)
        optimizer = self.optimizers()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler = self.lr_schedulers()
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
        self.log("val/loss", (means * self._part_weights()).sum(), prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in self._named(means).items()})

    # Pieces --------------------------------------------------------------------------------------------------------

    def _gradients(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        """This device's share of the parts' means, () or (P,), with the gradient of the loss left in the parameters.

        A step that does not fit into memory begins again in more pieces, which later steps keep. That changes no number
        but the dropout, and statistics that a family takes of each piece.
        """
        before = Statistics(self) if self.trainer.world_size == 1 else None
        while True:
            try:
                return self._piece_by_piece(rows, denominator, weights)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._cut_finer(rows, error)
            # Here the error is gone, and with it the tensors that its frames held.
            self.optimizers().zero_grad(set_to_none=True)
            self.forget()
            before.restore()
            self._seed_dropout()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _piece_by_piece(self, rows: Batch, denominator: Tensor, weights: Tensor) -> Tensor:
        pieces, means = list(cut(rows, self._pieces_of(count_rows(rows)))), torch.zeros((), device=self.device)
        for index, piece in enumerate(pieces):
            with self._gradients_stay_here(index < len(pieces) - 1):
                # Data parallelism averages gradients over devices; the factor makes that a sum.
                part = self(self.loss_sum, piece) / denominator
                self.manual_backward((part * weights).sum() * self.trainer.world_size)
            means = means + part.detach()
        return means

    def _pieces_of(self, count: int) -> int:
        """Into how many pieces to cut so many rows.

        Under fsdp as many on every device, since all must compute equally often.
        """
        if not self.is_cut or self.pieces == 1:
            return self.pieces
        fewest = self.trainer.strategy.reduce(torch.tensor(count, device=self.device), reduce_op="min")
        return min(self.pieces, max(1, int(fewest)))

    def _cut_finer(self, rows: Batch, error: RuntimeError) -> None:
        """Raise `pieces`. Raises TooLarge in one line where they cannot be, or where other devices would not do the
        same.
        """
        count, world, line = count_rows(rows), self.trainer.world_size, str(error).splitlines()[0][:160]
        most = -(-count // self.pieces)
        what = (
            f"optimization.accumulate={self.pieces}: step {self.global_step} does not fit into memory with {most}"
            f" row{'s' * (most > 1)} at once"
        )
        if world > 1:
            raise TooLarge(f"{what} on one of {world} devices; raise it ({line})") from error
        pieces = self.finer(rows)
        if pieces is None:
            raise TooLarge(f"{what}, and cannot be cut finer; take shorter rows or a smaller model ({line})") from error
        log.warning(
            "step %d does not fit into memory with %d rows at once: from now on the %d rows of a step are cut into %d"
            " pieces, not %d (%s)",
            self.global_step,
            most,
            count,
            pieces,
            self.pieces,
            line,
        )
        self.pieces = pieces

    def _seed_dropout(self) -> None:
        """Dropout draws from the global stream."""
        torch.manual_seed(seed_of(self.seed, "dropout", self.global_step, self.global_rank))

    def draws(self, stream: str, step: int, batch: Batch) -> Draws:
        """The numbers of this device's rows, out of those drawn for the whole batch."""
        rows, world, rank = count_rows(batch), self.trainer.world_size, self.global_rank
        return Draws(
            self.seed, stream, step, total=rows * world, rows=slice(rank * rows, (rank + 1) * rows), device=self.device
        )

    def _part_weights(self, step: int | None = None) -> Tensor:
        """() or (P,): what each sum counts in the loss."""
        return torch.tensor(list(self.weights_at(step).values()) or 1.0, device=self.device)

    def _named(self, means: Tensor) -> dict[str, Tensor]:
        """The parts by name, `loss_` in front; none for a single sum."""
        return {f"loss_{name}": mean for name, mean in zip(self.parts, means, strict=True)} if self.parts else {}

    def total_over_devices(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all devices."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") if self.trainer.world_size > 1 else value

    def _gradients_stay_here(self, yes: bool) -> contextlib.AbstractContextManager[Any]:
        """While accumulating, gradients need not travel between devices before the last piece."""
        model = self.trainer.strategy.model
        return (
            model.no_sync()
            if yes and isinstance(model, torch.nn.parallel.DistributedDataParallel)
            else contextlib.nullcontext()
        )

    def _mean_gradients(self) -> None:
        """Make gradients that stayed on their devices the mean over them, as a last backward pass does elsewhere."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(self.total_over_devices(parameter.grad) / self.trainer.world_size)

    def _clip(self) -> Tensor:
        """The global gradient norm before clipping."""
        limit = float("inf") if self.optimization.clip is None else self.optimization.clip
        norms = [torch.nn.utils.clip_grad_norm_(group, limit, foreach=True) for group in self.clipped_apart()]
        norms = [whole(norm) for norm in norms]  # of shards: it is that of all of them already
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

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


def cut(rows: Batch, pieces: int) -> Iterator[Batch]:
    """The rows in `pieces` parts of nearly equal size; empty parts are left out."""
    count = count_rows(rows)
    bounds = [round(i * count / pieces) for i in range(pieces + 1)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop > start:
            yield {name: tensor[start:stop] for name, tensor in rows.items()}
