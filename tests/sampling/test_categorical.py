"""Drawing by inversion: against a running sum in float64, at its edges, and its law."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from research_stack.sampling.categorical import BLOCK, draw, first_above

LAST = 1 - 2**-24  # the largest number that torch.rand gives in float32


def logits_of(rows, vocabulary, seed=0, sharpness=2.0, dtype=torch.float64, ruled_out=0.3):
    """Random logits, some tokens of each row (never all) at -inf."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    out = torch.rand(rows, vocabulary, generator=generator) < ruled_out
    out[torch.arange(rows), torch.randint(vocabulary, (rows,), generator=generator)] = False
    return logits.masked_fill(out, -torch.inf).to(dtype)


def uniform(rows, seed=1):
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed))


def plain_search(logits, u):
    """(n,) by one running sum in float64 and a loop over the tokens."""
    weights = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    found = []
    for row, number in zip(weights.cumsum(-1).tolist(), u.double().tolist(), strict=True):
        found.append(next(v for v, upto in enumerate(row) if upto > number * row[-1]))
    return torch.tensor(found)


def test_inverts_the_distribution_function():
    for vocabulary in (1, 2, 11, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1025):
        logits, u = logits_of(3000, vocabulary), uniform(3000)
        assert torch.equal(draw(logits, u), plain_search(logits, u))


@pytest.mark.parametrize(
    "vocabulary, rows, near", [(5, 400, 2e-7), (64, 400, 2e-7), (5000, 300, 3e-8), (50000, 60, 3e-8)]
)
def test_float32_logits_of_a_large_vocabulary_have_sharp_steps(vocabulary, rows, near):
    """The running sum is one of float64 over the blocks: numbers just below and above a step give the tokens on its two
    sides.
    """
    logits = logits_of(rows, vocabulary, dtype=torch.float32, ruled_out=0.0, sharpness=1.0)
    upto = (logits - logits.amax(-1, keepdim=True)).exp().double().cumsum(-1)
    token = torch.randint(vocabulary - 1, (rows,), generator=torch.Generator().manual_seed(3))
    step = (upto / upto[:, -1:]).gather(1, token.unsqueeze(1)).squeeze(1)
    assert torch.equal(draw(logits, step - near), token)
    assert torch.equal(draw(logits, step + near), token + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_edges_are_the_first_and_the_last_possible_token(dtype):
    for vocabulary in (2, 70, 300, 5000):
        logits = logits_of(500, vocabulary, dtype=dtype, sharpness=0.5, ruled_out=0.8)
        possible = torch.isfinite(logits)
        numbers = torch.arange(vocabulary).expand_as(logits)
        first = numbers.masked_fill(~possible, vocabulary).amin(-1)
        last = numbers.masked_fill(~possible, -1).amax(-1)
        assert torch.equal(draw(logits, torch.zeros(500)), first)
        assert torch.equal(draw(logits, torch.full((500,), LAST)), last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_zero_is_never_drawn(dtype):
    logits = logits_of(2000, 333, dtype=dtype, ruled_out=0.9)
    logits[::2, -100:] = -1e4  # whose exponential is 0 too
    logits[::2, 0] = 0.0
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    for u in (
        torch.zeros(2000),
        torch.full((2000,), LAST),
        uniform(2000),
        1 - uniform(2000) * 2**-20,
        uniform(2000) * 1e-30,
    ):
        assert bool((weights.gather(1, draw(logits, u.clamp_max(LAST)).unsqueeze(1)) > 0).all())


def test_one_possible_token_is_the_one():
    for at in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 199):
        logits = torch.full((5, 200), -torch.inf)
        logits[:, at] = -3.0
        assert draw(logits, torch.tensor([0.0, 1e-30, 0.5, 0.999, LAST])).tolist() == [at] * 5


@pytest.mark.parametrize("at, after", [(1 / 3, 1), (2 / 3, 2)])
def test_a_step_belongs_to_the_token_above_it(at, after):
    """u in [k/4, (k+1)/4) gives token k of four alike."""
    logits = torch.zeros(8, 4)
    u = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.5 - 2**-24, 0.5, 0.75 - 2**-24, 0.75, LAST])
    assert draw(logits, u).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    three = torch.zeros(2, 3, dtype=torch.float64)
    assert draw(three, torch.tensor([at - 1e-9, at + 1e-9], dtype=torch.float64)).tolist() == [after - 1, after]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(7, torch.float64), (150, torch.float32)])
def test_follows_the_distribution(vocabulary, dtype):
    logits, count = logits_of(1, vocabulary, seed=4, sharpness=1.0, dtype=dtype, ruled_out=0.1), 100_000
    seen = torch.bincount(draw(logits.expand(count, -1), uniform(count, seed=9)), minlength=vocabulary)
    expected = count * logits[0].double().softmax(-1)
    assert int(seen[expected == 0].sum()) == 0
    possible = expected > 0
    assert (
        stats.chisquare(seen[possible].numpy(), expected[possible].numpy() * count / float(expected.sum())).pvalue
        > 1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_the_others(dtype):
    logits, u = logits_of(257, 200, dtype=dtype), uniform(257)
    together = draw(logits, u)
    assert torch.equal(torch.cat([draw(logits[i : i + 1], u[i : i + 1]) for i in range(257)]), together)
    order = torch.randperm(257, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits[order], u[order]), together[order])


def test_is_the_same_for_shifted_logits_and_leaves_them_alone():
    logits, u = logits_of(500, 99), uniform(500)
    before = logits.clone()
    assert torch.equal(draw(logits + 300.0, u), draw(logits, u))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row.fill_(-torch.inf),
        lambda row: row[67:68].fill_(torch.nan),
        lambda row: row.fill_(torch.nan),
        lambda row: row[5:6].fill_(torch.inf),
        lambda row: row[66:].fill_(torch.inf),
    ],
    ids=["all ruled out", "a nan", "all nan", "infinite", "infinite in the last block"],
)
def test_a_row_without_a_law_is_refused_or_gives_token_0(spoil):
    logits, u = logits_of(4, 70, dtype=torch.float32), uniform(4)
    sound = draw(logits, u)
    assert torch.equal(draw(logits, u, trusted=True), sound) and int(sound[2]) > 0
    spoil(logits[2])
    with pytest.raises(ValueError, match="^logits: a row has no finite largest value[^\n]*$"):
        draw(logits, u)
    sound[2] = 0
    assert torch.equal(draw(logits, u, trusted=True), sound)


def test_no_rows_give_no_tokens():
    assert draw(torch.zeros(0, 70), torch.zeros(0)).shape == (0,)


def test_a_running_sum_that_rounding_left_too_small_ends_at_its_last_step():
    upto = torch.tensor([[0.0, 0.25, 0.25, 0.75, 0.75]], dtype=torch.float64)
    targets = torch.tensor([[0.0], [0.25], [0.7], [0.75], [0.9]], dtype=torch.float64)
    assert first_above(upto.expand(5, -1).contiguous(), targets).flatten().tolist() == [1, 3, 3, 3, 3]
