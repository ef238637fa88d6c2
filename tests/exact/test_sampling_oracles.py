"""Decoders against exact laws and plain loops (oracles 7 and 10 of the definitions, and the chain of oracle 8)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import toy
from scipy import stats

from research_stack.config.build import build
from research_stack.config.composer import Composer
from research_stack.corruption.process import Absorbing, Hybrid, Uniform, to_posterior
from research_stack.sampling import inits
from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import All, PerStep, Remasking, ReMDM, Schedule, Threshold
from research_stack.sampling.inits import FromPrompt, Masks, Noise
from research_stack.sampling.proposers import Reverse
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import AllPositions, AnyPosition, Confidence, Entropy, Margin, RandomOrder
from research_stack.sampling.state import RowStreams
from research_stack.sampling.stoppers import Budget, FixedPoint, Steps

pytestmark = pytest.mark.exact

PROCESSES = [Absorbing(), Hybrid(p_u=0.1), Hybrid(p_u=0.7), Uniform()]
P = torch.tensor([0.55, 0.3, 0.1, 0.05], dtype=torch.float64)
COMPOSER = Composer()


def named(name, *overrides):
    """The decoder of a file in conf/sampler."""
    return build(COMPOSER.compose([f"sampler={name}", *overrides]).cfg.sampler, "sampler")


def masked(selector, committer, proposer=None, **settings):
    """A decoder that starts from masks and takes all its steps."""
    return Sampler(Masks(), proposer or Temperature(1.0), selector, committer, Steps(), **settings)


def ancestral(process, **settings):
    parts = Noise(), Reverse(), AllPositions(), All(), Steps()
    return Sampler(*parts, reads="leave_one_out", times="schedule", process=process, **settings)


def states(tokens):
    """Token ids to states; fails at anything that is no real token."""
    assert int(tokens.min()) >= toy.OFFSET
    return tokens - toy.OFFSET


def agrees(found, distribution):
    """Whether decoded states (rows, L) follow the law, a tensor (N,) * L."""
    size = torch.tensor([distribution.shape[0] ** i for i in reversed(range(distribution.dim()))])
    counts = torch.bincount((found * size).sum(1), minlength=distribution.numel())
    expected = distribution.flatten() / distribution.sum() * len(found)
    possible = expected > 1e-9
    assert int(counts[~possible].sum()) == 0
    counts, expected = counts[possible].numpy(), expected[possible].numpy()
    return len(counts) == 1 or float(stats.chisquare(counts, expected).pvalue) > 1e-4


# Oracle 7: one position -----------------------------------------------------------------------------------------------

ONE = {
    **{f"ancestral {process}": lambda steps, process=process: ancestral(process, steps=steps) for process in PROCESSES},
    "confidence": lambda steps: masked(Confidence(), Schedule(), steps=steps),
    "random, cosine": lambda steps: masked(RandomOrder(), Schedule("cosine"), steps=steps),
    "one per step": lambda steps: masked(Entropy(), PerStep(), steps=steps),
    "threshold": lambda steps: masked(Margin(), Threshold(0.5), steps=steps),
    "remasking": lambda steps: masked(Confidence(), Remasking(), steps=steps),
    "masks only": lambda steps: masked(AnyPosition(visible_prior=0), Schedule(), steps=steps),
    "remdm rescale": lambda steps: masked(RandomOrder(), ReMDM("rescale", eta=0.7), steps=steps, times="schedule"),
    "remdm cap": lambda steps: masked(RandomOrder(), ReMDM("cap", eta=0.5), steps=steps, times="schedule"),
    "remdm loop": lambda steps: masked(RandomOrder(), ReMDM("loop", eta=0.1), steps=steps, times="schedule"),
}


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ONE)
def test_one_position_with_the_true_law_comes_out_with_that_law(name, steps):
    denoiser = toy.Denoiser(4, lambda z, t: P.log().expand(*z.shape, 4))
    trace = ONE[name](steps).sample(denoiser, count=4000, length=1, seed=steps)
    assert agrees(states(trace.tokens_BL), P)
    assert int(trace.calls_B.max()) <= steps


def posteriors(function, n, process):
    """What a denoiser of posteriors says where one of leave-one-out predictions says `function`."""
    vocab, process = toy.vocabulary(n), process.bind(n)

    def predict(z, t):
        real = function(z, t).reshape(-1, n)
        logits = torch.cat([torch.full((len(real), toy.OFFSET), -torch.inf, dtype=real.dtype), real], dim=1)
        level = t.double().unsqueeze(1).expand(z.shape).reshape(-1)
        logits = to_posterior(logits, toy.ids(z.reshape(-1), n), process, level, vocab)
        return logits[:, toy.OFFSET :].reshape(*z.shape, n)

    return predict


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("process", PROCESSES[1:], ids=str)
def test_one_position_with_true_posteriors_comes_out_with_the_law_too(process, steps):
    predict = posteriors(lambda z, t: P.log().expand(*z.shape, 4), 4, process)
    denoiser = toy.Denoiser(4, predict, predicts="posterior")
    trace = ancestral(process, steps=steps).sample(denoiser, count=4000, length=1, seed=3)
    assert agrees(states(trace.tokens_BL), P)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_sharpens_the_law(temperature):
    denoiser = toy.Denoiser(4, lambda z, t: P.log().expand(*z.shape, 4))
    trace = masked(Confidence(), Schedule(), Temperature(temperature)).sample(denoiser, count=4000, length=1)
    assert agrees(states(trace.tokens_BL), P ** (1 / temperature))


@pytest.mark.parametrize(
    ("top_p", "temperature", "kept"), [(0.5, 1.0, 1), (0.6, 1.0, 2), (0.9, 1.0, 3), (0.9, 0.5, 2), (1.0, 2.0, 4)]
)
def test_nucleus_cuts_the_tail_and_keeps_the_rest_in_proportion(top_p, temperature, kept):
    order = torch.tensor([2, 0, 3, 1])  # the likeliest token is not the first id
    denoiser = toy.Denoiser(4, lambda z, t: P[order].log().expand(*z.shape, 4))
    trace = masked(Confidence(), Schedule(), Temperature(temperature, top_p)).sample(denoiser, count=4000, length=1)
    distribution = P ** (1 / temperature)
    distribution[kept:] = 0
    assert agrees(states(trace.tokens_BL), distribution[order])


# Exact laws of whole decoders, by enumeration -------------------------------------------------------------------------


def random_table(n, length, seed=0):
    """log p (states (B, L), t) -> (B, L, N), which depends on the whole state and on the noise level."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n + 1,) * length + (length, n)
    base, slope = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def predict(z, t):
        at = tuple(z.unbind(1))
        return (1.5 * base[at] + 2 * t.double().reshape(-1, 1, 1) * slope[at]).log_softmax(-1)

    return predict


