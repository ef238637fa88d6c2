"""Whether 95 % means it: how often each kind of interval holds the truth, on data as the evaluations have them.

    python benchmarks/coverage.py [--times 1000]

Each cell is the share of so many simulated evaluations whose interval holds the truth, and the standard error of that
share. Groups are documents, articles or prompts, of very different sizes. An interval that is not defined holds
nothing. The rows of each kind:

- reported: what the evaluations print.
- blind: of bounds, the same with noise levels taken for noise, though they are stratified over the rows
  (`research_stack.metrics.stratification`).
- bootstrap: 2.5 and 97.5 % of the values of groups that are drawn anew with replacement.
- student: the standard deviation of the linearised residuals of groups over sqrt(groups), times Student's t for
  groups - 1: without what `research_stack.metrics.interval` does about unequal sizes and bent statistics.

`tests/exact/test_coverage.py` holds the same simulations to limits.

Shapes: n parts, g groups, P prompts; B rows, L positions and S levels of a bound, W evaluations of it at once; R
resamples, K sums of a group, a statistic being a function of their totals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch

from research_stack.corruption.bound import fixed_k_by_level, nelbo_by_level
from research_stack.corruption.process import Absorbing, Hybrid, Uniform
from research_stack.data.vocabulary import Vocabulary
from research_stack.metrics import calibration, paired, passk
from research_stack.metrics.interval import CORRELATION, FEW, jackknife, per_token, t_quantile
from research_stack.metrics.stratification import balanced_part
from research_stack.streams import Draws

GROUPS = (2, 3, 5, 8, 10, 30)
MEANT = 0.93, 0.97  # from 5 groups on
RESAMPLES = 1999
ATTEMPTS, TAKEN = 32, 8  # at each prompt; k of pass@k
NONE = 1 / 11  # how often none of 8 is right, each with p of beta(2, 3): E (1 - p)^8


def sizes(rng, groups, mean=12.0, spread=0.8, least=1):
    """Whole numbers that differ as documents and articles do: the largest of ten is a dozen times the smallest."""
    return np.maximum(least, rng.lognormal(np.log(mean), spread, groups).round().astype(int))


# ---------------------------------------------------------------------- worlds: (groups, times) -> data of each time
def documents(groups, times, skewed):
    """[(nats_g, tokens_g), ...] of documents that are hard by chance, in a lopsided way or not; 3 nats per token."""
    rng, found = np.random.default_rng([0, groups]), []
    for _ in range(times):
        tokens_g = 40 * sizes(rng, groups)
        effect_g = (rng.gamma(2, size=groups) - 2) / np.sqrt(2) if skewed else rng.normal(size=groups)
        found.append((tokens_g * (3 + 0.3 * effect_g) + 2 * np.sqrt(tokens_g) * rng.normal(size=groups), tokens_g))
    return found


def questions(groups, times):
    """[(a_n, b_n, article_n), ...]: two ways to answer questions of articles, right with .45 and .3 in the mean."""
    rng, found = np.random.default_rng([1, groups]), []
    for _ in range(times):
        group_n = np.repeat(np.arange(groups), sizes(rng, groups))
        hard_n = rng.beta(8, 8, groups)[group_n]
        found.append((rng.random(len(group_n)) < 0.9 * hard_n, rng.random(len(group_n)) < 0.6 * hard_n, group_n))
    return found


def prompts(groups, times):
    """[(right_P,), ...]: right ones of 32 attempts, some prompts harder than others."""
    rng = np.random.default_rng([2, groups])
    return [(rng.binomial(ATTEMPTS, rng.beta(2, 3, groups)),) for _ in range(times)]


def predictions(groups, times):
    """[(predicted_n, other_n, actual_n, document_n), ...]: losses, and two predictions of them; both vary with the
    document.
    """
    rng, found = np.random.default_rng([3, groups]), []
    for _ in range(times):
        group_n = np.repeat(np.arange(groups), sizes(rng, groups, mean=20, spread=0.6, least=5))
        own_n, noise_n = (0.4 * rng.normal(size=groups)[group_n] + rng.normal(size=len(group_n)) for _ in range(2))
        found.append((own_n, own_n + rng.normal(size=len(own_n)), own_n + noise_n, group_n))
    return found


class Stratified(Draws):
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
    vocab = Vocabulary(size=23, mask=1, pad=0, end=2, special=(0, 1, 2))

    def __init__(self, x_BL, eligible_BL, effect_B):
        self.x_BL, self.eligible_BL, self.at = x_BL, eligible_BL, 0
        self.hard_BL = 0.6 * torch.randn(x_BL.shape, generator=torch.Generator().manual_seed(1)) + effect_B.unsqueeze(1)

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        rows = slice(self.at, self.at + len(z_BL))  # calls go through the rows in order, level by level
        self.at = rows.stop % len(self.x_BL)
        x_BL, eligible_BL = self.x_BL[rows], self.eligible_BL[rows]
        wrong_B1 = ((z_BL != x_BL) & eligible_BL).sum(1, keepdim=True) / eligible_BL.sum(1, keepdim=True)
        p_BL = torch.exp(-(0.3 + 3 * wrong_B1**0.7 + self.hard_BL[rows]).clamp_min(0.02))
        logits = torch.zeros(*z_BL.shape, self.vocab.size)
        logits[..., : len(self.vocab.special)] = -torch.inf
        logits.scatter_(-1, x_BL.unsqueeze(-1), torch.log(p_BL / (1 - p_BL) * (self.vocab.n_real - 1)).unsqueeze(-1))
        return logits if where_BL is None else logits[where_BL]


def bounds(groups, times, process, length=16, samples=4):
    """[(nats_B, balanced_B, tokens_B, document_B), ...] of the rows of each evaluation, as `Likelihood` has them."""
    rng, generator = np.random.default_rng(groups), torch.Generator().manual_seed(groups)
    document_B = np.repeat(np.arange(groups), sizes(rng, groups, mean=2, spread=0.6))
    rows, last_B = len(document_B), np.append(np.diff(document_B), 1) > 0  # last rows of a document are short
    tokens_B = np.where(last_B, rng.integers(length // 2, length + 1, rows), length)
    eligible_BL = torch.from_numpy(np.arange(length) < tokens_B[:, None]).repeat(times, 1)
    x_BL = torch.randint(len(Knowing.vocab.special), Knowing.vocab.size, eligible_BL.shape, generator=generator)
    effect_B = 0.15 * torch.randn((times, groups), generator=generator)[:, document_B].flatten()
    given = x_BL, eligible_BL, Stratified(groups, times, rows), None, samples
    denoiser = Knowing(x_BL, eligible_BL, effect_B)
    found = nelbo_by_level(denoiser, process, *given) if process.has_uniform else fixed_k_by_level(denoiser, *given)
    nats_WBS, t_WBS = (values.view(times, rows, samples).numpy() for values in found)
    return [
        (nats_BS.mean(1), balanced_part(nats_BS, t_BS), tokens_B, document_B)
        for nats_BS, t_BS in zip(nats_WBS, t_WBS, strict=True)
    ]


# --------------------------------------------------------- what is estimated, as a function of the sums of the groups
def by_group(group_n, *columns_n):
    """(g, K) sums of each column over each group."""
    return np.stack([np.bincount(group_n, weights=column_n) for column_n in columns_n], axis=1)


def quotient(sums_K):
    return sums_K[..., 0] / sums_K[..., 1]


def explained(sums_K, of=3):
    """R2 from sums of 1, y, y^2 and squared errors."""
    return 1 - sums_K[..., of] / (sums_K[..., 2] - sums_K[..., 1] ** 2 / sums_K[..., 0])


def correlation(sums_K):
    """From sums of 1, x, y, x^2, y^2, xy."""
    n, x, y, xx, yy, xy = np.moveaxis(sums_K, -1, 0)
    return (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))


def diversity(sums_K):
    """Normalised DER from sums of 1, pass@1 and pass@k."""
    first, value = sums_K[..., 1] / sums_K[..., 0], sums_K[..., 2] / sums_K[..., 0]
    return (value - first) / (np.minimum(1, TAKEN * first) - first)


def errors(own_n, other_n, actual_n, group_n):
    squares = [np.square(predicted_n - actual_n) for predicted_n in (own_n, other_n)]
    return by_group(group_n, np.ones(len(actual_n)), actual_n, actual_n**2, *squares)


class Kind(NamedTuple):
    """A kind of interval: the data, what is reported of them, and how its value comes from sums of the groups."""

    world: Callable
    truth: float | None  #: None: the value of all evaluations together
    reported: Callable  #: of data -> (low, high)
    sums: Callable  #: of data -> (g, K)
    value: Callable = quotient
    blind: Callable | None = None


def over_documents(skewed):
    return Kind(
        partial(documents, skewed=skewed), 3.0, lambda *data: per_token(*data)[1:], lambda *data: np.stack(data, 1)
    )


def bound(process):
    return Kind(
        partial(bounds, process=process),
        None,
        lambda nats_B, balanced_B, tokens_B, document_B: per_token(nats_B, tokens_B, document_B, balanced_B)[1:],
        lambda nats_B, _, tokens_B, document_B: by_group(document_B, nats_B, tokens_B),
        blind=lambda nats_B, _, tokens_B, document_B: per_token(nats_B, tokens_B, document_B)[1:],
    )


def correlated(own_n, _, actual_n, group_n):
    return jackknife(lambda kept_n: np.corrcoef(own_n[kept_n], actual_n[kept_n])[0, 1], group_n, CORRELATION)


KINDS = {
    "nats per token": over_documents(skewed=False),
    "nats, lopsided": over_documents(skewed=True),
    "absorbing bound": bound(Absorbing()),
    "hybrid bound": bound(Hybrid(p_u=0.1)),
    "uniform bound": bound(Uniform()),
    "score": Kind(
        questions,
        0.45,
        lambda a_n, b_n, group_n: paired.mean(a_n, group_n)[1:],
        lambda a_n, b_n, group_n: by_group(group_n, a_n, np.ones(len(a_n))),
    ),
    "score difference": Kind(
        questions,
        0.15,
        lambda *data: paired.paired(*data)[1:],
        lambda a_n, b_n, group_n: by_group(group_n, a_n * 1.0 - b_n, np.ones(len(a_n))),
    ),
    "score ratio": Kind(
        questions, 1.5, lambda *data: paired.ratio(*data)[1:], lambda a_n, b_n, group_n: by_group(group_n, a_n, b_n)
    ),
    "pass@1": Kind(
        prompts,
        0.4,
        lambda right_P: passk.over_prompts(right_P / ATTEMPTS, passk.SHARE)[1:3],
        lambda right_P: np.stack([right_P / ATTEMPTS, np.ones(len(right_P))], 1),
    ),
    "pass@8": Kind(
        prompts,
        1 - NONE,
        lambda right_P: passk.over_prompts(passk.pass_at_k(ATTEMPTS, right_P, TAKEN), passk.SHARE)[1:3],
        lambda right_P: np.stack([passk.pass_at_k(ATTEMPTS, right_P, TAKEN), np.ones(len(right_P))], 1),
    ),
    "normalised DER": Kind(
        prompts,
        (1 - NONE - 0.4) / (1 - 0.4),
        lambda right_P: passk.der_band(np.full(len(right_P), ATTEMPTS), right_P, TAKEN)[1:3],
        lambda right_P: np.stack(
            [np.ones(len(right_P)), right_P / ATTEMPTS, passk.pass_at_k(ATTEMPTS, right_P, TAKEN)], 1
        ),
        diversity,
    ),
    "R2": Kind(
        predictions,
        0.5,
        lambda own_n, _, actual_n, group_n: calibration.r2_interval(own_n, actual_n, group_n)[1:],
        errors,
        explained,
    ),
    "R2 difference": Kind(
        predictions,
        1 / 2.32,
        lambda *data: calibration.r2_difference(*data)[1:],
        errors,
        lambda sums_K: explained(sums_K) - explained(sums_K, of=4),
    ),
    "correlation": Kind(
        predictions,
        np.sqrt(0.5),
        correlated,
        lambda x_n, _, y_n, group_n: by_group(group_n, np.ones(len(x_n)), x_n, y_n, x_n**2, y_n**2, x_n * y_n),
        correlation,
    ),
}


# ------------------------------------------------------------------------------------------------ intervals and shares
@lru_cache
def resamples(groups):
    """(R, g) how often each group is drawn."""
    return np.random.default_rng(groups).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)


def bootstrap(sums_gK, value):
    """(low, high): percentiles over groups that are drawn anew."""
    values_R = np.sort(value(resamples(len(sums_gK)) @ sums_gK))
    out = round(0.025 * (RESAMPLES + 1)) - 1
    return values_R[out], values_R[-1 - out]


def linearised(sums_gK, value, step=1e-5):
    """(low, high) from the slopes of the value in the weight of each group."""
    groups, total_K = len(sums_gK), sums_gK.sum(0)
    slope_g = (value(total_K + step * sums_gK) - value(total_K - step * sums_gK)) / (2 * step)
    reach = t_quantile(groups - 1) * np.sqrt(groups / (groups - 1) * np.square(slope_g).sum())
    return value(total_K) - reach, value(total_K) + reach


@lru_cache(maxsize=1)  # kinds of the same data stand side by side
def evaluations(world, groups, times):
    return world(groups, times)


def shares(name, groups, times, forms=("reported",)):
    """{form: share of the intervals that hold the truth}, of the forms that this kind has."""
    kind, data = KINDS[name], evaluations(KINDS[name].world, groups, times)
    ways = {
        "reported": kind.reported,
        "blind": kind.blind,
        "bootstrap": lambda *given: bootstrap(kind.sums(*given), kind.value),
        "student": lambda *given: linearised(kind.sums(*given), kind.value),
    }
    truth = kind.value(sum(kind.sums(*given).sum(0) for given in data)) if kind.truth is None else kind.truth
    found = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # resamples of few groups without anything right
        for form in (form for form in forms if ways[form] is not None):
            ends = [ways[form](*given) for given in data]
            found[form] = float(np.mean([low <= truth <= high for low, high in ends]))
    return found


def measure(times):
    """{kind: {form: {groups: share}}}"""
    table = {}
    for world in dict.fromkeys(kind.world for kind in KINDS.values()):
        for groups in GROUPS:
            for name in (name for name, kind in KINDS.items() if kind.world is world):
                for form, share in shares(name, groups, times, ("reported", "blind", "bootstrap", "student")).items():
                    table.setdefault(name, {}).setdefault(form, {})[groups] = share
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="simulated evaluations in each cell")
    times = parser.parse_args().times
    if times < 1:
        parser.error(f"--times {times} must be at least 1")
    started = time.monotonic()
    table = measure(times)
    print(f"{'kind':<17} {'interval':<10}" + "".join(f"{f'{groups} groups':>14}" for groups in GROUPS))
    for name, rows in table.items():
        for form, row in rows.items():
            cells = (f"{share:.3f} ± {np.sqrt(share * (1 - share) / times):.3f}" for share in row.values())
            print(f"{name:<17} {form:<10}" + "".join(f"{cell:>14}" for cell in cells))
    low, high = MEANT
    outside = {
        f"{name}, {groups} groups": share
        for name, rows in table.items()
        for groups, share in rows["reported"].items()
        if groups >= FEW and not low <= share <= high
    }
    told = "; ".join(f"{where} {share:.3f}" for where, share in outside.items()) or "none"
    print(f"reported, outside of {low} to {high} from {FEW} groups on: {told}")
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"times": times, "seconds": seconds, "outside": outside, "table": table}))


if __name__ == "__main__":
    main()
