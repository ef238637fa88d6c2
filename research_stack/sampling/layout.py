"""Where prompts and generated tokens stand in the columns a model sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from research_stack.data.vocabulary import Vocabulary


class Layout:
    """Prompts on the left, `length` generated positions right behind them, padding on the right.

    - prompts: B vectors of token ids, of any lengths, maybe empty.
    """

    def __init__(self, prompts: Sequence[Tensor], length: int, vocab: Vocabulary, device: torch.device | str) -> None:
        self.width_B = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64, device=device)
        self.length, columns = length, int(self.width_B.max()) + length
        self.base_BL = torch.full((len(prompts), columns), vocab.pad, dtype=torch.int64, device=device)
        for b, prompt in enumerate(prompts):
            self.base_BL[b, : len(prompt)] = prompt
        index_L = torch.arange(columns, device=device)
        self.prompt_BL = index_L < self.width_B.unsqueeze(1)
        self.attention_mask_BL = index_L < self.width_B.unsqueeze(1) + length
        self.generated_BL = self.attention_mask_BL & ~self.prompt_BL
        self.column_BG = self.width_B.unsqueeze(1) + torch.arange(length, device=device)

    def columns(self, at: Tensor) -> int:
        """Columns the rows `at` need."""
        return int(self.width_B[at].max()) + self.length

    def tokens(self, z_BG: Tensor, at: Tensor) -> Tensor:
        """The rows `at` whole, (len(at), columns(at)), with z at their generated positions."""
        return self.base_BL[at, : self.columns(at)].scatter(1, self.column_BG[at], z_BG)

    def to_columns(self, flag_BG: Tensor, at: Tensor) -> Tensor:
        """Flags of generated positions as flags of columns. True ones keep their row-major order."""
        empty = torch.zeros(len(at), self.columns(at), dtype=torch.bool, device=flag_BG.device)
        return empty.scatter(1, self.column_BG[at], flag_BG)

    def full_width(self, values_BG: Tensor, outside: float) -> Tensor:
        """(B, L) values of the generated positions, `outside` elsewhere."""
        return torch.full_like(self.base_BL, outside, dtype=values_BG.dtype).scatter(1, self.column_BG, values_BG)
