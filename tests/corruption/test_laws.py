"""What every corruption must obey: what it may touch, how much, with which law, from which draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from research_stack.corruption.diffusion import Diffusion
from research_stack.corruption.modes import Absolute, Conditional, Split
from research_stack.corruption.positions import Positional
from research_stack.corruption.process import Absorbing, Hybrid, Uniform
from research_stack.corruption.protection import PromptTokens, RareTokens
from research_stack.corruption.times import Times
from research_stack.data.vocabulary import Vocabulary
from research_stack.streams import Draws

#: special ids at both ends and in the middle of the real ones
VOCAB = Vocabulary(size=12, mask=5, pad=0, end=11, special=(0, 5, 8, 11))
REAL = [1, 2, 3, 4, 6, 7, 9, 10]
N = len(REAL)
ALL = {
    "absolute": Absolute(0.4, 0.3),
    "ranges": Absolute([0.0, 0.9], [0.0, 0.1]),
    "full": Absolute(0.5, 0.5),
    "conditional": Conditional([0, 1], 0.5),
    "split": Split((0.15, 0.99), 0.8, 0.1),
    "random": Absolute(0.0, [0, 1]),
    "positional": Absolute([0, 0.8], [0, 0.2], positions=Positional(0.2, 1.8, "cosine")),
    "protected": Absolute(0.4, 0.3, protection=PromptTokens(0.3)),
    "rare": Absolute(0.4, 0.3, protection=RareTokens(0.3)),
    "absorbing": Diffusion(Absorbing(), Times(low=1e-3)),
    "uniform": Diffusion(Uniform()),
    "gidd": Diffusion(Hybrid(p_u=0.4)),
    "gidd positional": Diffusion(Hybrid(p_u=0.4), positions=Positional(0.5, 1.5)),
}


def batch(rows, length, seed=0):
    """Rows of a prompt, a text with special tokens strewn in, and padding: (tokens, eligible, prompt)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(REAL)[torch.randint(N, (rows, length), generator=generator)]
    tokens[torch.rand(rows, length, generator=generator) < 0.05] = 8
    prompt = (torch.arange(length) < 3).expand(rows, length).clone()
    padding = torch.arange(length)[None] >= length - torch.randint(0, 4, (rows, 1), generator=generator)
    tokens[padding] = 0
    return tokens, ~prompt & ~padding, prompt


def real_text(rows, length):
    tokens = torch.full((rows, length), 3)
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


@pytest.mark.parametrize("name", ALL)
def test_touches_only_what_it_may_and_reports_what_it_did(name):
    tokens, eligible, prompt = batch(300, 20)
    corruption = ALL[name].bind(VOCAB)
    drawn = corruption(tokens, eligible, Draws(1, total=300), prompt)
    special = torch.isin(tokens, torch.tensor(VOCAB.special))
    assert not (drawn.selected_BL & ~(eligible & ~special)).any()
    assert not (drawn.selected_BL & ~drawn.open_BL).any()
    assert torch.equal(drawn.z_BL == VOCAB.mask, drawn.masked_BL)
    assert torch.equal((drawn.z_BL != tokens) & ~drawn.masked_BL, drawn.replaced_BL)
    assert torch.isin(drawn.z_BL[drawn.replaced_BL], torch.tensor(REAL)).all()
    assert not (drawn.masked_BL & drawn.replaced_BL).any()
    assert not ((drawn.masked_BL | drawn.replaced_BL) & ~drawn.selected_BL).any()
    assert drawn.selected_BL.any()
    assert ((drawn.t_B >= 0) & (drawn.t_B <= 1)).all()
    assert ((drawn.mask_p_BL <= drawn.select_p_BL + 1e-6) & (drawn.select_p_BL <= 1 + 1e-6)).all()


@pytest.mark.parametrize("name", ALL)
def test_masks_and_substitutions_come_as_often_as_reported(name):
    """Position by position: mask_p and select_p are the frequencies, given the level."""
    rows = 20000
    tokens, eligible, prompt = (part.expand(rows, -1) for part in batch(1, 14, seed=3))
    drawn = ALL[name].bind(VOCAB)(tokens, eligible, Draws(2, total=rows), prompt)
    for event, p in ((drawn.masked_BL, drawn.mask_p_BL), (drawn.selected_BL, drawn.select_p_BL)):
        error = (event.double() - p).mean(0).abs()
        assert float(error.max()) < 4.5 * 0.5 / math.sqrt(rows)
    assert drawn.open_BL.any()


