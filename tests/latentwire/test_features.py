"""Features: nothing changes at the start, gradients are finite differences, groups hold every parameter once,
checkpoints bring each feature back.
"""

import copy
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_latentwire import ASKED, STEPS, adapted_of, method, prepared, reader, slope, stirred, train_step
from torch import nn

from research_stack.config.check import check
from research_stack.config.check_node import check_node
from research_stack.latentwire.encoder import as_bytes
from research_stack.latentwire.features.adaptive_tokens import AdaptiveTokens
from research_stack.latentwire.features.base import AdapterOutput, StepSettings
from research_stack.latentwire.features.coprocessor import Coprocessor
from research_stack.latentwire.features.deep_prefix import DeepPrefix, keys_values_of
from research_stack.latentwire.features.heads import Gist, Reconstruction, hashed_grams
from research_stack.latentwire.features.latent_dropout import LatentDropout
from research_stack.latentwire.features.layer_adapters import LayerAdapters, chosen_layers
from research_stack.latentwire.features.listing import KNOWN, feature_lines, feature_rows, refuse_other_features
from research_stack.latentwire.features.lora import ReaderLoRA, plain
from research_stack.latentwire.losses import LossInputs
from research_stack.latentwire.module import refuse_conflicts
from research_stack.latentwire.receiver import Condition, greedy, prefill_text
from research_stack.streams import generator
from research_stack.training.optimization import Optimization

MAKERS = {
    "lora": lambda: ReaderLoRA(rank=2),
    "layer_adapters": lambda: LayerAdapters(width=8, heads=2),
    "deep_prefix": lambda: DeepPrefix(texts=4),
    "coprocessor": lambda: Coprocessor(texts=4),
    "latent_dropout": lambda: LatentDropout(keep_to=0.0, ramp=0.0),
    "adaptive_tokens": lambda: AdaptiveTokens(by="accuracy", min_tokens=1, threshold=0.05, momentum=0.5, hold=1),
    "gist": lambda: Gist(grams=2, buckets=16, width=8),
    "reconstruction": lambda: Reconstruction(max_bytes=20, width=8, heads=2),
}
COSTLESS = ["lora", "layer_adapters", "coprocessor"]  # at the start they change nothing
ALL = {
    "with_prefix": [n for n in MAKERS if n != "coprocessor"],
    "with_coprocessor": [n for n in MAKERS if n != "deep_prefix"],
}


def made_of(names, **options):
    return method({name: MAKERS[name]() for name in names}, **options)


def logits_of(made, sent, name="llama"):
    """(B, A, V) of the answers behind these latents."""
    rows, _ = prepared(made)
    return made.answer_logits(name, made.prefill(name, sent), rows)


def read_of(made, name, sent, **changes):
    """What a feature is given of one reader; right first tokens by `right`."""
    target_BA = torch.tensor([[1, 2]] * 4)
    logits_BAV = F.one_hot(target_BA, 5).float()
    given = {
        "name": name,
        "adapted": sent,
        "raw_BMd": sent.latents_BMd,
        "logits_BAV": logits_BAV,
        "target_BA": target_BA,
        "answer_mask_BA": torch.ones(4, 2, dtype=torch.bool),
        "tokens": 2,
        "rows": {},
    }
    return LossInputs(**{**given, **changes})


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# At the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("name", COSTLESS)
@pytest.mark.parametrize("who", ["llama", "qwen"])
def test_at_the_start_nothing_is_changed_and_later_it_is(name, who):
    plainly, made = method({}, train=False), made_of([name], train=False)
    expected = logits_of(plainly, adapted_of(plainly, who), who)
    with torch.no_grad():
        close(logits_of(made, adapted_of(made, who), who), expected)
        stirred(made.readers[who] if name == "lora" else made.features)
        assert (logits_of(made, adapted_of(made, who), who) - expected).abs().max() > 1e-3


@pytest.mark.exact
def test_a_prefix_at_the_start_has_the_mean_and_spread_of_text():
    """Read token by token, without padding; contexts shorter than the prefix count with what they have."""
    own, positions, texts = reader("llama"), 12, ["Ada eats", "Ben", "Mira lives in New York and drinks cocoa."]
    mean, deviation = keys_values_of(own, texts, positions)
    rows = []
    for text in texts:
        layers = prefill_text(own, [own.token_ids(text)[:positions]]).cache.held.layers
        rows.append(
            torch.stack([torch.stack((x.keys[0], x.values[0])).transpose(1, 2)[:, len(own.bos_ids) :] for x in layers])
        )
    every = torch.cat(rows, dim=2)
    assert len({r.shape[2] for r in rows}) == 3 and max(r.shape[2] for r in rows) == positions
    close(mean, every.mean(2))
    close(deviation, every.std(2, correction=0))


