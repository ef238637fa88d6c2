"""Conversations as pairs: the layouts, the templates against `apply_chat_template` itself, and what is refused."""

import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from research_stack.data import ByteBPE, Bytes, Docstrings, Instructions, TokenData
from research_stack.data.packing import TRAIN, VALIDATION, split
from research_stack.data.sources.messages import messages_of
from research_stack.data.tokenizers_pretrained import Pretrained, PretrainedCodec

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] | trim }}",
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": " Six, of course.\nNo doubt."},
]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def chat(tmp_path, stories):
    """Makes the folder of a small byte-level tokenizer with the given chat template."""

    def make(template=CHATML, eos="<|im_end|>", name="tokenizer"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        words = [*stories, *(m["content"] for m in TURNS), "user\nassistant\nsystem\n:\n\n"]
        tokenizer.train_from_iterator(
            words * 3,
            trainers.BpeTrainer(
                vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            ),
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token=eos)
        fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        fast.chat_template = template
        fast.save_pretrained(str(tmp_path / name))
        return str(tmp_path / name)

    return make


# Layouts ----------------------------------------------------------------------------------------------------------


def test_each_turn_of_the_assistant_is_a_pair(tmp_path):
    first, second = Instructions(write(tmp_path / "a.jsonl", {"messages": TURNS})).documents()
    assert (first.prompt, first.text) == ("system:\nBe brief.\nuser:\nWhat is 2+2?\nassistant:\n", "Four.")
    assert second.prompt == first.prompt + "Four.\nuser:\nAnd 3+3?\nassistant:\n" and second.text == TURNS[4]["content"]
    assert first.group == second.group == "What is 2+2?" and first.key == f"{tmp_path / 'a.jsonl'}:1 turn 3"


def test_chatml(tmp_path):
    first, second = Instructions(write(tmp_path / "a.jsonl", {"messages": TURNS}), "chatml").documents()
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert (first.prompt, first.text) == (start, "Four.")
    assert second.prompt == f"{start}Four.<|im_end|>\n<|im_start|>user\nAnd 3+3?<|im_end|>\n<|im_start|>assistant\n"


def test_both_layouts_in_both_formats_say_the_same(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    one = {"id": 1, "messages": TURNS}
    two = {"id": 1, "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in TURNS]}
    paths = [write(tmp_path / "one.jsonl", one), write(tmp_path / "two.jsonl", two)]
    for name, record in (("one", one), ("two", two)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / f"{name}.parquet")
        paths.append(str(tmp_path / f"{name}.parquet"))
    for path in paths:
        Instructions(path).check()
    found = [[(d.prompt, d.text, d.group) for d in Instructions(path).documents()] for path in paths]
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 2


def test_a_conversation_stays_on_one_side_and_so_do_equal_questions(tmp_path):
    def conversation(i):
        return [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"question {i % 60}"},
            {"role": "assistant", "content": f"answer {i}"},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": f"and {i}"},
        ]

    source = Instructions(write(tmp_path / "a.jsonl", *({"messages": conversation(i)} for i in range(120))))
    documents, sides = list(source.documents()), split(source, 0.3)
    assert len(documents) == 240
    questions = [{d.group for d, s in zip(documents, sides, strict=True) if s == side} for side in (TRAIN, VALIDATION)]
    assert all(questions) and not questions[0] & questions[1] and len(questions[0] | questions[1]) == 60


def test_the_embedded_conversations(parsed, tmp_path):
    source, pairs = Instructions(limit=1200), list(Docstrings(limit=1200).documents())
    source.check()
    for document, pair in zip(source.documents(), pairs, strict=True):
        assert (document.text, document.group) == (
            pair.text,
            pair.group,
        ) and document.prompt == f"user:\n{pair.prompt}assistant:\n"
    made = TokenData(source, ByteBPE(400), sequence_length=128, pack=True, cache_dir=str(tmp_path))
    made.prepare()
    assert made.describe()["filled"] > 0.9 and not made.prompts_only


# Templates --------------------------------------------------------------------------------------------------------


def test_a_tokenizers_own_template_to_the_token(chat, tmp_path_factory):
    for template in (CHATML, THINKING):
        tmp_path = tmp_path_factory.mktemp("case")
        folder = chat(template)
        source = Instructions(write(tmp_path / "a.jsonl", {"messages": TURNS}), folder)
        source.check()
        codec = Pretrained(folder).fit([])
        first, second = source.documents()
        for document, count in ((first, 3), (second, 5)):
            whole = codec.tokenizer.apply_chat_template(TURNS[:count], tokenize=True, return_dict=False)
            ours = [*codec.encode(document.prompt), *codec.encode(document.text), codec.vocab.end]
            assert ours == whole[: len(ours)] and codec.decode(whole[len(ours) :]).strip() == ""
            assert document.prompt == codec.tokenizer.apply_chat_template(
                TURNS[: count - 1], tokenize=False, add_generation_prompt=True
            )
        start, end = codec.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        prompt = codec.encode(second.prompt)
        assert (
            prompt[0] == codec.tokenizer.bos_token_id
            and prompt.count(start) == 5
            and prompt.count(end) == 4
            and codec.vocab.end == end
        )
        assert {start, end} <= set(codec.vocab.special)


def test_prompt_and_response_have_the_same_ids_apart_and_together(chat, stories, tmp_path_factory):
    for template, kind in itertools.product(("plain", "chatml"), ("pretrained", "byte_bpe", "bytes")):
        tmp_path = tmp_path_factory.mktemp("case")
        texts = [m["content"] + "\nuser:\nassistant:\n" for m in TURNS] * 9
        codec = (Bytes() if kind == "bytes" else ByteBPE(600) if kind == "byte_bpe" else Pretrained(chat())).fit(texts)
        for document in Instructions(write(tmp_path / "a.jsonl", {"messages": TURNS}), template).documents():
            assert codec.encode(document.prompt) + codec.encode(document.text) == codec.encode(
                document.prompt + document.text
            )
        if kind == "pretrained" and template == "chatml":
            assert isinstance(codec, PretrainedCodec) and codec.encode(document.prompt).count(codec.vocab.end) == 4


def test_rows_of_a_templates_pairs(tmp_path, chat):
    folder = chat()
    records = [
        {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(40)
    ]
    data = TokenData(
        Instructions(write(tmp_path / "a.jsonl", *records), folder),
        Pretrained(folder),
        sequence_length=96,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare()
    for tokens, prompt, attend in zip(data.train.tokens, data.train.prompt, data.train.attention_mask, strict=True):
        response = tokens[attend & ~prompt]
        assert response[-1] == data.vocab.end and data.codec.decode(response).startswith("answer ")
        assert data.codec.tokenizer.decode(tokens[prompt]).endswith("<|im_start|>assistant\n")


def test_the_check_loads_no_tokenizer(tmp_path, chat, monkeypatch):
    source = Instructions(write(tmp_path / "a.jsonl", {"messages": TURNS}), chat())
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", None)
        source.check()
    assert len(list(source.documents())) == 2


# What is refused --------------------------------------------------------------------------------------------------


def complaint(source):
    with pytest.raises((ValueError, OSError)) as caught:
        source.check()
        list(source.documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_a_wrong_record_is_one_line_with_its_place(tmp_path_factory):
    for record, line in (
        (
            {"messages": [USER, {"role": "robot", "content": "a"}]},
            ":2 message 2 has the unknown role 'robot'; known: system user assistant tool human gpt",
        ),
        (
            {"messages": [USER, {"role": "system", "content": "s"}]},
            ":2 has no turn of the assistant, so nothing can be learned from it",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            ":2 message 2 (assistant) has an empty content",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, ":2 message 2 (assistant) has an empty content"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
            ":2 message 2 field 'content' part 1 has no field 'text'; the fields there: type",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, ":2 message 2 has no field 'content'; the fields there: role"),
        (
            {"messages": [{"sender": "human", "value": "q"}]},
            ":2 message 1 has no field 'role'; the fields there: sender, value",
        ),
        ({"messages": ["q", "a"]}, ":2 message 1 must be an object with 'role' and 'content', not a str"),
        ({"messages": []}, ":2 field 'messages' must be a list of messages, not an empty one"),
        ({"messages": "q"}, ":2 field 'messages' must be a list of messages, not str"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "bard", "value": "a"}]},
            ":2 message 2 has the unknown from 'bard'; known: system user assistant tool human gpt",
        ),
        (
            {"prompt": "q", "response": "a"},
            ":2 has neither the field 'messages' nor 'conversations'; the fields there: prompt, response",
        ),
    ):
        tmp_path = tmp_path_factory.mktemp("case")
        path = write(tmp_path / "a.jsonl", {"messages": [USER, REPLY]}, record)
        assert complaint(Instructions(path)) == f"path={path}{line}; set strict=false to leave such records out"
        lenient = Instructions(path, strict=False)
        lenient.check()
        assert (
            len(list(lenient.documents())) == 1
            and lenient.odd.left_out == 1
            and lenient.odd.first == f"path={path}{line}"
        )


def test_wrong_files(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    assert "has neither the field 'messages' nor 'conversations'; the fields there: body, n" in complaint(
        Instructions(str(tmp_path / "a.parquet"))
    )
    (tmp_path / "a.txt").write_text("x")
    assert "has the unknown suffix '.txt'; known: .jsonl .parquet" in complaint(Instructions(str(tmp_path / "a.txt")))
    assert "does not exist" in complaint(Instructions(str(tmp_path / "b.jsonl")))


def test_wrong_templates(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", {"messages": [USER, REPLY]})
    assert complaint(Instructions(path, str(tmp_path / "tokeniser"))).startswith(
        f"template={tmp_path / 'tokeniser'} must be plain, chatml or the folder"
    )
    none = chat(template=None, name="none")
    assert "has no chat template" in complaint(Instructions(path, none))
    other = chat(eos="<|other|>", name="other")
    assert (
        "closes a turn of the assistant with '<|im_end|>', which is not the tokenizer's eos '<|other|>'"
        in complaint(Instructions(path, other))
    )
    apart = chat(template=CHATML.replace("<|im_start|>assistant\n{%", "Reply now:{%"), name="apart")
    assert "does not go on from its own generation prompt" in complaint(Instructions(path, apart))
    strict = chat(template="{{ raise_exception('no system, please') }}", name="strict")
    assert (
        f"path={path}:1 does not fit the chat template of template={strict}: TemplateError: no system, please"
        in complaint(Instructions(path, strict))
    )
    with pytest.raises(ValueError, match="^template=''"):
        Instructions(path, "")


def test_fingerprint_follows_file_template_and_limit(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", {"messages": TURNS})
    one, two = chat(), chat(THINKING, name="two")
    sources = [Instructions(path, template) for template in ("plain", "chatml", one, two)]
    sources += [Instructions(path, limit=2), Instructions(), Instructions(limit=9)]
    assert len({source.fingerprint() for source in sources}) == 7
    assert (
        chat(name="copy")
        and Instructions(path, str(tmp_path / "copy")).fingerprint() == Instructions(path, one).fingerprint()
    )


def test_messages_of_keeps_the_order():
    assert [m["role"] for m in messages_of({"messages": TURNS}, "here")] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