@pytest.mark.parametrize("name", ["absolute", "uniform", "split"])
def test_substitutes_are_uniform_over_the_other_real_tokens(name):
    for own in (REAL[0], REAL[4], REAL[-1]):
        tokens = torch.full((4000, 10), own)
        drawn = ALL[name].bind(VOCAB)(tokens, tokens > 0, Draws(3, own, total=4000))
        counts = torch.bincount(drawn.z_BL[drawn.replaced_BL], minlength=VOCAB.size)
        assert int(counts[[i for i in range(VOCAB.size) if i not in REAL or i == own]].sum()) == 0
        assert stats.chisquare(counts[[i for i in REAL if i != own]].numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("mask_ratio", "rate", "length", "masks", "substitutions"),
    [
        (0.5, 0.2, 10, {5}, {2}),
        (0.3, 0.4, 10, {3}, {4}),
        (0.7, 0.0, 10, {7}, {0}),
        (0.0, 0.8, 10, {0}, {8}),
        (0.5, 0.5, 7, {3, 4}, {3, 4}),
        (0.5, 0.2, 9, {4, 5}, {1, 2}),
        (1.0, 0.0, 6, {6}, {0}),
        (0.0, 0.0, 6, {0}, {0}),
    ],
)
def test_absolute_fractions_are_exact_and_rounded_without_bias(mask_ratio, rate, length, masks, substitutions):
    rows = 4000
    tokens, eligible = real_text(rows, length)
    drawn = Absolute(mask_ratio, rate).bind(VOCAB)(tokens, eligible, Draws(4, total=rows))
    for event, counts, ratio in ((drawn.masked_BL, masks, mask_ratio), (drawn.replaced_BL, substitutions, rate)):
        found = event.sum(1)
        assert set(found.tolist()) == counts
        assert float(found.double().mean()) == pytest.approx(ratio * length, abs=4 * 0.5 / math.sqrt(rows))


def test_every_set_of_positions_is_equally_likely():
    """2 masks and 1 substitution among 5 positions: 30 outcomes."""
    rows = 30000
    tokens, eligible = real_text(rows, 5)
    drawn = Absolute(0.4, 0.2).bind(VOCAB)(tokens, eligible, Draws(5, total=rows))
    code = (drawn.masked_BL + 2 * drawn.replaced_BL.long()) @ (3 ** torch.arange(5))
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 30
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_conditional_rate_is_of_the_unmasked():
    tokens, eligible = real_text(2000, 20)
    drawn = Conditional(0.5, 0.3).bind(VOCAB)(tokens, eligible, Draws(6, total=2000))
    assert set(drawn.masked_BL.sum(1).tolist()) == {10}
    assert set(drawn.replaced_BL.sum(1).tolist()) == {3}


def test_split_selects_a_fraction_and_splits_it():
    tokens, eligible = real_text(2000, 100)
    drawn = Split(0.5, 0.8, 0.1).bind(VOCAB)(tokens, eligible, Draws(7, total=2000))
    kept = drawn.selected_BL & ~drawn.masked_BL & ~drawn.replaced_BL
    assert [set(e.sum(1).tolist()) for e in (drawn.selected_BL, drawn.masked_BL, drawn.replaced_BL, kept)] == [
        {50},
        {40},
        {5},
        {5},
    ]


def test_ranges_share_one_level_per_sequence():
    tokens, eligible = real_text(500, 100)
    drawn = Absolute([0.0, 0.8], [0.1, 0.2]).bind(VOCAB)(tokens, eligible, Draws(8, total=500))
    level = drawn.masked_BL.sum(1) / 80
    assert (drawn.replaced_BL.sum(1) - (10 + 10 * level)).abs().max() <= 1.2
    # Stratified: the 500 levels lie one in each 1/500, so their mean is off by far less than that of independent ones.
    assert float(level.mean()) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), Hybrid(p_u=0.4)], ids=str)
def test_diffusion_draws_from_the_marginal_of_its_process(process):
    rows, level = 30000, 0.6
    tokens, eligible = real_text(rows, 1)
    corruption = Diffusion(process, Times(low=level, high=level)).bind(VOCAB)
    z = corruption(tokens, eligible, Draws(9, total=rows)).z_BL[:, 0]
    states = torch.where(z == VOCAB.mask, N, corruption.tables(z.device).index_V[z])
    expected = corruption.process.marginal(torch.tensor(level, dtype=torch.float64))[REAL.index(3)] * rows
    counts = torch.bincount(states, minlength=N + 1)
    possible = expected > 0
    assert int(counts[~possible].sum()) == 0
    assert stats.chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > 1e-4


