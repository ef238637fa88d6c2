"""The bound against closed forms, enumeration and dynamic programming (oracles 1 to 5, 8 and 9 of the definitions)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import toy

from research_stack.corruption.bound import fixed_k_nelbo, nelbo
from research_stack.corruption.process import Absorbing, Hybrid, Uniform, to_leave_one_out, to_posterior
from research_stack.corruption.times import Times, arcsine, heavy_ended
from research_stack.streams import Draws

pytestmark = pytest.mark.exact

PROCESSES = [
    Absorbing(),
    Hybrid(p_u=0.0),
    Hybrid(p_u=0.05),
    Hybrid(p_u=0.2),
    Hybrid(p_u=0.7),
    Hybrid(p_u=0.95),
    Uniform(),
]


def exact_single(process, p, x):
    """NELBO of token x at L = 1 under the prediction p (N,), by quadrature over t and the sum over z."""
    n = process.n_real
    t, rest, dt = toy.times()
    total = torch.zeros((), dtype=torch.float64)
    q = toy.marginal(process, t, rest)
    logits = p.log().expand(len(t), n)
    for z in range(n + 1):
        values = toy.integrand(process, logits, torch.full((len(t),), x), torch.full((len(t),), z), t, rest)
        total += (dt * q[:, x, z] * values).sum()
    return float(total)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_single_token_with_the_true_law_gives_its_log_probability(process):
    p = toy.joint(5, 1, seed=3)
    process = process.bind(5)
    for x in range(5):
        assert exact_single(process, p, x) == pytest.approx(-math.log(p[x]), abs=1e-9)


def uniform_predictor(process, n, t, rest, dt):
    """NELBO per token of the uniform predictor at vocabulary n: by symmetry three kinds of z (mask, other, same)."""
    process = process.bind(n)
    parts = process.coefficients(t, rest)
    probability = {n: parts.mask, 1: parts.uniform * (n - 1) / n, 0: parts.keep + parts.uniform / n}
    total = 0.0
    for at in torch.arange(len(t)).split(64):
        logits = torch.zeros(len(at), n, dtype=torch.float64)
        for z, q in probability.items():
            values = toy.integrand(process, logits, torch.zeros_like(at), torch.full_like(at, z), t[at], rest[at])
            total += float((dt[at] * q[at] * values).sum())
    return total


@pytest.mark.parametrize("p_u", [0.0, 0.1, 0.2])
def test_uniform_predictor_gives_log_vocabulary(p_u):
    assert uniform_predictor(Hybrid(p_u=p_u), 50257, *toy.times(step=0.5)) == pytest.approx(math.log(50257), abs=1e-4)


def test_uniform_predictor_gives_log_vocabulary_under_uniform_noise():
    assert uniform_predictor(Uniform(), 50257, *toy.times(step=0.5)) == pytest.approx(math.log(50257), abs=1e-4)


@pytest.mark.parametrize(("p_u", "short"), [(0.1, 0.042), (0.2, 0.087)])
def test_truncated_times_fall_below_the_bound_by_the_known_amount(p_u, short):
    """Why `nelbo` cuts nothing off: [1e-4, 1 - 1e-4] loses .042 and .087 nats per token."""
    edge = math.log((1 - 1e-4) / 1e-4)
    x = torch.linspace(-edge, edge, 401, dtype=torch.float64)
    t, rest = torch.sigmoid(x), torch.sigmoid(-x)
    simpson = torch.ones(401, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    dt = t * rest * simpson * (x[1] - x[0]) / 3
    assert math.log(50257) - uniform_predictor(Hybrid(p_u=p_u), 50257, t, rest, dt) == pytest.approx(short, abs=5e-4)


@pytest.mark.parametrize("process", [Absorbing(), Hybrid(p_u=0.1), Hybrid(p_u=0.5), Uniform()], ids=str)
def test_estimator_matches_log_vocabulary_for_a_uniform_predictor_at_any_length(process):
    n, rows = 200, 2048
    for length in (1, 7):
        denoiser = toy.Denoiser(n, lambda z, t: torch.zeros(*z.shape, n))
        tokens = torch.randint(
            toy.OFFSET, n + toy.OFFSET, (rows, length), generator=torch.Generator().manual_seed(length)
        )
        scored = min(length, 5)  # what is not eligible, a prompt say, adds nothing
        eligible = (torch.arange(length) < scored).expand_as(tokens)
        nats = nelbo(denoiser, process, tokens, eligible, Draws(5, "bound", total=rows), samples=4)
        error = float(nats.std() / math.sqrt(rows))
        assert abs(float(nats.mean()) - scored * math.log(n)) < 4 * error + 1e-6
        assert error < 0.1 * scored * math.log(n)


# Small joint laws -----------------------------------------------------------------------------------------------------


def test_sum_over_subsets_of_true_conditionals_is_the_log_probability():
    law = toy.joint(3, 3, seed=1)
    for x in toy.sequences(3, 3):
        assert toy.by_subsets(toy.conditionals(law), x, 3) == pytest.approx(-math.log(law[tuple(x)]), abs=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [lambda *a: nelbo(a[0], Absorbing(), *a[1:], samples=2), lambda *a: fixed_k_nelbo(*a, samples=2)],
    ids=["arcsine", "fixed k"],
)
def test_estimators_of_the_absorbing_bound_agree_with_the_log_probability(estimator):
    law, rows = toy.joint(3, 3, seed=1), 4000
    denoiser = toy.Denoiser(3, toy.conditionals(law))
    for x in toy.sequences(3, 3)[::5]:
        tokens = toy.ids(x, 3).expand(rows, 3)
        nats = estimator(
            denoiser, tokens, torch.ones_like(tokens, dtype=torch.bool), Draws(7, str(x.tolist()), total=rows)
        )
        # Stratification only lowers the error of the mean, so the interval of independent rows is wide enough.
        assert abs(float(nats.mean()) + math.log(law[tuple(x)])) < 4 * float(nats.std()) / math.sqrt(rows)


def exact_nelbo(process, law_logits, x):
    """NELBO of a sequence by quadrature over t and enumeration of z; law_logits(z, i, t, rest) -> (T, N) log p."""
    n, length = process.n_real, len(x)
    t, rest, dt = toy.times(step=0.5, end=60)
    q = toy.marginal(process, t, rest)
    total = torch.zeros((), dtype=torch.float64)
    for z in toy.sequences(n + 1, length):
        weight = dt.clone()
        for i in range(length):
            weight = weight * q[:, x[i], z[i]]
        for i in range(length):
            logits = law_logits(z, i, t, rest)
            values = toy.integrand(process, logits, x[i].expand(len(t)), z[i].expand(len(t)), t, rest)
            total += torch.where(weight > 0, weight * values, 0.0).sum()
    return float(total)


def true_logits(law, process):
    """The leave-one-out prediction, which knows the noise level of the other positions."""
    cache = {}

    def predict(z, i, t, rest):
        key = (tuple(z.tolist()), i)
        if key not in cache:
            q = toy.marginal(process, t, rest)
            cache[key] = torch.stack([toy.leave_one_out(law, z, i, q_t + 1e-300).clamp_min(1e-300).log() for q_t in q])
        return cache[key]

    return predict


@pytest.mark.parametrize("process", [Hybrid(p_u=0.2), Hybrid(p_u=0.7), Uniform()], ids=str)
def test_true_leave_one_out_predictions_make_the_bound_tight(process):
    law, process = toy.joint(3, 2, seed=2), process.bind(3)
    predict = true_logits(law, process)
    for x in toy.sequences(3, 2):
        assert exact_nelbo(process, predict, x) == pytest.approx(-math.log(law[tuple(x)]), abs=1e-6)


def test_posterior_in_place_of_leave_one_out_loosens_the_bound_and_conversion_repairs_it():
    """Four equally likely tokens: ln 4 = 1.39 nats with the right quantity, 1.71 with the posterior in its place."""
    n = 4
    process, vocab = Hybrid(n, p_u=0.1), toy.vocabulary(n)
    t, rest, dt = toy.times()
    q = toy.marginal(process, t, rest)
    flat = torch.zeros(len(t), n + toy.OFFSET, dtype=torch.float64)
    flat[:, : toy.OFFSET] = -torch.inf
    totals = {"leave_one_out": 0.0, "posterior": 0.0, "converted": 0.0}
    for z in range(n + 1):  # x = 0
        z_n = torch.full((len(t),), z)
        posterior = to_posterior(flat, toy.ids(z_n, n), process, t, vocab, rest)
        back = to_leave_one_out(posterior, toy.ids(z_n, n), process, t, vocab, rest)
        for name, logits in (("leave_one_out", flat), ("posterior", posterior), ("converted", back)):
            values = toy.integrand(process, logits[:, toy.OFFSET :], torch.zeros_like(z_n), z_n, t, rest)
            totals[name] += float((dt * q[:, 0, z] * values).sum())
    assert totals["leave_one_out"] == pytest.approx(math.log(4), abs=1e-9)
    assert totals["converted"] == pytest.approx(math.log(4), abs=1e-9)
    assert totals["posterior"] == pytest.approx(1.7146, abs=1e-3)


@pytest.mark.parametrize("process", [Hybrid(p_u=0.2), Uniform()], ids=str)
def test_posteriors_are_leave_one_out_times_the_marginal(process):
    """Against Bayes' rule by enumeration, L = 2."""
    n, process = 3, process.bind(3)
    law, vocab, t = toy.joint(n, 2, seed=6), toy.vocabulary(n), torch.tensor([0.3], dtype=torch.float64)
    q = toy.marginal(process, t, 1 - t)[0]
    for z in toy.sequences(n + 1, 2):
        if not process.has_masks and n in z:
            continue
        weight = law * q[:, z[0]][:, None] * q[:, z[1]][None]
        exact = weight.sum(1) / weight.sum()
        logits = torch.full((1, n + toy.OFFSET), -torch.inf, dtype=torch.float64)
        logits[0, toy.OFFSET :] = toy.leave_one_out(law, z, 0, q).log()
        posterior = to_posterior(logits, toy.ids(z[:1], n), process, t, vocab)
        assert torch.allclose(posterior.softmax(1)[0, toy.OFFSET :], exact, atol=1e-12)
        back = to_leave_one_out(posterior, toy.ids(z[:1], n), process, t, vocab)
        assert torch.allclose(back.softmax(1), logits.softmax(1), atol=1e-12)


