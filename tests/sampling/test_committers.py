"""How much each committer writes and masks again, from scores written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from denoisers import REAL, M, Told, named, proposal, state, transformer, wants

from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import All, PerStep, Remasking, ReMDM, Schedule, Threshold, best
from research_stack.sampling.inits import FromPrompt, Masks
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import AnyPosition, Confidence
from research_stack.sampling.stoppers import FixedPoint, Steps

NO = -math.inf
SAME = wants(*[(3, 0.5)] * 40)


def written(decision):
    return decision.commit_BG.int().tolist()


def test_best_takes_the_highest_the_leftmost_of_equals_and_never_what_is_forbidden():
    score = torch.tensor([[0.1, 0.7, 0.7, 0.2], [NO, 0.0, NO, NO], [0.5, 0.5, 0.5, 0.5], [NO] * 4])
    assert best(score, torch.tensor([2, 3, 1, 4])).int().tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0] * 4]
    assert not best(score, torch.zeros(4, dtype=torch.int64)).any()
    many = torch.full((1, 1000), 0.25, dtype=torch.float64)
    assert best(many, torch.tensor([300]))[0].nonzero().flatten().tolist() == list(range(300))


def test_per_step_writes_k():
    score = [[0.1, 0.9, 0.5, NO], [NO, NO, 0.2, NO]]
    assert written(PerStep(2)(proposal(score), state([[M] * 4] * 2))) == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert written(PerStep()(proposal(score), state([[M] * 4] * 2))) == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_threshold_writes_what_reaches_it_and_goes_on_where_no_mask_does():
    rows = [[M, M, 3, 3], [M, M, 3, 3], [M, M, 3, 3], [3, 3, 3, 3]]
    score = [[0.7, 0.69, 0.9, 0.7], [0.2, 0.3, NO, 0.8], [0.2, 0.3, 0.95, NO], [0.5, NO, 0.9, NO]]
    decision = Threshold(0.7, edit_threshold=0.9)(proposal(score), state(rows))
    # Row 3 edits a token, and that does not count as having written a mask.
    assert written(decision) == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    same = Threshold(0.7)(proposal(score), state(rows))
    assert written(same) == [[1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert written(Threshold(0)(proposal([[NO, 0.0, NO, 0.1]]), state([[3, M, 3, M]]))) == [[0, 1, 0, 1]]


def test_linear_schedule_writes_the_quotient_and_the_remainder_first():
    """LLaDA's get_num_transfer_tokens: every step masks // steps, and one more in the first masks % steps."""
    for masks, steps in ((10, 10), (10, 3), (7, 4), (1, 1), (12, 5), (3, 8), (64, 64)):
        trace = Sampler(Masks(), Temperature(0.0), Confidence(), Schedule(), Steps(), steps=steps).sample(
            Told(wants(*[(3, 0.5)] * masks)), length=masks, record=True
        )
        left = [(tokens == M).sum().item() for tokens in trace.history]
        quotient, remainder = divmod(masks, steps)
        expected = [quotient + (i < remainder) for i in range(steps)]
        counts = [before - after for before, after in zip(left, left[1:], strict=False)]
        assert counts == [count for count in expected if count]


def test_cosine_schedule_leaves_the_cosine_and_never_stands_still():
    for masks, steps in ((40, 10), (20, 7), (9, 9), (30, 1), (3, 9)):
        trace = Sampler(Masks(), Temperature(0.0), Confidence(), Schedule("cosine"), Steps(), steps=steps).sample(
            Told(wants(*[(3, 0.5)] * masks)), length=masks, record=True
        )
        left = [(tokens == M).sum().item() for tokens in trace.history]
        expected = [masks]
        for k in range(1, steps + 1):
            if expected[-1]:
                expected.append(min(math.floor(masks * math.cos(math.pi / 2 * k / steps) + 1e-9), expected[-1] - 1))
        assert left == expected and left[-1] == 0


def test_each_block_has_a_schedule_of_its_own():
    """Eight positions and then four, two steps each, by the cosine: 8 -> 5, 0 and 4 -> 2, 0."""
    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Schedule("cosine"), Steps(), steps=4, block_length=8)
    trace = sampler.sample(Told(wants(*[(3, 0.5)] * 12)), length=12, record=True)
    assert (trace.history == M).sum((1, 2)).tolist() == [12, 9, 4, 2, 0]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_masks_are_gone_after_the_share_of_steps_that_fill(shape):
    """Also where rewrites of visible tokens score higher than masks, as FlowLM's can."""
    for fill, steps in ((0.5, 8), (0.75, 12), (0.1, 20), (0.3, 4)):
        sampler = Sampler(
            Masks(), Temperature(0.0), AnyPosition(), Schedule(shape, fill), Steps(), steps=steps, min_time=0.1
        )
        trace = sampler.sample(transformer("hybrid"), prompts=[[i] for i in REAL], length=16, record=True)
        filling = max(1, round(steps * fill))
        left = (trace.history == M).sum((1, 2))
        assert int(left[filling - 1]) > 0 and int(left[filling:].sum()) == 0
        rewritten = (trace.history[filling:-1] != trace.history[filling + 1 :]).sum(2)
        assert rewritten.numel() == 0 or int(rewritten.max()) <= math.ceil(16 / filling)


