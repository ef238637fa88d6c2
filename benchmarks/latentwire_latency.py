"""Time to the first token with readers of real size: a context as 32 latents against the text itself.

    python benchmarks/latentwire_latency.py [--readers smollm2_135m qwen3_0.6b] [--longest 2048] [--repeats 5]
    [overrides]

The readers have the shapes of SmolLM2-135M and Qwen3-0.6B and random weights, which take as long as trained ones; their
tokenizer, with 16,384 pieces, is learned from Python's documentation. The encoder has 6 layers of width 256 over
patches of 4 bytes. Printed is a row for each reader and length: bytes, tokens of the context, milliseconds by latents
(encoder, adapter, prefill and all) and by text, and their ratio; then from which length on the latents are faster, and
how the two stand where the context has four times as many tokens as there are latents. The last line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from latentwire import faster_from
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from research_stack import compose
from research_stack.data.sources.embedded import PythonDocs
from research_stack.latentwire.latency import Latency
from research_stack.running.assemble import assemble

NUM_LATENTS, OFTEN = 32, 4
SHAPES = {
    "smollm2_135m": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
        ),
    ),
    "qwen3_0.6b": (
        Qwen3ForCausalLM,
        Qwen3Config,
        dict(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
}


def tokenizer(pieces=16384):
    """A byte-level BPE of Python's documentation."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = (document.text for document in PythonDocs().documents())
    own.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=pieces, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>")


def made(folder, name, words):
    """A reader of the shape in a folder of its own; returns the folder and its parameters in millions."""
    kind, config, shape = SHAPES[name]
    model = kind(
        config(
            **shape,
            vocab_size=len(words),
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=words.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder / name)
    words.save_pretrained(folder / name)
    return folder / name, sum(p.numel() for p in model.parameters()) / 1e6


def measured(paths, longest, repeats, overrides):
    """A row for each reader, length and way, as `Latency` gives them."""
    readers = [f"method.readers.{key}.path={path}" for key, path in zip("ab", (paths * 2)[:2], strict=True)]
    cfg = compose(
        "experiment=latentwire",
        "method/readers=pretrained",
        *readers,
        f"method.num_latents={NUM_LATENTS}",
        "method.num_private=8",
        "method.latent_dim=16",
        "model.dim=256",
        "model.patch=4",
        f"model.max_length={longest}",
        "data.sources.qa_facts.contexts=64",
        *overrides,
    )
    parts = assemble(cfg)
    questions, method = parts.data.questions, parts.method.to(parts.hardware.device()).eval()
    with torch.inference_mode(), parts.hardware.autocast():
        return Latency(repeats=repeats)(method, [q.context for q in questions], questions[0].question)


def compared(rows):
    """[{bytes, tokens, latent milliseconds and their parts, text milliseconds, ratio}] of one reader, by length."""
    by = {(row["path"], row["context_bytes"]): row for row in rows}
    beside = min(row["prefill_tokens"] for row in rows if row["path"] == "latent") - NUM_LATENTS  # the question
    found = []
    for size in sorted({row["context_bytes"] for row in rows if row["path"] == "text"}):
        latent, text = by["latent", size], by["text", size]
        found.append(
            {
                "bytes": size,
                "tokens": text["prefill_tokens"] - beside,
                "encode": latent["encode_ms"],
                "adapt": latent["adapt_ms"],
                "prefill": latent["prefill_ms"],
                "latent": latent["total_ms"],
                "text": text["total_ms"],
                "ratio": text["total_ms"] / latent["total_ms"],
            }
        )
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--readers", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--longest", type=int, default=2048, help="bytes")
    parser.add_argument("--repeats", type=int, default=5, help="passes of which the median counts")
    parser.add_argument("overrides", nargs="*", help="of the config: hardware=gpu, method.readers.a.dtype=bfloat16")
    arguments = parser.parse_args()
    result = {"num_latents": NUM_LATENTS, "readers": {}}
    with tempfile.TemporaryDirectory() as place:
        folder, words = Path(place), tokenizer()
        readers = {name: made(folder, name, words) for name in arguments.readers}
        rows = measured(
            [path for path, _ in readers.values()], arguments.longest, arguments.repeats, arguments.overrides
        )
    print("reader          M parameters   bytes  tokens   encode   adapt  prefill  by latents, ms  by text, ms  ratio")
    for key, (name, (_, millions)) in zip("ab", readers.items(), strict=False):
        own = [row for row in rows if row["reader"] == key]
        lengths = compared(own)
        for row in lengths:
            print(
                f"{name:15s} {millions:12.0f} {row['bytes']:7.0f} {row['tokens']:7.0f} {row['encode']:8.1f}"
                f" {row['adapt']:7.1f} {row['prefill']:8.1f} {row['latent']:15.1f} {row['text']:12.1f}"
                f" {row['ratio']:6.2f}"
            )
        there = next((row for row in lengths if row["tokens"] >= OFTEN * NUM_LATENTS), None)
        result["readers"][name] = {
            "faster_from_bytes": faster_from(own, lambda row: row["total_ms"]),
            "ratio_from_four_times": there and there["ratio"],
            "lengths": lengths,
        }
        where = f"; {there['ratio']:.2f} times as fast at {there['tokens']:.0f} tokens" if there else ""
        print(f"{name}: latents are faster from {result['readers'][name]['faster_from_bytes']} bytes on{where}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
