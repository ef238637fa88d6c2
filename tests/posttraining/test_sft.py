"""Supervised fine-tuning: the loss is the cross entropy of the replies, each read alone, whatever row it stands in."""

import itertools

import pytest
import torch

from research_stack import compose, load, run
from research_stack.backbones.pretrained import LoRA, PretrainedCausal
from research_stack.backbones.transformer import Transformer
from research_stack.data.batches import batch_of
from research_stack.data.module import TokenData
from research_stack.data.sources.expressions import Expressions
from research_stack.data.tokenizers import Bytes
from research_stack.posttraining.sft import SFT
from research_stack.records.files import read_jsonl
from research_stack.streams import Draws
from research_stack.training.module import split_batch
from research_stack.training.optimization import Optimization

KINDS = ["own", "learned", "pretrained", "lora"]


@pytest.fixture
def data(tmp_path):
    """Makes prepared pairs; of the 50, some do not fit their row and are cut off."""

    def make(pack=False, length=12):
        made = TokenData(
            Expressions(high=10, answers=5), Bytes(), length, batch_size=8, cache_dir=str(tmp_path / "cache"), pack=pack
        )
        made.prepare()
        return made

    return make


@pytest.fixture
def sft(llama_folder, alone):
    """Makes the method on a model in float64 whose weights have an effect."""

    def make(kind, vocab):
        if kind in ("own", "learned"):
            model = Transformer(
                vocab.size,
                dim=16,
                layers=2,
                heads=4,
                causal=True,
                max_length=48,
                positions="learned" if kind == "learned" else "rotary",
            )
        else:
            model = PretrainedCausal(
                vocab.size, llama_folder, lora=LoRA(rank=2) if kind == "lora" else None, max_length=48
            )
        method, noise = alone(SFT(model.double(), vocab, Optimization(), seed=1)), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in method.trainable_parameters().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
        return method

    return make


def summed(method, batch):
    """(summed loss, reply tokens, gradients) as a step takes them."""
    rows, count = method.prepare(batch, Draws(1, "corruption", 0, total=len(batch["tokens"])))
    loss = method.loss_sum(rows)
    return loss, count, torch.autograd.grad(loss.sum(), list(method.trainable_parameters().values()))


def written_out(method, rows):
    """The same from unpacked rows, pair by pair: -ln p of each reply token, the end token included, behind the pair's
    own tokens.
    """
    total, count, vocab = torch.zeros(1, dtype=torch.float64), 0, method.vocab
    banned = [token for token in vocab.special if token != vocab.end]
    for tokens, (prompt, filled) in zip(rows.tokens.astype("int64"), rows.spans.tolist(), strict=True):
        ids = torch.from_numpy(tokens[:filled])
        logits = method.model.head(method.model.read(ids[None])[0]).double()
        logits[:, banned] = -torch.inf
        for place in range(prompt, filled):
            total = total - (logits[place - 1, ids[place]] - logits[place - 1].logsumexp(0))
            count += 1
    return total, count, torch.autograd.grad(total.sum(), list(method.trainable_parameters().values()))


@pytest.mark.exact
def test_loss_and_gradients_are_those_of_the_replies_read_alone(data, sft):
    for kind, pack in itertools.product(KINDS, (False, True)):
        d, apart = data(pack, 48 if pack else 16), data(length=16)
        method = sft(kind, d.vocab)
        wanted, found = written_out(method, apart.train), summed(method, batch_of(d.train.take(slice(None))))
        assert len(d.train) < len(apart.train) / 2 if pack else len(d.train) == len(apart.train)
        close = {"rtol": 0, "atol": 1e-9} if kind in ("own", "learned") else {"rtol": 1e-4, "atol": 2e-4}
        torch.testing.assert_close(found[0].double(), wanted[0], **close)
        assert int(found[1]) == wanted[1]
        for ours, theirs in zip(found[2], wanted[2], strict=True):
            torch.testing.assert_close(ours, theirs, **close)
        assert sum(bool(grad.any()) for grad in found[2]) == len(found[2])


@pytest.mark.exact
def test_the_end_is_learned_and_a_reply_that_was_cut_off_has_none(data, sft):
    d = data(length=8)
    batch = batch_of(d.train.take(slice(None)))
    method = sft("own", d.vocab)
    rows, count = method.prepare(batch, Draws(1, "corruption", 0, total=len(batch["tokens"])))
    target = batch["tokens"][:, 1:]
    ends = (target == d.vocab.end).sum(1)
    assert torch.equal((rows["counts"] & (target == d.vocab.end)).sum(1), ends) and 0 < int((ends == 0).sum()) < len(
        ends
    )
    assert not (rows["counts"] & (target == d.vocab.pad)).any()
    assert int(count) == int((d.train.spans[:, 1] - d.train.spans[:, 0]).sum())


