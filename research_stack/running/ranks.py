"""Which process of a run this is: one of several ranks, the first of which writes the run folder."""

from __future__ import annotations

import os

from research_stack.training.machine import under_srun


def is_helper_rank() -> bool:
    """Whether this is a SLURM task other than the first: it trains along, and leaves the folder to the first."""
    return under_srun() and int(os.environ["SLURM_PROCID"]) > 0


def is_rank_zero() -> bool:
    """Whether this process is the first of the run's ranks, the one that writes the folder."""
    return not is_helper_rank() and int(os.environ.get("RANK", "0")) == 0
