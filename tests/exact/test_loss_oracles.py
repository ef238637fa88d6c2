"""Losses against their formulas: LLaDA's normalisation, the bound with p_u = 0 (oracle 3), closed form, gradients."""

from __future__ import annotations

import math

import pytest
import torch
import toy

from research_stack.corruption.base import Corrupted
from research_stack.corruption.diffusion import Diffusion
from research_stack.corruption.elbo import bound_terms
from research_stack.corruption.modes import Absolute, Conditional, Split
from research_stack.corruption.process import Absorbing, Hybrid, Uniform
from research_stack.corruption.times import Times
from research_stack.flowlm.losses import DenoisingLoss
from research_stack.streams import Draws

pytestmark = pytest.mark.exact

N = 7
VOCAB = toy.vocabulary(N)
POSITIONS = ("masked", "corrupted", "all")
WEIGHTS = ("none", "inv_t", "elbo", "clip", "dynamic")
CORRUPTIONS = {
    "absorbing": Diffusion(Absorbing()),
    "uniform": Diffusion(Uniform()),
    "gidd": Diffusion(Hybrid(p_u=0.3)),
    "hybrid": Absolute([0.1, 0.6], [0.1, 0.3]),
    "conditional": Conditional(0.4, 0.4),
    "split": Split(0.8, 0.5, 0.3),
}
REFUSED = {
    (c, p, w)
    for c in CORRUPTIONS
    for p in POSITIONS
    for w in WEIGHTS
    if (
        (p == "all" and w == "inv_t")
        or (w in ("elbo", "clip", "dynamic") and c in ("hybrid", "conditional", "split"))
        or (c == "uniform" and p == "masked")
        or (w == "elbo" and p != "all" and c in ("uniform", "gidd"))
    )
}


def one_hot_terms(process, log_p_nN, x, z, t):
    """The GIDD bound of each position written out over all N + 1 states: w (KL + r - ln r - 1)."""
    q = torch.stack([process.marginal(level) for level in t])  # (n, N, N+1)
    q_x = torch.nn.functional.one_hot(x, process.n_real).double().unsqueeze(1).bmm(q).squeeze(1)
    q_p = log_p_nN.exp().unsqueeze(1).bmm(q).squeeze(1)
    kl = torch.where(q_x > 0, q_x * (q_x.clamp_min(1e-300).log() - q_p.clamp_min(1e-300).log()), 0.0).sum(1)
    r = (q_x.gather(1, z.unsqueeze(1)) / q_p.gather(1, z.unsqueeze(1))).squeeze(1)
    return kl + r - r.log() - 1


