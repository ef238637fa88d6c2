"""Where prompts, generated tokens and padding stand."""

from __future__ import annotations

import torch
from denoisers import VOCAB

from research_stack.sampling.layout import Layout

PLACE = Layout([torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 4, 6])], 2, VOCAB, "cpu")
EVERYTHING = torch.arange(3)


def test_columns_by_hand():
    assert PLACE.base_BL.tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 0, 0], [3, 4, 6, 0, 0]]
    assert PLACE.prompt_BL.int().tolist() == [[1, 1, 0, 0, 0], [0] * 5, [1, 1, 1, 0, 0]]
    assert PLACE.generated_BL.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert torch.equal(PLACE.attend_BL, PLACE.prompt_BL | PLACE.generated_BL)


def test_rows_take_the_columns_they_need():
    z = torch.tensor([[7, 9], [10, 11], [12, 1]])
    assert PLACE.tokens(z, EVERYTHING).tolist() == [[1, 2, 7, 9, 0], [10, 11, 0, 0, 0], [3, 4, 6, 12, 1]]
    assert PLACE.tokens(z[:2], EVERYTHING[:2]).tolist() == [[1, 2, 7, 9], [10, 11, 0, 0]]
    assert PLACE.tokens(z[1:2], EVERYTHING[1:2]).tolist() == [[10, 11]]


def test_flags_keep_their_order():
    flags = torch.tensor([[True, False], [True, True], [False, True]])
    spread = PLACE.spread(flags, EVERYTHING)
    assert spread.int().tolist() == [[0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    z = torch.tensor([[7, 9], [10, 11], [12, 1]])
    assert PLACE.tokens(z, EVERYTHING)[spread].tolist() == z[flags].tolist()


def test_values_outside_the_generated_positions():
    values = torch.tensor([[0.5, 0.25]] * 3)
    assert PLACE.whole(values, 1.0).tolist() == [[1, 1, 0.5, 0.25, 1], [0.5, 0.25, 1, 1, 1], [1, 1, 1, 0.5, 0.25]]