def test_texts_that_are_all_shorter_than_the_prefix_leave_the_lead_out():
    own = reader("llama")
    mean, _ = keys_values_of(own, ["Ada", "Ben"], 30)
    layers = prefill_text(own, [own.token_ids("Ada"), own.token_ids("Ben")]).cache.held.layers
    close(mean[:, 0], torch.stack([x.keys[:, :, len(own.bos_ids) :].mean((0, 2)) for x in layers]))


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*COSTLESS, "deep_prefix"])
def test_gradients_of_what_a_reader_is_given_are_finite_differences(name):
    made, who = (
        method(
            {name: ReaderLoRA(rank=2, targets=["q_proj", "down_proj"]) if name == "lora" else MAKERS[name]()},
            double=True,
            train=False,
        ),
        "llama",
    )
    owner = made.readers[who] if name == "lora" else made.features[name].maps[who]
    stirred(owner, 0.05)
    sent = adapted_of(made, who)
    sent.states_BPH = sent.states_BPH.detach()
    rows, _ = prepared(made)
    weights = torch.randn(made.readers[who].model.vocab_rows, generator=generator(0, "weights")).double()

    def loss():
        return (made.answer_logits(who, made.prefill(who, sent), rows) @ weights).sum() / 10

    loss().backward()
    check_slopes(loss, owner)
    assert all(p.grad is None for n, p in made.readers.named_parameters() if "lora_" not in n)


def check_slopes(loss, owner):
    """The gradient of every trained parameter along a random way against differences."""
    trained = {n: p for n, p in owner.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        way = torch.randn(parameter.shape, generator=generator(0, "way", name)).to(parameter)
        way = way / way.norm()
        start = parameter.detach().clone()

        def moved(step, parameter=parameter, start=start, way=way):
            parameter.data.copy_(start + step * way)
            return loss()

        found, expected = slope(moved), float((parameter.grad * way).sum())
        parameter.data.copy_(start)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["gist", "reconstruction"])
def test_gradients_of_heads_are_finite_differences(name):
    made = made_of([name], double=True)
    feature, sent = made.features[name], adapted_of(made, "qwen")

    def loss():
        return feature.on_loss_aggregate(read_of(made, "qwen", sent))[name]

    sent.latents_BMd = sent.latents_BMd.detach().requires_grad_()
    loss().backward()
    assert sent.latents_BMd.grad.abs().amax((0, 2)).min() > 0  # every latent
    used = torch.zeros(made.num_latents + 1, dtype=torch.bool)
    used[sent.index_M] = True
    slotwise = feature.map_MdW if name == "gist" else feature.latent_MW
    assert torch.equal(slotwise.grad.flatten(1).abs().sum(1) > 0, used)
    check_slopes(loss, feature)


@pytest.mark.parametrize("names", ALL.values(), ids=ALL.keys())
def test_all_features_together_train_everything_but_the_readers(names):
    made = made_of(names)
    stirred(made.features, 0.05)
    before = {n: p.detach().clone() for n, p in made.readers.named_parameters() if "lora_" not in n}
    optimizer = torch.optim.SGD([p for group in made.optimizer_groups() for p in group.parameters], lr=1e-2)
    for number in range(2):
        train_step(made, optimizer, number)
    unmoved = [
        n
        for n, p in made.named_parameters()
        if p.requires_grad and p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    # a prefix takes the vectors' place, so the adapters' last map has nothing to do
    allowed = [".mean_D", ".size", ".leave.weight", ".leave.bias"] if "deep_prefix" in names else []
    assert [n for n in unmoved if not n.endswith(tuple(allowed))] == []
    assert all(torch.equal(p, before[n]) for n, p in made.readers.named_parameters() if n in before) and before
    for name in names:
        assert name == "deep_prefix" or any(key.startswith(f"{name}/") for key in made.said), name


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [*([n] for n in MAKERS), *ALL.values()], ids=[*MAKERS, *ALL])
def test_every_trained_parameter_is_in_one_group(names):
    made = made_of(names)
    groups = made.optimizer_groups()
    held = [id(p) for group in groups for p in group.parameters]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in made.parameters() if p.requires_grad}
    named = [group.name for group in groups]
    assert len(named) == len(set(named))
    for name in names:
        expected = {
            "lora": {"lora.llama", "lora.qwen"},
            "latent_dropout": set(),
            "adaptive_tokens": set(),
            "deep_prefix": {"deep_prefix.weights", "deep_prefix.starts"},
        }.get(name, {f"{name}.weights"})
        assert {n for n in named if n.partition(".")[0] == name} == expected