# Positions and protection
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_positional_rates_keep_the_mean_and_follow_the_shape(shape):
    rows, length = 20000, 11
    tokens, eligible = real_text(rows, length)
    drawn = Absolute(0.3, 0.1, positions=Positional(0.5, 1.5, shape)).bind(VOCAB)(
        tokens, eligible, Draws(10, total=rows)
    )
    place = torch.arange(length) / (length - 1)
    place = place if shape == "linear" else (1 - torch.cos(math.pi * place)) / 2
    weights = 0.5 + place
    weights = weights / weights.mean()
    assert torch.allclose(drawn.masked_BL.float().mean(0), 0.3 * weights, atol=0.015)
    assert torch.allclose(drawn.replaced_BL.float().mean(0), 0.1 * weights, atol=0.015)


def test_saturated_positional_rates_keep_the_mean():
    tokens, eligible = real_text(5000, 10)
    drawn = Absolute(0.9, 0.0, positions=Positional(0.1, 1.9)).bind(VOCAB)(tokens, eligible, Draws(11, total=5000))
    assert float(drawn.select_p_BL.sum(1).mean()) == pytest.approx(9, abs=1e-4)
    assert float(drawn.masked_BL.sum(1).float().mean()) == pytest.approx(9, abs=1e-2)
    assert float(drawn.select_p_BL[:, -1].min()) == pytest.approx(1)


def test_prompt_tokens_are_protected_rarest_first():
    tokens = torch.tensor([[9, 2, 1, 9, 2, 1, 3, 4, 6, 7]])
    prompt = torch.arange(10)[None] < 3
    protect = PromptTokens(share=0.3)  # of 7 positions: two
    rarity = torch.arange(VOCAB.size)
    assert protect(tokens, ~prompt, prompt, rarity)[0].nonzero().flatten().tolist() == [3, 4]
    assert RareTokens(share=0.3)(tokens, ~prompt, prompt, rarity)[0].nonzero().flatten().tolist() == [3, 9]
    counts = torch.ones(VOCAB.size)
    counts[[9, 2]] = 100
    corruption = Absolute(0.5, 0.5, protection=PromptTokens(0.15)).bind(VOCAB, counts)
    drawn = corruption(tokens, ~prompt, Draws(12, total=1), prompt)
    assert (drawn.z_BL != tokens)[0].tolist() == [False] * 3 + [True, True, False] + [True] * 4  # the 1 is rare now


def test_protection_by_the_prompt_refuses_rows_without_prompts():
    tokens, eligible = real_text(2, 5)
    with pytest.raises(ValueError, match="^protection=PromptTokens needs rows with prompts"):
        Absolute(0.5, 0.0, protection=PromptTokens()).bind(VOCAB)(tokens, eligible, Draws(1, total=2))


# Draws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_slices_of_a_batch_see_what_the_whole_batch_sees(name):
    tokens, eligible, prompt = batch(12, 16)
    corruption = ALL[name].bind(VOCAB)
    whole = corruption(tokens, eligible, Draws(3, "corruption", 7, total=12), prompt)
    for rows in (slice(0, 5), slice(5, 12)):
        part = corruption(tokens[rows], eligible[rows], Draws(3, "corruption", 7, total=12, rows=rows), prompt[rows])
        for value, expected in zip(part, whole, strict=True):
            assert torch.equal(value, expected[rows])
    again = corruption(tokens, eligible, Draws(3, "corruption", 8, total=12), prompt)
    assert not torch.equal(again.z_BL, whole.z_BL)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Absolute(mask_ratio=1.7), "mask_ratio=1.7 must lie in"),
        (lambda: Absolute(mask_ratio=[0.7, 0.3]), r"mask_ratio=\[0.7, 0.3\] must lie in"),
        (lambda: Absolute(0.6, 0.6), "mask_ratio=0.6 plus corruption_rate=0.6 must be at most 1"),
        (lambda: Absolute([0, 0.9], [0, 0.2]), "mask_ratio="),
        (lambda: Conditional(0.5, -0.1), "corruption_rate=-0.1 must lie in"),
        (lambda: Split(0.5, 0.8, 0.4), "replace=0.4 must lie in"),
        (lambda: Hybrid(p_u=1.0), "p_u=1.0 must lie in"),
        (lambda: Times(low=0.5, high=0.2), "low=0.5 must lie in"),
        (lambda: Positional(-1, 1), "start=-1"),
        (lambda: RareTokens(1.5), "share=1.5 must lie in"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
