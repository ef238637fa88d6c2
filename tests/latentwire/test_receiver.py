"""What touches the cache: texts, embeddings, prefixes, changes of keys and values and of states, against the text
prompt and transformers' generate().
"""

import pytest
import torch
from tiny_latentwire import reader, slope

from research_stack.latentwire.receiver import (
    Condition,
    changed_hidden_states,
    forward_cached,
    greedy,
    prefill_latents,
    prefill_text,
)
from research_stack.streams import generator

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
KINDS = ["llama", "qwen"]
TEXTS = ["Ada eats rice", "Ben has a dog", "Mira lives in York"]
QUESTIONS = ["What does Ada eat?", "", "Where is the quick brown fox?"]


@pytest.fixture(params=KINDS)
def own(request):
    return reader(request.param, double=True)


def text_of(own, length, rows=2):
    """Random tokens of one length."""
    return torch.randint(5, 200, (rows, length), generator=generator(0, "text", length)).tolist()


def logits_of(own, given, prompts, left=False):
    """Logits (B, L, V) of prompts of one length behind what is given."""
    tokens_BL = torch.tensor(prompts)
    with torch.no_grad():
        return own.model.head(forward_cached(own, given, tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool)))


def whole(own, ids):
    """Logits of one text in a plain forward pass of transformers."""
    with torch.no_grad():
        return own.model.own(torch.tensor([ids])).logits[..., : len(own.tokenizer)]


def prefix_of(own, texts):
    """Keys and values of the texts, of one length, without the lead."""
    lead = len(own.bos_ids)
    with torch.no_grad():
        return [
            (layer.keys[:, :, lead:], layer.values[:, :, lead:]) for layer in prefill_text(own, texts).cache.held.layers
        ]


# A text, and the same as vectors and as keys and values
# -----------------------------------------------------------------


@pytest.mark.exact
def test_a_text_then_a_prompt_is_the_whole_read_at_once(own):
    text, prompt = text_of(own, 6), text_of(own, 4)
    found = logits_of(own, prefill_text(own, text), prompt)
    for row in range(2):
        torch.testing.assert_close(
            found[row : row + 1], whole(own, [*own.bos_ids, *text[row], *prompt[row]])[:, -4:], **CLOSE
        )


@pytest.mark.exact
def test_embeddings_of_a_text_as_vectors_are_the_text(own):
    text, prompt = text_of(own, 6), text_of(own, 4)
    vectors = own.embeddings(torch.tensor(text))
    torch.testing.assert_close(
        logits_of(own, prefill_latents(own, Condition(vectors_BPD=vectors), 2), prompt),
        logits_of(own, prefill_text(own, text), prompt),
        **CLOSE,
    )


@pytest.mark.exact
def test_keys_and_values_of_a_text_as_prefix_are_the_text(own):
    text, prompt = text_of(own, 6), text_of(own, 4)
    given = prefill_latents(own, Condition(prefix=prefix_of(own, text)), 2)
    torch.testing.assert_close(logits_of(own, given, prompt), logits_of(own, prefill_text(own, text), prompt), **CLOSE)
    answers, first = greedy(own, prefill_latents(own, Condition(prefix=prefix_of(own, text)), 2), prompt, 6)
    expected, first_expected = greedy(own, prefill_text(own, text), prompt, 6)
    assert answers == expected
    torch.testing.assert_close(first, first_expected, **CLOSE)


@pytest.mark.exact
def test_a_delta_of_zero_is_the_plain_prompt_and_another_is_not(own):
    text, prompt = text_of(own, 5), text_of(own, 3)
    vectors = own.embeddings(torch.tensor(text)).detach()
    zeros = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in prefix_of(own, text)]
    plain = logits_of(own, prefill_latents(own, Condition(vectors_BPD=vectors), 2), prompt)
    assert torch.equal(
        logits_of(own, prefill_latents(own, Condition(vectors_BPD=vectors, deltas=zeros), 2), prompt), plain
    )
    for layer in range(own.num_layers):
        for which in (0, 1):
            one = [
                tuple(part + 0.5 * ((i, j) == (layer, which)) for j, part in enumerate(pair))
                for i, pair in enumerate(zeros)
            ]
            assert not torch.allclose(
                logits_of(own, prefill_latents(own, Condition(vectors_BPD=vectors, deltas=one), 2), prompt),
                plain,
                atol=1e-4,
            ), (layer, which)