def test_gates_and_what_starts_from_text_do_not_decay():
    made = method({"deep_prefix": DeepPrefix()})
    names = {id(p): name for name, p in made.named_parameters()}
    optimizer = Optimization(weight_decay=0.1).optimizer(made, made.optimizer_groups())
    spared = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {
        "pooling.gate_M1",
        *(f"features.deep_prefix.maps.{reader}.{part}" for reader in ("llama", "qwen") for part in ("gate", "mean")),
    } <= spared
    assert not {"features.deep_prefix.maps.llama.out.weight", "pooling.out.weight"} & spared


def test_only_the_training_side_is_read_before_training():
    made = method({"deep_prefix": DeepPrefix()}, trained_on=[0, 2])
    assert made.some_contexts(9) == list(dict.fromkeys([ASKED[0].context, ASKED[2].context]))
    other = method({"deep_prefix": DeepPrefix()}, trained_on=[1, 3])
    assert not torch.equal(
        made.features["deep_prefix"].maps["llama"].mean, other.features["deep_prefix"].maps["llama"].mean
    )


def test_all_weights_come_from_the_seed():
    first, second = (method({"deep_prefix": DeepPrefix()}, length_hint=True).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first) and first["length_head.weight"].any()


def test_one_slot_starts_from_text_without_nan():
    made = method({"deep_prefix": DeepPrefix(texts=1)}, num_latents=1, num_private=0)
    assert all(p.isfinite().all() for p in made.features.parameters()) and all(
        b.isfinite().all() for b in made.features.buffers()
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling_heads": 3}, "^pooling_heads=3 must divide the encoder's dim=16$"),
        ({"adapter_heads": 3}, "^adapter_heads=3 must divide adapter_dim=8$"),
    ],
)
def test_heads_that_do_not_divide_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_adapters_have_a_learning_rate_of_their_own():
    made = method({"lora": ReaderLoRA(rank=2, lr_factor=0.25, readers=["qwen"])})
    assert [(g.name, g.factor) for g in made.optimizer_groups() if g.name.startswith("lora")] == [("lora.qwen", 0.25)]


# LoRA -----------------------------------------------------------------------------------------------------------------


def test_adapters_go_to_the_readers_that_are_named_and_to_maps_that_are_named():
    made = method({"lora": ReaderLoRA(rank=3, readers=["qwen"], targets=["q_proj", "v_proj"])})
    assert not any("lora_" in n for n, _ in made.readers["llama"].named_parameters())
    names = [n for n, p in made.readers["qwen"].named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 2 and all(("q_proj" in n or "v_proj" in n) and "lora_" in n for n in names)
    assert made.features["lora"].describe() == {
        "parameters": 2 * 3 * (32 + 64 + 32 + 32),
        "trained": 2 * 3 * (32 + 64 + 32 + 32),
    }


def test_adapters_of_two_readers_and_of_two_seeds_differ():
    one, other = (method({"lora": ReaderLoRA(rank=2, targets=["q_proj"])}, seed=seed) for seed in (0, 1))
    drawn = [
        next(p for n, p in made.readers[who].named_parameters() if "lora_A" in n).flatten()[:20]
        for made in (one, other)
        for who in ("llama", "qwen")
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_only_adapters_are_in_the_state():
    made = made_of(["lora"])
    kept = [n for n in made.state_dict() if n.startswith("readers.")]
    assert kept and all("lora_" in n or n.endswith("base_digest") for n in kept)
    assert (
        sum(made.state_dict()[n].numel() for n in kept if "lora_" in n) == made.features["lora"].describe()["trained"]
    )


@pytest.mark.exact
def test_texts_are_read_without_the_adapters():
    made, own = made_of(["lora"], train=False), reader("llama")
    stirred(made.readers)
    adapted, text, prompt = made.readers["llama"], own.token_ids("Ada eats rice."), own.prompt_ids("What?")
    expected, first = greedy(own, prefill_text(own, [text]), [prompt], 4)
    with plain(adapted):
        found, first_plain = greedy(adapted, prefill_text(adapted, [text]), [prompt], 4)
    assert found == expected
    close(first_plain, first)
    assert not torch.allclose(greedy(adapted, prefill_text(adapted, [text]), [prompt], 4)[1], first, atol=1e-3)
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora_" in n)
    with plain(own):  # one without adapters stays as it is
        assert greedy(own, prefill_text(own, [text]), [prompt], 4)[0] == expected


def test_dropout_of_adapters_is_on_in_training_steps_alone():
    made = method({"lora": ReaderLoRA(rank=2, dropout=0.5)})
    stirred(made.readers)
    drops = [m for n, m in made.readers.named_modules() if isinstance(m, nn.Dropout) and "lora_" in n]

    def twice():
        return [logits_of(made, adapted_of(made, "llama")) for _ in range(2)]  # each prepares a batch first

    assert drops and not any(m.training for m in drops)  # built
    first, second = twice()
    assert all(m.training for m in drops) and not torch.allclose(first, second)
    assert not any(
        m.training for own in made.readers.values() for m in own.modules() if m not in drops
    )  # nothing else of the readers
    made.eval()  # as for validation, and for messages
    assert not any(m.training for m in drops)
    first, second = twice()
    assert torch.equal(first, second) and not any(m.training for m in drops)
    made.train()
    prepared(made)
    assert all(m.training for m in drops)


@pytest.mark.parametrize("wanted", [["lama"], []])
def test_unknown_readers_are_refused(wanted):
    with pytest.raises(ValueError, match=r"^features\.lora\.readers=\[.*\] must be some of llama, qwen$"):
        method({"lora": ReaderLoRA(readers=wanted)})


# Between layers, and in the cache
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "depths, layers, expected",
    [
        (1, 4, [2]),
        (2, 4, [1, 3]),
        (4, 4, [0, 1, 2, 3]),
        (4, 28, [3, 10, 17, 24]),
        (3, 28, [4, 14, 23]),
        ([2, 0], 3, [0, 2]),
    ],
)
def test_depths_are_spread_evenly(depths, layers, expected):
    assert chosen_layers(depths, layers) == expected


@pytest.mark.parametrize("depths", [0, 3, [2], [-1], [0, 0], []])
def test_other_depths_are_refused(depths):
    with pytest.raises(ValueError, match=r"^depths=.* must"):
        chosen_layers(depths, 2)


@pytest.mark.exact
def test_layer_adapters_are_their_formula():
    made = method({"layer_adapters": LayerAdapters(depths=[1], width=8, heads=2)}, train=False)
    own = stirred(made.features["layer_adapters"].maps["qwen"]["1"])
    x, states = (
        torch.randn(2, 3, 32, generator=generator(0, "x")),
        torch.randn(2, 5, 8, generator=generator(0, "states")),
    )
    with torch.no_grad():
        a = own.attention
        unit = x * (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).rsqrt() * a.norm.weight
        q, k, v = (
            part.view(2, -1, 2, 4).transpose(1, 2)
            for part in (unit @ a.query.weight.T, states @ a.key.weight.T, states @ a.value.weight.T)
        )
        taken = ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2) @ a.out.weight.T
        close(own(x, states), x + math.tanh(float(own.gate)) * taken)


