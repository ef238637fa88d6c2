"""One loop for every decoder: init, then propose, select, commit until stopped.

LLaDA, the ModernBERT dLLM decoder, ReMDM, GIDD's self-correction, ancestral sampling, LLaDA2.1 editing and FlowLM are
points in the space of five small parts; conf/sampler names them. What holds for all of them:

- A model call asks only for logits of positions that may be written. Sequences that are done leave the batch.
- No mask is left: the last step of each block (the last call a budget pays for) writes the proposal of that same call
  at every mask still in the block.
- A sequence has a random stream of its own, so that it comes out the same alone and in any batch, up to the rounding of
  batched matrix products.
- Prompts are never touched: parts see the generated positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from research_stack.corruption.process import Process, to_leave_one_out, to_posterior
from research_stack.require import require
from research_stack.sampling.committers import Committer
from research_stack.sampling.decoding import Decoding
from research_stack.sampling.denoiser import Denoiser, HasCorruption
from research_stack.sampling.guidance import guided_logits
from research_stack.sampling.inits import Init
from research_stack.sampling.prompts import check_fit, prompt_ids
from research_stack.sampling.proposers import Proposer
from research_stack.sampling.selectors import Selector
from research_stack.sampling.state import Decision, Positions, Proposal, State
from research_stack.sampling.stoppers import Steps
from research_stack.sampling.trace import Trace

_CALL_BYTES = 2**29  # logits of one model call, float32; rows beyond that go into another call


class Sampler:
    """A decoder made of five parts.

    - init, proposer, selector, committer, stopper: see their modules. A sampler as init writes the text that this one
      starts from; its steps and calls come before.
    - steps: at most so many steps per sequence; None: one per generated token.
    - block_length: tokens decoded at a time, left to right, the steps shared out evenly (semi-autoregressive); None:
      all.
    - guidance: classifier-free scale; 1: none, 0: without the prompt. See `guidance`.
    - reads: what logits at visible positions must mean. The denoiser's are converted if it predicts the other; `as_is`
      takes what it gives. At masks there is no difference.
    - times: the noise level t told to the model and used for conversions. masks: the share of masks; schedule: steps
      left.
    - min_time: t is at least this, so that visible tokens stay doubtful when no mask is left.
    - process: the diffusion process of conversions and reverse kernels; None: that of the denoiser's own corruption.
    """

    #: See research_stack.config.smoke.
    smoke = {"steps": 16}

    def __init__(
        self,
        init: Init | Sampler,
        proposer: Proposer,
        selector: Selector,
        committer: Committer,
        stopper: Steps,
        steps: int | None = None,
        block_length: int | None = None,
        guidance: float = 1.0,
        reads: Literal["posterior", "leave_one_out", "as_is"] = "as_is",
        times: Literal["masks", "schedule"] = "masks",
        min_time: float = 0.0,
        process: Process | None = None,
    ) -> None:
        require(steps is None or steps >= 1, f"steps={steps} must be at least 1, or null for one per token")
        require(steps is None or steps <= 1_000_000, f"steps={steps} must be at most 1,000,000")
        require(
            block_length is None or block_length >= 1,
            f"block_length={block_length} must be at least 1, or null for no blocks",
        )
        require(guidance >= 0, f"guidance={guidance} must be at least 0; 1 is none")
        require(0 <= min_time < 1, f"min_time={min_time} must lie in [0, 1)")
        self.init, self.proposer, self.selector, self.committer, self.stopper = (
            init,
            proposer,
            selector,
            committer,
            stopper,
        )
        self.steps, self.block_length, self.guidance = steps, block_length, float(guidance)
        self.reads, self.times, self.min_time, self.process = reads, times, min_time, process

    @property
    def name(self) -> str:
        """What tells it from other decoders: its init, selector and committer."""
        return " ".join(type(part).__name__ for part in (self.init, self.selector, self.committer))

    def unsuited(self, model: type) -> str | None:
        """Why models of this class cannot be sampled from so, and what can; None if they can."""
        fits = hasattr(model, "logits")
        return (
            None
            if fits
            else (
                f"sampler=Sampler fills masks, and {model.__name__} is no denoiser; sampler=gpt or another that writes"
                " from left to right fits it"
            )
        )

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoiser,
        prompts: Sequence[Tensor | Sequence[int]] | None = None,
        count: int | None = None,
        length: int = 64,
        seed: int = 0,
        record: bool = False,
        device: torch.device | str = "cpu",
        first_row: int = 0,
    ) -> Trace:
        """Decode `count` sequences of `length` tokens behind their prompts, as one batch.

        - denoiser: in eval mode, on `device`.
        - prompts: token ids, one prompt per sequence or one for all; None: no prompts.
        - count: sequences; None: as many as prompts, or 1.
        - seed: of the streams (seed, "sampling", row). first_row: the row number of the first sequence: sequence b of a
          batch is the one that `first_row=b` gives alone.
        - record: keep the history.

        Raises ValueError when the model is no denoiser, the lengths do not fit it, or the steps do not cover the
        blocks.
        """
        if reason := self.unsuited(type(denoiser)):
            raise ValueError(reason)
        ids = prompt_ids(prompts, count, device)
        check_fit(denoiser, denoiser.vocab, ids, length)
        draft = None
        if isinstance(self.init, Sampler):
            draft = self.init.sample(denoiser, ids, None, length, seed, record, device, first_row)
        run = Decoding(self, ids, length, denoiser.vocab, self._process(denoiser), seed, first_row, device, draft)
        run.record(record)
        while len(at := run.live()):
            state = run.state_of(at)
            where_BG = self._where(state)
            over_B = ~where_BG.any(1) & ~state.mask_BG.any(1)
            if not self.committer.remasks and bool(over_B.any()):
                run.advance(at[over_B])
                continue
            run.draw(at, state)
            proposal = self._propose(denoiser, run, at, state, where_BG)
            run.apply(at, state, proposal, self._decide(proposal, state))
            run.record(record)
            run.advance(at[self._settled(run, at)])
        return run.trace()

    def _where(self, state: State) -> Tensor:
        """Positions whose logits are asked for."""
        where_BG = self.selector.where(state)
        if not self.committer.ranks_visible:
            return where_BG
        return torch.where(state.mask_BG.any(1, keepdim=True), state.inside_BG, where_BG)

    def _decide(self, proposal: Proposal, state: State) -> Decision:
        """The committer's decision; at the last step of a block every mask is written and none is made."""
        commit_BG, remask_BG = self.committer(proposal, state)
        last_B1 = (state.left_B == 1).unsqueeze(1)
        commit_BG = (commit_BG & proposal.seen_BG) | (state.mask_BG & last_B1)
        return Decision(commit_BG, None if remask_BG is None else remask_BG & ~last_B1)

    def _settled(self, run: Decoding, at: Tensor) -> Tensor:
        """(len(at),) bool: rows whose block is done after the step."""
        state = run.state_of(at)
        return (state.left_B == 0) | (self.stopper.is_done(state) & ~state.mask_BG.any(1))

    def _propose(self, denoiser: Denoiser, run: Decoding, at: Tensor, state: State, where_BG: Tensor) -> Proposal:
        """Call the model for the rows that have something to ask, and fill a Proposal."""
        shape = {"size": where_BG.shape, "dtype": torch.float64, "device": where_BG.device}
        token_BG, score_BG = state.z_BG.clone(), torch.full(fill_value=-torch.inf, **shape)
        p_token_BG, p_current_BG = torch.zeros(**shape), torch.zeros(**shape)
        allowed_BG = self.selector.where(state)
        likeliest_BG = state.z_BG.clone() if self.stopper.reads_likeliest else None
        for rows in _chunks(where_BG, denoiser.vocab.size):
            where = torch.zeros_like(where_BG)
            where[rows] = where_BG[rows]
            at_n = self._positions(denoiser, run, at, state, where, rows)
            token_n = self.proposer.propose(at_n, state)
            p_token_n = at_n.p_nV.gather(1, token_n.unsqueeze(1)).squeeze(1)
            p_current_n = at_n.p_nV.gather(1, at_n.z_n.unsqueeze(1)).squeeze(1)
            score_n = self.selector.score(at_n, token_n, p_token_n, p_current_n).double()
            idle_n = (token_n == at_n.z_n) | ~allowed_BG[where]
            token_BG[where], score_BG[where] = token_n, score_n.masked_fill(idle_n, -torch.inf)
            p_token_BG[where], p_current_BG[where] = p_token_n.double(), p_current_n.double()
            if likeliest_BG is not None:
                likeliest_BG[where] = at_n.p_nV.argmax(1)
        return Proposal(token_BG, score_BG, p_token_BG, p_current_BG, where_BG, likeliest_BG)

    def _positions(
        self, denoiser: Denoiser, run: Decoding, at: Tensor, state: State, where_BG: Tensor, rows: Tensor
    ) -> Positions:
        """One model call for `rows` of the live ones, with what the proposer needs beside the probabilities."""
        own, layout = at[rows], run.layout
        columns = layout.columns(own)
        attention_mask_BL = layout.attention_mask_BL[own, :columns]
        logits_nV = guided_logits(
            denoiser,
            self.guidance,
            layout.tokens(state.z_BG[rows], own),
            None if bool(attention_mask_BL.all()) else attention_mask_BL,
            state.t_B[rows].float(),
            layout.to_columns(where_BG[rows], own),
            layout.prompt_BL[own, :columns],
        )
        run.calls_B[own] += run.cost_B[own]
        row_n, z_n = where_BG.nonzero()[:, 0], state.z_BG[where_BG]
        p_nV = self._read(denoiser, logits_nV, z_n, state, row_n).softmax(1)
        t_B, s_B = state.left_B / state.total_B.double(), (state.left_B - 1) / state.total_B.double()
        return Positions(
            p_nV, z_n, state.mask_BG[where_BG], state.draw_BG[where_BG], state.coin_BG[where_BG], t_B[row_n], s_B[row_n]
        )

    def _read(self, denoiser: Denoiser, logits_nV: Tensor, z_n: Tensor, state: State, row_n: Tensor) -> Tensor:
        """The logits in the meaning this sampler needs."""
        if self.reads in ("as_is", denoiser.predicts) or bool((z_n == denoiser.vocab.mask).all()):
            return logits_nV
        convert = to_posterior if self.reads == "posterior" else to_leave_one_out
        return convert(logits_nV, z_n, state.known_process(), state.t_B[row_n], denoiser.vocab)

    def _process(self, denoiser: Denoiser) -> Process | None:
        if self.process is not None:
            return self.process.bind(denoiser.vocab.n_real)
        return denoiser.corruption.process if isinstance(denoiser, HasCorruption) else None


def _chunks(where_BG: Tensor, vocab_size: int) -> Iterator[Tensor]:
    """Indices of the rows that ask for logits, as many at a time as one call's logits may be large."""
    asking = where_BG.any(1).nonzero()[:, 0]
    if len(asking):
        max_positions = int(where_BG.sum(1).max())
        yield from asking.split(max(1, _CALL_BYTES // (4 * vocab_size * max_positions)))
