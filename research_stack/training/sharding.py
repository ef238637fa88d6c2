"""Weights, gradients and optimizer states in shards, one a device (FSDP2): what is cut, and when it is whole.

Each block of the model is gathered only while it computes; all else that is trained is gathered for a step. Frozen
weights outside the blocks (readers, say) stay whole on every device. A checkpoint holds whole tensors, as that of one
process does, so that either goes on from the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def require_shardable(module: nn.Module, ema: float) -> None:
    """Raise ValueError for what cannot be trained in shards: an average of the weights, weights that are no floats."""
    if ema:
        raise ValueError(
            "hardware.strategy=fsdp keeps no average of the weights, which is a copy: set optimization.ema=0"
        )
    packed = [name for name, parameter in module.named_parameters() if not parameter.is_floating_point()]
    if packed:
        raise ValueError(
            f"hardware.strategy=fsdp cannot cut quantised weights ({packed[0]}): set model.quantization=null "
            "or hardware.strategy=ddp"
        )


def shard(module: LightningModule, blocks: Sequence[nn.Module]) -> None:
    """Cut the weights of the module over all devices: its blocks, each by itself, and the rest of what is trained."""
    if isinstance(module, FSDPModule):
        return
    assert module.device_mesh is not None  # that of `Sharded`
    mesh = module.device_mesh["data_parallel"]
    inside = {parameter for block in blocks for parameter in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh)
    frozen = {parameter for parameter in module.parameters() if parameter not in inside and not parameter.requires_grad}
    name = type(module).__name__
    fully_shard(module, mesh=mesh, ignored_params=frozen)
    type(module).__name__ = name  # torch has made a class of its own for it, and its name is kept with the run


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within it every device holds all weights whole and may read them more often than others; there are no gradients.

    Every device must enter it. It does nothing where nothing is cut, and inside itself.
    """
    cut = [part for part in module.modules() if isinstance(part, FSDPModule)]
    apart = [part for part in cut if not _is_whole(part)]
    if not (isinstance(module, FSDPModule) and apart):
        yield
        return
    module(_nothing)  # the parts learn of one another in the first call of the whole
    module.set_reshard_after_forward(False, recurse=True)
    for part in apart:
        part.unshard()
    try:
        yield
    finally:
        for part in cut:
            part.set_reshard_after_forward(part is not module, recurse=False)
        for part in apart:
            part.reshard()


def _nothing() -> None:
    """Computes nothing."""


def _is_whole(part: nn.Module) -> bool:
    """Whether the part's own weights, those of its parts that are cut by themselves left out, are put together."""
    inner = {
        parameter
        for own in part.modules()
        if isinstance(own, FSDPModule) and own is not part
        for parameter in own.parameters()
    }
    return not any(isinstance(parameter, DTensor) for parameter in part.parameters() if parameter not in inner)


def local(tensor: Tensor) -> Tensor:
    """This device's part of a tensor that is cut, else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Any) -> Any:
    """A tensor that is cut, put together on every device; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_cut(tensor: Any, like: Tensor) -> Any:
    """A whole tensor, the same on every device, cut as another of its shape is."""
    if isinstance(like, DTensor) and isinstance(tensor, Tensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for shards, with checkpoints of whole tensors through the run's own writer and reader."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state comes from the checkpoint like all else."""
        return True

    def _module(self) -> LightningModule:
        assert self.lightning_module is not None  # the trainer has connected it
        return self.lightning_module

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors; every device must ask."""
        return {name: full_tensor(tensor) for name, tensor in self._module().state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As the optimizer of one process would give it; every device must ask."""
        state = optimizer.state_dict()
        return {
            **state,
            "state": {
                key: {name: full_tensor(value) for name, value in own.items()} for key, own in state["state"].items()
            },
        }

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole checkpoint, on every device."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each device keeps its part."""
        own = dict(self._module().named_parameters())
        state = {
            name: as_cut(tensor, own[name]) if name in own else tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        self._module().load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each device keeps its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            own = {
                key: {name: as_cut(value, parameters[key]) for name, value in kept.items()}
                for key, kept in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": own})


def on_full_tensor(compute: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """`compute`, which needs all of a matrix, of one that may be cut; the result is cut alike."""
    return as_cut(compute(full_tensor(tensor)), tensor)