def test_a_denoiser_of_posteriors_gets_the_same_bound_as_one_of_leave_one_out_predictions():
    n, rows, law = 4, 3000, toy.joint(4, 2, seed=8)
    process, vocab = Hybrid(n, p_u=0.3), toy.vocabulary(4)
    log_p = law.sum(1).log()

    def posterior(z, t):
        logits = torch.full((z.numel(), n + toy.OFFSET), -torch.inf, dtype=torch.float64)
        logits[:, toy.OFFSET :] = log_p
        level = t.double().clamp(1e-30, 1 - 1e-7)[:, None].expand_as(z).reshape(-1)
        return to_posterior(logits, toy.ids(z.reshape(-1), n), process, level, vocab)[:, toy.OFFSET :].reshape(
            *z.shape, n
        )

    tokens = toy.ids(torch.tensor([[0, 1]]), n).expand(rows, 2)
    eligible = torch.ones_like(tokens, dtype=torch.bool)
    one = toy.Denoiser(n, lambda z, t: log_p.expand(*z.shape, n))
    other = toy.Denoiser(n, posterior, predicts="posterior")
    values = [nelbo(d, process, tokens, eligible, Draws(3, total=rows)) for d in (one, other)]
    # The denoiser sees t in float32, which cannot tell the last levels below 1 apart.
    assert float(torch.isclose(*values, rtol=1e-2, atol=1e-3).double().mean()) > 0.99
    assert float(values[0].mean()) == pytest.approx(
        -float(log_p[0] + log_p[1]), abs=4 * float(values[0].std()) / math.sqrt(rows)
    )


