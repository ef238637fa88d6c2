"""The reward model: the regressor, its loss, embedded pairs and their split, the evaluation and its card, a run as a
reward.
"""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml

from research_stack import compose
from research_stack.backbones.regressor import Regressor
from research_stack.data.scored import ScoredPairs
from research_stack.data.sources import replies as sources_replies
from research_stack.data.sources.base import Document
from research_stack.evaluation.context import Context
from research_stack.posttraining.report import reward_evaluation as report
from research_stack.posttraining.reward_evaluation import (
    LENGTH,
    LINEAR,
    MODEL,
    RewardEvaluation,
    pairwise_accuracy,
    predicted,
)
from research_stack.posttraining.reward_model import RewardModel
from research_stack.posttraining.rewards.base import RewardError, call_reward
from research_stack.posttraining.rewards.learned import METHOD, Learned
from research_stack.reporting.html import join, walk
from research_stack.reporting.run_files import RunFiles
from research_stack.training.checkpoint import AtomicCheckpointIO
from research_stack.training.module import split_batch
from research_stack.training.optimization import Optimization

DIM = 6
WORDS = "warm kind sharp cold slow quick plain odd bright dull".split()


class Replies:
    """Forty prompts with five replies each; warm words earn more, and so do long replies."""

    def __init__(self, count=40, change=None):
        rng = np.random.default_rng(3)
        self.items = []
        for i in range(count):
            for j in range(5):
                words = rng.choice(WORDS, rng.integers(2, 12))
                good = sum(word in ("warm", "kind", "bright") for word in words)
                engagement = float(rng.poisson(math.exp(0.8 * good / math.sqrt(len(words)) * 2 + 0.05 * len(words))))
                self.items.append(
                    Document(
                        f"reply {j}: " + " ".join(words), f"prompt {i}?", f"line {5 * i + j + 1}", value=engagement
                    )
                )
        if change is not None:
            self.items[7] = dataclasses.replace(self.items[7], **change)

    def check(self):
        pass

    def documents(self):
        return iter(self.items)

    def fingerprint(self):
        return hashlib.sha256(repr(self.items).encode()).hexdigest()


class Counting:
    """Embeds a text as shares of six letters; counts the texts it was asked for."""

    dim = DIM

    def __init__(self, name="counting"):
        self.name, self.asked = name, []

    def check(self):
        pass

    def embed(self, texts):
        self.asked += texts
        vectors = np.array([[text.count(letter) for letter in "wkbcsd"] for text in texts], dtype=np.float32) + 0.1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def fingerprint(self):
        return self.name


def pairs(folder, source=None, encoder=None, **options):
    data = ScoredPairs(
        source or Replies(),
        encoder or Counting(),
        **{"batch_size": 16, "cache_dir": str(folder / "cache"), "seed": 5, **options},
    )
    data.prepare()
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("pairs"))


def method(loss="mse", hidden=(5,), dtype=torch.float32, **options):
    model = Regressor(2 * DIM, hidden, seed=3)
    return RewardModel(
        model, Optimization(), seed=1, loss=loss, **{"target_mean": 1.2, "target_std": 0.7, **options}
    ).to(dtype)


