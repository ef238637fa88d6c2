"""Whether 95 % means it: simulated coverage of every kind of interval, on data as the evaluations have them.

A thousand intervals tell 93 from 95 %: their share has a standard error of .007.
"""
from __future__ import annotations

import numpy as np
import pytest
import torch
import toy

from research_stack.corruption.bound import fixed_k_by_level, nelbo_by_level
from research_stack.corruption.process import Absorbing, Hybrid, Uniform
from research_stack.evaluation import calibration, paired
from research_stack.evaluation.interval import CORRELATION, jackknife, per_token
from research_stack.evaluation.levels import balanced
from research_stack.evaluation.passk import SHARE, over_prompts
from research_stack.streams import Draws

pytestmark = pytest.mark.exact

GROUPS = (5, 10, 30)
TIMES = 1000


def close(shares, low=0.925, high=0.975):
    """.93 to .97, and what chance adds to a thousand intervals."""
    assert all(low <= share <= high for share in shares.values()), shares


def covers(intervals, truth):
    return np.mean([low <= truth <= high for _, low, high in intervals])


def sizes(rng, groups, mean=12.0, spread=0.8, least=1):
    """Whole numbers that differ as documents and articles do: the largest of ten is a dozen times the smallest."""
    return np.maximum(least, rng.lognormal(np.log(mean), spread, groups).round().astype(int))


# ------------------------------------------------------------------------------------------- means of tokens
@pytest.mark.parametrize("skewed", [False, True])
def test_nats_per_token_of_documents_of_different_lengths(skewed):
    rng, shares = np.random.default_rng(0), {}
    for groups in (3, *GROUPS):
        found = []
        for _ in range(TIMES):
            tokens_g = 40 * sizes(rng, groups)
            effect_g = (rng.gamma(2, size=groups) - 2) / np.sqrt(2) if skewed else rng.normal(size=groups)
            nats_g = tokens_g * (3 + 0.3 * effect_g) + 2 * np.sqrt(tokens_g) * rng.normal(size=groups)
            found.append(per_token(nats_g, tokens_g))
        shares[groups] = covers(found, 3)
    close(
        shares, low=0.915 if skewed else 0.925
    )  # where documents differ lopsidedly a symmetric interval is a little short


# ------------------------------------------------------------------------------------------- stratified levels
class Worlds(Draws):
    """Draws for many evaluations of the same rows at once: levels are stratified within each."""

    def __init__(self, seed, worlds, rows):
        super().__init__(seed, "coverage", total=worlds * rows)
        self.shape = worlds, rows

    def stratified(self, dtype=torch.float64):
        order_WB = torch.rand(self.shape, generator=self.generator).argsort(1)
        jitter_WB = torch.rand(self.shape, generator=self.generator, dtype=dtype)
        return ((order_WB + jitter_WB) / self.shape[1]).clamp_max(1 - 1e-12).flatten()


class Knowing:
    """A denoiser whose -ln p of the true token depends on the noise, the document and the place, as a trained model's
    does.
    """

    predicts = "leave_one_out"

    def __init__(self, x_BL, eligible_BL, effect_B, n_real):
        self.vocab, self.x_BL, self.eligible_BL, self.at = toy.vocabulary(n_real), x_BL, eligible_BL, 0
        self.hard_BL = 0.6 * torch.randn(x_BL.shape, generator=torch.Generator().manual_seed(1)) + effect_B.unsqueeze(1)

    def logits(self, z_BL, attend_BL=None, t_B=None, where_BL=None):
        rows = slice(self.at, self.at + len(z_BL))  # calls go through the rows in order, level by level
        self.at = rows.stop % len(self.x_BL)
        x_BL, eligible_BL = self.x_BL[rows], self.eligible_BL[rows]
        wrong_B1 = ((z_BL != x_BL) & eligible_BL).sum(1, keepdim=True) / eligible_BL.sum(1, keepdim=True)
        p_BL = torch.exp(-(0.3 + 3 * wrong_B1**0.7 + self.hard_BL[rows]).clamp_min(0.02))
        logits = torch.zeros(*z_BL.shape, self.vocab.size)
        logits[..., : toy.OFFSET] = -torch.inf
        logits.scatter_(-1, x_BL.unsqueeze(-1), torch.log(p_BL / (1 - p_BL) * (self.vocab.n_real - 1)).unsqueeze(-1))
        return logits if where_BL is None else logits[where_BL]