@pytest.mark.exact
def test_a_delta_leaves_the_lead_and_is_added_behind_it(own):
    text = text_of(own, 5)
    vectors = own.embeddings(torch.tensor(text)).detach()
    deltas = [(torch.randn_like(k), torch.randn_like(v)) for k, v in prefix_of(own, text)]
    before, after = (
        prefill_latents(own, Condition(vectors_BPD=vectors, deltas=d), 2).cache.held.layers for d in (None, deltas)
    )
    lead = len(own.bos_ids)
    for old, new, (keys, values) in zip(before, after, deltas, strict=True):
        assert torch.equal(new.keys[:, :, :lead], old.keys[:, :, :lead]) and torch.equal(
            new.values[:, :, :lead], old.values[:, :, :lead]
        )
        torch.testing.assert_close(new.keys[:, :, lead:] - old.keys[:, :, lead:], keys)
        torch.testing.assert_close(new.values[:, :, lead:] - old.values[:, :, lead:], values)


# Padding and batches
# ---------------------------------------------------------------------------------------------------


@pytest.mark.exact
def test_texts_of_different_lengths_are_read_as_if_alone(own):
    texts, prompts = [own.token_ids(t) for t in TEXTS] + [[]], [own.prompt_ids(q) for q in [*QUESTIONS, "Why?"]]
    assert len({*map(len, texts)}) > 2 and len({*map(len, prompts)}) > 2
    together, first = greedy(own, prefill_text(own, texts), prompts, 6)
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone, first_alone = greedy(own, prefill_text(own, [text]), [prompt], 6)
        assert together[row][: len(alone[0])] == alone[0] and set(together[row][len(alone[0]) :]) <= {own.eos_id}
        torch.testing.assert_close(first[row : row + 1], first_alone, **CLOSE)


@pytest.mark.exact
@pytest.mark.parametrize("left", [True, False])
def test_padding_of_the_prompt_on_either_side_changes_nothing(own, left):
    text, prompt = text_of(own, 5), text_of(own, 4)
    plain = logits_of(own, prefill_text(own, text), prompt)
    tokens_BL, mask_BL = torch.full((2, 7), own.eos_id), torch.zeros(2, 7, dtype=torch.bool)
    where = slice(3, 7) if left else slice(0, 4)
    tokens_BL[:, where], mask_BL[:, where] = torch.tensor(prompt), True
    with torch.no_grad():
        found = own.model.head(forward_cached(own, prefill_text(own, text), tokens_BL, mask_BL))[:, where]
    torch.testing.assert_close(found, plain, **CLOSE)


@pytest.mark.exact
def test_a_hole_in_the_prompt_keeps_the_positions_together(own):
    text, prompt = text_of(own, 5), text_of(own, 4)
    plain = logits_of(own, prefill_text(own, text), prompt)
    mask_BL = torch.tensor([[True, True, False, False, True, True]] * 2)
    tokens_BL = torch.full((2, 6), own.eos_id)
    tokens_BL[mask_BL] = torch.tensor(prompt).flatten()
    with torch.no_grad():
        found = own.model.head(forward_cached(own, prefill_text(own, text), tokens_BL, mask_BL))
    torch.testing.assert_close(found[mask_BL].view(2, 4, -1), plain, **CLOSE)


@pytest.mark.exact
def test_latents_of_several_rows_are_those_of_each(own):
    vectors = own.embeddings(torch.tensor(text_of(own, 5, rows=3))).detach()
    prompts = [own.prompt_ids(q) for q in QUESTIONS]
    together, first = greedy(own, prefill_latents(own, Condition(vectors_BPD=vectors), 3), prompts, 5)
    for row in range(3):
        alone, first_alone = greedy(
            own, prefill_latents(own, Condition(vectors_BPD=vectors[row : row + 1]), 1), prompts[row : row + 1], 5
        )
        assert together[row][: len(alone[0])] == alone[0]
        torch.testing.assert_close(first[row : row + 1], first_alone, **CLOSE)


