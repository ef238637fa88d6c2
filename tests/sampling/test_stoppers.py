"""When decoding ends, and what it may cost."""

from __future__ import annotations

import pytest
import torch
from denoisers import REAL, M, Told, state, transformer, wants

from research_stack.sampling.choosers import Temperature
from research_stack.sampling.committers import PerStep, Schedule, Threshold
from research_stack.sampling.inits import FromPrompt, Masks, RandomTokens
from research_stack.sampling.sampler import Sampler
from research_stack.sampling.selectors import AnyPosition, Confidence
from research_stack.sampling.stoppers import Budget, Confident, FixedPoint, SelfAccuracy, Steps


def test_fixed_point_counts_idle_steps():
    before = state([[3, 3]] * 4, idle_B=torch.tensor([0, 1, 2, 3]))
    assert FixedPoint().is_done(before).tolist() == [False, True, True, True]
    assert FixedPoint(patience=3).is_done(before).tolist() == [False, False, False, True]
    assert not Steps().is_done(before).any()


def test_confident_looks_at_every_token_of_the_block():
    inside = torch.tensor([[True, True, False]] * 3)
    confidence = torch.tensor([[0.9, 0.95, 0.0], [0.9, 0.89, 1.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    before = state([[3, 3, 3]] * 3, inside_BG=inside, confidence_BG=confidence, idle_B=torch.tensor([0, 0, 1]))
    assert Confident(threshold=0.9).is_done(before).tolist() == [True, False, True]


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_self_accuracy_may_stand_still_for_as_many_steps_as_it_says(patience):
    """Of four tokens each step mends one, and then the denoiser wants others: self-accuracy is 1/4 from the first step
    on.
    """

    def other(z_BL, t_B):
        return torch.stack([wants(*[(7 if token == 3 else 3, 0.8) for token in row]) for row in z_BL.tolist()])

    stopper = SelfAccuracy(patience)
    sampler = Sampler(FromPrompt(), Temperature(0.0), AnyPosition(), PerStep(1), stopper, steps=12)
    trace = sampler.sample(Told(other), prompts=[[3]], length=4, record=True)
    assert trace.calls_B.tolist() == [1 + patience + 1]
    changed = (trace.history[1:] != trace.history[:-1]).any(2)[:, 0]
    assert changed.tolist() == [True] * (1 + patience) + [False], "the last step is not written"


@pytest.mark.parametrize(
    ("stopper", "calls"),
    [
        (Steps(), 12),
        (FixedPoint(), 5),
        (FixedPoint(patience=3), 7),
        (Confident(0.7), 4),
        (Confident(0.85), 5),
        (Budget(9), 5),
        (Budget(3), 3),
    ],
)
def test_calls_of_a_decoder_that_may_go_on(stopper, calls):
    """Eight wrong tokens, two mended per call: the fifth call changes nothing, all are above .7 after four."""
    sampler = Sampler(FromPrompt(), Temperature(0.0), AnyPosition(), PerStep(2), stopper, steps=12)
    trace = sampler.sample(Told(wants((3, 0.8), *[(7, 0.8)] * 8)), prompts=[[3]], length=8)
    assert trace.calls_B.tolist() == [calls]
    assert calls < 4 or (trace.tokens_BL[0, 1:] == 7).all()


def test_a_sequence_with_masks_never_stops_for_being_idle():
    """Nothing is proposed that the committer wants, step after step; the last one fills."""

    class Nothing(PerStep):
        def __call__(self, proposal, state):
            decision = super().__call__(proposal, state)
            return decision._replace(commit_BG=decision.commit_BG & False)

    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Nothing(), FixedPoint(), steps=6)
    trace = sampler.sample(Told(wants(*[(3, 0.9)] * 4)), length=4)
    assert trace.calls_B.tolist() == [6] and trace.tokens_BL.tolist() == [[3] * 4]


def test_idle_steps_of_one_block_do_not_count_for_the_next():
    table, stopper = wants(*[(3, 0.9)] * 9), FixedPoint(patience=2)
    parts = Temperature(0.0), Confidence(visible=True), Threshold(0.5), stopper
    sampler = Sampler(Masks(), *parts, steps=16, block_length=4)
    assert sampler.sample(Told(table), length=8).calls_B.tolist() == [6]  # 1 + 2 in each block
    right = Sampler(FromPrompt(), *parts, steps=16, block_length=4)
    assert right.sample(Told(table), prompts=[[3]], length=8).calls_B.tolist() == [4]  # 2 in each, all idle


@pytest.mark.parametrize(("calls", "guidance"), [(3, 1.0), (4, 2.0), (7, 2.0), (20, 1.0)])
def test_a_budget_bounds_the_calls_and_shortens_the_schedule(calls, guidance):
    sampler = Sampler(Masks(), Temperature(1.0), Confidence(), Schedule(), Budget(calls), guidance=guidance)
    trace = sampler.sample(transformer(), prompts=[[1, 2], [], [3]], length=12, record=True)
    cost = torch.tensor([2, 1, 2]) if guidance != 1 else torch.tensor([1, 1, 1])
    assert torch.equal(trace.calls_B, (calls // cost).clamp_max(12) * cost)
    assert (trace.calls_B <= calls).all() and torch.isin(trace.tokens_BL[trace.generated_BL], torch.tensor(REAL)).all()
    writes = (trace.history[1:] != trace.history[:-1]).sum(2)  # shared out over the steps each row can pay for
    for b, steps in enumerate((calls // cost).clamp_max(12).tolist()):
        assert int(writes[:steps, b].max()) - int(writes[:steps, b].min()) <= 1 and int(writes[steps:, b].sum()) == 0


def test_a_budget_below_the_cost_of_a_step_is_refused():
    sampler = Sampler(Masks(), Temperature(0.0), Confidence(), Schedule(), Budget(1), guidance=2.0)
    with pytest.raises(ValueError, match="^calls=1 must be at least 2: guidance takes that many a step"):
        sampler.sample(transformer(), prompts=[[1]], length=4)
    assert sampler.sample(transformer(), length=4).calls_B.tolist() == [1]  # without a prompt a step costs one


def test_confidence_from_a_random_start_needs_a_look_at_every_token():
    """A selector that sees no visible token learns nothing of them: nothing to ask, nothing to do."""
    sampler = Sampler(RandomTokens(), Temperature(0.0), Confidence(), PerStep(), Confident(0.5), steps=5)
    trace = sampler.sample(transformer(), length=4)
    assert trace.calls_B.tolist() == [0] and M not in trace.tokens_BL