def test_changes_come_after_those_that_are_there():
    made = made_of(["layer_adapters"], train=False)
    feature = stirred(made.features["layer_adapters"])
    sent = adapted_of(made, "qwen")
    before = {feature.layers["qwen"][0]: lambda x: 2 * x, 7: lambda x: x}
    merged = feature.condition("qwen", sent, Condition(changes=before)).changes
    alone = feature.condition("qwen", sent, Condition()).changes
    assert set(merged) == {*before, *feature.layers["qwen"]} and set(alone) == set(feature.layers["qwen"])
    x, layer = torch.randn(4, 3, 32, generator=generator(0, "x")), feature.layers["qwen"][0]
    assert torch.equal(merged[layer](x), alone[layer](2 * x)) and merged[7] is before[7]


def test_layer_adapters_speak_in_generation_and_drop_out_in_training():
    made = method({"layer_adapters": LayerAdapters(width=8, heads=2, dropout=0.5)}, train=False)
    own, prompts = made.readers["llama"], [made.readers["llama"].prompt_ids(q.question) for q in ASKED]
    plainly, _ = greedy(own, made.prefill("llama", adapted_of(made, "llama")), prompts, 6)
    stirred(made.features, 3.0)
    (one, first), (again, _) = (
        greedy(own, made.prefill("llama", adapted_of(made, "llama")), prompts, 6) for _ in range(2)
    )
    assert one == again != plainly
    close(first, logits_of(made, adapted_of(made, "llama"))[:, 0].detach())
    made.train()
    assert not torch.allclose(logits_of(made, adapted_of(made, "llama")), logits_of(made, adapted_of(made, "llama")))


def test_deltas_and_changes_of_several_features_reach_the_reader_together():
    made = made_of(["coprocessor", "layer_adapters"], train=False)
    condition = made.condition("qwen", adapted_of(made, "qwen"))
    assert condition.vectors_BPD is not None and len(condition.deltas) == 2 and set(condition.changes) == {0, 1}
    made = made_of(["layer_adapters", "deep_prefix"], train=False)
    condition = made.condition("qwen", adapted_of(made, "qwen"))
    assert condition.vectors_BPD is None and len(condition.prefix) == 2 and set(condition.changes) == {0, 1}


