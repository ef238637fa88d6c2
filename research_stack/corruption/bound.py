"""Upper bounds on -ln p(x) of a denoiser, estimated without bias: what a reported perplexity rests on.

`nelbo` integrates the continuous-time bound of any process over stratified s in float64, with t = sin^2(pi s / 2),
and where tokens are substituted with more levels at the ends: hybrid noise has no finite variance otherwise
(`times.heavy_ended`). No part of [0, 1] is cut off: truncating t to [1e-4, 1 - 1e-4] would make the hybrid's value
lie below the bound. `fixed_k_nelbo` is LLaDA's estimator with exactly k masks. Both return one value per sequence, in
nats over its eligible positions given the others (prompt, separators), so that the caller can make the interval over
sequences. `nelbo_by_level` and `fixed_k_by_level` keep the levels apart: what stratified levels balance out is no
part of that interval (`evaluation.levels`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from research_stack.corruption.base import ranks
from research_stack.corruption.diffusion import Diffusion
from research_stack.corruption.elbo import bound_terms
from research_stack.corruption.process import Absorbing, Process, to_leave_one_out
from research_stack.corruption.times import arcsine, heavy_ended
from research_stack.streams import Draws

if TYPE_CHECKING:
    from research_stack.sampling.denoiser import Denoiser

_CALL_BYTES = 2**28  # logits of one model call, float32
_CHUNK_BYTES = 2**26  # logits converted to float64 at a time


class Sampled(NamedTuple):
    """The estimate of each of B sequences at each of its S noise levels, float64: nats_BS, and the levels t_BS."""

    nats_BS: Tensor
    t_BS: Tensor

    @property
    def nats_B(self) -> Tensor:
        """(B,) the estimate of each sequence, the mean over its levels."""
        total_B = torch.zeros_like(self.nats_BS[:, 0])
        for nats_B in self.nats_BS.unbind(1):
            total_B += nats_B
        return total_B / self.nats_BS.shape[1]


def nelbo(
    denoiser: Denoiser,
    process: Process,
    tokens_BL: Tensor,
    eligible_BL: Tensor,
    draws: Draws,
    attention_mask_BL: Tensor | None = None,
    samples: int = 1,
) -> Tensor:
    """Unbiased estimate of the NELBO of each sequence under a process, (B,) float64 nats.

    - process: `Absorbing()`, `Uniform()` or `Hybrid(p_u=...)`; the vocabulary's N is filled in.
    - tokens_BL, eligible_BL, attention_mask_BL: clean ids, the positions that are scored, not padding.
    - draws: stream with one row per sequence. samples: noise levels per sequence, one in each of `samples` strata.

    A denoiser that predicts posteriors is converted to leave-one-out, for which the bound is stated. Any denoiser
    gives a valid bound; whether a tight one depends on how well it is trained for these levels.
    """
    return nelbo_by_level(denoiser, process, tokens_BL, eligible_BL, draws, attention_mask_BL, samples).nats_B


def nelbo_by_level(
    denoiser: Denoiser,
    process: Process,
    tokens_BL: Tensor,
    eligible_BL: Tensor,
    draws: Draws,
    attention_mask_BL: Tensor | None = None,
    samples: int = 1,
) -> Sampled:
    """`nelbo`, level by level."""
    noise = Diffusion(process).bind(denoiser.vocab)
    open_BL = eligible_BL & (noise.tables(tokens_BL.device).index_V[tokens_BL] >= 0)
    substitution = heavy_ended if noise.process.has_uniform else arcsine
    nats, levels = [], []
    for sample in range(samples):
        t_B, rest_B, slope_B = substitution((sample + draws.stratified()) / samples)
        z_BL = _noised(noise, tokens_BL, open_BL, t_B, rest_B, draws)
        weight_BL = noise.process.weights(t_B.unsqueeze(1), rest_B.unsqueeze(1)).at(
            z_BL == denoiser.vocab.mask, z_BL == tokens_BL
        )
        weight_BL = weight_BL * slope_B.unsqueeze(1) * open_BL
        nats.append(
            _weighted_terms(denoiser, noise.process, tokens_BL, z_BL, weight_BL, t_B, rest_B, attention_mask_BL)
        )
        levels.append(t_B)
    return Sampled(torch.stack(nats, 1), torch.stack(levels, 1))


def fixed_k_nelbo(
    denoiser: Denoiser,
    tokens_BL: Tensor,
    eligible_BL: Tensor,
    draws: Draws,
    attention_mask_BL: Tensor | None = None,
    samples: int = 1,
) -> Tensor:
    """LLaDA's estimate of the absorbing NELBO (Nie et al. 2025, eq. 6), (B,) float64 nats: lower variance in t.

    k is uniform on {1, ..., n}, n the row's eligible positions; exactly k of them are masked, and n / k times the
    summed cross entropy there is the estimate. Arguments as in `nelbo`.
    """
    return fixed_k_by_level(denoiser, tokens_BL, eligible_BL, draws, attention_mask_BL, samples).nats_B


def fixed_k_by_level(
    denoiser: Denoiser,
    tokens_BL: Tensor,
    eligible_BL: Tensor,
    draws: Draws,
    attention_mask_BL: Tensor | None = None,
    samples: int = 1,
) -> Sampled:
    """`fixed_k_nelbo`, level by level: t is the share of masks."""
    noise = Diffusion(Absorbing()).bind(denoiser.vocab)
    open_BL = eligible_BL & (noise.tables(tokens_BL.device).index_V[tokens_BL] >= 0)
    size_B = open_BL.sum(1).double()
    nats, levels = [], []
    for sample in range(samples):
        level_B = (sample + draws.stratified()) / samples
        count_B = torch.minimum(1 + (level_B * size_B).floor(), size_B)
        key_BL = draws.uniform(tokens_BL.shape[1], dtype=torch.float64).masked_fill(~open_BL, 2.0)
        masked_BL = ranks(key_BL) < count_B.unsqueeze(1)
        z_BL = tokens_BL.masked_fill(masked_BL, denoiser.vocab.mask)
        t_B = count_B / size_B.clamp_min(1)
        # bound_terms gives (1 - t) CE at masks; with t = 0 there it is the cross entropy itself.
        weight_BL = (size_B / count_B.clamp_min(1)).unsqueeze(1) * masked_BL
        nats.append(
            _weighted_terms(
                denoiser, noise.process, tokens_BL, z_BL, weight_BL, t_B, torch.ones_like(t_B), attention_mask_BL
            )
        )
        levels.append(t_B)
    return Sampled(torch.stack(nats, 1), torch.stack(levels, 1))


def _noised(noise: Diffusion, tokens_BL: Tensor, open_BL: Tensor, t_B: Tensor, rest_B: Tensor, draws: Draws) -> Tensor:
    """z ~ q_t(z|x) at the open positions, with 1 - t given so that nothing cancels near t = 1."""
    parts, n = noise.process.coefficients(t_B.unsqueeze(1), rest_B.unsqueeze(1)), noise.process.n_real
    draw_BL = draws.uniform(tokens_BL.shape[1], dtype=torch.float64)
    masked_BL = open_BL & (draw_BL < parts.mask)
    replaced_BL = open_BL & ~masked_BL & (draw_BL < parts.mask + parts.uniform * (n - 1) / n)
    return noise.apply(tokens_BL, masked_BL, replaced_BL, draws)


def _weighted_terms(
    denoiser: Denoiser,
    process: Process,
    tokens_BL: Tensor,
    z_BL: Tensor,
    weight_BL: Tensor,
    t_B: Tensor,
    rest_B: Tensor,
    attention_mask_BL: Tensor | None,
) -> Tensor:
    """The sum over each row of weight * g, with logits only where there is weight, a few rows per model call."""
    rows = max(1, _CALL_BYTES // (4 * denoiser.vocab.size * tokens_BL.shape[1]))
    parts = []
    for start in range(0, len(tokens_BL), rows):
        cut = slice(start, start + rows)
        where_BL = weight_BL[cut] > 0
        attend = None if attention_mask_BL is None else attention_mask_BL[cut]
        logits_nV = denoiser.logits(z_BL[cut], attention_mask_BL=attend, t_B=t_B[cut].float(), where_BL=where_BL)
        row_n = where_BL.nonzero()[:, 0]
        terms_n = _terms(
            denoiser,
            process,
            logits_nV,
            tokens_BL[cut][where_BL],
            z_BL[cut][where_BL],
            t_B[cut][row_n],
            rest_B[cut][row_n],
        )
        sums_B = torch.zeros(len(where_BL), dtype=torch.float64, device=tokens_BL.device)
        parts.append(sums_B.index_add(0, row_n, terms_n * weight_BL[cut][where_BL]))
    return torch.cat(parts)


def _terms(
    denoiser: Denoiser, process: Process, logits_nV: Tensor, x_n: Tensor, z_n: Tensor, t_n: Tensor, rest_n: Tensor
) -> Tensor:
    """g in float64, a chunk of positions at a time."""
    size = max(1, _CHUNK_BYTES // (8 * denoiser.vocab.size))
    parts = [torch.zeros(0, dtype=torch.float64, device=x_n.device)]
    for logits, x, z, t, rest in zip(*(value.split(size) for value in (logits_nV, x_n, z_n, t_n, rest_n)), strict=True):
        logits = logits.double()
        if denoiser.predicts == "posterior":
            logits = to_leave_one_out(logits, z, process, t, denoiser.vocab, rest)
        parts.append(bound_terms(logits, x, z, denoiser.vocab.mask, process, t, rest))
    return torch.cat(parts)