# Generation -----------------------------------------------------------------------------------------------------------


def generated(own, mask_BL, length, **given):
    """What transformers' generate() says after it, greedily."""
    surplus = list(range(len(own.tokenizer), own.model.own.config.vocab_size))  # rows of the table that are no tokens
    out = own.model.own.generate(
        **given,
        suppress_tokens=surplus,
        attention_mask=mask_BL,
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=own.eos_id,
        pad_token_id=own.eos_id,
    )
    return out[:, given["input_ids"].shape[1] :] if "input_ids" in given else out


def same(found, expected, end):
    """Rows that are alike up to their end tokens."""

    def up_to_end(row):
        row = list(row)
        return row[: row.index(end) + 1] if end in row else row

    return [up_to_end(row) for row in found] == [up_to_end(row) for row in expected]


@pytest.mark.exact
def test_greedy_is_generate_for_texts(own):
    texts, prompts = [own.token_ids(t) for t in TEXTS], [own.prompt_ids(q) for q in QUESTIONS]
    found, _ = greedy(own, prefill_text(own, texts), prompts, 8)
    rows = [[*own.bos_ids, *text, *prompt] for text, prompt in zip(texts, prompts, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[own.eos_id] * (longest - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    assert same(found, generated(own, seen, 8, input_ids=ids).tolist(), own.eos_id)


@pytest.mark.exact
def test_greedy_is_generate_for_latents_as_input_embeddings(own):
    vectors = torch.randn(3, 5, own.hidden_size, generator=generator(0, "vectors")).double() * 0.3
    prompt = own.prompt_ids("What does Ada eat?")
    found, _ = greedy(own, prefill_latents(own, Condition(vectors_BPD=vectors), 3), [prompt] * 3, 8)
    lead, after = (own.embeddings(torch.tensor([ids] * 3)) for ids in (own.bos_ids, prompt))
    embeds = torch.cat((lead, vectors, after), dim=1).detach()
    assert same(
        found,
        generated(own, torch.ones(embeds.shape[:2], dtype=torch.long), 8, inputs_embeds=embeds).tolist(),
        own.eos_id,
    )
    assert len({tuple(row) for row in found}) > 1  # the latents say something


def test_greedy_ends_with_the_end_token(own):
    """The second row's end is made the likeliest token; the first one goes on."""
    given = prefill_latents(
        own, Condition(vectors_BPD=torch.randn(2, 3, own.hidden_size, generator=generator(0, "end")).double()), 2
    )
    prompt = own.prompt_ids("Why?")
    answers, first = greedy(own, given, [prompt] * 2, 6)
    own.eos_id = int(first[1].argmax())
    again, _ = greedy(
        own,
        prefill_latents(
            own, Condition(vectors_BPD=torch.randn(2, 3, own.hidden_size, generator=generator(0, "end")).double()), 2
        ),
        [prompt] * 2,
        6,
    )
    assert set(again[1]) == {own.eos_id}
    stop = answers[0].index(own.eos_id) + 1 if own.eos_id in answers[0] else 6
    assert again[0][:stop] == answers[0][:stop] and len(again[0]) == stop


def test_the_first_logits_are_those_of_the_first_token(own):
    texts, prompts = [own.token_ids(t) for t in TEXTS], [own.prompt_ids(q) for q in QUESTIONS]
    answers, first = greedy(own, prefill_text(own, texts), prompts, 4)
    assert first.argmax(-1).tolist() == [row[0] for row in answers]
    assert len(answers[0]) <= 4
    for row in range(3):
        expected = whole(own, [*own.bos_ids, *texts[row], *prompts[row]])[0, -1]
        torch.testing.assert_close(first[row].double(), expected, rtol=1e-5, atol=1e-5)  # they are given in float32


# Changes between layers
# ------------------------------------------------------------------------------------------------


def test_changes_work_in_a_pass_and_in_generation_and_are_gone_afterwards(own):
    text, prompt = text_of(own, 5), text_of(own, 3)
    vectors = own.embeddings(torch.tensor(text)).detach()

    def given(changes):
        return prefill_latents(own, Condition(vectors_BPD=vectors, changes=changes), 2)

    plain, (spoken, _) = logits_of(own, given({}), prompt), greedy(own, given({}), prompt, 6)
    assert torch.equal(logits_of(own, given({0: lambda x: x}), prompt), plain)
    shift = torch.randn(own.hidden_size, generator=generator(0, "shift")).double() * 3
    shapes = []

    def change(x_BLD):
        shapes.append(tuple(x_BLD.shape))
        return x_BLD + shift

    assert not torch.allclose(logits_of(own, given({1: change}), prompt), plain, atol=1e-3)
    assert shapes == [(2, 3, own.hidden_size)]  # once, for the prompt alone: the latents are read before
    shapes.clear()
    assert greedy(own, given({1: change}), prompt, 6)[0] != spoken
    assert shapes[0] == (2, 3, own.hidden_size) and len(shapes) > 1 and set(shapes[1:]) == {(2, 1, own.hidden_size)}
    assert torch.equal(logits_of(own, given({}), prompt), plain)


@pytest.mark.exact
def test_a_change_is_made_behind_its_layer(own):
    """Doubling what leaves the last layer does nothing: the norm behind it undoes it. Behind an earlier layer it does
    not.
    """
    text, prompt = text_of(own, 5), text_of(own, 3)

    def logits(layer):
        given = prefill_text(own, text)
        given.changes = {} if layer is None else {layer: lambda x: 2 * x}
        return logits_of(own, given, prompt)

    torch.testing.assert_close(logits(own.num_layers - 1), logits(None), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(own.num_layers - 2), logits(None), atol=1e-2)


def test_hooks_are_taken_away_after_an_error(own):
    with pytest.raises(RuntimeError, match="inside"), changed_hidden_states(own, {0: lambda x: x}):
        assert len(own.blocks()[0]._forward_hooks) == 1
        raise RuntimeError("inside")
    assert not any(block._forward_hooks for block in own.blocks())


# Gradients ------------------------------------------------------------------------------------------------------------


def test_gradients_reach_every_layers_keys_and_values_and_no_weight(own):
    prefix = [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in prefix_of(own, text_of(own, 5))]
    tokens = torch.tensor(text_of(own, 4))
    hidden = forward_cached(
        own, prefill_latents(own, Condition(prefix=prefix), 2), tokens, torch.ones_like(tokens, dtype=torch.bool)
    )
    own.model.head(hidden).logsumexp(-1).sum().backward()
    for layer, (keys, values) in enumerate(prefix):
        assert keys.grad.abs().amax((1, 3)).min() > 0 and values.grad.abs().amax((1, 3)).min() > 0, (
            layer
        )  # each row and position
    assert all(p.grad is None for p in own.parameters())


def test_gradients_of_deltas_and_vectors_are_finite_differences(own):
    text, tokens = text_of(own, 4), torch.tensor(text_of(own, 3))
    vectors = own.embeddings(torch.tensor(text)).detach().requires_grad_()
    deltas = [
        (torch.zeros_like(k).requires_grad_(), torch.zeros_like(v).requires_grad_()) for k, v in prefix_of(own, text)
    ]
    leaves = [vectors, *(part for pair in deltas for part in pair)]
    ways = [
        torch.randn(leaf.shape, generator=generator(0, "way", i), dtype=torch.float64) for i, leaf in enumerate(leaves)
    ]

    def loss(step, chosen):
        moved = [leaf + step * way * (i == chosen) for i, (leaf, way) in enumerate(zip(leaves, ways, strict=True))]
        condition = Condition(vectors_BPD=moved[0], deltas=list(zip(moved[1::2], moved[2::2], strict=True)))
        return (
            own.model.head(
                forward_cached(
                    own, prefill_latents(own, condition, 2), tokens, torch.ones_like(tokens, dtype=torch.bool)
                )
            )
            .logsumexp(-1)
            .sum()
        )

    loss(0.0, 0).backward()
    for index, (leaf, way) in enumerate(zip(leaves, ways, strict=True)):
        found, expected = slope(lambda step, index=index: loss(step, index)), float((leaf.grad * way).sum())
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7) and abs(found) > 0.01, index