@pytest.mark.parametrize("name", ["deep_prefix", "coprocessor", "layer_adapters"])
def test_what_a_reader_is_given_depends_on_its_latents_and_their_places(name):
    """Fewer latents are the first ones: what is given for them has as many positions."""
    made = stirred(made_of([name], train=False))
    few = adapted_of(made, "qwen", num_latents=3)
    given = made.prefill("qwen", few)
    assert given.cache.length == len(made.readers["qwen"].bos_ids) + 3
    sent = adapted_of(made, "qwen")
    other = copy.copy(sent)
    other.states_BPH = sent.states_BPH.roll(1, 0)
    assert not torch.allclose(logits_of(made, other, "qwen"), logits_of(made, sent, "qwen"), atol=1e-4)


# Latent dropout -------------------------------------------------------------------------------------------------------


def drawn(feature, steps, num_private=1, num_latents=9, total=100):
    """Shared latents of each step."""
    feature.seed, feature.num_private = 0, num_private
    found = []
    for number in range(steps):
        step = StepSettings(number, total, num_latents, 4)
        feature.on_batch_start(step)
        found.append(step.num_latents - num_private)
    return found


@pytest.mark.exact
@pytest.mark.parametrize("distribution, ratio", [("uniform", 0.8), ("geometric", 0.5)])
def test_how_many_slots_are_kept_follows_the_law(distribution, ratio):
    found = drawn(
        LatentDropout(keep_from=0.25, keep_to=0.25, min_shared=3, distribution=distribution, ratio=ratio), 4000
    )
    weights = [1.0 if distribution == "uniform" else ratio**n for n in range(6)]
    for count, weight in zip(range(3, 9), weights, strict=True):
        expected = 0.75 * weight / sum(weights) + 0.25 * (count == 8)
        assert found.count(count) / 4000 == pytest.approx(expected, abs=5 * math.sqrt(expected / 4000)), count
    assert set(found) == set(range(3, 9))


def test_keeping_all_gets_rarer_over_the_ramp():
    feature = LatentDropout(keep_from=0.9, keep_to=0.1, ramp=0.5)
    assert [round(feature.keep(n, 100), 9) for n in (0, 25, 50, 99)] == [0.9, 0.5, 0.1, 0.1]
    assert LatentDropout(keep_from=1, keep_to=0.3, ramp=0).keep(0, 100) == pytest.approx(0.3)
    assert set(drawn(LatentDropout(keep_from=1, keep_to=1), 200)) == {8}


def test_draws_depend_on_seed_and_step_alone():
    feature = LatentDropout(keep_to=0.2)
    found = drawn(feature, 60)
    assert drawn(feature, 60) == found
    feature.seed = 1
    step = StepSettings(41, 100, 9, 4)
    LatentDropout.on_batch_start(feature, step)
    feature.seed, again = 0, StepSettings(41, 100, 9, 4)
    feature.on_batch_start(again)
    assert again.num_latents - 1 == found[41]
    validation = StepSettings(None, 100, 9, 4)
    feature.on_batch_start(validation)
    assert validation.num_latents == 9


def test_a_step_sends_the_first_slots_to_every_reader():
    made = method({"latent_dropout": LatentDropout(keep_from=0, keep_to=0)})
    seen = set()
    for number in range(8):
        rows, denominator = prepared(made, number)
        num_latents = made._now.num_latents
        seen.add(num_latents)
        made.loss_sum(rows).sum().backward()
        moved = (
            made.pooling.get_submodule("after").query_MD.grad.abs().sum(1) > 0
        )  # of all latents: 4 shared, then 1 of each reader
        assert moved.tolist() == [i < num_latents - 1 for i in range(4)] + [True, True]
        made.zero_grad()
    assert len(seen) > 2 and made.after_update()["latent_dropout/num_latents"] == num_latents
    made.eval()
    prepared(made)
    assert made._now.num_latents == made.num_latents


def test_more_slots_than_are_shared_cannot_be_kept():
    with pytest.raises(ValueError, match=r"^features\.latent_dropout\.min_shared=5 must be at most 4"):
        method({"latent_dropout": LatentDropout(min_shared=5)})


# Adaptive K -----------------------------------------------------------------------------------------------------------


