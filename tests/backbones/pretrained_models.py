"""Random Hugging Face models of a few thousand weights with their tokenizers, made and saved in a folder."""

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEXT = ["the quick brown fox jumps over the lazy dog", "what is 2 + 3 ? it is 5 .", "user assistant system"]
ROWS = 300  # of the embedding; the tokenizers have fewer ids, as those of Qwen3 do

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content"
    " }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{%"
    " endif %}"
)

SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def byte_level(special, **roles):
    """A byte-level BPE tokenizer with these special tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 20 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def qwen_tokenizer():
    """Like Qwen3's instruct models: a turn's end is eos, the document's end is pad."""
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def llama_tokenizer(**roles):
    """Like Llama 3's instruct models: no pad token."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(names, bos_token=names[0], eos_token="<|eot_id|>", chat_template=LLAMA_CHAT, **roles)


def saved(folder, model, tokenizer):
    """The folder, with both in it."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen(folder, tied=True, seed=0, **options):
    """A saved Qwen3 with random weights."""
    torch.manual_seed(seed)
    return saved(
        folder, Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "tie_word_embeddings": tied, **options})), qwen_tokenizer()
    )


def llama(folder, tied=False, seed=0, **options):
    """A saved Llama with random weights."""
    torch.manual_seed(seed)
    return saved(
        folder, LlamaForCausalLM(LlamaConfig(**{**SHAPE, "tie_word_embeddings": tied, **options})), llama_tokenizer()
    )
