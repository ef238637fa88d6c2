"""Prompts that are read once for their completions: the same hidden states and gradients as texts that are read
whole.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from research_stack.backbones.transformer import Transformer
from research_stack.posttraining.shared_prompts import hidden_before
from research_stack.streams import generator

PROMPTS, MADE = [[1, 2, 0, 4], [3], [2, 2, 1, 0, 3, 5, 1], [0, 1]], [3, 1, 4, 5]


def texts(prompts, count, alone=False):
    """(tokens_BL, prompt_length_B, completion_length_B) of random completions."""
    rows, source = [], generator(0, "shared")
    for p, prompt in enumerate(prompts):
        rows += [(prompt, torch.randint(7, (MADE[(p + i) % 4],), generator=source).tolist()) for i in range(count)]
    width = max(len(prompt) + len(made) for prompt, made in rows)
    tokens = torch.tensor([prompt + made + [6] * (width - len(prompt) - len(made)) for prompt, made in rows])
    return tokens, torch.tensor([len(prompt) for prompt, _ in rows]), torch.tensor([len(made) for _, made in rows])


def backbone(**options):
    return Transformer(8, dim=16, layers=2, heads=4, kv_heads=2, max_length=16, causal=True, seed=1, **options).double()


def by_hand(model, tokens_BL, prompt_length_B, completion_length_B):
    """Each text alone, without padding."""
    rows = zip(tokens_BL, prompt_length_B.tolist(), completion_length_B.tolist(), strict=True)
    return torch.cat(
        [model.read(row[None, : width + made])[0, width - 1 : width + made - 1] for row, width, made in rows]
    )


def spied(model, shapes):
    """The model, writing down what it reads."""
    return SimpleNamespace(
        read=lambda tokens, *rest: shapes.append(tuple(tokens.shape)) or model.read(tokens, *rest),
        new_cache=model.new_cache,
    )


@pytest.mark.exact
def test_hidden_states_and_gradients_are_those_of_whole_texts():
    for positions, prompts, cut in itertools.product(
        ("rotary", "learned"),
        (PROMPTS, PROMPTS[:1], [PROMPTS[0], PROMPTS[3], PROMPTS[0]], [[1, 2, 3], [1, 2, 4]]),
        (slice(None), slice(2, 9), slice(5, 6)),
    ):
        model, shapes = backbone(positions=positions), []
        rows = [tensor[cut] for tensor in texts(prompts, 6)]
        weight_nD = torch.randn(int(rows[2].sum()), 16, generator=generator(0, "weight"), dtype=torch.float64)
        found, whole = hidden_before(spied(model, shapes), *rows), by_hand(model, *rows)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-11)
        grads = [
            torch.autograd.grad((hidden * weight_nD).sum(), list(model.parameters()), allow_unused=True)
            for hidden in (found, whole)
        ]
        for name, ours, theirs in zip(dict(model.named_parameters()), *grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)
        assert len(shapes) == (2 if len(rows[0]) > 1 else 1)


def test_a_prompt_is_read_once():
    model, shapes, rows = backbone(), [], texts(PROMPTS, 6)
    hidden_before(spied(model, shapes), *rows)
    assert shapes == [(4, 7), (24, 4)]


def test_prompts_that_differ_are_read_in_one_pass():
    model, shapes, rows = backbone(), [], texts(PROMPTS, 1)
    torch.testing.assert_close(hidden_before(spied(model, shapes), *rows), by_hand(model, *rows), rtol=1e-9, atol=1e-11)
    assert shapes == [(4, rows[0].shape[1] - 1)]


def test_a_prompt_that_goes_on_in_the_next_text_is_another():
    """Equal columns with unequal widths: where a prompt ends belongs to it."""
    tokens_BL, prompt_length_B, completion_length_B = (
        torch.tensor([[1, 2, 3, 4, 5]] * 6),
        torch.tensor([2, 2, 2, 3, 3, 3]),
        torch.tensor([3, 3, 3, 2, 2, 2]),
    )
    model, shapes = backbone(), []
    torch.testing.assert_close(
        hidden_before(spied(model, shapes), tokens_BL, prompt_length_B, completion_length_B),
        by_hand(model, tokens_BL, prompt_length_B, completion_length_B),
        rtol=1e-9,
        atol=1e-11,
    )
    assert shapes[0] == (2, 3)