def test_k_grows_by_schedule():
    made = method({"adaptive_tokens": AdaptiveTokens(min_tokens=2, share=0.6)}, loss_tokens=4)
    found = []
    for number in range(STEPS):
        prepared(made, number)
        found.append(made._now.tokens)
    assert found == [2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    made.eval()
    made.features["adaptive_tokens"].now.fill_(2)
    prepared(made)
    assert made._now.tokens == 4 and int(made.features["adaptive_tokens"].now) == 2


@pytest.mark.exact
def test_k_grows_by_the_running_accuracy_of_every_reader():
    made = method(
        {
            "adaptive_tokens": AdaptiveTokens(
                by="accuracy", min_tokens=1, max_tokens=3, threshold=0.7, momentum=0.5, hold=2
            )
        }
    )
    feature, sent = made.features["adaptive_tokens"], adapted_of(made, "llama")
    wrong = F.one_hot(torch.full((4, 2), 3), 5).float()
    running, history = [0.0, 0.0], []
    for number, right in enumerate([(1, 0), (1, 1), (1, 1), (1, 1), (0.5, 1), (1, 1), (1, 1), (1, 1)]):
        step = StepSettings(number, STEPS, 5, 4)
        feature.on_batch_start(step)
        history.append(step.tokens)
        for name, share in zip(("llama", "qwen"), right, strict=True):
            read = read_of(made, name, sent)
            read.logits_BAV[int(4 * share) :] = wrong[int(4 * share) :]
            for piece in (slice(0, 1), slice(1, 4)):  # the batch in two pieces
                assert (
                    feature.on_loss_aggregate(
                        read_of(
                            made,
                            name,
                            sent,
                            logits_BAV=read.logits_BAV[piece],
                            target_BA=read.target_BA[piece],
                            answer_mask_BA=read.answer_mask_BA[piece],
                        )
                    )
                    == {}
                )
        feature.after_update()
        running = [0.5 * a + 0.5 * b for a, b in zip(running, right, strict=True)]
        assert feature.running_R.tolist() == pytest.approx(running)
    # running: (.5, 0) (.75, .5) (.875, .75) grows to 2; (.94, .875) too soon; (.72, .94) grows to 3, the most
    assert history == [1, 1, 1, 2, 2, 3, 3, 3]
    assert feature.metrics_snapshot() == {
        "tokens": 3.0,
        "first1_llama": pytest.approx(running[0]),
        "first1_qwen": pytest.approx(running[1]),
    }


def test_rows_without_an_answer_and_steps_begun_again_do_not_count():
    made = method({"adaptive_tokens": AdaptiveTokens(by="accuracy", min_tokens=1, momentum=0)})
    feature, sent = made.features["adaptive_tokens"], adapted_of(made, "llama")
    none = torch.zeros(4, 2, dtype=torch.bool)
    feature.on_batch_start(StepSettings(0, STEPS, 5, 4))
    feature.on_loss_aggregate(read_of(made, "llama", sent, answer_mask_BA=none))  # then the memory is full
    made.reset_step()
    half = torch.tensor([[True, True], [True, True], [False, False], [False, False]])
    for name in ("llama", "qwen"):
        read = read_of(made, name, sent, answer_mask_BA=half)
        read.logits_BAV[1] = 0
        feature.on_loss_aggregate(read)
    feature.after_update()
    assert feature.running_R.tolist() == [0.5, 0.5]
    made.eval()
    feature.counted = {}
    feature.on_loss_aggregate(read_of(made, "llama", sent))
    assert feature.counted == {}  # validation says nothing


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tokens": 5}, "max_tokens=5 must be at most loss_tokens=4"),
        ({"min_tokens": 5}, "min_tokens=5 must be at most loss_tokens=4"),
    ],
)
def test_more_tokens_than_the_method_has_are_refused(options, message):
    with pytest.raises(ValueError, match=rf"^features\.adaptive_tokens\.{message}"):
        method({"adaptive_tokens": AdaptiveTokens(**options)})


# Heads ----------------------------------------------------------------------------------------------------------------


def grams(data, n):
    return {data[i : i + n] for i in range(len(data) - n + 1)}


@pytest.mark.exact
def test_grams_are_those_of_the_text_alone():
    texts = ["abcab", "ab", "x", "", "bcabc"]
    for n in (1, 2, 3, 7):
        found = hashed_grams(*as_bytes(texts), n, 1 << 20)
        for row, text in enumerate(texts):
            data = text.encode()
            assert int(found[row].sum()) == len(grams(data, n)), (n, text)  # the buckets are many, so no two share one
        for row, other in itertools.combinations(range(len(texts)), 2):
            same = grams(texts[row].encode(), n) == grams(texts[other].encode(), n)
            assert torch.equal(found[row], found[other]) == same, (n, texts[row], texts[other])
    few = hashed_grams(*as_bytes(texts), 2, 3)
    assert few.shape == (5, 3) and few[3].sum() == 0 and set(few.unique().tolist()) == {0, 1}


def test_grams_fill_the_buckets_evenly():
    texts = [f"{i:07d}" for i in range(3000)]
    counts = hashed_grams(*as_bytes(texts), 7, 50).sum(0)
    assert (counts - 60).abs().max() < 5 * math.sqrt(60)


def test_the_gist_of_a_constant_is_chance():
    """A head that says the share of contexts for each bucket costs what is logged as chance."""
    made = made_of(["gist"])
    feature, sent = made.features["gist"], adapted_of(made, "llama")
    share = hashed_grams(sent.bytes_BN, sent.mask_BN, 2, 16).mean(0)
    with torch.no_grad():
        feature.out.weight.zero_()
        feature.out.bias.copy_(torch.logit(share.clamp(1e-7, 1 - 1e-7)))
    loss = float(feature.on_loss_aggregate(read_of(made, "llama", sent))["gist"]) / 4
    assert loss == pytest.approx(feature.metrics_snapshot()["chance"], abs=1e-5) and loss > 0.05