# Fixed k --------------------------------------------------------------------------------------------------------------


def test_constant_cross_entropy_gives_length_times_it_without_variance():
    n, rows = 11, 64
    denoiser = toy.Denoiser(n, lambda z, t: torch.zeros(*z.shape, n))
    tokens = torch.full((rows, 9), toy.OFFSET)
    eligible = torch.arange(9)[None] < (torch.arange(rows) % 10)[:, None]
    nats = fixed_k_nelbo(denoiser, tokens, eligible, Draws(1, "k", total=rows), samples=3)
    assert torch.allclose(nats, eligible.sum(1).double() * math.log(n), rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [5, 6])
def test_number_of_masks_is_exactly_uniform(length):
    n, rows = 3, length * 40
    denoiser = toy.Denoiser(n, lambda z, t: torch.zeros(*z.shape, n))
    tokens = torch.full((rows, length), toy.OFFSET)
    fixed_k_nelbo(denoiser, tokens, torch.ones_like(tokens, dtype=torch.bool), Draws(2, "k", total=rows))
    counts = torch.bincount(torch.cat(denoiser.masks_per_row), minlength=length + 1)
    assert counts.tolist() == [0] + [40] * length  # stratified over a multiple of L rows, each k comes equally often


# Against the exact likelihood of the sampler
# --------------------------------------------------------------------------------