@pytest.mark.parametrize(("revisions", "writes"), [(None, 3), (1, 1), (5, 5)])
def test_revisions_are_the_writes_per_step_where_visible_tokens_gain(revisions, writes):
    table = wants(*[(7, 0.9)] * 13)
    committer = Schedule(fill=0.5, revisions=revisions)
    sampler = Sampler(FromPrompt(), Temperature(0.0), AnyPosition(), committer, FixedPoint(), steps=8)
    trace = sampler.sample(Told(table), prompts=[[3]], length=12, record=True)
    changed = (trace.history[1:] != trace.history[:-1]).sum((1, 2)).tolist()
    assert set(changed[: 12 // writes - 1]) == {writes}


def test_schedule_without_gains_writes_what_the_masks_ask_for():
    decision = Schedule(revisions=4)(proposal([[0.5, 0.1, NO, NO, 0.3]]), state([[M, M, 3, 3, M]], left=3, total=3))
    assert written(decision) == [[1, 0, 0, 0, 0]]
    rewriting = Schedule(revisions=4)(proposal([[0.5, 0.1, 0.2, NO, 0.3]]), state([[M, M, 3, 3, M]], left=3, total=3))
    assert written(rewriting) == [[1, 1, 1, 0, 1]]


def test_remasking_masks_the_least_probable_tokens_old_or_new():
    before = state([[M, M, M, 3, 3]], left=3, total=3)
    p_token, p_current = [[0.2, 0.9, 0.8, 0.6, 0.6]], [[0.0, 0.0, 0.0, 0.1, 0.5]]
    scores = proposal([[0.2, 0.9, 0.8, NO, NO]], p_token=p_token, p_current=p_current)
    decision = Remasking()(scores, before)  # of three masks, two stay: the worst are the tokens at 3 and at 0
    assert written(decision) == [[0, 1, 1, 0, 0]] and decision.remask_BG.int().tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_remasking_keeps_the_schedule_and_does_remask(shape):
    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Remasking(shape), Steps(), steps=8)
    plain = Sampler(Masks(), Temperature(0.0), Confidence(), Schedule(shape), Steps(), steps=8)
    prompts = [[i] for i in REAL]
    one, other = (s.sample(transformer("hybrid"), prompts=prompts, length=16, record=True) for s in (sampler, plain))
    assert torch.equal((one.history == M).sum(2), (other.history == M).sum(2))
    assert (one.kinds == 3).any() and not (other.kinds == 3).any()


def test_all_writes_all_that_is_proposed():
    assert written(All()(proposal([[0.0, NO, 0.0]]), state([[M, 3, 3]]))) == [[1, 0, 1]]


@pytest.mark.parametrize("variant", ["rescale", "cap", "loop"])
def test_remdm_probabilities_are_probabilities_and_keep_the_share_of_tokens(variant):
    for eta in (0.0, 0.02, 0.5, 1.0):
        committer = ReMDM(variant, eta)
        grid = torch.linspace(0, 1, 41, dtype=torch.float64)
        t, s = grid[2:], grid[1:-1]  # from t = 1 nothing stands that could be masked
        sigma, write = committer.probabilities(t, s)
        for p in (sigma, write):
            assert float(p.min()) >= -1e-12 and float(p.max()) <= 1 + 1e-12
        before, after = committer.alpha(t), committer.alpha(s)
        assert torch.allclose(before * (1 - sigma) + (1 - before) * write, after, atol=1e-12)
        assert (sigma > 0).any().item() is (eta > 0)


def test_remdm_remasks_only_within_the_loop():
    committer = ReMDM("loop", 0.05, t_on=0.6, t_off=0.2)
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    sigma = committer.probabilities(grid[1:], grid[:-1])[0]
    held = (grid[1:] <= 0.6) & (grid[:-1] >= 0.2)
    assert torch.equal(sigma > 0, held)
    assert committer.alpha(grid[1:][held]).tolist() == pytest.approx([0.9] * int(held.sum()))
    assert float(committer.alpha(grid[-1])) == 0 and float(committer.alpha(grid[0])) == 1


def test_remdm_takes_at_most_its_steps_and_skips_calls_without_masks():
    sampler = named("remdm", "sampler.steps=30", "sampler.committer.eta=0")
    trace = sampler.sample(transformer(), count=6, length=4, record=True)
    assert len(trace.history) == 31 and int(trace.calls_B.max()) <= 30
    masks = (trace.history[:-1] == M).any(2).sum(0)
    assert torch.equal(trace.calls_B, masks)
