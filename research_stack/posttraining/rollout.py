"""Completions of many prompts at once, as training needs them: N for each prompt, drawn from the model, with their ids.

A prompt is read once and its cache serves all its completions. Prompts of different lengths end in the same column and
what stands before the shorter ones is seen by nobody. Texts that have ended leave the batch in steps. What comes back
is laid out for the training pass: a prompt and its completion without a gap, padding behind, so that plain causal
attention is right.

Shapes: P prompts, N completions of each, B = P * N texts in that order, T most tokens of a completion, W tokens of the
longest prompt, L = W + T columns, n texts that go on, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from research_stack.backbones.causal import CausalBackbone
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require
from research_stack.sampling.categorical import draw
from research_stack.sampling.logits import keep_top_p, scale_by_temperature

# texts that have ended leave the batch when no more than this share goes on: to leave costs a copy of the cache
STAY = 0.75


@dataclass
class Completions:
    """B completions and their prompts.

    - tokens_BL: int64; prompt, completion (its end token included), padding. prompt_length_B: tokens of the prompt.
    - completion_length_B: tokens of the completion, at least 1. terminated_B: whether it closed with the end token; it
      was cut off otherwise.
    """

    tokens_BL: Tensor
    prompt_length_B: Tensor
    completion_length_B: Tensor
    terminated_B: Tensor

    def rows(self) -> dict[str, Tensor]:
        """As a batch."""
        return {
            "tokens": self.tokens_BL,
            "prompt_length": self.prompt_length_B,
            "completion_length": self.completion_length_B,
            "terminated": self.terminated_B,
        }

    def completions(self, vocab: Vocabulary) -> list[list[int]]:
        """The ids of each completion without its end token."""
        ids = self.tokens_BL.tolist()
        spans = zip(
            ids,
            self.prompt_length_B.tolist(),
            self.completion_length_B.tolist(),
            self.terminated_B.tolist(),
            strict=True,
        )
        return [row[width : width + made - ended] for row, width, made, ended in spans]

    def take(self, rows: Tensor) -> Completions:
        """Some of the texts, indices in the order asked for."""
        return Completions(
            *(
                getattr(self, name)[rows]
                for name in ("tokens_BL", "prompt_length_B", "completion_length_B", "terminated_B")
            )
        )

    @staticmethod
    def joined(parts: Sequence[Completions], pad: int) -> Completions:
        """Several rollouts as one, as wide as the widest."""
        columns = max(part.tokens_BL.shape[1] for part in parts)
        tokens = [
            torch.nn.functional.pad(part.tokens_BL, (0, columns - part.tokens_BL.shape[1]), value=pad) for part in parts
        ]
        others = [
            torch.cat([getattr(part, name) for part in parts])
            for name in ("prompt_length_B", "completion_length_B", "terminated_B")
        ]
        return Completions(torch.cat(tokens), *others)


class Rollouts:
    """How completions are drawn: p^(1 / temperature), then the nucleus of mass top_p (Holtzman et al. 2020).

    - max_completion_length: T, tokens of a completion at most. temperature: above 0. top_p: 1 is all tokens; a policy
      gradient is exact for 1 alone.
    """

    def __init__(self, max_completion_length: int = 16, temperature: float = 1.0, top_p: float = 1.0) -> None:
        require(max_completion_length >= 1, f"max_completion_length={max_completion_length} must be at least 1")
        require(
            max_completion_length <= 10_000_000,
            f"max_completion_length={max_completion_length} must be at most 10,000,000",
        )
        require(temperature > 0, f"temperature={temperature} must be above 0: a policy gradient needs a policy")
        require(1e-6 <= temperature <= 1e6, f"temperature={temperature} must be at least 1e-06 and at most 1,000,000")
        require(0 < top_p <= 1, f"top_p={top_p} must lie in (0, 1]")
        self.max_completion_length, self.temperature, self.top_p = max_completion_length, temperature, top_p

    @torch.no_grad()
    def __call__(
        self, model: CausalBackbone, vocab: Vocabulary, bias_V: Tensor, prompts: Sequence[Tensor], u_PNT: Tensor
    ) -> Completions:
        """Draw N completions behind each prompt.

        - bias_V: added to the logits, -inf at tokens that must not come. prompts: P vectors of ids, none empty.
        - u_PNT: uniform numbers in [0, 1), one a token; the same numbers give the same texts.

        Raises ValueError when a prompt and its completion do not fit the model.
        """
        width_P = torch.tensor([len(prompt) for prompt in prompts])
        longest, (count, length) = int(width_P.max()), u_PNT.shape[1:]
        require(int(width_P.min()) >= 1, "prompts must not be empty")
        require(
            longest + length <= model.max_length,
            f"max_completion_length={length} behind a prompt of {longest} tokens exceeds"
            f" model.max_length={model.max_length}",
        )
        device = u_PNT.device
        before_P = (longest - width_P).to(device)
        tokens_PW = torch.full((len(prompts), longest), vocab.pad, device=device)
        for row, prompt in enumerate(prompts):
            tokens_PW[row, longest - len(prompt) :] = prompt
        texts = _Writing(
            model, bias_V, vocab.end, u_PNT.flatten(0, 1), before_P if bool(before_P.any()) else None, count
        )
        written_BT, completion_length_B, terminated_B = texts.write(tokens_PW, self)
        tokens_BL = torch.full(
            (len(prompts) * count, longest + int(completion_length_B.max())), vocab.pad, device=device
        )
        prompt_length_B = width_P.to(device).repeat_interleave(count)
        for row, prompt in enumerate(prompts):
            tokens_BL[row * count : (row + 1) * count, : len(prompt)] = prompt
        order_T = torch.arange(written_BT.shape[1], device=device)
        row_n, step_n = (order_T < completion_length_B.unsqueeze(1)).nonzero(as_tuple=True)
        tokens_BL[row_n, prompt_length_B[row_n] + step_n] = written_BT[row_n, step_n]
        return Completions(tokens_BL, prompt_length_B, completion_length_B, terminated_B)


class _Writing:
    """The texts of one call, from their prompts to their ends."""

    def __init__(
        self, model: CausalBackbone, bias_V: Tensor, end: int, u_BT: Tensor, before_P: Tensor | None, count: int
    ) -> None:
        self.model, self.bias_V, self.end, self.u_BT = model, bias_V, end, u_BT
        self.before_P, self.count = before_P, count
        self.live_n = torch.arange(len(u_BT), device=u_BT.device)

    def write(self, tokens_PW: Tensor, how: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """(ids (B, T'), tokens made (B,), whether ended (B,)); T' is the longest completion."""
        (texts, length), width = self.u_BT.shape, tokens_PW.shape[1]
        cache, hidden = self.model.new_cache(), self._read_prompts(tokens_PW)
        hidden_PWD = self.model.read(tokens_PW, *hidden, cache)
        copies = torch.arange(len(tokens_PW), device=tokens_PW.device).repeat_interleave(self.count)
        cache, hidden_nD = cache.select(copies), hidden_PWD[:, -1][copies]
        before_n = None if self.before_P is None else self.before_P[copies]
        written_BT = torch.zeros_like(self.u_BT, dtype=torch.int64)
        completion_length_B = torch.full((texts,), length, device=self.u_BT.device)
        terminated_B = torch.zeros(texts, dtype=torch.bool, device=self.u_BT.device)
        going_n = torch.ones_like(terminated_B)
        for step in range(length):
            token_n = self._draw(hidden_nD, step, how)
            written_BT[self.live_n, step] = token_n
            ends_n = (token_n == self.end) & going_n
            completion_length_B[self.live_n] = torch.where(ends_n, step + 1, completion_length_B[self.live_n])
            terminated_B[self.live_n] |= ends_n
            going_n &= ~ends_n
            left = int(going_n.sum())
            if not left or step == length - 1:
                return written_BT[:, : step + 1], completion_length_B, terminated_B
            if left <= STAY * len(going_n):
                stay = going_n.nonzero()[:, 0]
                cache, token_n, self.live_n, going_n = (
                    cache.select(stay),
                    token_n[stay],
                    self.live_n[stay],
                    going_n[stay],
                )
                before_n = None if before_n is None else before_n[stay]
            positions, seen = self._behind(before_n, width + step, len(token_n))
            hidden_nD = self.model.read(token_n.unsqueeze(1), positions, seen, cache)[:, 0]
        raise AssertionError("the last step returns")

    def _read_prompts(self, tokens_PW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Positions and what is seen of the prompts; None where no prompt is shorter than another."""
        if self.before_P is None:
            return None, None
        order_W = torch.arange(tokens_PW.shape[1], device=tokens_PW.device)
        places_PW = (order_W - self.before_P.unsqueeze(1)).clamp_min(0)
        seen_PWW = (order_W >= self.before_P.unsqueeze(1)).unsqueeze(1) & (order_W <= order_W.unsqueeze(1))
        return places_PW, seen_PWW

    @staticmethod
    def _behind(before_n: Tensor | None, column: int, texts: int) -> tuple[Tensor | None, Tensor | None]:
        """Position and what is seen of the token in this column."""
        if before_n is None:
            return None, None
        order_S = torch.arange(column + 1, device=before_n.device)
        return (column - before_n).unsqueeze(1), (order_S >= before_n.unsqueeze(1)).unsqueeze(1)

    def _draw(self, hidden_nD: Tensor, step: int, how: Rollouts) -> Tensor:
        logits_nV = self.model.head(hidden_nD).float() + self.bias_V
        if how.temperature != 1 or how.top_p < 1:
            logits_nV = keep_top_p(scale_by_temperature(logits_nV, how.temperature), how.top_p)
        return draw(logits_nV, self.u_BT[self.live_n, step], trusted=True)
