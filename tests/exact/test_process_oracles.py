"""Kernels of the processes (oracle 6), their weights and coefficients against the definition."""

from __future__ import annotations

import pytest
import torch

from research_stack.corruption.process import Absorbing, Hybrid, Uniform, nearest

pytestmark = pytest.mark.exact

N = 5
PROCESSES = [Absorbing(N), Hybrid(N, p_u=0.0), Hybrid(N, p_u=0.1), Hybrid(N, p_u=0.8), Uniform(N)]
PAIRS = [(0.0, 0.3), (0.2, 0.2), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0), (1e-6, 1 - 1e-6)]


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_kernels_are_laws_and_compose(process, pair):
    s, t = map(scalar, pair)
    kernel, before, after = process.kernel(s, t), process.marginal(s), process.marginal(t)
    for matrix in (kernel, before, after):
        assert float(matrix.min()) >= -1e-15
        assert torch.allclose(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(before @ kernel, after, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_posterior_kernels_follow_bayes(process, pair):
    s, t = map(scalar, pair)
    kernel, before, after = process.kernel(s, t), process.marginal(s), process.marginal(t)
    for x in range(N):
        for z in range(N + 1):
            if after[x, z] > 0:
                exact = before[x] * kernel[:, z] / after[x, z]
                one_hot = torch.eye(N, dtype=torch.float64)[x : x + 1]
                ours = process.reverse(one_hot, torch.tensor([z]), s, t)[0]
                assert torch.allclose(ours, exact, atol=1e-12)
                assert float(ours.min()) >= 0 and float(ours.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_reverse_with_a_true_prediction_leads_from_one_marginal_to_the_other(process):
    p = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04], dtype=torch.float64)
    s, t = scalar(0.35), scalar(0.8)
    reverse = process.reverse(p.expand(N + 1, N), torch.arange(N + 1), s, t)
    assert torch.allclose((p @ process.marginal(t)) @ reverse, p @ process.marginal(s), atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_weights_are_jump_rates_over_marginals(process):
    """w_t(z, x) = lim q_{t|t-h}(z|y) / h / q_t(z|x), y another state, against a finite difference of the kernel."""
    h = 1e-7
    for level in (0.05, 0.5, 0.93):
        t = scalar(level)
        kernel, marginal, weights = process.kernel(t - h, t), process.marginal(t), process.weights(t)
        expected = {
            "mask": kernel[0, N] / h / marginal[0, N],
            "other": kernel[0, 1] / h / marginal[0, 1],
            "same": kernel[1, 0] / h / marginal[0, 0],
        }
        for name, value in expected.items():
            if torch.isfinite(value) and kernel.shape and marginal[0, {"mask": N, "other": 1, "same": 0}[name]] > 0:
                assert float(getattr(weights, name)) == pytest.approx(float(value), rel=1e-5, abs=1e-9)


def test_hybrid_has_the_uniform_share_it_names_and_the_closed_form():
    for p_u in (0.05, 0.2, 0.9):
        half = Hybrid(N, p_u=p_u).coefficients(scalar(0.5))
        assert float(half.uniform) == pytest.approx(p_u, abs=1e-12)
        t, scale = 0.3, 2 * p_u / (1 - p_u)
        c = scale * (t * (1 - t)) ** 0.5
        parts = Hybrid(N, p_u=p_u).coefficients(scalar(t))
        assert [float(v) for v in parts] == pytest.approx([(1 - t) / (1 + c), t / (1 + c), c / (1 + c)], abs=1e-12)


@pytest.mark.parametrize(
    ("mask", "replaced", "kind"),
    [(0.5, 0.0, Absorbing), (0.0, 0.4, Uniform), (0.45, 0.05, Hybrid), (0.3, 0.4, Hybrid), (0.5, 0.5, Hybrid)],
)
def test_nearest_process_passes_through_the_fractions(mask, replaced, kind):
    process = nearest(mask, replaced, 1000)
    assert type(process) is kind
    t = process.time_of(scalar(mask), scalar(replaced))
    if mask + replaced < 1:
        parts = process.coefficients(t)
        assert float(parts.mask) == pytest.approx(mask, abs=1e-9)
        assert float(parts.uniform) * 999 / 1000 == pytest.approx(replaced, abs=1e-9)


def test_a_state_that_cannot_occur_stays():
    p = torch.full((1, N), 1 / N, dtype=torch.float64)
    law = Absorbing(N).reverse(p, torch.tensor([2]), scalar(0.5), scalar(1.0))
    assert law[0, 2] == 1 and float(law.sum()) == 1