def bounds(process, documents, worlds, length=16, n_real=20, samples=4):
    """(nats, balanced part, tokens, document) of each row of each world, as `Likelihood` has them."""
    rng, generator = np.random.default_rng(documents), torch.Generator().manual_seed(documents)
    document_B = np.repeat(np.arange(documents), sizes(rng, documents, mean=2, spread=0.6))
    rows = len(document_B)
    tokens_B = np.where(
        np.append(np.diff(document_B), 1) > 0, rng.integers(length // 2, length + 1, rows), length
    )  # last rows are short
    eligible_BL = torch.from_numpy(np.arange(length) < tokens_B[:, None]).repeat(worlds, 1)
    x_BL = torch.randint(toy.OFFSET, n_real + toy.OFFSET, eligible_BL.shape, generator=generator)
    effect_B = 0.15 * torch.randn((worlds, documents), generator=generator)[:, document_B].flatten()
    given = (
        Knowing(x_BL, eligible_BL, effect_B, n_real),
        x_BL,
        eligible_BL,
        Worlds(documents, worlds, rows),
        None,
        samples,
    )
    found = nelbo_by_level(given[0], process, *given[1:]) if process.has_uniform else fixed_k_by_level(*given)
    nats_WBS, t_WBS = (values.view(worlds, rows, samples).numpy() for values in found)
    return (
        nats_WBS.mean(2),
        np.stack([balanced(*world) for world in zip(nats_WBS, t_WBS, strict=True)]),
        tokens_B,
        document_B,
    )


@pytest.mark.parametrize("process", [Absorbing(), Hybrid(p_u=0.1), Uniform()], ids=str)
def test_bounds_whose_levels_are_stratified_over_rows(process):
    shares, blind = {}, {}
    for documents in GROUPS:
        nats_WB, balanced_WB, tokens_B, document_B = bounds(process, documents, TIMES // 2)
        truth = nats_WB.mean(0).sum() / tokens_B.sum()
        shares[documents] = covers(
            [per_token(n, tokens_B, document_B, b) for n, b in zip(nats_WB, balanced_WB, strict=True)], truth
        )
        blind[documents] = covers([per_token(n, tokens_B, document_B) for n in nats_WB], truth)
    close(shares, low=0.92, high=0.98)
    if process.has_uniform:  # levels taken for noise: the intervals are too wide
        assert np.mean(list(blind.values())) > np.mean(list(shares.values())) + 0.008, (blind, shares)


def test_balanced_parts_sum_to_nothing_and_need_enough_levels():
    rng = np.random.default_rng(0)
    t_BS = (np.arange(4) + (rng.permuted(np.tile(np.arange(40), (4, 1)), axis=1).T + 0.5) / 40) / 4
    effect_BS = 3 * np.sin(np.pi * t_BS / 2)
    found_B = balanced(effect_BS + 5 * rng.normal(size=40)[:, None], t_BS)
    assert found_B.sum() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(
        found_B, effect_BS.mean(1) - effect_BS.mean(), atol=0.03
    )  # the row's own difficulty is no part of it
    assert not balanced(effect_BS[:2], t_BS[:2]).any() and not balanced(effect_BS[:8, :1], t_BS[:8, :1]).any()


# --------------------------------------------------------------------------------- questions, prompts, predictions
def test_scores_of_questions_of_articles():
    """F1 and differences of it, articles of very different numbers of questions; ratios of two ways."""
    rng, shares = np.random.default_rng(1), {}
    for groups in GROUPS:
        means, differences, ratios = [], [], []
        for _ in range(TIMES):
            group_n = np.repeat(np.arange(groups), sizes(rng, groups))
            hard_n = rng.beta(8, 8, groups)[group_n]
            a_n, b_n = rng.random(len(group_n)) < 0.9 * hard_n, rng.random(len(group_n)) < 0.6 * hard_n
            means.append(paired.mean(a_n, group_n))
            differences.append(paired.paired(a_n, b_n, group_n))
            ratios.append(paired.ratio(a_n, b_n, group_n))
        shares |= {
            (groups, "mean"): covers(means, 0.45),
            (groups, "difference"): covers(differences, 0.15),
            (groups, "ratio"): covers(ratios, 1.5),
        }
    close(shares, high=0.98)  # Fieller's ratio of few articles is a little wide


def test_means_over_prompts():
    rng, shares = np.random.default_rng(2), {}
    for prompts in GROUPS:
        shares[prompts] = covers(
            [over_prompts(rng.binomial(32, rng.beta(2, 3, prompts)) / 32, SHARE)[:3] for _ in range(TIMES)], 0.4
        )
    close(shares)


def test_predictions_of_losses():
    """R2, its difference from another prediction's, and correlations, over documents."""
    rng, shares = np.random.default_rng(3), {}
    for groups in GROUPS:
        found = {"r2": [], "difference": [], "pearson": []}
        for time in range(TIMES):
            group_n = np.repeat(np.arange(groups), sizes(rng, groups, mean=20, spread=0.6, least=5))
            own_n, noise_n = (0.4 * rng.normal(size=groups)[group_n] + rng.normal(size=len(group_n)) for _ in range(2))
            actual_n, other_n = own_n + noise_n, own_n + rng.normal(size=len(own_n))
            found["r2"].append(calibration.r2_interval(own_n, actual_n, group_n))
            found["difference"].append(calibration.r2_difference(own_n, other_n, actual_n, group_n))
            if time % 4 == 0:
                found["pearson"].append(
                    (
                        0,
                        *jackknife(
                            lambda kept_n, x=own_n, y=actual_n: np.corrcoef(x[kept_n], y[kept_n])[0, 1],
                            group_n,
                            CORRELATION,
                        ),
                    )
                )
        truths = {"r2": 0.5, "difference": 1 / 2.32, "pearson": np.sqrt(0.5)}
        shares |= {(groups, name): covers(of, truths[name]) for name, of in found.items()}
    close(shares, low=0.91, high=0.98)