def likelihood(process, predict, steps):
    """p(x) of the reverse chain on 2 positions by dynamic programming over its (N + 1)^2 states; (N, N)."""
    n = process.n_real
    states = toy.sequences(n + 1, 2)
    s = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid = torch.sin(s * math.pi / 2) ** 2
    start = torch.zeros(n + 1, dtype=torch.float64)
    start[n] = 1
    if not process.has_masks:
        start = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    law = torch.outer(start, start)
    p = torch.stack([predict(z) for z in states])  # (S, 2, N)
    for k in range(steps, 0, -1):
        step = [process.reverse(p[:, i], states[:, i], grid[k - 1], grid[k]) for i in range(2)]
        law = torch.einsum("s,sa,sb->ab", law.flatten(), step[0], step[1])
    return law[:n, :n]


@pytest.mark.parametrize("process", [Absorbing(), Hybrid(p_u=0.1), Hybrid(p_u=0.5), Uniform()], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_likelihood_is_never_below_the_bound(process, seed):
    process = process.bind(3)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, 4, 2, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = likelihood(process, lambda z: table[tuple(z)].exp(), steps=400)
    # States the process cannot reach leave a little rounding, nothing else is lost.
    assert float(exact.sum()) == pytest.approx(1, abs=1e-6)
    gaps = []
    for x in toy.sequences(3, 2):
        bound = exact_nelbo(process, lambda z, i, t, rest: table[tuple(z)][i].expand(len(t), 3), x)
        gaps.append(bound + math.log(float(exact[tuple(x)])))
    assert min(gaps) > -2e-3  # what 400 steps differ from continuous time
    assert max(gaps) < 1.5


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        lambda s: s,
        lambda s: s**3,
        lambda s: torch.sin(math.pi * s / 2) ** 2,
        lambda s: 1 - torch.cos(math.pi * s / 2),
        lambda s: 1 - (1 - s) ** 2,
    ],
    ids=["linear", "cubic", "arcsine", "cosine", "quadratic"],
)
def test_absorbing_bound_is_the_same_under_every_schedule(schedule):
    law, process = toy.joint(3, 2, seed=4), Absorbing(3)
    predict = toy.conditionals(law)
    nodes = torch.linspace(0, 1, 20001, dtype=torch.float64)
    s = ((nodes[1:] + nodes[:-1]) / 2).requires_grad_()
    t = schedule(s)
    (slope,) = torch.autograd.grad(t.sum(), s)
    t, dt = t.detach(), slope * (nodes[1] - nodes[0])
    for x in toy.sequences(3, 2)[::4]:
        total = 0.0
        for z in itertools.product(*[(int(v), 3) for v in x]):
            z = torch.tensor(z)
            log_p = predict(z[None], None)[0].double()
            for i in (i for i in range(2) if z[i] == 3):
                masked = int((z == 3).sum())
                values = toy.integrand(
                    process, log_p[i].expand(len(t), 3), x[i].expand(len(t)), z[i].expand(len(t)), t, 1 - t
                )
                total += float((dt * t**masked * (1 - t) ** (2 - masked) * values).sum())
        assert total == pytest.approx(-math.log(law[tuple(x)]), abs=1e-5)


# Variance -------------------------------------------------------------------------------------------------------------


def sharper_with_context(n, share_clean):
    """Log-odds of token 0 that grow with the share of clean tokens, as a trained model's do; (rows, n)."""
    logits = torch.zeros(len(share_clean), n, dtype=torch.float64)
    logits[:, 0] = 6 * share_clean
    return logits


def moments(process, t, rest, slope):
    """Mean and variance of slope * w_t(z, x) g over z, for one token that is token 0, at each t."""
    n, zero = process.n_real, torch.zeros(len(t), dtype=torch.long)
    parts, logits = process.coefficients(t, rest), sharper_with_context(n, rest)
    first, second = torch.zeros_like(t), torch.zeros_like(t)
    for z, q in {n: parts.mask, 1: parts.uniform * (n - 1) / n, 0: parts.keep + parts.uniform / n}.items():
        values = slope * toy.integrand(process, logits, zero, torch.full_like(zero, z), t, rest)
        first, second = first + q * values, second + q * values**2
    return first, second - first**2


