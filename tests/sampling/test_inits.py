"""What decoding starts from."""

from __future__ import annotations

import pytest
import torch
from denoisers import REAL, VOCAB, M
from scipy import stats

from research_stack.corruption.process import Absorbing, Uniform
from research_stack.corruption.process import Hybrid as HybridProcess
from research_stack.sampling.inits import FromPrompt, Masks, MasksAndTokens, Noise, RandomTokens, pick_uniformly

EMPTY = torch.zeros(0, dtype=torch.int64)


def start(init, prompts, length=4000, process=None, seed=0):
    draw = torch.rand(len(prompts), 2, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return init(draw, prompts, VOCAB, process)


def uniform_over(tokens, options):
    counts = torch.bincount(tokens, minlength=VOCAB.size)
    assert int(counts.sum()) == int(counts[options].sum())
    return stats.chisquare(counts[options].numpy()).pvalue > 1e-4


def test_masks_and_random_tokens():
    assert (start(Masks(), [EMPTY, EMPTY]) == M).all()
    tokens = start(RandomTokens(), [EMPTY, EMPTY])
    assert uniform_over(tokens[0], REAL) and uniform_over(tokens[1], REAL) and not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_hybrid_masks_a_share_and_the_rest_is_uniform(ratio):
    tokens = start(MasksAndTokens(ratio), [EMPTY])[0]
    assert float((tokens == M).double().mean()) == pytest.approx(ratio, abs=4.5 * 0.5 / 4000**0.5)
    assert ratio == 1 or uniform_over(tokens[tokens != M], REAL)


def test_from_prompt_draws_from_the_rows_own_prompt():
    prompts = [torch.tensor([1, 1, 9, VOCAB.mask, VOCAB.end]), EMPTY, torch.tensor([VOCAB.pad]), torch.tensor([7])]
    tokens = start(FromPrompt(), prompts)
    counts = torch.bincount(tokens[0], minlength=VOCAB.size)
    assert int(counts.sum()) == int(counts[[1, 9]].sum())
    assert stats.chisquare(counts[[1, 9]].numpy(), [4000 * 2 / 3, 4000 / 3]).pvalue > 1e-4
    assert uniform_over(tokens[1], REAL) and uniform_over(tokens[2], REAL) and (tokens[3] == 7).all()


def test_noise_is_the_noisiest_state_of_the_process():
    assert (start(Noise(), [EMPTY], process=Absorbing(10)) == M).all()
    assert (start(Noise(), [EMPTY], process=HybridProcess(10, p_u=0.3)) == M).all()
    assert uniform_over(start(Noise(), [EMPTY], process=Uniform(10))[0], REAL)


def test_choices_at_the_edges():
    draw = torch.tensor([0.0, 0.3333, 0.3334, 0.9999999, 1 - 2**-53], dtype=torch.float64)
    assert pick_uniformly(torch.tensor([3, 5, 7]), draw).tolist() == [3, 3, 5, 7, 7]
