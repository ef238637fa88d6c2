"""What MiniGPT and Lookahead count, feed in, keep between steps and refuse; runs that stop and go on."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tiny import VOCAB, alone, backbone, batch, far, lookahead, minigpt, prepared

from research_stack.backbones.transformer import Transformer
from research_stack.data.tokenizers import specials_last
from research_stack.lookahead import module as lookahead_module
from research_stack.lookahead.module import Lookahead, MiniGPT, gather_positions, mean_of_next
from research_stack.lookahead.previous import (
    MAX_DEVIATIONS,
    MIN_DEVIATION,
    RATE,
    Normaliser,
    confidence_features,
    shift_right,
    zero_at_document_end,
)
from research_stack.streams import Draws
from research_stack.training.module import NotFinite
from research_stack.training.optimization import Optimization

END, PAD = VOCAB.end, VOCAB.pad


def by_hand(*rows, prompt=()):
    """A batch of the given tokens; `prompt` says how many of each row's are prompt."""
    tokens = torch.tensor(rows)
    prompt_BL = torch.arange(tokens.shape[1]) < torch.tensor(prompt or [0] * len(rows))[:, None]
    special = torch.isin(tokens, torch.tensor(VOCAB.special))
    return {"tokens": tokens, "eligible": ~special & ~prompt_BL, "attention_mask": tokens != PAD, "prompt": prompt_BL}


# Counts ---------------------------------------------------------------------------------------------------------------

ROWS = by_hand(
    [1, 2, 3, 4, 5, 6, 7, 8],
    [1, 2, END, 3, 4, 5, 6, 7],
    [1, 2, 3, 4, 5, 6, END, PAD],
    [1, 2, END, END, 3, 4, END, 5],
    prompt=[0, 0, 3, 0],
)


