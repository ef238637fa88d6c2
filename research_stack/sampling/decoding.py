"""The state of a batch while it is decoded: tokens, blocks, steps, streams and what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from research_stack.corruption.process import Process
from research_stack.data.vocabulary import Vocabulary
from research_stack.sampling.guidance import calls_per_step
from research_stack.sampling.layout import Layout
from research_stack.sampling.state import Decision, Proposal, RowStreams, State
from research_stack.sampling.trace import Trace

if TYPE_CHECKING:
    from research_stack.sampling.inits import Init
    from research_stack.sampling.sampler import Sampler


class Decoding:
    """All B sequences of one call of `Sampler.sample`; the sampler looks at and changes the live ones.

    - sampler: gives steps, blocks, guidance and times. prompts: B vectors of ids. length: G.
    - seed, first_row: of the streams. process: bound to the vocabulary, if one is known.
    - draft: what decoding starts from, if another sampler has written it; else `sampler.init` says that.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Tensor],
        length: int,
        vocab: Vocabulary,
        process: Process | None,
        seed: int,
        first_row: int,
        device: torch.device | str,
        draft: Trace | None = None,
    ) -> None:
        count = len(prompts)
        self.sampler, self.vocab, self.process, self.length = sampler, vocab, process, length
        self.layout = Layout(prompts, length, vocab, device)
        self.draft, stream = draft, "sampling" if draft is None else "correction"
        self.streams = RowStreams(seed, range(first_row, first_row + count), device, stream)
        self.block_length = sampler.block_length or max(length, 1)
        self.blocks = -(-length // self.block_length)
        self.cost_B = calls_per_step(sampler.guidance, self.layout.width_B > 0)
        self.steps_B = self._steps()
        self.z_BG = self._start(prompts)
        self.confidence_BG = torch.zeros(count, length, dtype=torch.float64, device=device)
        self.block_B, self.step_B, self.idle_B, self.calls_B = torch.zeros(
            4, count, dtype=torch.int64, device=device
        ).unbind(0)
        if draft is not None:
            self.calls_B = draft.calls_B.clone()
        self.self_accuracy_B, self.stale_B = (
            torch.zeros(count, dtype=torch.float64, device=device),
            torch.zeros_like(self.step_B),
        )
        self.masks_at_start_B = self._masks(torch.arange(count, device=device)).sum(1)
        self.states: list[tuple[Tensor, Tensor]] = []

    def _start(self, prompts: Sequence[Tensor]) -> Tensor:
        """(B, G) the tokens before the first step."""
        if self.draft is not None:
            drafted_BG = self.draft.tokens_BL.gather(1, self.layout.column_BG)
            return (
                drafted_BG.masked_fill(drafted_BG == self.vocab.pad, self.vocab.end)
                if self.vocab.writes_end
                else drafted_BG
            )
        draws_B2G = self.streams.uniform(range(len(prompts)), 2, self.length)
        return cast("Init", self.sampler.init)(draws_B2G, prompts, self.vocab, self.process)

    def _steps(self) -> Tensor:
        """(B,) steps in all."""
        wanted = self.sampler.steps or max(self.length, 1)
        max_steps_B, steps_B = self.sampler.stopper.max_steps(self.cost_B), torch.full_like(self.cost_B, wanted)
        steps_B = steps_B if max_steps_B is None else torch.minimum(steps_B, max_steps_B)
        least = int(steps_B.min())
        if least < self.blocks:
            paid = ", all that the stopper's calls pay for," if least < wanted else ""
            raise ValueError(
                f"steps={least}{paid} must be at least {self.blocks}, one for each block of "
                f"block_length={self.block_length} in length={self.length}"
            )
        return steps_B

    def live(self) -> Tensor:
        """Indices of the sequences that go on."""
        return (self.block_B < self.blocks).nonzero()[:, 0]

    def _inside(self, at: Tensor) -> Tensor:
        index_G = torch.arange(self.length, device=at.device) // self.block_length
        return index_G == self.block_B[at].unsqueeze(1)

    def _masks(self, at: Tensor) -> Tensor:
        return self._inside(at) & (self.z_BG[at] == self.vocab.mask)

    def state_of(self, at: Tensor) -> State:
        """The rows `at`, without draws (those are zeros)."""
        share_B = self.steps_B[at] // max(self.blocks, 1)
        total_B = share_B + (self.block_B[at] < self.steps_B[at] % max(self.blocks, 1)).long()
        left_B = total_B - self.step_B[at]
        if self.sampler.times == "masks":
            t_B = (self.z_BG[at] == self.vocab.mask).double().mean(1)
        else:
            t_B = left_B / total_B.double()
        none_BG = torch.zeros_like(self.confidence_BG[at])
        return State(
            vocab=self.vocab,
            process=self.process,
            z_BG=self.z_BG[at],
            inside_BG=self._inside(at),
            mask_BG=self._masks(at),
            left_B=left_B,
            total_B=total_B,
            masks_at_start_B=self.masks_at_start_B[at],
            idle_B=self.idle_B[at],
            confidence_BG=self.confidence_BG[at],
            t_B=t_B.clamp_min(self.sampler.min_time),
            draw_BG=none_BG,
            coin_BG=none_BG,
        )

    def draw(self, at: Tensor, state: State) -> None:
        """Give the state of the rows `at` this step's draws: one for each step they take, whatever other rows do."""
        state.draw_BG, state.coin_BG = self.streams.uniform(at.tolist(), 2, self.length).unbind(1)

    def apply(self, at: Tensor, state: State, proposal: Proposal, decision: Decision) -> None:
        """Write a step."""
        commit_BG, remask_BG = decision
        z_BG = torch.where(commit_BG, proposal.token_BG, state.z_BG)
        z_BG = z_BG if remask_BG is None else z_BG.masked_fill(remask_BG, self.vocab.mask)
        if proposal.likeliest_BG is not None:
            stale_B1 = self._gives_up(at, state, z_BG == proposal.likeliest_BG).unsqueeze(1)
            z_BG, commit_BG = torch.where(stale_B1, state.z_BG, z_BG), commit_BG & ~stale_B1
        seen_BG = torch.where(commit_BG, proposal.p_token_BG, proposal.p_current_BG)
        confidence_BG = torch.where(proposal.seen_BG, seen_BG, state.confidence_BG)
        self.confidence_BG[at] = confidence_BG.masked_fill(z_BG == self.vocab.mask, 0.0)
        self.idle_B[at] = torch.where((z_BG == state.z_BG).all(1), state.idle_B + 1, 0)
        self.z_BG[at] = z_BG
        self.step_B[at] += 1

    def _gives_up(self, at: Tensor, state: State, likeliest_BG: Tensor) -> Tensor:
        """(len(at),) bool: rows that stop here, since their self-accuracy has not risen for too long.

        - likeliest_BG: whether each position holds the likeliest token after the step.
        """
        accuracy_B = (likeliest_BG & state.inside_BG).sum(1) / state.inside_BG.sum(1).double()
        risen_B = accuracy_B > self.self_accuracy_B[at]
        self.self_accuracy_B[at] = torch.maximum(accuracy_B, self.self_accuracy_B[at])
        self.stale_B[at] = torch.where(risen_B, 0, self.stale_B[at] + 1)
        return self.sampler.stopper.is_stalled(self.stale_B[at]) & ~state.mask_BG.any(1)

    def advance(self, at: Tensor) -> None:
        """Go on to the next block in the rows `at`; after the last one they are done, and after one in which the text
        has ended.
        """
        self.block_B[at] += 1
        ended_B = (
            (self._end(at) < self.block_B[at] * self.block_length)
            if self.vocab.writes_end
            else torch.zeros_like(at, dtype=torch.bool)
        )
        self.block_B[at] = torch.where(ended_B, self.blocks, self.block_B[at])
        self.step_B[at] = 0
        self.idle_B[at] = 0
        self.self_accuracy_B[at], self.stale_B[at] = 0.0, 0
        self.masks_at_start_B[at] = self._masks(at).sum(1)

    def _end(self, at: Tensor) -> Tensor:
        """(len(at),) the generated position of the first end token in the rows `at`; G where there is none."""
        end_BG = self.z_BG[at] == self.vocab.end
        return torch.where(end_BG.any(1), end_BG.int().argmax(1), self.length)

    def record(self, wanted: bool) -> None:
        """Keep the present tokens and confidences."""
        if wanted:
            self.states.append((self.z_BG.clone(), self.confidence_BG.float()))

    def trace(self) -> Trace:
        """The result: a text ends with its first end token, and what stands behind it becomes padding."""
        layout = self.layout
        all_rows = torch.arange(len(self.z_BG), device=self.z_BG.device)
        history = confidence = None
        if self.states:
            history = torch.stack([layout.tokens(z_BG, all_rows) for z_BG, _ in self.states])
            confidence = torch.stack([layout.full_width(values_BG, 1.0) for _, values_BG in self.states])
            if self.draft is not None:  # whose last state is the first one here
                assert self.draft.history is not None and self.draft.confidence is not None, "recorded as this is"
                history = torch.cat([self.draft.history, history[1:]])
                confidence = torch.cat([self.draft.confidence, confidence[1:]])
        tokens_BL, generated_BL = layout.tokens(self.z_BG, all_rows), layout.generated_BL
        if self.vocab.writes_end and self.length:
            own_BG = torch.arange(self.length, device=self.z_BG.device) <= self._end(all_rows).unsqueeze(1)
            generated_BL = layout.to_columns(own_BG, all_rows)
            tokens_BL = tokens_BL.masked_fill(layout.generated_BL & ~generated_BL, self.vocab.pad)
        return Trace(tokens_BL, generated_BL, self.calls_B, history, confidence, self.vocab.mask)