def test_spelling_of_a_constant_is_chance_and_padding_costs_nothing():
    made = made_of(["reconstruction"])
    feature, sent = made.features["reconstruction"], adapted_of(made, "llama")
    bytes_BN, mask_BN = sent.bytes_BN[:, :20], sent.mask_BN[:, :20]
    assert not bool(mask_BN.all())
    share = torch.bincount(bytes_BN[mask_BN], minlength=256) / mask_BN.sum()
    with torch.no_grad():
        feature.out.weight.zero_()
        feature.out.bias.copy_(share.clamp_min(1e-12).log())
    found = float(feature.on_loss_aggregate(read_of(made, "llama", sent))["reconstruction"])
    expected = sum(-share[torch.tensor(list(q.context.encode()[:20]))].log().mean().item() for q in ASKED)
    assert found == pytest.approx(expected, rel=1e-5)
    snapshot = feature.metrics_snapshot()
    assert snapshot["chance"] == pytest.approx(float(-(share[share > 0] * share[share > 0].log()).sum()), rel=1e-5)
    assert snapshot["right"] == pytest.approx(float(share.max()))


@pytest.mark.parametrize("name, steps", [("gist", 80), ("reconstruction", 150)])
def test_heads_learn_what_the_latents_tell(name, steps):
    """Four contexts, latents fixed: the loss falls far below chance; of shuffled latents it cannot be told which
    context it was.
    """
    made = method(
        {
            name: Gist(grams=2, buckets=16, width=32)
            if name == "gist"
            else Reconstruction(max_bytes=20, width=32, heads=2)
        }
    )
    feature, sent = made.features[name], adapted_of(made, "llama")
    sent.latents_BMd = sent.latents_BMd.detach()
    optimizer = torch.optim.AdamW(feature.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = feature.on_loss_aggregate(read_of(made, "llama", sent))[name]
        loss.backward()
        optimizer.step()
    chance = feature.metrics_snapshot()["chance"]
    assert float(loss) / 4 < 0.3 * chance
    other = copy.copy(sent)
    other.latents_BMd = sent.latents_BMd.roll(1, 0)
    assert float(feature.on_loss_aggregate(read_of(made, "llama", other))[name]) / 4 > chance


@pytest.mark.parametrize("name", ["gist", "reconstruction"])
def test_losses_of_pieces_add_up_and_count_with_their_weight(name):
    made = made_of([name])
    feature, sent = made.features[name], adapted_of(made, "llama")
    whole = feature.on_loss_aggregate(read_of(made, "llama", sent))[name]

    def piece(rows):
        return AdapterOutput(
            sent.latents_BMd[rows],
            sent.index_M,
            sent.states_BPH[rows],
            sent.position_ids_P,
            sent.bytes_BN[rows],
            sent.mask_BN[rows],
        )

    parts = [
        feature.on_loss_aggregate(read_of(made, "llama", piece(rows)))[name] for rows in (slice(0, 1), slice(1, 4))
    ]
    close(sum(parts), whole)
    assert made.loss_terms[name] == 0.1 and list(made.loss_terms)[-1] == name
    rows, denominator = prepared(made)
    assert float(denominator[-1]) == 8 and len(made.loss_sum(rows)) == len(made.loss_terms) == len(
        denominator
    )  # 4 rows, 2 readers


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ALL.values(), ids=ALL.keys())
def test_a_checkpoint_brings_every_feature_back_and_training_goes_on_as_if_uninterrupted(names):
    def begin():
        made = made_of(names)
        return made, torch.optim.AdamW([p for g in made.optimizer_groups() for p in g.parameters], lr=1e-2)

    made, optimizer = begin()
    losses = [train_step(made, optimizer, number) for number in range(6)]
    tokens = int(made.features["adaptive_tokens"].now)
    first, optimizer = begin()
    assert [train_step(first, optimizer, number) for number in range(3)] == losses[:3]
    state, moments = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    again, optimizer = begin()
    again.load_state_dict(state)
    optimizer.load_state_dict(moments)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert [train_step(again, optimizer, number) for number in range(3, 6)] == losses[3:]
    assert int(again.features["adaptive_tokens"].now) == tokens
    assert len(set(losses)) == 6


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "latent_dropout"])
def test_a_checkpoint_of_other_features_says_which(name):
    without, having = method({}), made_of([name])
    with pytest.raises(ValueError) as lacks:
        having.load_state_dict(without.state_dict())
    assert (
        str(lacks.value)
        == f"method.features=['{name}'] are not those of the checkpoint: it lacks {name}, which this run has"
    )
    with pytest.raises(ValueError) as has:
        without.load_state_dict(having.state_dict())
    assert (
        str(has.value) == f"method.features=[] are not those of the checkpoint: it has {name}, which this run has not"
    )