@pytest.mark.parametrize("process", [Absorbing(), Hybrid(p_u=0.1), Hybrid(p_u=0.5), Uniform()], ids=str)
def test_substituted_and_stratified_times_cut_the_variance_at_least_by_half(process):
    """The variance of a batch's mean, by quadrature: 16 sequences of 128 tokens, a vocabulary of 50.

    Plain: independent t ~ U(1e-4, 1 - 1e-4). Ours: the levels of `nelbo`, one in each of 16 strata.
    """
    length, rows, nodes = 128, 16, 16 * 4000
    s = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    process = process.bind(50)
    t = 1e-4 + (1 - 2e-4) * s
    mean, within = moments(process, t, 1 - t, torch.ones_like(t))
    plain = (length * within.mean() + length**2 * mean.var()) / rows
    ours_mean, within = moments(process, *(heavy_ended if process.has_uniform else arcsine)(s))
    assert float(ours_mean.mean()) == pytest.approx(float(mean.mean()), rel=0.1)  # the truncation costs some
    ours = (length * within.mean() + length**2 * ours_mean.reshape(rows, -1).var(dim=1).mean()) / rows
    assert float(plain / ours) >= 2


def test_arcsine_and_stratified_levels_of_a_training_batch_cut_the_variance_at_least_by_half():
    """The levels that `Times` draws, under absorbing noise: the mean over z is exact, t and the strata are drawn."""
    length, batches, rows = 128, 400, 16

    def batch_variance(times):
        drawn = [times(Draws(b, "times", total=rows)) for b in range(batches)]
        t, slope = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        mean, within = moments(Absorbing(50), t, 1 - t, slope)
        return float(length**2 * mean.reshape(batches, rows).mean(1).var() + length * within.mean() / rows)

    assert batch_variance(Times(stratified=False)) / batch_variance(Times(stratified=True, arcsine=True)) >= 2


def test_arcsine_levels_of_an_interval_keep_its_integrals():
    levels, slopes = Times(arcsine=True, low=0.2, high=0.6)(Draws(0, "times", total=4000))
    assert 0.2 <= float(levels.min()) < 0.201 and 0.599 < float(levels.max()) <= 0.6
    assert float(slopes.mean()) == pytest.approx(1, abs=1e-4)
    assert float((slopes * levels**2).mean()) == pytest.approx((0.6**3 - 0.2**3) / (3 * 0.4), abs=1e-4)


@pytest.mark.parametrize("substitution", [arcsine, heavy_ended])
def test_substitutions_integrate_and_do_not_cancel(substitution):
    s = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    t, rest, slope = substitution(s)
    assert torch.allclose(t + rest, torch.ones_like(t), atol=1e-15)
    assert float((slope * t**2).mean()) == pytest.approx(1 / 3, abs=1e-8)
    low, high = substitution(torch.tensor([0.0, 1.0], dtype=torch.float64))[:2]
    assert float(low[0]) > 0 and float(high[1]) > 0  # weights stay finite at the ends


def test_second_moment_is_finite_only_with_the_steep_substitution():
    """The second moment of one token's estimate near t = 0 and 1, cut at ever smaller levels: one converges, one
    grows.
    """
    process, n = Hybrid(p_u=0.1).bind(100), 100

    def second_moment(substitution, cut):
        x = torch.linspace(-cut, cut, 4001, dtype=torch.float64)
        s, ds = torch.sigmoid(x), torch.sigmoid(x) * torch.sigmoid(-x) * (x[1] - x[0])
        t, rest, slope = substitution(s)
        parts, one = process.coefficients(t, rest), torch.ones(len(t), dtype=torch.long)
        values = slope * toy.integrand(process, torch.zeros(len(t), n, dtype=torch.float64), 0 * one, one, t, rest)
        return float((ds * parts.uniform * values**2).sum())

    assert second_moment(heavy_ended, 20) == pytest.approx(second_moment(heavy_ended, 10), rel=1e-2)
    assert second_moment(arcsine, 20) > 3 * second_moment(arcsine, 10)