def chain(start, kernel, steps, n, length, blocks=1):
    """The law of a chain in which every position of a block jumps on its own, given the whole state before the step.

    - start: (N + 1,) law of each position. kernel(z (B, L), i, t, s): (B, N + 1) law of position i after the step.
    - steps: of each block; t runs from 1 to 0 in each.
    """
    z, width, stay = toy.sequences(n + 1, length), length // blocks, torch.eye(n + 1, dtype=torch.float64)
    distribution = torch.ones(len(z), dtype=torch.float64)
    for i in range(length):
        distribution = distribution * start[z[:, i]]
    for block in range(blocks):
        for left in range(steps, 0, -1):
            jump = torch.ones(len(z), len(z), dtype=torch.float64)
            for i in range(length):
                inside = block * width <= i < (block + 1) * width
                row = kernel(z, i, left / steps, (left - 1) / steps) if inside else stay[z[:, i]]
                jump = jump * row[:, z[:, i]]
            distribution = distribution @ jump
    distribution = distribution.reshape((n + 1,) * length)
    inner = distribution[(slice(0, n),) * length]
    assert float(inner.sum()) == pytest.approx(1, abs=1e-9)  # no mask is left
    return inner


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_ancestral_samples_have_the_law_of_the_reverse_chain(process, steps, blocks):
    """V = 3, L = 2, as in oracle 8: the law over the (N + 1)^2 states by dynamic programming."""
    process, predict = process.bind(3), random_table(3, 2, seed=steps)
    start = torch.zeros(4, dtype=torch.float64)
    start[3 if process.has_masks else slice(0, 3)] = 1 if process.has_masks else 1 / 3

    def kernel(z, i, t, s):
        p = predict(z, torch.full((len(z),), t, dtype=torch.float32)).exp()
        return process.reverse(p[:, i], z[:, i], scalar(s), scalar(t))

    distribution = chain(start, kernel, steps, 3, 2, blocks)
    sampler = ancestral(process, steps=steps * blocks, block_length=2 // blocks)
    trace = sampler.sample(toy.Denoiser(3, predict), count=12000, length=2)
    assert agrees(states(trace.tokens_BL), distribution)


def test_the_bound_is_not_one_of_samplers_of_few_steps():
    """Of 27 sequences, how many an ancestral sampler writes less often than exp(-bound): the bound is one of its
    limit alone.
    """
    process, true = Absorbing().bind(3), toy.conditionals(toy.joint(3, 3, seed=0))
    off = torch.randn(
        (4,) * 3 + (3, 3), generator=torch.Generator().manual_seed(0)
    )  # a model that has not learned all of it

    def predict(z, t):
        return (true(z, t) + off[tuple(z.unbind(1))]).log_softmax(-1).double()

    def kernel(z, i, t, s):
        return process.reverse(predict(z, None).exp()[:, i], z[:, i], scalar(s), scalar(t))

    bound = torch.tensor([toy.by_subsets(predict, x, 3) for x in toy.sequences(3, 3)])
    start = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    below = {
        steps: int((bound < -chain(start, kernel, steps, 3, 3).flatten().log()).sum()) for steps in (1, 2, 4, 8, 64)
    }
    assert below == {1: 11, 2: 3, 4: 1, 8: 0, 64: 0}


REMDM = {
    "none": ("rescale", 0.0),
    "rescale": ("rescale", 0.6),
    "full": ("rescale", 1.0),
    "cap": ("cap", 0.3),
    "loop": ("loop", 0.2),
    "long loop": ("loop", 0.3, 0.8, 0.4, 0.7),
}


def remdm_kernel(committer, predict, n):
    """Wang et al. 2025, eq. 5: a token becomes a mask with probability sigma, a mask a token so that marginals stay."""

    def kernel(z, i, t, s):
        before, after = (float(committer.alpha(scalar(v))) for v in (t, s))
        max_positions = min(1.0, (1 - after) / before) if before else 1.0
        sigma = committer.eta * max_positions if committer.variant == "rescale" else min(committer.eta, max_positions)
        if committer.variant == "loop" and not (t <= committer.t_on and s >= committer.t_off):
            sigma = 0.0
        write = (after - (1 - sigma) * before) / (1 - before)
        p = predict(z, torch.full((len(z),), t, dtype=torch.float32)).exp()[:, i]
        rows = torch.zeros(len(z), n + 1, dtype=torch.float64)
        is_mask = z[:, i] == n
        rows[is_mask, :n], rows[is_mask, n] = write * p[is_mask], 1 - write
        rows[~is_mask, z[~is_mask, i]], rows[~is_mask, n] = 1 - sigma, sigma
        return rows

    return kernel


@pytest.mark.parametrize("name", REMDM)
def test_remdm_samples_have_the_law_of_its_chain(name):
    committer, predict = ReMDM(*REMDM[name]), random_table(3, 2, seed=5)
    start = torch.tensor([0, 0, 0, 1], dtype=torch.float64)
    distribution = chain(start, remdm_kernel(committer, predict, 3), 6, 3, 2)
    sampler = masked(RandomOrder(), committer, steps=6, times="schedule")
    trace = sampler.sample(toy.Denoiser(3, predict), count=12000, length=2)
    assert agrees(states(trace.tokens_BL), distribution)


@pytest.mark.parametrize("name", REMDM)
def test_remdm_keeps_the_marginals_of_the_absorbing_process(name):
    """After every step the share of masks is 1 - alpha, remasking or not; and tokens do become masks again."""
    committer, rows, steps = ReMDM(*REMDM[name]), 4000, 20
    denoiser = toy.Denoiser(4, lambda z, t: P.log().expand(*z.shape, 4))
    sampler = masked(RandomOrder(), committer, steps=steps, times="schedule")
    trace = sampler.sample(denoiser, count=rows, length=1, record=True)
    share = (trace.history == trace.mask).double().mean((1, 2))
    alpha = torch.stack([committer.alpha(scalar((steps - k) / steps)) for k in range(steps + 1)])
    assert float((share - (1 - alpha)).abs().max()) < 4.5 * 0.5 / math.sqrt(rows)
    assert bool((trace.kinds == 3).any()) is (committer.eta > 0)


@pytest.mark.parametrize(
    ("selector", "committer", "block_length"),
    [
        (RandomOrder(), Schedule(), None),
        (Margin(), Schedule("cosine"), None),
        (Entropy(), PerStep(), None),
        (Confidence(), Threshold(0.0), 1),
        (AnyPosition(visible_prior=0), Schedule(), 1),
    ],
    ids=["random", "margin", "entropy", "left to right", "gain"],
)
def test_one_token_per_step_with_true_conditionals_follows_the_joint_law(selector, committer, block_length):
    """The chain rule, for every order that does not look at what was drawn."""
    distribution = toy.joint(3, 3, seed=2)
    sampler = masked(selector, committer, block_length=block_length)
    trace = sampler.sample(toy.Denoiser(3, toy.conditionals(distribution)), count=12000, length=3)
    assert agrees(states(trace.tokens_BL), distribution)


def test_confidence_of_the_drawn_token_has_the_law_of_its_own_enumeration():
    """LLaDA at temperature 1 writes the draw that came out likelier first, which is not the joint law."""
    joint = toy.joint(3, 2, seed=4)
    first, second = joint.sum(1), joint.sum(0)
    distribution = torch.zeros(3, 3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            if first[a] >= second[b]:
                distribution[a] += first[a] * second[b] * joint[a] / first[a]
            else:
                distribution[:, b] += first[a] * second[b] * joint[:, b] / second[b]
    trace = named("llada", "sampler.proposer.temperature=1", "sampler.steps=2").sample(
        toy.Denoiser(3, toy.conditionals(joint)), count=12000, length=2
    )
    assert agrees(states(trace.tokens_BL), distribution)
    assert not agrees(states(trace.tokens_BL), joint)


# Oracle 10: decoding, token for token ---------------------------------------------------------------------------------


class Context:
    """A denoiser whose predictions depend on every token it may attend to, on distances and on the level."""

    predicts = "posterior"

    def __init__(self, n=7, seed=0, sharpness=2.0):
        self.vocab, self.sharpness, self.calls = toy.vocabulary(n), sharpness, []
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(self.vocab.size, 8, generator=generator, dtype=torch.float64)
        self.output = torch.randn(8, self.vocab.size, generator=generator, dtype=torch.float64)
        self.output[:, : toy.OFFSET] = -torch.inf
        self.layout = torch.randn(8, generator=generator, dtype=torch.float64)

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        self.calls.append(len(z_BL))
        attention_mask_BL = torch.ones_like(z_BL, dtype=torch.bool) if attention_mask_BL is None else attention_mask_BL
        layout = torch.arange(z_BL.shape[1], dtype=torch.float64)
        near = (-0.5 * (layout[:, None] - layout[None]).abs()).exp()
        hidden = near @ (self.embedding[z_BL] * attention_mask_BL[..., None])
        hidden = hidden + (layout[:, None] * self.layout).sin() + t_B.double()[:, None, None]
        logits = self.sharpness * (hidden.tanh() @ self.output.nan_to_num(neginf=0.0))
        logits[..., : toy.OFFSET] = -torch.inf
        return (logits if where_BL is None else logits[where_BL]).float()


def plain_llada(denoiser, prompt, length, steps, block_length, scale):
    """All states of Nie et al. 2025, algorithm 5 (low-confidence remasking), for one sequence, as their code has it."""
    mask = denoiser.vocab.mask
    x = torch.cat([prompt, torch.full((length,), mask)])
    history = [x.clone()]
    blocks = length // block_length
    for block in range(blocks):
        start, end = len(prompt) + block * block_length, len(prompt) + (block + 1) * block_length
        base, more = divmod(block_length, steps // blocks)
        for step in range(steps // blocks):
            t = (x[len(prompt) :] == mask).double().mean().reshape(1).float()
            logits = denoiser.logits(x[None], None, t)[0]
            if scale != 1:
                bare = x.clone()
                bare[: len(prompt)] = mask
                without = denoiser.logits(bare[None], None, t)[0]
                logits = torch.where(torch.isfinite(logits), without + scale * (logits - without), -torch.inf)
            confidence, best = logits.softmax(-1).max(-1)
            confidence = torch.where(x == mask, confidence, -torch.inf)
            confidence[end:] = -torch.inf
            confidence[:start] = -torch.inf
            chosen = confidence.topk(base + (step < more)).indices
            x[chosen] = best[chosen]
            history.append(x.clone())
    return torch.stack(history)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("steps", "block_length"), [(12, 12), (5, 12), (1, 12), (6, 4), (9, 3), (4, 3)])
def test_llada_equals_its_published_algorithm_step_by_step(steps, block_length, scale):
    denoiser, prompt = Context(seed=steps), torch.tensor([5, 3, 9])
    steps -= steps % (12 // block_length)  # theirs wants a multiple of the blocks
    sampler = named(
        "llada", f"sampler.steps={steps}", f"sampler.block_length={block_length}", f"sampler.guidance={scale}"
    )
    trace = sampler.sample(denoiser, prompts=[prompt], length=12, record=True)
    assert torch.equal(trace.history[:, 0], plain_llada(denoiser, prompt, 12, steps, block_length, scale))
    assert trace.calls_B.tolist() == [steps * (1 if scale == 1 else 2)]


@pytest.mark.parametrize("steps", [12, 5, 1])
def test_mask_only_with_threshold_zero_equals_low_confidence_decoding(steps):
    """FlowLM without rewrites, and without a gain it asks for, is LLaDA token for token."""
    denoiser, prompts = Context(seed=1), [[4, 4, 8], [], [3]]
    flowlm = named(
        "flowlm",
        "sampler.selector.visible_prior=0",
        "sampler.selector.min_gain=0",
        "sampler.committer.fill=1",
        f"sampler.steps={steps}",
    )
    llada = named("llada", f"sampler.steps={steps}")
    one, other = (s.sample(denoiser, prompts=prompts, length=12, record=True) for s in (flowlm, llada))
    assert torch.equal(one.history, other.history) and torch.equal(one.calls_B, other.calls_B)


def test_threshold_zero_writes_everything_at_once_and_threshold_one_the_likeliest_alone():
    def history(*sampler):
        return named(*sampler).sample(Context(seed=2), length=9, record=True).history

    assert torch.equal(history("threshold", "sampler.committer.threshold=0"), history("llada", "sampler.steps=1"))
    singly = history("threshold", "sampler.committer.threshold=1")
    assert torch.equal(singly, history("modernbert"))
    assert torch.equal(singly, history("llada", "sampler.steps=9"))


def wants(table, n=4):
    """A denoiser that wants the token v with probability p at position i, for table[i] = (v, p), whatever it sees."""

    p = torch.stack([torch.full((n,), (1 - sure) / (n - 1), dtype=torch.float64) for _, sure in table])
    for i, (v, sure) in enumerate(table):
        p[i, v] = sure
    return toy.Denoiser(n, lambda z, t: p.log().expand(len(z), -1, -1))


@pytest.mark.parametrize("selector", [Confidence(visible=True), AnyPosition()], ids=["confidence", "gain"])
def test_an_edit_that_changes_nothing_costs_no_budget(selector):
    """Three positions are surest of what they hold; the two that would change are written, one per step."""
    table = [(1, 0.99), (1, 0.99), (2, 0.6), (1, 0.99), (3, 0.5)]
    denoiser = wants([(1, 0.99), *table])
    sampler = Sampler(FromPrompt(), Temperature(0.0), selector, PerStep(1), FixedPoint(), steps=20)
    trace = sampler.sample(denoiser, prompts=[[1 + toy.OFFSET]], length=5, record=True)
    expected = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 2, 1, 1], [1, 1, 2, 1, 3], [1, 1, 2, 1, 3]]) + toy.OFFSET
    assert torch.equal(trace.history[:, 0, 1:], expected)


@pytest.mark.parametrize(
    ("name", "filling", "patience"), [("flowlm", 8, 1), ("editing", 5, 1), ("fill_then_correct", 8, 4)]
)
def test_a_fixed_point_stops(name, filling, patience):
    """Filled with what the model wants, nothing changes any more: `patience` further calls see that."""
    sampler = named(name, "sampler.steps=40", "++sampler.reads=as_is")
    sampler.proposer = Temperature(0.0)
    trace = sampler.sample(wants([(i % 4, 0.5 + 0.06 * i) for i in range(8)]), length=8)
    assert states(trace.tokens_BL)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert trace.calls_B.tolist() == [filling + patience]


NAMES = [
    "ancestral",
    "editing",
    "fill_then_correct",
    "flowlm",
    "gidd",
    "llada",
    "llada_random",
    "modernbert",
    "remdm",
    "threshold",
]
#: rows of these start with different numbers of masks, so that their blocks end at different steps
UNEVEN = {
    "uneven schedule": Sampler(
        inits.MasksAndTokens(0.5), Temperature(), RandomOrder(), Schedule(), Steps(), steps=12, block_length=5
    ),
    "uneven remasking": Sampler(
        inits.MasksAndTokens(0.5), Temperature(), Confidence(), Remasking("cosine"), Steps(), steps=8
    ),
    "uneven fixed points": Sampler(FromPrompt(), Temperature(0.5), AnyPosition(), PerStep(2), FixedPoint(), steps=20),
    "uneven budget": Sampler(
        Masks(), Temperature(), Confidence(), Remasking(), Budget(9), guidance=1.5, block_length=5
    ),
}


def blocked(name):
    """The named decoder in blocks of four and twelve steps."""
    if name in UNEVEN:
        return UNEVEN[name]
    sampler = named(name, "++sampler.reads=as_is", "++sampler.steps=12", "++sampler.block_length=4")
    if name in ("ancestral", "gidd"):
        (sampler if name == "ancestral" else sampler.init).process = Hybrid(p_u=0.3)
    return sampler


@pytest.mark.parametrize("name", [*NAMES, *UNEVEN])
def test_a_batch_gives_what_each_sequence_alone_gives(name):
    """Prompts of different lengths: tokens, calls and every step on the way, from the streams of the rows."""
    sampler, denoiser = blocked(name), Context(seed=3)
    prompts = [[3, 4, 5], [], [9], [7, 7, 3, 5, 6], [8, 4], [6], [5, 5]]
    full_width = sampler.sample(denoiser, prompts=prompts, length=10, seed=5, record=True)
    for b, prompt in enumerate(prompts):
        alone = sampler.sample(denoiser, prompts=[prompt], length=10, seed=5, record=True, first_row=b)
        width, states_alone = len(prompt) + 10, alone.history[:, 0]
        assert torch.equal(full_width.tokens_BL[b, :width], alone.tokens_BL[0])
        assert full_width.calls_B[b] == alone.calls_B[0]
        assert torch.equal(full_width.tokens_BL[b, : len(prompt)], torch.tensor(prompt, dtype=torch.int64))
        assert (full_width.tokens_BL[b, width:] == denoiser.vocab.pad).all()
        assert int(full_width.tokens_BL[b, len(prompt) : width].min()) >= toy.OFFSET
        steps = full_width.history[:, b, :width]
        assert torch.equal(steps[: len(states_alone)], states_alone)
        assert (steps[len(states_alone) :] == states_alone[-1]).all()


# Other named decoders, each written down plainly for one sequence -----------------------------------------------------


def plain(denoiser, prompt, length, steps, decide, patience, min_time=0.1):
    """All states of a greedy decoder; decide(p of the best, p in place, best, z, step): bool, what is written."""
    mask, start = denoiser.vocab.mask, len(prompt)
    x, idle = torch.cat([prompt, torch.full((length,), mask)]), 0
    history = [x.clone()]
    for step in range(steps):
        z = x[start:]
        t = (z == mask).double().mean().clamp_min(min_time).reshape(1).float()
        p = denoiser.logits(x[None], None, t)[0, start:].softmax(-1)
        best_p, best = p.max(-1)
        current = p.gather(1, z[:, None])[:, 0]
        write = decide(best_p, current, best, z, step) | ((z == mask) & (step == steps - 1))
        x[start:] = torch.where(write, best, z)
        idle = idle + 1 if torch.equal(x, history[-1]) else 0
        history.append(x.clone())
        if not bool((x[start:] == mask).any()) and idle >= patience:
            break
    return torch.stack(history)


def highest(score, count):
    return torch.zeros(len(score), dtype=torch.bool).index_fill(0, score.topk(count).indices, True) & score.isfinite()


def plain_editing(best_p, current, best, z, step):
    """LLaDA2.1: masks above .7, or the likeliest of them; visible tokens where another one is above .9."""
    is_mask = z == 1
    write = torch.where(is_mask, best_p >= 0.7, (best != z) & (best_p >= 0.9))
    stuck = is_mask.any() and not (write & is_mask).any()
    return write | highest(best_p.where(is_mask, -torch.inf), 1) if stuck else write


def plain_fill_then_correct(best_p, current, best, z, step):
    """Of 40 steps, 20 fill, likeliest first; then the largest gain in confidence, one at a time."""
    if (z == 1).any():
        return highest(best_p.where(z == 1, -torch.inf), math.ceil(int((z == 1).sum()) / max(20 - step, 1)))
    gain = best_p - current
    return highest(gain.where((best != z) & (gain > 0), -torch.inf), 1)


def plain_flowlm(best_p, current, best, z, step):
    """Of 40 steps, 30 fill: as many writes as the masks need, or length / 30 where there is something to rewrite."""
    is_mask = z == 1
    gain = best_p - torch.where(is_mask, 0.0, current)
    gain = gain.where(is_mask | ((best != z) & (gain > 0.2)), -torch.inf)
    asked = math.ceil(int(is_mask.sum()) / max(30 - step, 1))
    count = max(asked, math.ceil(len(z) / 30)) if (gain.isfinite() & ~is_mask).any() else asked
    return highest(gain, count) | (is_mask & (step >= 29))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "decide", "patience"),
    [("editing", plain_editing, 1), ("fill_then_correct", plain_fill_then_correct, 4), ("flowlm", plain_flowlm, 1)],
)
def test_editing_decoders_equal_plain_loops_step_by_step(name, decide, patience, seed):
    denoiser, prompt = Context(seed=seed, sharpness=3.0), torch.tensor([4, 8])
    sampler = named(name, "sampler.steps=40", "++sampler.block_length=null", "++sampler.reads=as_is")
    sampler.proposer = Temperature(0.0)
    trace = sampler.sample(denoiser, prompts=[prompt], length=35, record=True)
    assert torch.equal(trace.history[:, 0], plain(denoiser, prompt, 35, 40, decide, patience))
    assert name == "editing" or bool((trace.kinds == 2).any())  # something was rewritten