def test_both_sides_are_named_and_features_without_a_state_go_anywhere():
    dropout = method({"latent_dropout": LatentDropout()})
    assert dropout.load_state_dict(method({}).state_dict()).missing_keys == []
    refuse_other_features(dropout.state_dict(), method({}).features)
    with pytest.raises(
        ValueError, match=r"it lacks gist, which this run has; it has coprocessor, which this run has not$"
    ):
        made_of(["gist"]).load_state_dict(made_of(["coprocessor"]).state_dict())


# What a run says of its features
# --------------------------------------------------------------------------------------------


def test_features_are_listed_with_status_and_parameters():
    made = made_of(ALL["with_prefix"])
    rows = {row["feature"]: row for row in feature_rows(made)}
    assert set(rows) == set(KNOWN) == set(MAKERS)
    assert {name for name, row in rows.items() if row["status"] == "off"} == {"coprocessor"}
    for name, row in rows.items():
        trained = sum(
            p.numel() for g in made.optimizer_groups() if g.name.partition(".")[0] == name for p in g.parameters
        )
        assert row["trained"] == trained and (row["parameters"] == trained), name
    table = feature_lines(feature_rows(made))
    assert len(table) == 1 + len(KNOWN) and len({len(line) for line in table}) == 1


# What is refused ------------------------------------------------------------------------------------------------------


def test_features_that_exclude_each_other_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^features\.\w+ cannot be used with features\.\w+: choose one of them$"):
        refuse_conflicts({"deep_prefix": DeepPrefix(), "coprocessor": Coprocessor()})
    node = {
        name: {"_target_": f"research_stack.latentwire.features.{name}.{kind}"}
        for name, kind in (("deep_prefix", "DeepPrefix"), ("coprocessor", "Coprocessor"))
    }

    def prefill_text(config):
        return [p.message for p in check(config) if "cannot be used" in p.message]

    told_of = prefill_text({"method": {"features": node}})
    assert told_of == [
        "method.features.coprocessor cannot be used with method.features.deep_prefix: choose one of them"
    ]
    assert (
        prefill_text(
            {
                "method": {"features": {"deep_prefix": node["deep_prefix"]}},
                "other": {"coprocessor": node["coprocessor"]},
            }
        )
        == []
    )


@pytest.mark.parametrize(
    "features, expected",
    [
        ("deep_prefix,coprocessor", "coprocessor cannot be used with method.features.deep_prefix"),
        ("deep_prefx", "did you mean 'deep_prefix'?"),
    ],
)
def test_the_command_refuses_in_one_line_and_loads_nothing(features, expected):
    code = "import sys; sys.modules['torch'] = None; from research_stack.cli.main import main; sys.exit(main())"
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code, "experiment=latentwire", f"method/features=[{features}]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert os.times().children_user - before < 2  # seconds of computing; torch alone takes more


BAD = {
    "lora.ReaderLoRA": [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"lr_factor": 0}, {"targets": "q_proj"}],
    "layer_adapters.LayerAdapters": [{"width": 0}, {"heads": 3}, {"dropout": 1}, {"depths": 1.5}],
    "coprocessor.Coprocessor": [{"texts": -1}],
    "deep_prefix.DeepPrefix": [{"gate": 0}],
    "latent_dropout.LatentDropout": [
        {"keep_from": 1.1},
        {"keep_to": -0.1},
        {"ramp": 2},
        {"min_shared": 0},
        {"distribution": "normal"},
        {"ratio": 1},
    ],
    "adaptive_tokens.AdaptiveTokens": [
        {"by": "loss"},
        {"min_tokens": 0},
        {"max_tokens": 1},
        {"share": 0},
        {"threshold": 0},
        {"momentum": 1},
        {"hold": 0},
    ],
    "heads.Gist": [{"weight": 0}, {"grams": 8}, {"buckets": 1}, {"width": 0}],
    "heads.Reconstruction": [{"weight": -1}, {"max_bytes": 0}, {"heads": 3}, {"layers": 0}],
}


@pytest.mark.parametrize("target, bad", [(target, bad) for target, every in BAD.items() for bad in every], ids=str)
def test_bad_values_are_found_without_building(target, bad):
    key, value = next(iter(bad.items()))
    found = [
        p.message
        for p in check_node("method.features.x", {"_target_": f"research_stack.latentwire.features.{target}", **bad})
    ]
    assert len(found) == 1 and found[0].startswith(f"method.features.x.{key}={value} must"), found