def batch(rows=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {
        "features": torch.randn(rows, 2 * DIM, generator=generator, dtype=dtype),
        "target": 2 * torch.rand(rows, generator=generator, dtype=dtype),
    }


# ------------------------------------------------------------------------------------------------ the regressor
def test_the_regressor_is_what_it_says():
    model = Regressor(4, [3], seed=2)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    z = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    first, last = model.layers
    hidden = z @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(model(x), (hidden @ last.weight.T + last.bias)[:, 0])
    assert model.flops_per_token(1) == 2 * (4 * 3 + 3)
    assert Regressor(4, []).layers[0].out_features == 1


def test_the_seed_sets_the_weights_and_the_first_outputs_are_small():
    a, b, c = (Regressor(40, [30], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.layers[0].weight, b.layers[0].weight) and not torch.equal(
        a.layers[0].weight, c.layers[0].weight
    )
    assert 0 < a(torch.randn(200, 40, generator=torch.Generator().manual_seed(0))).abs().mean() < 0.2


def test_low_precision_training_does_not_reach_it():
    model, x = Regressor(8, [16], seed=0), torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.float32 and torch.equal(found, model(x))


def test_dropout_leaves_out_the_units_whose_numbers_are_below_it():
    """The numbers of the layers stand one behind the other."""
    model, u = Regressor(8, [5, 3], dropout=0.4, seed=1), torch.full((3, 8), 0.4)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    u[0, 2], u[1, 6] = 0.39, 0.0
    first, second, last = model.layers
    hidden = torch.nn.functional.gelu(first(torch.nn.functional.layer_norm(x, (8,)))) / 0.6
    hidden[0, 2] = 0
    hidden = torch.nn.functional.gelu(second(hidden)) / 0.6
    hidden[1, 1] = 0
    torch.testing.assert_close(model(x, u), last(hidden)[:, 0])
    assert torch.equal(model.train()(x), model.eval()(x)) and not torch.equal(model(x, u), model(x))


def test_a_wrong_regressor_is_one_line():
    for options, message in (
        ({}, "inputs=null: this data gives tokens"),
        ({"inputs": 0}, "inputs=0 must be at least 1"),
        ({"inputs": 4, "hidden": [0]}, r"hidden=\[0\] must be"),
        (
            {"inputs": 4, "hidden": [10**18]},
            r"hidden=\[1000000000000000000\] must be numbers of units, each at most 1,000,000",
        ),
        ({"inputs": 4, "dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Regressor(**options)


# ----------------------------------------------------------------------------------------------------- the loss
def test_the_gradient_is_that_of_finite_differences():
    for loss, delta in (("mse", 1.0), ("huber", 0.4)):
        module, rows = method(loss, dtype=torch.float64, delta=delta), batch(dtype=torch.float64)
        rows["target"][0] = 9.0  # beyond delta

        def value():
            prepared, denominator = module.prepare(rows, None)
            return module.loss_sum(prepared) / denominator

        value().backward()
        for parameter in module.parameters():
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            for at in range(0, len(flat), max(1, len(flat) // 7)):
                kept, step = flat[at].item(), 1e-6
                ends = []
                for sign in (1, -1):
                    flat[at] = kept + sign * step
                    ends.append(value().item())
                flat[at] = kept
                assert gradient[at].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-9)
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_the_loss_is_the_mean_over_pairs_of_standardised_errors():
    for loss in ("mse", "huber"):
        module, rows = method(loss, delta=0.5), batch()
        prepared, denominator = module.prepare(rows, None)
        error = (module.model(rows["features"]) - (rows["target"] - 1.2) / 0.7).detach().abs()
        each = error**2 if loss == "mse" else torch.where(error <= 0.5, error**2 / 2, 0.5 * (error - 0.25))
        assert denominator == 7 and (module.loss_sum(prepared) / denominator).item() == pytest.approx(
            each.mean().item(), rel=1e-5
        )
        parts = sum(module.loss_sum(piece) for piece in split_batch(prepared, 3))
        assert parts.item() == pytest.approx(module.loss_sum(prepared).item(), rel=1e-6)


def test_the_prediction_is_in_the_unit_of_the_target():
    module, rows = method(), batch()
    torch.testing.assert_close(module.predict(rows["features"]), 1.2 + 0.7 * module.model(rows["features"]))
    assert {"mean", "std"} <= set(module.state_dict())


def test_wrong_settings_are_one_line():
    for options, message in (
        ({"delta": 0.0}, "delta=0.0 must be positive"),
        ({"target_std": 0.0}, "target_std=0.0 must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            method(**options)


# ------------------------------------------------------------------------------------------------ embedded pairs
def test_rows_are_both_embeddings_and_the_logarithm_of_the_engagement(data):
    encoder, items = Counting(), Replies().items
    assert sorted([*data.train.number_N, *data.validation.number_N]) == list(range(200)) and data.features == 2 * DIM
    for rows in (data.train, data.validation):
        for features, target, length, number in zip(
            rows.features, rows.target_N, rows.length_N, rows.number_N, strict=True
        ):
            assert np.array_equal(features, encoder.embed([items[number].prompt, items[number].text]).reshape(-1))
            assert target == math.log1p(items[number].value) and length == len(items[number].text)
        assert rows.arrays()["features"].dtype == rows.arrays()["target"].dtype == np.float32


def test_no_prompt_stands_on_both_sides_and_the_target_is_measured_on_the_training_side(data):
    prompts = [set(map(tuple, rows.features[:, :DIM])) for rows in (data.train, data.validation)]
    groups = [set(rows.group_N) for rows in (data.train, data.validation)]
    assert (
        not groups[0] & groups[1]
        and len(groups[0] | groups[1]) == 40
        and all(len(g) >= 2 for g in groups)
        and all(prompts)
    )
    assert data.target_mean == pytest.approx(data.train.target_N.mean(), rel=1e-9)
    assert data.target_std == pytest.approx(data.train.target_N.std(), rel=1e-9)
    assert abs(data.target_mean - np.concatenate([data.train.target_N, data.validation.target_N]).mean()) > 1e-6
    assert data.for_method() == {
        "target_mean": data.target_mean,
        "target_std": data.target_std,
    } and data.for_model() == {"inputs": 2 * DIM}


def test_each_text_is_embedded_once_and_the_cache_asks_no_more(tmp_path):
    first, again = Counting(), Counting()
    a, b = pairs(tmp_path, encoder=first), pairs(tmp_path, encoder=again)
    assert (
        len(first.asked)
        == len(set(first.asked))
        == len({item.prompt for item in Replies().items} | {item.text for item in Replies().items})
    )
    assert again.asked == [] and a.fingerprint == b.fingerprint and np.array_equal(a.train.features, b.train.features)


def test_the_fingerprint_changes_with_all_that_changes_rows(tmp_path):
    found = [
        pairs(tmp_path),
        pairs(tmp_path, encoder=Counting("other")),
        pairs(tmp_path, Replies(change={"value": 99.0})),
        pairs(tmp_path, validation_fraction=0.3),
    ]
    assert len({data.fingerprint for data in found}) == 4
    assert pairs(tmp_path, seed=9, batch_size=4).fingerprint == found[0].fingerprint


def test_a_batch_is_a_function_of_seed_and_step(tmp_path, data):
    whole = list(itertools.islice(iter(data.train_dataloader()), 30))
    assert set(whole[0]) == {"features", "target"} and whole[0]["features"].shape == (16, 2 * DIM)
    late = pairs(tmp_path)
    late.start_step = 25
    for a, b in zip(whole[25:], iter(late.train_dataloader()), strict=False):
        assert torch.equal(a["features"], b["features"]) and torch.equal(a["target"], b["target"])
    other = next(iter(pairs(tmp_path, seed=6).train_dataloader()))
    assert not torch.equal(other["target"], whole[0]["target"])
    seen = torch.cat([step["target"] for step in whole])[: len(data.train)]
    assert sorted(seen.tolist()) == sorted(data.train.target_N.astype(np.float32).tolist())
    held_out = torch.cat([step["target"] for step in data.val_dataloader()])
    assert torch.equal(held_out, torch.from_numpy(data.validation.target_N).float())


def test_validation_rows_are_spread(tmp_path, data):
    few = pairs(tmp_path, validation_rows=5).validation
    assert len(few) == 5 and set(few.target_N) <= set(data.validation.target_N) and len(set(few.group_N)) > 1


def test_a_wrong_pair_is_one_line_that_says_where(tmp_path_factory):
    for change, message in (
        ({"value": None}, "source: line 8 has no engagement"),
        ({"value": math.nan}, "source: line 8 has the engagement nan"),
        ({"value": -1.0}, "source: line 8 has the engagement -1.0, it must be a finite number of at least 0"),
        ({"prompt": None}, "source: line 8 has no prompt"),
        ({"prompt": " "}, "source: line 8 has no prompt"),
    ):
        tmp_path = tmp_path_factory.mktemp("case")
        with pytest.raises(ValueError, match=message) as caught:
            pairs(tmp_path, Replies(change=change))
        assert "\n" not in str(caught.value)


def test_nothing_to_learn_is_one_line(tmp_path):
    source = Replies()
    source.items = [dataclasses.replace(item, value=3.0) for item in source.items]
    with pytest.raises(ValueError, match="all 1.. training pairs have the same engagement"):
        pairs(tmp_path, source)


def test_an_encoder_that_gives_something_else_is_refused(tmp_path):
    class Wrong(Counting):
        def embed(self, texts):
            return super().embed(texts) * np.float32(np.nan)

    with pytest.raises(ValueError, match="encoder=Wrong must give finite numbers"):
        pairs(tmp_path, encoder=Wrong())


def test_an_encoder_that_is_not_there_is_one_line_that_says_where(tmp_path):
    from research_stack.backbones.sentence import SentenceEncoder

    with pytest.raises(ValueError, match=r"^encoder\.path=.*gone is no folder"):
        pairs(tmp_path, encoder=SentenceEncoder(str(tmp_path / "gone")))


def test_other_data_and_other_models_are_refused(data):
    with pytest.raises(ValueError, match="choose data=replies_scored"):
        method().check_data(object())
    method().check_data(data)
    data.check_fit(Regressor(2 * DIM), RewardModel)
    with pytest.raises(
        ValueError,
        match="^encoder: it gives 12 numbers for prompt and reply, and Regressor takes 10; choose model=regressor",
    ):
        data.check_fit(Regressor(10), RewardModel)
    with pytest.raises(ValueError, match="Linear takes tokens"):
        data.check_fit(torch.nn.Linear(2, 2), RewardModel)


# ------------------------------------------------------------------------------------------------- the evaluation
def trained(data, folder, steps=300, **options):
    """A reward model after some steps, and its checkpoint."""
    module = RewardModel(
        Regressor(data.features, [32], seed=1),
        Optimization(lr=0.01, weight_decay=0.01, ema=0),
        seed=1,
        **data.for_method(),
        **options,
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        limit_val_batches=0,
        enable_checkpointing=False,
    )
    trainer.fit(module, data.train_dataloader())
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(data, method, folder, metrics) of a reward model on enough of the planted replies, evaluated."""
    folder = tmp_path_factory.mktemp("run")
    data = pairs(folder, Replies(200))
    module = trained(data, folder)
    context = Context(module, data, None, folder, seed=1, device=torch.device("cpu"), autocast=contextlib.nullcontext)
    return data, module, folder, RewardEvaluation()(context)


def table(folder, name):
    with open(folder / "tables" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


def test_one_step_moves_every_weight(data, tmp_path):
    before = RewardModel(Regressor(data.features, [32], seed=1), Optimization(), seed=1)
    after = trained(data, tmp_path, steps=1)
    moved = {
        name: not torch.equal(a, b) for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
    }
    assert all(moved.values()), moved


def test_the_numbers_are_those_of_the_predictions(run):
    data, module, folder, metrics = run
    rows = data.validation
    with torch.no_grad():
        direct = module.predict(torch.from_numpy(rows.features)).double().numpy()
    np.testing.assert_allclose(predicted(module, rows), direct, atol=1e-6)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(direct, rows.target_N)[0, 1], abs=1e-9)
    assert metrics["r2"] == pytest.approx(
        1 - np.square(direct - rows.target_N).sum() / np.square(rows.target_N - rows.target_N.mean()).sum(), abs=1e-9
    )
    order = [np.argsort(np.argsort(values)) for values in (direct, rows.target_N)]
    assert metrics["spearman"] == pytest.approx(np.corrcoef(*order)[0, 1], abs=0.02)  # up to ties
    assert metrics["pairs"] == len(rows) and metrics["prompts"] == len(set(rows.group_N))
    for key in ("pearson", "spearman", "r2", "pairwise_accuracy"):
        assert metrics[f"{key}_low"] < metrics[key] < metrics[f"{key}_high"]


def test_planted_words_are_found_and_length_alone_finds_less(run):
    _, _, folder, metrics = run
    assert (
        metrics["pearson"] > 0.5
        and metrics["pearson"] > metrics["pearson_length"] + 0.1
        and metrics["r2_over_length_low"] > 0
    )
    assert metrics["pairwise_accuracy"] > 0.6 and abs(metrics["slope"] - 1) < 0.5
    rows = {row["name"]: row for row in table(folder, "reward_heldout")}
    assert list(rows) == [MODEL, LINEAR, LENGTH] and float(rows[MODEL]["pearson"]) == pytest.approx(
        metrics["pearson"], rel=1e-5
    )
    assert [row["kind"] for row in rows.values()] == ["model", "control", "control"]
    bins = table(folder, "reward_reliability")
    assert len(bins) == 10 and float(bins[0]["actual"]) < float(bins[-1]["actual"])


def test_an_engagement_of_length_alone_is_found_by_length_alone(tmp_path):
    source = Replies(100)
    source.items = [dataclasses.replace(item, value=float(len(item.text))) for item in source.items]
    data = pairs(tmp_path, source)
    judge = RewardEvaluation()
    found = judge._judged(judge._controls(data.train, data.validation)[LENGTH], data.validation)
    assert found.r2.value > 0.99 and found.pairwise_accuracy.value > 0.99 and found.calibration_error < 0.05


def test_a_prediction_that_knows_nothing_is_seen_through(data):
    judge, rng = RewardEvaluation(), np.random.default_rng(0)
    rows = data.train
    noise = judge._judged(rng.normal(size=len(rows)), rows)
    assert (
        noise.pearson.low < 0 < noise.pearson.high
        and noise.r2.high < 0
        and noise.pairwise_accuracy.low < 0.5 < noise.pairwise_accuracy.high
    )
    perfect = judge._judged(rows.target_N, rows)
    assert perfect.pearson.low > 1 - 1e-9 and perfect.pairwise_accuracy.value == 1 and perfect.slope == pytest.approx(1)


def test_ranking_within_a_prompt_by_enumeration():
    rng = np.random.default_rng(1)
    predicted_n, actual_n, group_n = rng.integers(0, 4, 60), rng.integers(0, 3, 60), rng.integers(0, 9, 60)
    right, count = 0.0, 0
    for i, j in itertools.combinations(range(60), 2):
        if group_n[i] == group_n[j] and actual_n[i] != actual_n[j]:
            count += 1
            agree = (predicted_n[i] - predicted_n[j]) * (actual_n[i] - actual_n[j])
            right += 0.5 if agree == 0 else float(agree > 0)
    found = pairwise_accuracy(predicted_n.astype(float), actual_n.astype(float), group_n)
    assert found.value == pytest.approx(right / count) and found.low < found.value < found.high
    assert math.isnan(pairwise_accuracy(np.arange(3.0), np.ones(3), np.zeros(3)).value)


def test_the_card_says_what_it_was_made_of(run):
    data, module, folder, metrics = run
    text = (folder / "reward_card.md").read_text()
    for part in (
        data.fingerprint,
        "counting",
        "12 -> 32 -> 1",
        "by prompt",
        f"{metrics['pearson']:.3f} ({metrics['pearson_low']:.3f} to",
        "log(1 + engagement)",
        f"{data.target_mean:.4f} and {data.target_std:.4f}",
        LENGTH,
        "not whether a reply is true",
    ):
        assert part in text, part
    assert "SYNTHETIC" not in text


def test_of_synthetic_replies_the_planted_preference_is_the_ceiling(tmp_path):
    source = sources_replies.Replies(count=300, seed=4)
    data = pairs(tmp_path, source)
    module = RewardModel(Regressor(data.features, seed=1), Optimization(), seed=1, **data.for_method())
    metrics = RewardEvaluation()(
        Context(module, data, None, tmp_path, seed=1, device=torch.device("cpu"), autocast=contextlib.nullcontext)
    )
    planted = np.array([source.truth[number].log_mean for number in data.validation.number_N])
    assert metrics["pearson_ceiling"] == pytest.approx(np.corrcoef(planted, data.validation.target_N)[0, 1], abs=0.05)
    assert (
        metrics["pearson_ceiling"] > 0.6
        and metrics["r2_ceiling"] > metrics["r2_linear"]
        and table(tmp_path, "reward_heldout")[-1]["kind"] == "ceiling"
    )
    card = (tmp_path / "reward_card.md").read_text()
    assert (
        "**The data are SYNTHETIC.**" in card
        and "who knows how the engagement was drawn" in card
        and "1.2 on_topic" in card
    )


def test_only_reward_models_are_judged():
    judge = RewardEvaluation()
    assert judge.unsuited(RewardModel) is None and "reward models" in judge.unsuited(lightning.LightningModule)
    with pytest.raises(ValueError, match="bins=1 must be at least 2"):
        RewardEvaluation(bins=1)


def test_the_report_shows_numbers_and_every_chart(run):
    _, _, folder, metrics = run
    found = RunFiles(folder, metrics={f"reward/{key}": value for key, value in metrics.items()})
    page = join(report.engagement(found))
    assert page.count("<svg") == 3 and f"{metrics['pearson']:.3f}" in page and "nan" not in page
    assert LENGTH in page and LINEAR in page
    charts = [node for node in walk(report.engagement(found)) if hasattr(node, "figure")]
    assert [chart.name for chart in charts] == ["reward_correlation", "reward_pairs", "reward_deciles"]
    assert report.engagement(RunFiles(folder / "none")) is None and report.verdict(RunFiles(folder)) == ""
    assert report.verdict(found).startswith(f"Correlates {metrics['pearson']:.2f} (")


# ---------------------------------------------------------------------------------------------- a run as a reward
def finished(folder, encoder_path, steps=3, method_target=METHOD):
    """A reward run's folder as training leaves it, on a tiny encoder."""
    from research_stack.backbones.sentence import SentenceEncoder

    encoder = SentenceEncoder(str(encoder_path), max_length=40)
    data = pairs(folder, encoder=encoder)
    config = {
        "name": "reward",
        "seed": 1,
        "method": {"_target_": method_target},
        "model": {"_target_": "research_stack.backbones.regressor.Regressor", "hidden": [32]},
        "data": {
            "encoder": {
                "_target_": "research_stack.backbones.sentence.SentenceEncoder",
                "path": str(encoder_path),
                "max_length": 40,
            }
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"data": data.describe()}))
    return data, trained(data, folder, steps)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random encoder of width 16."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=40,
            pad_token_id=0,
        )
    ).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(["[PAD]", "[UNK]", "reply", "prompt", *WORDS])}, unk_token="[UNK]"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of_run(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("finished")
    return folder, *finished(folder, bert)


def test_a_finished_run_gives_what_its_model_predicts(folder_of_run):
    folder, data, module = folder_of_run
    items = Replies().items[:6]
    prompts, texts = [item.prompt for item in items], [item.text for item in items]
    vectors = data.encoder.embed(prompts), data.encoder.embed(texts)
    with torch.no_grad():
        expected = module.eval().predict(torch.from_numpy(np.concatenate(vectors, axis=1))).double().numpy()
    reward = Learned(str(folder), unit="log")
    reward.check()
    found = call_reward(reward, prompts, texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    standard = call_reward(Learned(str(folder)), prompts, texts)
    np.testing.assert_allclose(standard, (expected - data.target_mean) / data.target_std, atol=1e-5)
    np.testing.assert_allclose(
        [call_reward(reward, [p], [t])[0] for p, t in zip(prompts, texts, strict=True)], found, atol=1e-5
    )
    assert np.ptp(found) > 1e-3 and call_reward(reward, [], []).shape == (0,)


def test_a_folder_that_is_no_reward_run_is_one_line(tmp_path, folder_of_run, bert):
    folder, _, _ = folder_of_run
    with pytest.raises(ValueError, match="is no run: it has no config.yaml"):
        Learned(str(tmp_path)).check()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({"method": {"_target_": "research_stack.flowlm.module.FlowLM"}}))
    with pytest.raises(
        ValueError,
        match="is no reward run: its method is research_stack.flowlm.module.FlowLM; train one with experiment=reward",
    ):
        Learned(str(other)).check()
    (other / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(ValueError, match="has no checkpoints/last.ckpt"):
        Learned(str(other)).check()
    (other / "checkpoints").mkdir()
    (other / "checkpoints" / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(RewardError, match="reward=learned failed on prompt 'a' .*the checkpoint is damaged"):
        call_reward(Learned(str(other)), ["a"], ["b"])
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, other / "checkpoints" / "last.ckpt")
    with pytest.raises(RewardError, match="the checkpoint is of another model"):
        call_reward(Learned(str(other)), ["a"], ["b"])


def test_an_encoder_that_has_changed_or_is_gone_is_one_line(tmp_path, folder_of_run):
    folder, _, _ = folder_of_run
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "last.ckpt").write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "run.json").write_text(json.dumps({"data": {"encoder": "sentence-another"}}))
    with pytest.raises(RewardError, match="was trained on embeddings of another encoder"):
        call_reward(Learned(str(other)), ["a"], ["b"])
    config["data"]["encoder"]["path"] = str(tmp_path / "gone")
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(OSError, match="gone is no folder"):
        Learned(str(other)).check()


# ------------------------------------------------------------------------------------------------------- configs
def test_the_experiment_composes_and_passes_the_static_check(tmp_path_factory):
    for overrides in ([], ["trainer=smoke"], ["model.hidden=[64,64]", "method.loss=huber", "data.path=replies.jsonl"]):
        with pytest.MonkeyPatch.context() as monkeypatch:
            tmp_path = tmp_path_factory.mktemp("case")
            monkeypatch.chdir(tmp_path)
            Path("replies.jsonl").write_text(
                "".join(
                    json.dumps({"prompt": f"p{i}", "reply": f"r{i}", "likes": i, "shares": 0}) + "\n" for i in range(9)
                )
            )
            cfg = compose(["experiment=reward", *overrides])
            assert cfg.trainer.max_steps == (20 if "trainer=smoke" in overrides else 300)


def test_a_mistake_in_the_config_comes_before_the_run():
    for override, message in (
        ("method.loss=mae", "method.loss=mae must be one of mse, huber"),
        ("model.dropout=1.5", r"model.dropout=1.5 must lie in \[0, 1\)"),
        (f"eval.reward.bins={10**18}", "eval.reward.bins=1000000000000000000 must be at most 10,000"),
        ("eval.reward.ridge=inf", "eval.reward.ridge=inf must be a finite number"),
        ("method.delta=nan", "method.delta=nan must be a finite number"),
        ("eval.reward.bins=1", "eval.reward.bins=1 must be at least 2"),
        ("data.validation_fraction=0", "data.validation_fraction=0 must lie between 0 and 1"),
        ("data.source.noise=-1", r"data.source.noise=-1 must lie in \[0, 10\]"),
    ):
        with pytest.raises(ValueError, match=message):
            compose(["experiment=reward", override])
