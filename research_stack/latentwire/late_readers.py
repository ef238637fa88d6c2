"""Readers that join late: the weights of another run, laid out for the readers of this one.

research-stack experiment=latentwire init_from=RUN method.train_encoder=false method/readers=tiny_late
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from research_stack.require import require

if TYPE_CHECKING:
    from research_stack.latentwire.module import LatentWire

log = logging.getLogger(__name__)

PER_LATENT = (
    "pooling.after.query_MD",
    "pooling.before.query_MD",
    "pooling.gate_M1",
)  # a row for each latent: the shared ones, then those of each reader


def state_with_late_readers(method: LatentWire, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of `method` that is the other run's wherever that has one; what belongs to readers it has not stays as it
    is here.

    Raises ValueError, opening with `init_from`, for a run without readers of latents and for tensors of other sizes.
    """
    theirs = list(dict.fromkeys(key.split(".")[1] for key in state if key.startswith("adapters.")))
    require(bool(theirs), "init_from: that run is none of LatentWire: it has no adapters of readers")
    late = [name for name in method.readers if name not in theirs]
    found = dict(method.state_dict())
    for key, own in found.items():
        if key in PER_LATENT:
            found[key] = _rows(method, state[key], theirs)
        elif not set(late) & set(key.split(".")):
            there = tuple(state[key].shape) if key in state else "missing"
            require(
                there == tuple(own.shape),
                f"init_from: {key} is {there} there and {tuple(own.shape)} here; say the same in both",
            )
            found[key] = state[key]
    if late:
        log.info(
            "%s: not among the readers of that run (%s); sent what %s is", ", ".join(late), ", ".join(theirs), theirs[0]
        )
    return found


def _rows(method: LatentWire, rows_MD: Tensor, theirs: list[str]) -> Tensor:
    """The rows of the shared latents, then those of each of this run's readers: its own, or the first one's."""
    num_shared, num_private = len(rows_MD) - method.num_private * len(theirs), method.num_private
    require(
        num_shared == method.num_shared,
        f"init_from: that run's readers share {num_shared} latents and those here {method.num_shared}; say the same"
        " method.num_latents and method.num_private in both",
    )
    starts = [num_shared + num_private * (theirs.index(name) if name in theirs else 0) for name in method.readers]
    return torch.cat([rows_MD[:num_shared], *(rows_MD[start : start + num_private] for start in starts)])