def test_no_pair_of_a_row_sees_another(data, sft):
    for kind in ("own", "learned", "pretrained"):
        d = data(True, 48)
        method, batch = sft(kind, d.vocab), batch_of(d.train.take(slice(0, 1)))
        assert int(batch["seq_idx"].max()) >= 3

        def reply_of(batch, sample):
            rows = method.prepare(batch, Draws(1, "corruption", 0, total=1))[0]
            rows["counts"] = rows["counts"] & (batch["seq_idx"][:, 1:] == sample)
            return float(method.reply(rows).detach())

        other = {
            **batch,
            "tokens": torch.where(
                (batch["seq_idx"] == 1) & batch["attention_mask"], (batch["tokens"] + 3) % 200, batch["tokens"]
            ),
        }
        found = [(reply_of(batch, sample), reply_of(other, sample)) for sample in range(4)]
        assert found[1][0] != found[1][1]
        assert [a for a, _ in found[2:]] == pytest.approx(
            [b for _, b in found[2:]], abs=1e-9 if kind != "pretrained" else 1e-5
        ) and found[0][0] == pytest.approx(found[0][1], abs=1e-9)


@pytest.mark.exact
def test_pieces_add_up_to_the_batch(data, sft):
    for pack in (False, True):
        d = data(pack, 24)
        method, batch = sft("own", d.vocab), batch_of(d.train.take(slice(0, 7)))
        rows = method.prepare(batch, Draws(1, "corruption", 0, total=7))[0]
        whole, pieces = method.loss_sum(rows), [method.loss_sum(piece) for piece in split_batch(rows, 3)]
        torch.testing.assert_close(sum(pieces), whole, rtol=0, atol=1e-10)


def test_a_piece_of_prompts_alone_is_no_false_alarm_at_the_first_step(data, sft):
    d = data(length=24)
    method, batch = sft("own", d.vocab), batch_of(d.train.take(slice(0, 4)))
    method.on_train_start()
    rows = method.prepare(batch, Draws(1, "corruption", 0, total=4))[0]
    assert float(method.loss_sum({**rows, "counts": rows["counts"] & False}).detach()) == 0 and not method._had_gradient
    method.loss_sum(rows)
    assert method._had_gradient


def test_data_without_replies_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["experiment=sft", "trainer=smoke", "eval=none", "callbacks=default", "hardware.threads=1"]
    for mistake in (["data.source.answers=0"], ["data=smoke"]):
        with pytest.raises(ValueError, match="has no pairs of prompt and reply; choose data=expressions"):
            run(compose([*base, *mistake]), tmp_path / "run")


def test_only_methods_that_keep_pairs_apart_take_packed_rows(data):
    from research_stack.posttraining.grpo import GRPO
    from research_stack.posttraining.policy import Policy

    d = data(True, 24)
    model = Transformer(d.vocab.size, dim=16, layers=1, heads=2, causal=True, max_length=24)
    d.check_fit(model, SFT)
    for method in (GRPO, Policy):
        with pytest.raises(
            ValueError,
            match=f"pack=True would let pairs of a row see one another under method={method.__name__}; set pack=false",
        ):
            d.check_fit(model, method)


def test_a_run_on_packed_rows_learns_and_can_be_sampled_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = [
        "experiment=sft",
        "trainer=smoke",
        "eval=none",
        "callbacks=default",
        "hardware.threads=1",
        "data.pack=true",
        "data.sequence_length=56",
        "data.batch_size=16",
    ]
    result = run(compose([*base, "trainer.max_steps=12", "trainer.val_check_interval=6"]), tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert (
        result.status == "ok"
        and rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.5
        and rows[0]["train/loss_reply"] == rows[0]["train/loss"]
    )
    assert rows[-1]["val/loss"] < rows[5]["val/loss"]
    context = load(tmp_path / "run", ["sampler=gpt"])
    assert isinstance(context.method, SFT) and not context.method.training
    capsys.readouterr()
    run(compose(["task=sample", "run=run", 'prompt="12="']))
    assert capsys.readouterr().out.startswith("12=")