def plain_gidd_corrections(denoiser, prompt, z, draws, steps, patience, temperature=0.1, t0=0.01):
    """All states of the cited code's correction loop for one text, its draws given, and how it ended."""
    start, best_accuracy, stale = len(prompt), 0.0, 0
    x, t = torch.cat([prompt, z]), torch.tensor([t0])
    history = [x.clone()]
    for _, draw_G in zip(range(steps), draws, strict=False):
        logits = denoiser.logits(x[None], None, t)[0, start:]
        sharp = (logits / temperature).softmax(-1)
        cumulative = sharp.double().cumsum(-1)
        drawn = (cumulative > draw_G[:, None] * cumulative[:, -1:]).double().argmax(-1)
        score = (drawn != x[start:]) * sharp.gather(1, drawn[:, None])[:, 0]
        after, at = x.clone(), int(score.argmax())
        after[start + at] = drawn[at]
        accuracy = float((after[start:] == logits.argmax(-1)).double().mean())
        stale = 0 if accuracy > best_accuracy else stale + 1
        best_accuracy = max(accuracy, best_accuracy)
        if stale > patience:
            return torch.stack(history), "stale"
        if torch.equal(after, x):
            return torch.stack(history), "converged"
        x = after
        history.append(x.clone())
    return torch.stack(history), "steps"