def test_the_next_token_counts_where_it_is_real():
    assert minigpt().next_counts(ROWS).int().tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 0],
    ]
    assert minigpt(horizon=3).next_counts(ROWS).int().tolist() == [
        [1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]  # fmt: skip


def test_a_future_counts_within_one_document_behind_the_prompt():
    for horizon, expected in (
        (2, [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]),
        (3, [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
    ):
        assert minigpt(horizon=horizon).future_counts(ROWS).int().tolist() == expected
        rows, total = prepared(lookahead(horizon=horizon), ROWS)
        assert rows["counts"].int().tolist() == expected
        assert total.tolist() == [float(rows["weight"].sum()), sum(map(sum, expected))]


def test_a_future_counts_where_the_next_token_does():
    """Otherwise there would be no own token to judge."""
    for horizon in (2, 3):
        module = minigpt(horizon=horizon)
        for seed in range(20):
            data = by_hand(
                *torch.randint(VOCAB.size, (4, 12), generator=torch.Generator().manual_seed(seed)).tolist(),
                prompt=[0, 1, 3, 6],
            )
            assert bool((module.future_counts(data) <= module.next_counts(data)).all())


def test_the_losses_behind():
    nats = torch.tensor([[1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    assert mean_of_next(nats, 2).tolist() == [[2.0, 4.0, 8.0, 0.0]]
    assert mean_of_next(nats, 3).tolist() == [[3.0, 6.0, 4.0, 0.0]]
    assert not mean_of_next(nats, 2).requires_grad


def test_pick_takes_positions_of_each_row():
    values = torch.arange(8).view(2, 4)
    assert gather_positions(values, None) is values
    assert gather_positions(values, torch.tensor([[0, 3], [1, 2]])).tolist() == [[0, 3], [5, 6]]


def test_a_real_target_is_the_loss_of_the_first_pass_behind():
    for horizon in (2, 3):
        module, data = lookahead(target="real", horizon=horizon), batch(length=10)
        rows, total = prepared(module, data)
        length = 10 - horizon
        hidden = module.read(data["tokens"][:, :length], module.previous(data["tokens"][:, :length])).hidden_BLD
        logits = (module.model.head(hidden) + module.bias_V).detach()
        confidence, expected, counted = module.confidence(hidden), 0.0, 0
        for b in range(3):
            for i in range(length - horizon + 1):  # those behind are known of these positions only
                ahead = data["tokens"][b, i + 1 : i + horizon + 1]
                if data["tokens"][b, i] == END or not bool(data["eligible"][b, i + 1 : i + horizon + 1].all()):
                    continue
                nats = [-float(logits[b, i + k].log_softmax(-1)[ahead[k]]) for k in range(1, horizon)]
                expected, counted = expected + (float(confidence[b, i]) - sum(nats) / (horizon - 1)) ** 2, counted + 1
        assert counted == int(total[1]) > 4
        assert float(module.loss_sum(rows)[1].detach()) == pytest.approx(expected, rel=1e-12)


# What is fed in -------------------------------------------------------------------------------------------------------


def test_no_confidence_crosses_the_end_of_a_document():
    confidence = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    tokens = torch.tensor([[0, END, 1, 2], [3, 4, 5, END]])
    assert zero_at_document_end(confidence, tokens, END).tolist() == [[1, 0, 3, 4], [5, 6, 7, 0]]
    assert shift_right(confidence, torch.tensor([9.0, -9.0]), tokens, END).tolist() == [[9, 1, 0, 3], [-9, 5, 6, 7]]


def test_features_are_bumps_around_even_places():
    values = torch.tensor([[-9.0, -MAX_DEVIATIONS, 0.0, 1.5, 9.0]], dtype=torch.float64)
    found = confidence_features(values, 5)  # centres -3, -1.5, 0, 1.5, 3; as wide as they are apart
    bump = [math.exp(-(k**2) / 2) for k in range(5)]
    assert found.shape == (1, 5, 5)
    assert found[0, 0].tolist() == found[0, 1].tolist() == pytest.approx(bump)
    assert found[0, 2].tolist() == pytest.approx([bump[2], bump[1], 1, bump[1], bump[2]])
    assert found[0, 3].tolist() == pytest.approx([bump[3], bump[2], bump[1], 1, bump[1]])
    assert found[0, 4].tolist() == pytest.approx(bump[::-1])
    assert torch.isfinite(confidence_features(values, 1)).all()


def test_running_statistics_are_the_mean_of_a_hundred_steps_then_move_slowly():
    normaliser, seen = Normaliser(), []
    assert normaliser(torch.tensor([2.0])).tolist() == [2.0]
    for step in range(100):
        seen.append((float(step % 7), 1.0 + step % 3))
        normaliser.update(torch.tensor(seen[-1][0]), torch.tensor(seen[-1][1]))
        assert float(normaliser.mean) == pytest.approx(sum(m for m, _ in seen) / len(seen), rel=1e-5)
        assert float(normaliser.variance) == pytest.approx(sum(v for _, v in seen) / len(seen), rel=1e-5)
    mean, variance = float(normaliser.mean), float(normaliser.variance)
    normaliser.update(torch.tensor(12.0), torch.tensor(9.0))
    assert float(normaliser.mean) == pytest.approx(mean + RATE * (12 - mean), rel=1e-5)
    assert float(normaliser.variance) == pytest.approx(variance + RATE * (9 - variance), rel=1e-5)
    assert int(normaliser.steps) == 101
    value = torch.tensor([[4.0]])
    assert float(normaliser(value)) == pytest.approx(
        (4 - float(normaliser.mean)) / math.sqrt(float(normaliser.variance)), rel=1e-5
    )


def test_a_head_that_predicts_a_constant_is_not_blown_up():
    normaliser = Normaliser()
    normaliser.update(torch.tensor(2.0), torch.tensor(0.0))
    assert float(normaliser.deviation) == pytest.approx(MIN_DEVIATION)
    assert normaliser(torch.tensor([2.0, 2.05])).tolist() == pytest.approx([0.0, 0.5], abs=1e-5)


def test_zeros_is_what_a_model_without_condition_and_an_evaluation_of_the_mode_say():
    tokens = batch()["tokens"]
    assert not bool(lookahead(previous="zeros").previous(tokens).any())
    assert not bool(lookahead({"condition_dim": 0}).previous(tokens).any())
    assert bool(lookahead().previous(tokens)[:, 1:].any())
    assert not bool(lookahead().previous(tokens)[:, 0].any())
    assert minigpt().previous(tokens) is None


# The numbers of a step
# -------------------------------------------------------------------------------------------------


def test_options_change_no_own_token():
    data, (plain, _) = batch(length=9), prepared(lookahead(), batch(length=9))
    for options in (
        {"fraction": 0.5},
        {"lookahead": "last"},
        {"dropout": 0.7},
        {"previous": "zeros"},
        {"target": "real"},
        {"head": "two_hot"},
    ):
        assert torch.equal(prepared(lookahead(**options), data)[0]["u"], plain["u"])
    assert not torch.equal(prepared(lookahead(), data, seed=1)[0]["u"], plain["u"])


def test_branches_stand_at_a_share_of_the_positions():
    for fraction, count in ((0.4, 3), (0.01, 1), (0.9, 6), (1.0, 7)):
        data = batch(rows=64, length=9, plain=True)
        rows, total = prepared(lookahead(fraction=fraction), data)
        assert rows["counts"].shape == (64, count) and total.tolist() == [64 * 7, 64 * count]
        if fraction < 1:
            assert bool((rows["at"].diff(dim=1) > 0).all()) and len(rows["at"].unique(dim=0)) > min(count, 6)
            assert rows["at"].unique().tolist() == list(range(7))
        else:
            assert "at" not in rows


def test_a_share_of_the_sequences_is_told_nothing_in_training_only():
    data = batch(rows=1000, length=6, plain=True)
    module = lookahead(dropout=0.3)
    keep = prepared(module, data)[0]["keep"]
    assert set(keep.tolist()) == {0.0, 1.0} and float(keep.mean()) == pytest.approx(0.7, abs=0.06)
    assert prepared(module.eval(), data)[0]["keep"].tolist() == [1.0] * 1000
    assert not bool(prepared(lookahead(dropout=1.0), data)[0]["keep"].any())


def test_a_device_draws_its_rows_of_the_whole_batch():
    module, data = lookahead(fraction=0.5, dropout=0.5), batch(rows=6, length=9)
    whole, _ = prepared(module, data)
    share = {name: tensor[2:4] for name, tensor in data.items()}
    part, _ = module.prepare(share, Draws(0, "corruption", 0, total=6, rows=slice(2, 4)))
    assert all(torch.equal(part[name], whole[name][2:4]) for name in whole)


def test_what_a_step_logs():
    """Mean and spread of predicted and actual where they count, the change of the confidences, the norms of both
    gradients.
    """
    for options in ({}, {"fraction": 0.6}, {"dropout": 0.5}, {"lookahead": "last"}, {"target": "real"}):
        with pytest.MonkeyPatch.context() as monkeypatch:
            module, data, seen = lookahead(**options), batch(), {}
            rows, total = prepared(module, data)
            note, counts = Lookahead._add_statistics, rows["counts"].bool()
            monkeypatch.setattr(
                Lookahead, "_add_statistics", lambda self, *given: seen.update(given=given) or note(self, *given)
            )
            weights = torch.tensor([1.0, module.alpha])
            (module.loss_sum(rows) / total * weights).sum().backward()
            lengths = module._norms.squares_2.sqrt().tolist()
            numbers, (_, previous, confidence, future) = alone(module).after_update(), seen["given"]
            assert [float(numbers["grad_lm"]), float(numbers["grad_confidence"])] == pytest.approx(lengths) and min(
                lengths
            ) > 0
            c, f = gather_positions(confidence, rows.get("at"))[counts], future[counts]
            assert float(numbers["confidence_mean"]) == pytest.approx(float(c.mean()), rel=1e-5)
            assert float(numbers["confidence_std"]) == pytest.approx(float(c.std(correction=0)), rel=1e-3, abs=1e-5)
            assert float(numbers["future_mean"]) == pytest.approx(float(f.mean()), rel=1e-5)
            assert float(numbers["future_std"]) == pytest.approx(float(f.std(correction=0)), rel=1e-3, abs=1e-5)
            told = torch.where(data["tokens"][:, :6] == END, 0.0, (confidence - 1.7) / 0.6**0.5)
            change = (told[:, :-1] - previous[:, 1:])[rows["keep"] > 0]
            assert float(numbers["fixed_point"]) == pytest.approx(
                float(change.square().mean().sqrt()) * 0.6**0.5, rel=1e-5
            )
            assert float(module.normaliser.mean) == pytest.approx(
                float(c.mean()), rel=1e-5
            )  # the first step counts whole
            assert float(module.normaliser.variance) == pytest.approx(float(c.var(correction=0)), rel=1e-3, abs=1e-5)
            assert far(module._carried, told[:, -1]) < 1e-12
            assert not module._sums and not module._last


def test_more_passes_change_the_confidences_less():
    changes = []
    for passes in (1, 2, 3):
        module = lookahead(passes=passes)
        module.loss_sum(prepared(module, batch())[0])
        changes.append(float(alone(module).after_update()["fixed_point"]))
    assert changes[0] > changes[1] > changes[2] > 0
    module = lookahead(previous="rollout")
    module.loss_sum(prepared(module, batch())[0])
    assert float(alone(module).after_update()["fixed_point"]) < 1e-6


def test_evaluation_leaves_no_trace():
    module = lookahead(previous="carry").eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.loss_sum(prepared(module, batch())[0])
    assert not module._sums and not module._last and module._carried is None and module._norms.take() is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_carry_hands_the_last_confidence_to_the_row_that_goes_on(stories):
    data = stories(order="contiguous", overlap=2, batch_size=40)
    module, last, carried, fresh, zeros = alone(lookahead_of(data, previous="carry", dropout=0.0)), None, None, 0, 0
    for step, current in enumerate(islice(data.train_dataloader(), 30)):
        rows, _ = module.prepare(current, Draws(0, "corruption", step, total=40))
        if last is None or bool(current["fresh"].all()):
            assert not bool(rows["first"].any())
            fresh += 1
        else:
            assert torch.equal(
                current["tokens"][:, 0], last["tokens"][:, -2]
            )  # the token behind the last one that was read
            expected = torch.where(last["tokens"][:, -3] == data.vocab.end, 0.0, carried)
            assert torch.equal(rows["first"], expected)
            zeros += int((last["tokens"][:, -3] == data.vocab.end).sum())
        with torch.no_grad():
            previous = module.previous(rows["tokens"][:, :-2], rows["first"])
            assert torch.equal(previous[:, 0], rows["first"])
            carried = module.normaliser(module.confidence(module.read(rows["tokens"][:, :-2], previous).hidden_BLD))[
                :, -1
            ]
            module.loss_sum(rows)
        module.after_update()
        last = current
    assert fresh > 1 and zeros > 1  # both ends of a text and ends of documents came up


def test_other_modes_ignore_that_rows_go_on():
    data = {**batch(), "fresh": torch.zeros(3, dtype=torch.bool)}
    module = lookahead()
    module._carried = torch.ones(3)
    assert "first" not in prepared(module, data)[0]
    assert "first" not in prepared(lookahead(previous="carry"), batch())[0]  # validation rows stand alone


# Runs -----------------------------------------------------------------------------------------------------------------


def lookahead_of(data, model=None, seen=None, **options):
    """A fresh Lookahead for bytes in float32; `seen` collects its losses."""

    class Watched(Lookahead):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if seen is not None:
                seen.append(loss.item())
            return loss

    options = {"alpha": 0.1, "dropout": 0.2, **options}
    size = {"dim": 16, "layers": 2, "heads": 2, "max_length": 16, "condition_dim": 5, "causal": True}
    module = Watched(
        Transformer(data.vocab.size, **{**size, **(model or {})}),
        data.vocab,
        Optimization(schedule="constant", lr=1e-2),
        7,
        **options,
    )
    with torch.no_grad():
        module.head.weight.normal_(
            std=0.3, generator=torch.Generator().manual_seed(1)
        )  # confidences that differ from the first step on
    module.check_data(data)
    return module


MODES = {
    "shift": ({"passes": 2}, {}), "carry": ({"previous": "carry"}, {"order": "contiguous", "overlap": 2}),
    "half of it": ({"fraction": 0.5, "head": "two_hot", "max_gradient_ratio": 0.1}, {}),
}  # fmt: skip


def test_a_run_that_was_stopped_goes_on_bit_by_bit(stories, fit):
    for mode in MODES:
        options, order = MODES[mode]
        seen, data = {"whole": [], "parted": []}, stories(**order)
        whole = fit(lookahead_of(data, seen=seen["whole"], **options), data, 6, "whole", validate_every=2)
        fit(lookahead_of(data, seen=seen["parted"], **options), data, 4, "parted")
        second = fit(lookahead_of(data, seen=seen["parted"], **options), data, 6, "parted", goes_on=True)
        assert len(set(seen["whole"])) == 6 and seen["parted"] == seen["whole"]
        a, b = whole.state_dict(), second.state_dict()
        assert a.keys() == b.keys() and {"normaliser.mean", "normaliser.variance", "normaliser.steps"} <= a.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert int(b["normaliser.steps"]) == 6 and float(b["normaliser.mean"]) != 0
        assert torch.equal(whole._carried, second._carried)


def test_a_run_that_forgot_what_it_carried_would_be_another(stories, fit):
    for mode in ("shift", "carry"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            options, order = MODES[mode]
            seen, data = {"whole": [], "parted": []}, stories(**order)
            fit(lookahead_of(data, seen=seen["whole"], **options), data, 6, "whole")
            monkeypatch.setattr(Lookahead, "on_load_checkpoint", lambda self, checkpoint: None)
            fit(lookahead_of(data, seen=seen["parted"], **options), data, 4, "parted")
            fit(lookahead_of(data, seen=seen["parted"], **options), data, 6, "parted", goes_on=True)
            assert (seen["parted"] == seen["whole"]) == (mode == "shift")


def test_accumulation_changes_no_number_of_a_run(stories, fit):
    for pieces in (2, 4):
        seen, data = {1: [], pieces: []}, stories()
        for accumulate in seen:
            module = lookahead_of(data, seen=seen[accumulate], max_gradient_ratio=0.1)
            module.optimization.accumulate = accumulate
            fit(module, data, 4, f"in {accumulate}")
        assert seen[pieces] == pytest.approx(seen[1], rel=1e-5)


def test_a_confidence_that_is_no_number_stops_the_run_and_is_named(stories, fit):
    for condition_dim in (0, 5):
        data = stories()
        module = lookahead_of(data, {"condition_dim": condition_dim})
        torch.nn.init.constant_(module.head.bias, torch.nan)
        before = [p.clone() for p in module.model.parameters()]
        with pytest.raises(NotFinite, match=r"^[^\n]*loss_confidence=nan[^\n]*$"):
            fit(module, data, 2)
        assert all(torch.equal(p, q) for p, q in zip(module.model.parameters(), before, strict=True))


def test_both_models_learn_from_the_same_positions(stories):
    data = stories()
    batch_ = next(iter(data.train_dataloader()))
    plain = MiniGPT(lookahead_of(data).model, data.vocab, Optimization(), 7)
    rows, total = plain.prepare(batch_, Draws(0, "corruption", 0, total=6))
    ours, both = lookahead_of(data).prepare(batch_, Draws(0, "corruption", 0, total=6))
    assert torch.equal(rows["weight"], ours["weight"]) and float(total[0]) == float(both[0])


def test_minigpt_is_lookahead_without_a_confidence_loss():
    """The same backbone told nothing: the first part of the loss is MiniGPT's."""
    module = lookahead({"condition_dim": 0})
    plain = MiniGPT(module.model, VOCAB, Optimization(), 1).double()
    data = batch()
    rows, total = prepared(plain, data)
    both, totals = prepared(module, data)
    assert far(plain.loss_sum(rows) / total, (module.loss_sum(both) / totals)[:1]) < 1e-14


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_wrong_option_is_named():
    for options, opening in (
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"max_gradient_ratio": 0.0}, "max_gradient_ratio=0.0"),
        ({"max_gradient_ratio": -1.0}, "max_gradient_ratio=-1.0"),
        ({"passes": 0}, "passes=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.1}, "fraction=1.1"),
        ({"lookahead": "last", "fraction": 0.5}, "fraction=0.5 with lookahead=last"),
        ({"lookahead": "last", "target": "real"}, "target=real with lookahead=last"),
        ({"horizon": 1}, "horizon=1"),
    ):
        with pytest.raises(ValueError) as raised:
            lookahead(**options)
        assert str(raised.value).startswith(opening) and "\n" not in str(raised.value)


def test_and_for_minigpt():
    with pytest.raises(ValueError, match=r"^horizon=1[^\n]*$"):
        minigpt(horizon=1)


def test_the_edges_of_the_options_work():
    for options in (
        {"alpha": 0.0},
        {"dropout": 1.0},
        {"fraction": 1e-6},
        {"max_gradient_ratio": 1e-9},
        {"horizon": 4},
        {"passes": 5},
        {"lookahead": "last", "horizon": 3},
    ):
        module = lookahead(**options)
        rows, total = prepared(module, batch(length=10, plain=True))
        assert bool(torch.isfinite(module.loss_sum(rows)).all()) and bool((total > 0).all())


def data_of(**options):
    return SimpleNamespace(**{"sequence_length": 16, "order": "shuffled", "overlap": 0, **options})


def test_data_that_cannot_serve_is_refused():
    for make, data, line in (
        (lambda: minigpt({"causal": False}), data_of(), "model.causal=False"),
        (lambda: lookahead({"causal": False}), data_of(), "model.causal=False"),
        (
            minigpt,
            data_of(sequence_length=4),
            "data.sequence_length=4 leaves 2 positions .* set data.sequence_length=5 or more",
        ),
        (
            lookahead,
            data_of(sequence_length=4),
            "data.sequence_length=4 leaves 2 positions .* set data.sequence_length=5 or more",
        ),
        (
            lambda: lookahead(horizon=4),
            data_of(sequence_length=6),
            "data.sequence_length=6 leaves 2 positions .* set data.sequence_length=7 or more",
        ),
        (
            lambda: lookahead(previous="carry"),
            data_of(),
            "method.previous=carry with data.order=shuffled.* set data.order=contiguous data.overlap=2",
        ),
        (
            lambda: lookahead(previous="carry"),
            data_of(order="contiguous", overlap=1),
            "method.previous=carry with data.order=contiguous, data.overlap=1",
        ),
        (
            lambda: lookahead(previous="carry", horizon=3),
            data_of(order="contiguous", overlap=2),
            "method.previous=carry .* data.overlap=3$",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{line}") as raised:
            make().check_data(data)
        assert "\n" not in str(raised.value)


def test_data_that_can_is_not():
    for make, data in ((minigpt, data_of(sequence_length=5)), (lookahead, data_of(sequence_length=5)),
                       (lambda: lookahead(previous="carry"), data_of(order="contiguous", overlap=2)),
                       (lambda: lookahead(previous="shift"), data_of(order="contiguous", overlap=0))):  # fmt: skip
        make().check_data(data)


def test_the_head_is_clipped_apart_and_nothing_is_left_out():
    for name in ("scalar", "two_hot"):
        module = lookahead(head=name)
        parts = [list(module.model.parameters()), list(module.head.parameters())]
        assert {id(p) for part in parts for p in part} == {id(p) for p in module.parameters()}
        for factor, part in zip((3.0, 40.0), parts, strict=True):
            for p in part:
                p.grad = torch.full_like(p, factor)
        before = [torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in part])) for part in parts]
        assert float(module.clip_gradients()) == pytest.approx(float(torch.stack(before).norm()))
        after = [float(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in part]))) for part in parts]
        assert after == pytest.approx([module.optimization.clip] * 2, rel=1e-4)


def test_flops_are_those_counted_by_torch():
    """All forward passes of a step, those without a graph too."""
    for options in (
        {"previous": "zeros", "target": "real"},
        {"previous": "zeros"},
        {},
        {"passes": 3},
        {"fraction": 0.5},
        {"horizon": 3},
        {"lookahead": "last"},
        {"model": {"condition_dim": 0}},
        {"model": {"condition_dim": 0}, "passes": 3},
    ):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        size = {"dim": 64, "max_length": 100, "heads": 2}
        module = lookahead(
            {**size, **options.get("model", {})}, kernel="math", **{k: v for k, v in options.items() if k != "model"}
        )
        length, horizon = 100, module.horizon
        rows, _ = prepared(module, batch(rows=2, length=length, plain=True))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            module.loss_sum(rows)
        forward = module.model.flops_per_token(length) * (length - horizon) / length
        expected = module.training_flops(length) - 2 * forward  # the backward pass is not run here
        assert counter.get_total_flops() / (2 * length) == pytest.approx(expected, rel=0.04)


def test_special_tokens_are_ruled_out():
    module = lookahead()
    assert module.bias_V.isneginf().nonzero().flatten().tolist() == sorted(VOCAB.special)
    assert "bias_V" not in module.state_dict()  # it is a constant of the vocabulary
    other = MiniGPT(backbone(), specials_last(11), Optimization(), 1)
    assert torch.equal(other.bias_V.double(), module.bias_V)


def test_the_own_token_is_never_special(monkeypatch):
    module, drawn = lookahead(horizon=3), []
    with torch.no_grad():
        module.model.embedding.weight[list(VOCAB.special)] *= 40  # without the rule they would be likely
    draw = lookahead_module.draw
    monkeypatch.setattr(
        lookahead_module, "draw", lambda *given, **options: drawn.append(draw(*given, **options)) or drawn[-1]
    )
    module.loss_sum(prepared(module, batch(rows=64, length=12, plain=True))[0])
    assert len(torch.cat(drawn)) == 2 * 64 * 9
    assert not bool(torch.isin(torch.cat(drawn), torch.tensor(VOCAB.special)).any())