def batch(corruption, rows=6, length=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(toy.OFFSET, VOCAB.size, (rows, length), generator=generator)
    eligible = torch.ones_like(tokens, dtype=torch.bool)
    eligible[0, :3] = False
    bound = corruption.bind(VOCAB)
    return (
        bound,
        {"tokens": tokens, "eligible": eligible, "attention_mask": torch.ones_like(eligible)},
        bound(tokens, eligible, Draws(seed, total=rows)),
    )


def total(loss, data, drawn, logits):
    """The training objective, as a method computes it: logits only where loss is carried."""
    carry, weight = loss.weights(drawn, data["tokens"], data["eligible"])
    t = drawn.t_B[:, None].expand_as(data["tokens"])[carry]
    terms = loss.token_losses(logits[carry], data["tokens"][carry], drawn.z_BL[carry], t)
    return (terms * weight[carry].double()).sum() / loss.denominator(drawn, data)


def written_out(name, positions, weight, corruption, data, drawn, log_p):
    """The same objective from the formulas, position by position, with no shared code but the process's marginal."""
    process, value = corruption.process, 0.0
    for b in range(len(data["tokens"])):
        t = drawn.t_B[b].double()
        for i in range(data["tokens"].shape[1]):
            x, z = int(data["tokens"][b, i]), int(drawn.z_BL[b, i])
            carried = {
                "masked": z == VOCAB.mask,
                "corrupted": bool(drawn.selected_BL[b, i]),
                "all": bool(data["eligible"][b, i]),
            }
            if not carried[positions]:
                continue
            ce = -log_p[b, i, x - toy.OFFSET]
            if weight == "none":
                value = value + ce
            elif weight == "inv_t":
                p = drawn.mask_p_BL[b, i] if positions == "masked" else drawn.select_p_BL[b, i]
                value = value + ce / p.double()
            else:
                kind = "mask" if z == VOCAB.mask else "same" if z == x else "other"
                w = float(getattr(process.weights(t), kind))
                if weight == "clip":
                    w = min(w, 1.5)
                if weight == "dynamic":
                    w = w * 2 * float(t * (1 - t)) * 1.5
                if w > 0:
                    state = torch.tensor([N if z == VOCAB.mask else z - toy.OFFSET])
                    g = one_hot_terms(process, log_p[b, i][None], torch.tensor([x - toy.OFFSET]), state, t[None])
                    value = value + w * g[0]
    return value / data["attention_mask"].sum()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_loss_and_gradient_are_those_of_the_formula(name, positions, weight):
    """Value and gradient against the written-out sum and against finite differences, and the gradient is not zero."""
    if (name, positions, weight) in REFUSED:
        with pytest.raises(ValueError, match="positions=|weight="):
            DenoisingLoss(positions, weight).bind(CORRUPTIONS[name].bind(VOCAB))
        return
    corruption, data, drawn = batch(CORRUPTIONS[name])
    loss = DenoisingLoss(positions, weight, max_weight=1.5).bind(corruption)
    real = torch.randn(
        *data["tokens"].shape, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    special = torch.full((*data["tokens"].shape, toy.OFFSET), -torch.inf, dtype=torch.float64)

    def objective(values):
        return total(loss, data, drawn, torch.cat([special, values], -1))

    exact = written_out(name, positions, weight, corruption, data, drawn, real.log_softmax(-1))
    ours = objective(real)
    assert float(ours.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(ours, real)
    (expected,) = torch.autograd.grad(exact, real)
    assert float(gradient.norm()) > 1e-4
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    direction = torch.randn(real.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6 * direction
    with torch.no_grad():
        difference = (objective(real + step) - objective(real - step)) / 2e-6
    assert float(difference) == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("process", [Hybrid(p_u=0.2), Uniform()], ids=str)
def test_closed_form_passes_gradcheck(process):
    process = process.bind(N)
    z = torch.tensor([N, 2, 4, 0]) if process.has_masks else torch.tensor([1, 2, 4, 0])
    x, t = torch.tensor([3, 2, 1, 0]), torch.tensor([0.5, 0.01, 0.99, 0.7], dtype=torch.float64)
    logits = torch.randn(4, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    special = torch.full((4, toy.OFFSET), -torch.inf, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda v: bound_terms(torch.cat([special, v], 1), toy.ids(x, N), toy.ids(z, N), 1, process, t), logits
    )


def test_closed_form_holds_in_float32_at_a_large_vocabulary():
    n, rows = 50257, 8
    process = Hybrid(n, p_u=0.1)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, n, generator=generator, dtype=torch.float64)
    x, z = torch.arange(rows), torch.tensor([0, n, 5, n, 4, 9, n, 7])
    t = torch.tensor([0.5, 0.01, 0.99, 0.7, 0.2, 1e-3, 0.999, 0.4], dtype=torch.float64)
    exact, single = (toy.integrand(process, v, x, z, t, 1 - t) for v in (logits, logits.float()))
    assert torch.allclose(single.double(), exact, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("p_u", [0.0, 1e-10])
def test_hybrid_without_substitutions_is_the_absorbing_loss_token_by_token(p_u):
    corruption, data, drawn = batch(Diffusion(Absorbing()), rows=16)
    logits = torch.randn(
        *data["tokens"].shape, VOCAB.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    logits[..., : toy.OFFSET] = -torch.inf
    t = drawn.t_B[:, None].expand_as(data["tokens"])
    values = []
    for process in (Absorbing(), Hybrid(p_u=p_u)):
        loss = DenoisingLoss("all", "elbo").bind(Diffusion(process).bind(VOCAB))
        _, weight = loss.weights(drawn, data["tokens"], data["eligible"])
        terms = loss.token_losses(logits.flatten(0, 1), data["tokens"].flatten(), drawn.z_BL.flatten(), t.flatten())
        values.append(weight * terms.reshape(weight.shape))
    cross_entropy = -logits.log_softmax(-1).gather(2, data["tokens"][..., None])[..., 0]
    assert torch.allclose(values[0], torch.where(drawn.masked_BL, cross_entropy / t, 0.0), rtol=1e-5, atol=1e-12)
    assert torch.allclose(values[0], values[1], rtol=1e-5, atol=1e-5)


def corrupted_by_hand():
    """Two sequences of four tokens: t = .5 and .25, LLaDA's p from it, masks at (0, 1), (0, 3) and (1, 2)."""
    tokens = torch.tensor([[3, 4, 5, 6], [6, 5, 4, 3]])
    masked = torch.tensor([[False, True, False, True], [False, False, True, False]])
    p = (1 - 1e-3) * torch.tensor([0.5, 0.25]) + 1e-3
    p_BL = p[:, None].expand(2, 4)
    no = torch.zeros_like(masked)
    return tokens, Corrupted(tokens.masked_fill(masked, 1), masked, no, masked, p, p_BL, p_BL, ~no, torch.ones(2))


def test_llada_pretraining_divides_by_all_tokens_and_finetuning_by_the_answer():
    """Nie et al. 2025, algorithms 1 and 2, with cross entropies 1, 2 and 4 at the three masks."""
    tokens, drawn = corrupted_by_hand()
    ce = torch.tensor([1.0, 2.0, 4.0])
    corruption = Diffusion(Absorbing(), Times(low=1e-3)).bind(VOCAB)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    data = {"tokens": tokens, "eligible": everywhere, "attention_mask": everywhere}

    loss = DenoisingLoss("masked", "inv_t").bind(corruption)
    carry, weight = loss.weights(drawn, tokens, everywhere)
    assert carry.nonzero().tolist() == [[0, 1], [0, 3], [1, 2]]
    value = (weight[carry] * ce).sum() / loss.denominator(drawn, data)
    assert float(value) == pytest.approx((3 / 0.5005 + 4 / 0.25075) / 8, rel=1e-6)

    answer = torch.tensor([[False, True, True, True], [False, False, True, True]])
    data["eligible"] = answer
    loss = DenoisingLoss("masked", "inv_t", normalize="answer").bind(corruption)
    carry, weight = loss.weights(drawn, tokens, answer)
    value = (weight[carry] * ce).sum() / loss.denominator(drawn, data)
    assert float(value) == pytest.approx((3 / 0.5005 / 3 + 4 / 0.25075 / 2) / 2, rel=1e-6)


def test_expected_llada_loss_of_a_uniform_predictor_is_log_vocabulary():
    """E[sum CE / p / (B L)] = ln N: sampled masks, the law of t and the weights belong together."""
    for times in (Times(low=1e-3), Times(arcsine=True, low=0.0), Times(stratified=False, low=1e-3)):
        corruption = Diffusion(Absorbing(), times).bind(VOCAB)
        tokens = torch.full((20000, 8), toy.OFFSET)
        drawn = corruption(tokens, torch.ones_like(tokens, dtype=torch.bool), Draws(4, total=20000))
        _, weight = DenoisingLoss("masked", "inv_t").bind(corruption).weights(drawn, tokens, tokens > 0)
        rows = weight.sum(1).double() * math.log(N) / 8
        assert float(rows.mean()) == pytest.approx(math.log(N), abs=4 * float(rows.std()) / math.sqrt(20000))


def test_dynamic_weights_are_those_of_the_paper_away_from_the_end():
    """w_max (1 + [z=m] + (B/N e^(-l/2) - 1) [z=x]) of GIDD; ours differs only by r / (1 + r) in place of r at z = x."""
    process = Hybrid(50000, p_u=0.2)
    scale = 2 * 0.2 / 0.8
    for level in (0.05, 0.5, 0.95):
        t = torch.tensor(level, dtype=torch.float64)
        ours = [float(w * 2 * t * (1 - t)) for w in process.weights(t)]
        log_snr = math.log((1 - level) / level)
        assert ours == pytest.approx([2, 1, scale / 50000 * math.exp(-log_snr / 2)], rel=1e-3)
        few = Hybrid(5, p_u=0.2)  # r itself is 0.44 at t = .95 here
        r = scale / 5 * math.exp(-log_snr / 2)
        assert [float(w * 2 * t * (1 - t)) for w in few.weights(t)] == pytest.approx([2, 1, r / (1 + r)], rel=1e-12)
