"""The tiny readers: the transformer they are trained as against the architectures they are saved as, and the way
through the cache.
"""

import pytest
import torch
from tiny_latentwire import stirred

from research_stack.backbones.transformer import Transformer
from research_stack.data.questions.facts import Facts
from research_stack.latentwire import tiny_readers
from research_stack.latentwire.reader import PROMPT
from research_stack.latentwire.tiny_readers import TinyReader, rows_of, saved, tokenizer_of
from research_stack.streams import generator

SMALL = {"vocab_size": 300, "dim": 16, "layers": 1, "heads": 2, "steps": 2, "batch_size": 2}


def texts():
    return [q.context for q in Facts(contexts=30).questions()]


@pytest.mark.exact
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_what_is_saved_has_the_same_logits(architecture):
    qwen, tokenizer = architecture == "qwen3", tokenizer_of(architecture, texts(), 300)
    model = stirred(
        Transformer(
            len(tokenizer),
            32,
            3,
            4,
            kv_heads=2 if qwen else None,
            ffn_dim=96,
            max_length=64,
            causal=True,
            qk_norm=qwen,
            seed=1,
        )
    ).eval()
    own = saved(model, tokenizer, qwen)
    tokens = torch.randint(len(tokenizer), (3, 40), generator=generator(0, "tokens"))
    with torch.no_grad():
        torch.testing.assert_close(own(tokens).logits, model.head(model(tokens)), rtol=1e-4, atol=1e-4)
        scale = model.head(model(tokens)).std()
        torch.testing.assert_close(
            own.double()(tokens).logits, model.double().head(model(tokens)), rtol=0, atol=1e-4 * float(scale)
        )  # norms and turns of transformers stay in float32
    assert type(own).__name__ == ("Qwen3ForCausalLM" if qwen else "LlamaForCausalLM")


@pytest.mark.parametrize("architecture, lead", [("llama", "<s>"), ("qwen3", None)])
def test_tokenizers_spell_any_text_and_differ(architecture, lead):
    tokenizer = tokenizer_of(architecture, texts(), 320)
    assert len(tokenizer) <= 320
    for text in [*texts()[:5], "Zürich 🙂\n\tx1234"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer("").input_ids == ([tokenizer.convert_tokens_to_ids(lead)] if lead else [])
    pieces = tokenizer_of(architecture, ["in 1984"] * 50, 320).tokenize(" 1984")
    assert (
        (pieces == ["Ġ1984"]) if lead else (pieces[-4:] == ["1", "9", "8", "4"])
    )  # pieces are words, or digits and letters apart


@pytest.mark.exact
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_training_rows_are_what_a_reader_sees(architecture, tmp_path, monkeypatch):
    own = tiny(architecture, tmp_path, monkeypatch)
    facts = Facts(contexts=3, questions=2)
    for tokens, weights in rows_of(own.tokenizer, facts.distribution.made(), PROMPT):
        assert len(tokens) == len(weights)
        made = next(
            m
            for m in facts.distribution.made()
            if own.token_ids(m.context) == tokens[len(own.bos_ids) :][: len(own.token_ids(m.context))]
        )
        own.max_answer_tokens = 100
        expected = [*own.bos_ids, *own.token_ids(made.context)]
        heavy = [False] * len(expected)
        for question, answer, _ in made.asked:
            expected += own.prompt_ids(question) + own.answer_ids(question, answer)
            heavy += [False] * len(own.prompt_ids(question)) + [True] * len(own.answer_ids(question, answer))
        assert tokens == expected and [w == 1.0 for w in weights] == heavy


def tiny(architecture, folder, monkeypatch, **options):
    """A reader after two steps."""
    monkeypatch.setattr(tiny_readers, "TOKENIZER_CONTEXTS", 40)
    monkeypatch.setattr(tiny_readers, "HELD_OUT", 3)
    return TinyReader(architecture, Facts(contexts=4), cache_dir=str(folder), **{**SMALL, **options})


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_it_is_trained_once_and_found_again(architecture, tmp_path, monkeypatch):
    first = tiny(architecture, tmp_path, monkeypatch)
    assert first.facts["recipe"]["steps"] == 2 and 0 <= first.facts["exact_none"] <= 1
    with monkeypatch.context() as patch:
        patch.setattr(tiny_readers, "trained", lambda *given: pytest.fail("it was trained again"))
        again = tiny(architecture, tmp_path, monkeypatch)
        assert again.facts == first.facts
    for (name, one), (_, other) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert not any(p.requires_grad for p in again.parameters())


def test_another_recipe_is_another_reader(tmp_path, monkeypatch):
    first, other = tiny("llama", tmp_path, monkeypatch), tiny("llama", tmp_path, monkeypatch, seed=1)
    assert first.path != other.path and not torch.equal(first.embeddings.weight, other.embeddings.weight)
    elsewhere = tiny("llama", tmp_path / "elsewhere", monkeypatch)
    assert torch.equal(first.embeddings.weight, elsewhere.embeddings.weight)  # the same from nothing


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 0}, {"vocab_size": 100}])
def test_bad_recipes_are_refused(bad, tmp_path):
    key, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"^{key}={value} must"):
        TinyReader(**{"architecture": "llama", "facts": Facts(contexts=4), "cache_dir": str(tmp_path), **SMALL, **bad})
