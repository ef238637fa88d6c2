"""Hugging Face tokenizers of three kinds, made and saved here."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from research_stack.data.tokenizers_pretrained import Pretrained

TEXT = "the quick brown fox jumps over the lazy dog and the end"


def byte_level(folder):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def metaspace(folder):
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>").save_pretrained(folder)


def word_piece(folder):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [TEXT] * 9, trainers.WordPieceTrainer(vocab_size=80, special_tokens=names, show_progress=False)
    )
    kinds = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kinds).save_pretrained(folder)


@pytest.mark.parametrize("make", [byte_level, metaspace, word_piece])
def test_roles_round_trip_and_pieces(make, tmp_path):
    make(tmp_path)
    choice = Pretrained(str(tmp_path))
    choice.check()
    codec = choice.fit([])
    vocab = codec.vocab
    assert len({vocab.mask, vocab.pad, vocab.end}) == 3
    ids = codec.encode(TEXT)
    assert not set(ids) & set(vocab.special)
    assert codec.decode([*ids, vocab.end, vocab.pad]) == TEXT
    assert "".join(codec.token_strings(ids)).strip() == TEXT
    assert codec.token_strings([vocab.mask, vocab.pad, vocab.end]) == ["▒", "·", "■"]


def test_roles_that_exist_are_used_and_others_added(tmp_path):
    word_piece(tmp_path)
    codec = Pretrained(str(tmp_path)).fit([])
    names = codec.tokenizer.convert_ids_to_tokens([codec.vocab.mask, codec.vocab.pad, codec.vocab.end])
    assert names == ["[MASK]", "[PAD]", "[SEP]"] and codec.vocab.size == len(codec.tokenizer)
    assert set(codec.vocab.special) == {0, 1, 2, 3, 4}


def test_saved_codec_is_the_same_and_the_fingerprint_is_of_the_content(tmp_path):
    byte_level(tmp_path / "a")
    byte_level(tmp_path / "b")
    word_piece(tmp_path / "c")
    choice = Pretrained(str(tmp_path / "a"))
    codec = choice.fit([])
    (tmp_path / "cache").mkdir()
    codec.save(tmp_path / "cache")
    again = choice.load(tmp_path / "cache")
    assert again.vocab == codec.vocab and again.encode(TEXT) == codec.encode(TEXT)
    assert (
        choice.fingerprint()
        == Pretrained(str(tmp_path / "b")).fingerprint()
        != Pretrained(str(tmp_path / "c")).fingerprint()
    )


def test_a_special_token_spelt_in_the_text_is_not_eligible_and_unknown_is_special(tmp_path):
    word_piece(tmp_path)
    codec = Pretrained(str(tmp_path)).fit([])
    ids = codec.encode("the [MASK] 漢")
    assert codec.vocab.mask in codec.vocab.special and sum(i in codec.vocab.special for i in ids) >= 1


def test_paths_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="^tokenizer.path=.*nowhere does not exist"):
        Pretrained(str(tmp_path / "nowhere")).check()
    with pytest.raises(FileNotFoundError, match="^tokenizer.path=.* holds no tokenizer"):
        Pretrained(str(tmp_path)).check()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(OSError, match="^tokenizer.path=[^\n]* holds no tokenizer that can be loaded[^\n]*$"):
        Pretrained(str(tmp_path)).fit([])
