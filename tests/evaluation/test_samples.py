"""Samples with a sampler that follows a script: rows, films, metrics."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research_stack.evaluation.samples import Samples
from research_stack.records.files import read_jsonl


class Scripted:
    """Fills in "abcd..." two a step from the left and then changes the first letter to "z"; one call a step."""

    def sample(self, denoiser, *, prompts=None, count=1, length, seed, record=False, device=None):
        vocab = denoiser.vocab
        prompts = prompts or [torch.zeros(0, dtype=torch.int64)] * count
        width = max(map(len, prompts)) + length
        tokens = torch.full((len(prompts), width), vocab.pad)
        generated = torch.zeros_like(tokens, dtype=torch.bool)
        for b, ids in enumerate(prompts):
            tokens[b, : len(ids)] = ids
            tokens[b, len(ids) : len(ids) + length] = vocab.mask
            generated[b, len(ids) : len(ids) + length] = True
        history = [tokens]
        for start in range(0, length, 2):
            tokens = tokens.clone()
            for b, ids in enumerate(prompts):
                for i in range(start, min(start + 2, length)):
                    tokens[b, len(ids) + i] = ord("a") + i
            history.append(tokens)
        tokens = tokens.clone()
        for b, ids in enumerate(prompts):
            tokens[b, len(ids)] = ord("z")
        history.append(tokens)
        return SimpleNamespace(
            tokens_BL=tokens,
            generated_BL=generated,
            calls_B=torch.full((len(prompts),), len(history) - 1),
            history=torch.stack(history),
            confidence=torch.full((len(history), *tokens.shape), 0.12345),
        )


def test_rows_films_and_metrics(context):
    found = Samples({"one": Scripted(), "two": Scripted()}, count=3, length=4)(context)
    rows = read_jsonl(context.folder / "samples.jsonl")
    assert [row["sampler"] for row in rows] == ["one"] * 3 + ["two"] * 3
    assert rows[0] == {"sampler": "one", "prompt": "", "text": "zbcd", "calls": 3, "steps": 3, "seed": 1}
    assert found["one/calls"] == 3 and found["two/changed"] == 0.25 and found["one/idle"] == 0
    assert found["one/distinct_2"] == pytest.approx(3 / 9) and found["one/entropy"] == pytest.approx(np.log(4))
    film = json.loads((context.folder / "films" / "two.json").read_text())
    shown = ["".join(film["pieces"][i] for i in frame["tokens"]) for frame in film["frames"]]
    assert shown == ["▒▒▒▒", "ab▒▒", "abcd", "zbcd"]
    assert film["frames"][1]["confidence"] == pytest.approx([0.123] * 4)
    names = [[film["states"][code] for code in frame["states"]] for frame in film["frames"]]
    assert names[1:] == [
        ["filled", "filled", "mask", "mask"],
        ["kept", "kept", "filled", "filled"],
        ["changed", "kept", "kept", "kept"],
    ]


def test_prompts_are_shown_but_not_measured(context):
    samples = Samples({"one": Scripted()}, prompts=["hi ", "hello "], length=4)
    found = samples(context)
    rows = read_jsonl(context.folder / "samples.jsonl")
    assert [(row["prompt"], row["text"]) for row in rows] == [("hi ", "zbcd"), ("hello ", "zbcd")]
    assert found["one/changed"] == 0.25
    film = json.loads((context.folder / "films" / "one.json").read_text())
    assert "".join(film["pieces"][i] for i in film["frames"][-1]["tokens"]) == "hi zbcd"  # without the padding
    assert [film["states"][code] for code in film["frames"][0]["states"]] == ["prompt"] * 3 + ["mask"] * 4


def test_decode_writes_nothing(context):
    rows = Samples({}, count=2).decode(context, name="x", sampler=Scripted())
    assert len(rows) == 2 and rows[0]["sampler"] == "x" and len(rows[0]["text"]) == 48
    assert not context.folder.exists()


def test_a_prompt_that_leaves_no_room(context):
    with pytest.raises(ValueError, match="prompts=60 tokens"):
        Samples({}, prompts=["x" * 60]).decode(context, name="x", sampler=Scripted())


@pytest.mark.parametrize("arguments", [{"count": 0}, {"length": 0}])
def test_mistakes(arguments):
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        Samples({}, **arguments)


@pytest.mark.parametrize("name", ["llada", "flowlm"])
def test_the_samplers_of_the_default_evaluation(context, name):
    from research_stack.config.build import build
    from research_stack.config.compose import compose

    node = compose(["eval=samples", "eval.samples.count=2", "eval.samples.length=12"]).eval.samples
    found = build(node, "eval.samples")(context)
    assert found[f"{name}/calls"] >= 1 and 0 <= found[f"{name}/changed"] <= 1
    film = json.loads((context.folder / "films" / f"{name}.json").read_text())
    assert "mask" not in {film["states"][code] for code in film["frames"][-1]["states"]}
    texts = [row["text"] for row in read_jsonl(context.folder / "samples.jsonl") if row["sampler"] == name]
    assert len(set(texts)) == 2  # greedy decoding of nothing would give one text twice


def test_the_first_tokens_of_validation_rows_are_continued(context):
    rows = Samples({}, count=2, lead=5).decode(context, name="x", sampler=Scripted())
    codec, validation = context.data.codec, context.data.validation.evenly_spaced(2)
    assert [row["prompt"] for row in rows] == [codec.decode(tokens[:5]) for tokens in validation.tokens]
    assert all(len(row["text"]) == 48 - 5 for row in rows)