def test_gidd_is_ancestral_sampling_and_then_the_correction_loop_of_its_code():
    """von Ruette et al. 2025: sharpened proposals, the likeliest that differs, self-accuracy with patience, t0 =
    .01.
    """
    endings, prompt = set(), torch.tensor([4, 8])
    settings = [(25, 4, 2.0, 20), (60, 32, 0.001, 8), (4, 32, 0.1, 20)]
    for seed, (steps, patience, temperature, length) in itertools.product(range(6), settings):
        denoiser = Context(seed=seed)
        sampler = named(
            "gidd",
            f"sampler.steps={steps}",
            f"sampler.stopper.patience={patience}",
            "sampler.init.steps=9",
            f"sampler.proposer.temperature={temperature}",
        )
        sampler.init.process, sampler.init.reads = Hybrid(p_u=0.3), "as_is"
        draft, trace = (
            one.sample(denoiser, prompts=[prompt], length=length, seed=seed, record=True)
            for one in (sampler.init, sampler)
        )
        streams = RowStreams(seed, [0], "cpu", "correction")
        draws = [streams.uniform([0], 2, length)[0, 0] for _ in range(steps)]
        history, ending = plain_gidd_corrections(
            denoiser, prompt, draft.tokens_BL[0, 2:], draws, steps, patience, temperature
        )
        endings.add(ending)
        found = trace.history[len(draft.history) - 1 :, 0]
        assert torch.equal(trace.history[: len(draft.history)], draft.history)
        assert torch.equal(found[: len(history)], history) and (found[len(history) :] == history[-1]).all()
        assert int(trace.calls_B) == int(draft.calls_B) + len(history) - (ending == "steps")
    assert endings == {"stale", "converged", "steps"}


# What predictions mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ancestral", "flowlm", "editing"])
def test_denoisers_of_posteriors_and_of_leave_one_out_predictions_decode_alike(name):
    """Each decoder says which of the two it reads; the other is converted with the process at the level it is told."""
    process, table = Hybrid(p_u=0.4), random_table(4, 4, seed=7)
    posterior = posteriors(table, 4, process)
    sampler = named(name, "sampler.steps=16")
    sampler.process = process
    one, other = (
        sampler.sample(denoiser, count=200, length=4, seed=2, record=True)
        for denoiser in (toy.Denoiser(4, table), toy.Denoiser(4, posterior, predicts="posterior"))
    )
    assert float((one.tokens_BL == other.tokens_BL).double().mean()) > 0.995  # draws on the edge of two tokens
    sampler.reads = "as_is"
    raw = sampler.sample(toy.Denoiser(4, posterior, predicts="posterior"), count=200, length=4, seed=2)
    assert name != "ancestral" or float((one.tokens_BL == raw.tokens_BL).double().mean()) < 0.95
