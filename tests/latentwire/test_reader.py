"""A reader's own words: what leads a text, prompt and answer tokenised together, where an answer ends; what cannot be a
reader.
"""

import pytest
import torch
from pretrained_models import byte_level, llama, llama_tokenizer, qwen_tokenizer
from tiny_latentwire import FACTS, folder_of, reader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from research_stack.config.check_node import check_node
from research_stack.latentwire.reader import FrozenReader, padded
from research_stack.latentwire.receiver import greedy, prefill_text


@pytest.fixture(params=["llama", "qwen"])
def own(request):
    return reader(request.param)


def with_tokenizer(tmp_path, tokenizer, **options):
    """A reader with random weights and this tokenizer."""
    llama(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return FrozenReader(str(tmp_path), **options)


# Frozen ------------------------------------------------------------------------------------------------------------


def test_it_is_frozen_and_never_in_training_mode(own):
    assert not any(p.requires_grad for p in own.parameters())
    assert not own.train().training and not any(m.training for m in own.modules())
    outer = torch.nn.ModuleList([own]).train()
    assert outer.training and not any(m.training for m in own.modules())


def test_its_weights_are_in_no_checkpoint(own):
    assert list(own.state_dict()) == ["model.base_digest"]
    assert own.load_state_dict(own.state_dict()).missing_keys == []


def test_what_it_is_made_of(own):
    config = own.model.own.config
    assert (own.num_layers, own.hidden_size, own.num_kv_heads, own.head_dim) == (config.num_hidden_layers, 32, 2, 16)
    assert [type(block).__name__ for block in own.blocks()] == [
        f"{type(own.model.own).__name__.removesuffix('ForCausalLM')}DecoderLayer"
    ] * own.num_layers
    assert torch.equal(own.embeddings.weight, own.model.own.get_input_embeddings().weight)


def test_the_layers_of_another_architecture_are_found(tmp_path):
    tokenizer = qwen_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    own = FrozenReader(str(tmp_path))
    cached = prefill_text(own, [own.token_ids("Ada")]).cache.held.layers
    assert (
        (own.num_layers, len(own.blocks()), own.num_kv_heads, own.head_dim)
        == (3, 3, 2, 8)
        == (len(cached), 3, cached[0].keys.shape[1], cached[0].keys.shape[3])
    )


# What leads a text ----------------------------------------------------------------------------------------------------


def test_the_lead_is_what_the_tokenizer_puts_in_front_or_the_end(tmp_path):
    tokenizer = llama_tokenizer()
    assert with_tokenizer(tmp_path / "none", tokenizer).bos_ids == [tokenizer.eos_token_id]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for name, single, lead in (
        ("begin", "<|begin_of_text|> $A", [begin]),
        ("both", "<|begin_of_text|> $A <|eot_id|>", [begin]),
        ("behind", "$A <|eot_id|>", [end]),
    ):
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<|begin_of_text|>", begin), ("<|eot_id|>", end)]
        )
        own = with_tokenizer(tmp_path / name, tokenizer)
        assert own.bos_ids == lead, name
        assert not {begin, end} & set(own.token_ids("Ada eats rice"))  # pieces come without them


# Prompt and answer ----------------------------------------------------------------------------------------------------


@pytest.mark.exact
def test_prompt_and_answer_are_those_tokenised_together(own):
    for _, question, answer in [*FACTS, ("", "", "x"), ("", "Zürich?", "Ægir 🙂")]:
        joint = own.tokenizer(f"\nQ: {question}\nA: {answer}", add_special_tokens=False).input_ids
        own.max_answer_tokens = 100
        assert own.prompt_ids(question) + own.answer_ids(question, answer) == [*joint, own.eos_id]
        assert own.decode(own.answer_ids(question, answer)) == answer


def test_an_answer_is_cut_to_its_length(own):
    own.max_answer_tokens = 100
    whole = own.answer_ids("Why?", "because it rains all day long")
    own.max_answer_tokens = 3
    assert len(whole) > 3 and own.answer_ids("Why?", "because it rains all day long") == whole[:3]


def test_no_answer_is_the_end(own):
    assert own.answer_ids("Why?", "") == [own.eos_id] and own.decode([own.eos_id]) == ""


def test_braces_of_a_prompt_or_question_are_text(own):
    own.prompt = "{context} {question} {"
    assert own.prompt_ids("{a}?") == own.token_ids("{context} {a}? {")


def test_an_answer_that_runs_into_the_prompt_is_refused(tmp_path):
    """A tokenizer without pieces merges `A:` and the blank behind it, as some do."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["A: red", "A: blue"] * 9,
        trainers.BpeTrainer(vocab_size=262, special_tokens=["<e>"], initial_alphabet=alphabet, show_progress=False),
    )
    own = with_tokenizer(tmp_path, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>"))
    joint = own.token_ids("\nQ: Why?\nA: red")
    assert joint[: len(own.prompt_ids("Why?"))] != own.prompt_ids("Why?")  # else this test says nothing
    assert own.answer_ids("Why?", "red") is None


def test_an_answer_ends_with_the_end_token_or_the_line(own):
    said = own.token_ids(" New York \nQ: And")
    assert own.decode(said) == "New York"
    assert own.decode([*own.token_ids(" red"), own.eos_id, *own.token_ids(" blue")]) == "red"
    assert own.decode([own.eos_id]) == own.decode([]) == ""
    assert own.decode(own.token_ids("\n")) == ""


def test_an_empty_question_is_asked_and_answered(own):
    answers, first = greedy(own, prefill_text(own, [own.token_ids("Ada eats rice.")]), [own.prompt_ids("")], 3)
    assert 1 <= len(answers[0]) <= 3 and answers[0][0] == int(first.argmax())


# Padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left, tokens, seen",
    [
        (True, [[9, 9, 1], [2, 3, 4], [9, 9, 9]], [[0, 0, 1], [1, 1, 1], [0, 0, 0]]),
        (False, [[1, 9, 9], [2, 3, 4], [9, 9, 9]], [[1, 0, 0], [1, 1, 1], [0, 0, 0]]),
    ],
)
def test_rows_are_padded(left, tokens, seen):
    found, where = padded([[1], [2, 3, 4], []], 9, left)
    assert found.tolist() == tokens and where.int().tolist() == seen and where.dtype == torch.bool
    assert [t.shape for t in padded([[]], 9, left)] == [(1, 1)] * 2


# What is no reader ----------------------------------------------------------------------------------------------------


def refused(path, **options):
    with pytest.raises(ValueError) as error:
        FrozenReader(str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_a_reader_is_told_in_one_line(tmp_path):
    assert "holds no tokenizer that can be loaded" in refused(tmp_path)
    own = byte_level(["<x>"])
    llama(tmp_path)
    own.save_pretrained(tmp_path)
    assert "its tokenizer has no end token" in refused(tmp_path)
    assert refused(folder_of("llama"), prompt="Q: ?").startswith("prompt=Q: ? must hold {question}")
    assert refused(folder_of("llama"), prompt="{question}").startswith("prompt={question} must hold")
    assert refused(folder_of("llama"), max_answer_tokens=0) == "max_answer_tokens=0 must be at least 1"


def test_bad_options_are_found_without_building():
    node = {"_target_": "research_stack.latentwire.reader.FrozenReader", "path": "x", "max_answer_tokens": 0}
    assert [p.message for p in check_node("method.readers.a", node)] == [
        "method.readers.a.max_answer_tokens=0 must be at least 1"
    ]
