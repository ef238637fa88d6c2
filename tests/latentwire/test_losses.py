"""Each loss: its formula, where it is least, its gradient against differences in float64, and the same under any cut of
the batch.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_wires import ROOM, facts, folders, llama

from research_stack.backbones.pretrained import LoRA
from research_stack.config.check_node import check_node
from research_stack.latentwire import distillation
from research_stack.latentwire.distillation import KD, Difficulty, config_hash
from research_stack.latentwire.encoder import ByteEncoder
from research_stack.latentwire.features.base import AdapterOutput
from research_stack.latentwire.losses import AnswerTokens, FirstToken, LossInputs, unique_contexts
from research_stack.latentwire.losses_latents import Alignment, Manifold, RawRMS, Scale, embedding_stats
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.quantize import FSQ
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.receiver import prefill_text
from research_stack.streams import generator
from research_stack.training.module import split_batch
from research_stack.training.optimization import Optimization

EVERY = {
    "first": FirstToken,
    "answer": AnswerTokens,
    "kd": KD,
    "align": Alignment,
    "manifold": Manifold,
    "scale": Scale,
    "rms": RawRMS,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    place = tmp_path_factory.mktemp("readers")
    return folders(place) | {"large": str(llama(place / "large", seed=5, hidden_size=48, **ROOM))}


@pytest.fixture(scope="module")
def data():
    return facts()


def made(places, data, losses, batch=6, **options):
    """(method in training mode, rows, denominators)."""
    readers = {name: FrozenReader(places[name], max_answer_tokens=4) for name in ("llama", "qwen")}
    sizes = {
        "num_latents": 5,
        "num_private": 2,
        "latent_dim": 4,
        "adapter_dim": 16,
        "adapter_heads": 2,
        "pooling_heads": 2,
        "loss_tokens": 3,
    }
    method = LatentWire(
        ByteEncoder(dim=16, layers=1, heads=2, grams=[2], buckets=32, max_length=256),
        FSQ(16, normalize=False),
        readers,
        losses,
        data.questions,
        Optimization(),
        1,
        **(sizes | options),
    )
    method._trainer = SimpleNamespace(max_steps=10, global_step=0, world_size=1)
    with torch.no_grad():
        for adapter in method.adapters.values():
            adapter.size.mul_(4)
    rows, denominators = method.train().prepare({"question": torch.as_tensor(data.train[:batch])}, None)
    return method, rows, denominators


def noise(*shape, name="noise"):
    return torch.randn(shape, generator=generator(0, "test", name), dtype=torch.float64)


def one_read(method, rows, reader="llama", logits=None, states=None, raw=None):
    """What a reader has read, with given numbers in the place of those that the weights make."""
    target_BA, answer_mask_BA = rows[f"target.{reader}"], rows[f"answer_mask.{reader}"]
    count, index_M = len(target_BA), method.latent_index(reader, method.num_latents)
    logits = (
        noise(count, target_BA.shape[1], len(method.readers[reader].tokenizer), name="logits")
        if logits is None
        else logits
    )
    states = noise(count, len(index_M), 16, name="states") if states is None else states
    sent = AdapterOutput(
        latents_BMd=noise(count, len(index_M), 4), index_M=index_M, states_BPH=states, position_ids_P=index_M
    )
    return LossInputs(
        reader,
        sent,
        noise(count, len(index_M), 4, name="raw") if raw is None else raw,
        logits,
        target_BA,
        answer_mask_BA,
        method.loss_tokens,
        rows,
    )


def text_logits(reader, data, latent_dim, length):
    """(B, A, V) of each token of the answer, by the Hugging Face model from one plain text; written out row by row."""
    found = torch.zeros(len(latent_dim), length, len(reader.tokenizer))
    for row, number in enumerate(latent_dim):
        question = data.questions[number]
        front = [*reader.bos_ids, *reader.token_ids(question.context), *reader.prompt_ids(question.question)]
        answer = reader.answer_ids(question.question, question.answers[0])
        with torch.no_grad():
            logits_LV = reader.model.own(torch.tensor([front + answer])).logits[0]
        found[row, : len(answer)] = logits_LV[len(front) - 1 : len(front) - 1 + len(answer), : len(reader.tokenizer)]
    return found


# ------------------------------------------------------------------------------------------------- distillation
@pytest.fixture(scope="module")
def distilled(places, data):
    loss = KD(temperature=2.0)
    method, rows, _ = made(places, data, {"kd": loss})
    logits = {
        name: text_logits(reader, data, data.train[:6], rows[f"target.{name}"].shape[1])
        for name, reader in method.readers.items()
    }
    return method, rows, loss, logits


@pytest.mark.parametrize("reader", ["llama", "qwen"])
def test_distillation_is_zero_where_the_student_says_what_a_reader_of_the_text_says(distilled, reader):
    method, rows, loss, logits = distilled
    assert float(loss(one_read(method, rows, reader, logits[reader]))) == pytest.approx(0, abs=1e-4)
    assert float(loss(one_read(method, rows, reader, logits[reader] + 0.5 * noise(*logits[reader].shape)))) > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_is_its_formula(distilled, temperature):
    method, rows, _, logits = distilled
    loss = KD(temperature=temperature)
    loss.prepare(method)
    read = one_read(method, rows)
    expected = 0.0
    for row, counts in enumerate(read.answer_mask_BA.tolist()):
        for place in range(min(sum(counts), 3)):  # the first K tokens
            p, q = (
                logits_V.double().div(temperature).softmax(-1)
                for logits_V in (logits["llama"][row, place], read.logits_BAV[row, place])
            )
            expected += temperature**2 * float((p * (p / q).log()).sum())
    assert float(loss(read)) == pytest.approx(expected, rel=1e-4)
    assert loss.count(read.answer_mask_BA, 3) == read.answer_mask_BA[:, :3].sum() > len(read.answer_mask_BA)


def test_a_teacher_reads_a_context_once_for_all_its_questions(distilled, monkeypatch):
    method, rows, loss, _ = distilled
    texts = []
    monkeypatch.setattr(
        distillation, "prefill_text", lambda reader, given: texts.append(given) or prefill_text(reader, given)
    )
    loss(one_read(method, rows))
    assert (
        len(rows["context"]) == 6
        and len(rows["context"].unique()) == 3 == len(texts[0])
        and len({tuple(text) for text in texts[0]}) == 3
    )


def test_the_first_row_of_each_context_and_the_context_of_each_row():
    first_C, which_B = unique_contexts(torch.tensor([7, 2, 7, 5, 2]))
    assert first_C.tolist() == [1, 3, 0] and which_B.tolist() == [2, 0, 2, 1, 0]


def test_the_divergence_is_never_negative(distilled):
    method, rows, loss, logits = distilled
    for scale in (0.0, 0.01, 1.0, 30.0):
        assert (
            float(loss(one_read(method, rows, logits=logits["llama"] + scale * noise(*logits["llama"].shape)))) >= -1e-5
        )


def test_several_teachers_are_averaged_as_probabilities(places, data, distilled):
    method, rows, _, logits = distilled
    large = FrozenReader(places["large"], max_answer_tokens=4)
    also = text_logits(large, data, data.train[:6], rows["target.llama"].shape[1])
    for own, expected in ((True, (logits["llama"].softmax(-1) + also.softmax(-1)) / 2), (False, also.softmax(-1))):
        loss = KD(
            temperature=1.0,
            self_teacher=own,
            teachers={"llama": {"large": large}, "qwen": {"same": method.readers["qwen"]}},
        )
        loss.prepare(method)
        taught_BKV, uncertain_B = loss.taught(one_read(method, rows))
        there = rows["answer_mask.llama"][:, :3]
        torch.testing.assert_close(taught_BKV[there], expected[:, :3][there], rtol=1e-3, atol=1e-5)
        entropy_B = -(expected[:, 0] * expected[:, 0].log()).sum(-1) / math.log(expected.shape[-1])
        torch.testing.assert_close(uncertain_B, entropy_B, rtol=1e-3, atol=1e-4)


def test_the_teacher_reads_without_adapters_and_is_given_no_gradient(places, data):
    loss = KD()
    method, rows, _ = made(places, data, {"kd": loss})
    before, _ = loss.taught(one_read(method, rows))
    for reader in method.readers.values():
        reader.model.adapt(LoRA(rank=2), seed=0)
        with torch.no_grad():
            for name, parameter in reader.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.3)
    after, _ = loss.taught(one_read(method, rows))
    assert torch.equal(before, after)
    assert not torch.equal(before, text_taught(method, rows, loss))
    logits = noise(*before.shape[:1], rows["target.llama"].shape[1], before.shape[2]).requires_grad_()
    loss(one_read(method, rows, logits=logits)).backward()
    assert logits.grad.any() and all(p.grad is None for p in method.parameters())


def text_taught(method, rows, loss):
    """What the teacher would say with its adapters on."""
    own = copy.copy(loss)
    own.teachers = {
        "llama": {
            "own": SimpleNamespace(
                model=WithAdapters(method.readers["llama"].model),
                to=lambda device: None,
                **{name: getattr(method.readers["llama"], name) for name in ("bos_ids", "eos_id", "device", "blocks")},
            )
        }
    }
    return own.taught(one_read(method, rows))[0]


class WithAdapters:
    """A model that says it has no adapters, so that nobody turns them off."""

    def __init__(self, model):
        self.model = model

    def kept_names(self):
        return frozenset()

    def __getattr__(self, name):
        return getattr(self.model, name)


def test_hard_rows_count_more_and_the_weights_are_one_on_average(distilled):
    """w = (1 + h d) / (1 + h m) with d from the definition; m moves to the mean of d, and only in training."""
    method, rows, plain, logits = distilled
    hard = KD(hard_weight=2.0)
    method.losses["hard"] = hard
    hard.prepare(method)
    assert "difficulty_hard.mean_R" in method.state_dict()
    student = noise(*logits["llama"].shape)
    kept = rows["answer_mask.llama"][:, 0]
    student[:3].scatter_(-1, rows["target.llama"][:3, :, None], 50.0)  # three rows are right
    entropy_B = torch.special.entr(logits["llama"][:, 0].softmax(-1)).sum(-1) / math.log(student.shape[-1])
    d_B = torch.tensor([0, 0, 0, 1, 1, 1]) * entropy_B
    read = one_read(method, rows, logits=student)
    single = [float(plain(one_row(read, row))) for row in range(6)]
    weighted = float(hard(read))
    assert weighted == pytest.approx(
        sum((1 + 2 * d) * nats for d, nats in zip(d_B.tolist(), single, strict=True)), rel=1e-3
    )
    method._trainer.global_step = 0
    hard.after_update()
    mean = float(d_B[kept].mean())
    assert float(hard.difficulty.mean_R[0]) == pytest.approx(mean, rel=1e-3) and float(hard.difficulty.mean_R[1]) == 0
    weights_B = hard._weights(read, plain.taught(read)[1])
    assert float(weights_B[kept].mean()) == pytest.approx(1, rel=1e-3) and weights_B[3:].min() > 1 > weights_B[0]
    method.eval()
    noted = hard.difficulty.now_R2.clone()
    hard(read)
    assert torch.equal(hard.difficulty.now_R2, noted)
    method.train()
    del method.losses["hard"]


def test_the_difficulty_is_the_mean_of_the_first_hundred_steps_and_then_a_running_one():
    difficulty, rng = Difficulty(2), np.random.default_rng(0)
    hard = rng.random(150).tolist()
    for value in hard:
        difficulty.update(torch.tensor([[3 * value, 3.0], [0.0, 0.0]]))
    expected = sum(hard[:100]) / 100
    for value in hard[100:]:
        expected += 0.01 * (value - expected)
    assert difficulty.mean_R.tolist() == pytest.approx([expected, 0], abs=1e-5) and int(difficulty.steps) == 150


def one_row(read, row):
    part = slice(row, row + 1)
    sent = AdapterOutput(
        latents_BMd=read.adapted.latents_BMd[part],
        index_M=read.adapted.index_M,
        states_BPH=read.adapted.states_BPH[part],
        position_ids_P=read.adapted.position_ids_P,
    )
    rows = {name: tensor[part] for name, tensor in read.rows.items()}
    return LossInputs(
        read.name,
        sent,
        read.raw_BMd[part],
        read.logits_BAV[part],
        read.target_BA[part],
        read.answer_mask_BA[part],
        read.tokens,
        rows,
    )


@pytest.mark.parametrize("options, message", [
    ({"teachers": {"llama": {"other": "qwen"}}}, r"teachers\.llama\.other=.* must have the vocabulary of its reader"),
    ({"teachers": {"lama": {}}}, r"teachers\.lama belongs to no reader; the readers are llama, qwen"),
    ({"self_teacher": False}, "self_teacher=False: reader llama has no teacher"),
])  # fmt: skip
def test_teachers_that_do_not_fit_are_refused(places, distilled, options, message):
    if options.get("teachers", {}).get("llama"):
        options = {"teachers": {"llama": {"other": FrozenReader(places["qwen"])}}}
    with pytest.raises(ValueError, match=message):
        KD(**options).prepare(distilled[0])


def test_the_hash_of_a_teacher_is_of_config_and_weights(places, distilled, tmp_path):
    method, _, loss, _ = distilled
    own = config_hash(method.readers["llama"])
    assert own == config_hash(FrozenReader(str(llama(tmp_path / "moved", **ROOM)))) and len(own) == 12
    assert (
        len(
            {
                own,
                config_hash(FrozenReader(places["large"])),
                config_hash(FrozenReader(str(llama(tmp_path / "other", seed=1, **ROOM)))),
            }
        )
        == 3
    )
    assert method.describe()["losses"]["kd"]["teachers"]["llama"] == {"own": f"{places['llama']} {own}"}


# -------------------------------------------------------------------------------------------------- least values
def of_vectors(kind, method, vectors):
    loss = kind()
    loss.prepare(method)
    loss.vectors = lambda read: vectors
    return loss


def test_alignment_is_zero_along_the_mean_of_the_context_and_two_against_it(distilled, data):
    method, rows, _, _ = distilled
    reader = method.readers["llama"]
    text_BD = (
        torch.stack(
            [reader.embeddings.weight[reader.token_ids(data.questions[i].context)].mean(0) for i in data.train[:6]]
        )
        .detach()
        .double()
    )
    spread_6PD = noise(6, 5, text_BD.shape[1])
    spread_6PD = spread_6PD - spread_6PD.mean(1, keepdim=True)
    for factor, expected in ((3.0, 0.0), (-0.5, 2.0)):
        loss = of_vectors(Alignment, method, factor * text_BD[:, None] + spread_6PD)
        assert float(loss(one_read(method, rows))) == pytest.approx(6 * expected, abs=1e-5)


def test_manifold_and_scale_are_zero_for_vectors_like_embeddings(distilled):
    method, rows, _, _ = distilled
    table_VD = method.readers["llama"].embeddings.weight[: len(method.readers["llama"].tokenizer)].detach().double()
    mean_D, deviation_D = table_VD.mean(0), table_VD.std(0, unbiased=False)
    x_BPD = noise(6, 8, len(mean_D))
    x_BPD = (x_BPD - x_BPD.mean(1, keepdim=True)) / x_BPD.std(1, unbiased=False, keepdim=True)
    read = one_read(method, rows)
    alike = x_BPD * deviation_D + mean_D
    assert float(of_vectors(Manifold, method, alike)(read)) == pytest.approx(0, abs=1e-6)
    assert float(of_vectors(Manifold, method, alike + deviation_D)(read)) == pytest.approx(
        6, rel=1e-5
    )  # a deviation off in each dimension
    assert float(of_vectors(Manifold, method, (alike - mean_D) * math.sqrt(3) + mean_D)(read)) == pytest.approx(
        6 * 4, rel=1e-5
    )  # (3 - 1)^2
    large = x_BPD / x_BPD.square().mean((1, 2), keepdim=True).sqrt() * table_VD.square().mean().sqrt()
    assert float(of_vectors(Scale, method, large)(read)) == pytest.approx(0, abs=1e-8)
    assert float(of_vectors(Scale, method, 3 * large)(read)) == pytest.approx(6 * 4, rel=1e-5)
    assert float(of_vectors(Scale, method, 0 * large)(read)) == pytest.approx(6, rel=1e-2)


def test_raw_rms_is_zero_at_its_target(distilled):
    method, rows, _, _ = distilled
    raw = noise(6, 5, 4)
    raw = raw / raw.square().mean((1, 2), keepdim=True).sqrt()
    assert float(RawRMS(target=1.5)(one_read(method, rows, raw=1.5 * raw))) == pytest.approx(0, abs=1e-10)
    assert float(RawRMS(target=1.5)(one_read(method, rows, raw=0.5 * raw))) == pytest.approx(6)


def test_the_table_is_that_of_the_tokenizers_tokens_alone(distilled):
    reader = distilled[0].readers["llama"]
    table = embedding_stats(reader)
    used = reader.embeddings.weight[: len(reader.tokenizer)]
    assert len(used) < len(reader.embeddings.weight)
    torch.testing.assert_close(table.variance_D, used.var(0, unbiased=False))
    torch.testing.assert_close(table.rms, used.square().mean().sqrt())


# ----------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("name", ["kd", "align", "manifold", "scale", "rms"])
def test_gradients_are_those_of_differences_in_float64(distilled, name):
    method, rows, _, _ = distilled
    loss = EVERY[name]() if name != "kd" else KD(temperature=1.5)
    method.adapters.double()
    try:
        loss.prepare(method)
        read = one_row(one_read(method, rows), 0)
        where = {"kd": "logits_BAV", "rms": "raw_BMd"}.get(name)
        start = (getattr(read, where) if where else read.adapted.states_BPH).clone().requires_grad_()
        if name == "kd":
            taught = loss.taught(read)
            loss.taught = lambda read: taught  # computed once

        def value(x):
            setattr(read if where else read.adapted, where or "states_BPH", x)
            return loss(read)

        assert torch.autograd.gradcheck(value, start, fast_mode=name == "kd")
        assert torch.autograd.grad(value(start), start)[0].abs().max() > 1e-6
    finally:
        method.adapters.float()


@pytest.fixture(scope="module")
def whole(places, data):
    return made(
        places,
        data,
        {name: kind() for name, kind in EVERY.items() if name != "kd"} | {"kd": KD(hard_weight=1.0)},
        batch=7,
    )


@pytest.mark.parametrize("name", EVERY)
def test_each_loss_reaches_encoder_and_adapters(whole, name):
    method, rows, _ = whole
    sums_P = method.loss_sum(rows)
    value = sums_P[list(method.loss_terms).index(name)]
    encoder, adapter = method.model.embed.byte.weight, method.adapters["qwen"].enter.weight
    assert torch.isfinite(value) and value > 0
    found = torch.autograd.grad(value, [encoder, adapter])
    assert found[0].any() and (name == "rms") != bool(found[1].any())


def test_a_batch_in_three_pieces_has_the_losses_of_the_whole(whole):
    method, rows, denominators = whole
    method.reset_step()
    sums_P = method.loss_sum(rows)
    right, method.first_correct = method.first_correct, {}
    pieces = [method.loss_sum(piece) for piece in split_batch(rows, 3)]
    assert {name: both.tolist() for name, both in method.first_correct.items()} == {
        name: both.tolist() for name, both in right.items()
    }
    assert len({float(piece[0]) for piece in pieces}) == 3
    torch.testing.assert_close(sum(pieces), sums_P, rtol=2e-4, atol=1e-5)
    by_name = dict(zip(method.loss_terms, denominators.tolist(), strict=True))
    tokens = sum(int(rows[f"answer_mask.{reader}"][:, :3].sum()) for reader in method.readers)
    first = sum(int(rows[f"answer_mask.{reader}"][:, 0].sum()) for reader in method.readers)
    assert by_name == {
        "first": first,
        "answer": tokens,
        "kd": tokens,
        **dict.fromkeys(("align", "manifold", "scale", "rms"), 14),
    }


def test_contexts_are_tokenised_only_where_a_loss_reads_them(places, data, whole):
    _, rows, _ = made(places, data, {"first": FirstToken(), "rms": RawRMS()})
    assert not any(name.startswith("context.") for name in rows)
    method, rows, _ = whole
    reader = method.readers["qwen"]
    assert rows["context.qwen"][0][rows["context_mask.qwen"][0]].tolist() == reader.token_ids(
        data.questions[data.train[0]].context
    )


def test_cross_entropy_of_first_token_and_answer(whole):
    method, rows, _ = whole
    read = one_read(method, rows)
    nats = [
        [
            float(F.cross_entropy(read.logits_BAV[r, a], read.target_BA[r, a]))
            for a in range(min(3, int(read.answer_mask_BA[r].sum())))
        ]
        for r in range(7)
    ]
    assert float(FirstToken()(read)) == pytest.approx(sum(row[0] for row in nats), rel=1e-5)
    assert float(AnswerTokens()(read)) == pytest.approx(sum(map(sum, nats)), rel=1e-5)


@pytest.mark.parametrize("kind", EVERY.values())
def test_a_negative_weight_is_named_before_and_when_it_is_built(kind):
    with pytest.raises(ValueError, match="^weight=-1 must not be negative; 0 leaves the loss out$"):
        kind(weight=-1)
    node = {"_target_": f"{kind.__module__}.{kind.__name__}", "weight": -1}
    assert [p.message for p in check_node("x", node)] == ["x.weight=-1 must not be negative; 0 leaves the loss out"]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"hard_weight": -1}])
def test_bad_values_of_the_distillation_are_named(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        KD(**options)
