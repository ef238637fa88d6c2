"""Where prompts, generated tokens and padding stand."""

from __future__ import annotations

import torch
from denoisers import VOCAB

from research_stack.sampling.layout import Layout

LAYOUT = Layout([torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 4, 6])], 2, VOCAB, "cpu")
ALL_ROWS = torch.arange(3)


def test_columns_by_hand():
    assert LAYOUT.base_BL.tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 0, 0], [3, 4, 6, 0, 0]]
    assert LAYOUT.prompt_BL.int().tolist() == [[1, 1, 0, 0, 0], [0] * 5, [1, 1, 1, 0, 0]]
    assert LAYOUT.generated_BL.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert torch.equal(LAYOUT.attention_mask_BL, LAYOUT.prompt_BL | LAYOUT.generated_BL)


def test_rows_take_the_columns_they_need():
    z = torch.tensor([[7, 9], [10, 11], [12, 1]])
    assert LAYOUT.tokens(z, ALL_ROWS).tolist() == [[1, 2, 7, 9, 0], [10, 11, 0, 0, 0], [3, 4, 6, 12, 1]]
    assert LAYOUT.tokens(z[:2], ALL_ROWS[:2]).tolist() == [[1, 2, 7, 9], [10, 11, 0, 0]]
    assert LAYOUT.tokens(z[1:2], ALL_ROWS[1:2]).tolist() == [[10, 11]]


def test_flags_keep_their_order():
    flags = torch.tensor([[True, False], [True, True], [False, True]])
    to_columns = LAYOUT.to_columns(flags, ALL_ROWS)
    assert to_columns.int().tolist() == [[0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    z = torch.tensor([[7, 9], [10, 11], [12, 1]])
    assert LAYOUT.tokens(z, ALL_ROWS)[to_columns].tolist() == z[flags].tolist()


def test_values_outside_the_generated_positions():
    values = torch.tensor([[0.5, 0.25]] * 3)
    assert LAYOUT.full_width(values, 1.0).tolist() == [[1, 1, 0.5, 0.25, 1], [0.5, 0.25, 1, 1, 1], [1, 1, 1, 0.5, 0.25]]
