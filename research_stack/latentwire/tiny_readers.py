"""Readers for a machine without a network: a tiny Llama and a tiny Qwen3 with tokenizers of their own, trained on
made-up facts.

They are trained by the stack's own transformer, whose weights are exactly those of the two architectures (RMSNorm,
rotary positions, SwiGLU, tied embeddings; Qwen3 with norms on queries and keys and fewer key heads), and saved as any
Hugging Face model is: folder, config, tokenizer. The folder is cached, so this takes a minute once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as hub_logging

from research_stack.backbones.as_llama import llama_weights
from research_stack.backbones.transformer import Block, Transformer
from research_stack.data.cache import FolderCache
from research_stack.data.questions.fact_world import ContextDistribution, GeneratedContext
from research_stack.data.questions.facts import Facts
from research_stack.latentwire.reader import PROMPT, QUESTION, FrozenReader, padded
from research_stack.latentwire.receiver import greedy, prefill_text
from research_stack.require import require
from research_stack.streams import seed_of
from research_stack.training.machine import cpu_multiplies_bf16
from research_stack.training.optimization import Optimization

log = logging.getLogger(__name__)

LAYOUT = 2  # raise it when what is trained changes: it is part of the fingerprint
LONGEST = 1024  # tokens that the readers can read
TOKENIZER_CONTEXTS = 2000  # the tokenizer learns from
HELD_OUT = 200  # contexts the finished reader is measured on
CONTEXT_WEIGHT = 0.1  # of a token of context or question in the loss; one of an answer counts 1
# every so many contexts one is left out, so that a reader has learned to guess: what no context gives is then no babble
WITHOUT = 16
LINES = 10.0  # seconds between two lines in the log


class TinyReader(FrozenReader):
    """A small reader of made-up facts, trained when it is first needed and kept in the cache.

    - architecture: llama (byte-pair tokens with a begin token, as many key as query heads) or qwen3 (byte-pair tokens
      over other pieces, no begin token, half the key heads, norms on queries and keys).
    - facts: how the contexts it learns are drawn; a seed of its own keeps them apart from those of the data. questions:
      asked of each.
    - vocab_size: of its vocabulary. dim, layers, heads: of the transformer.
    - steps, batch_size, lr: of its training. seed: of weights and order.
    - cache_dir: root of the caches; null for $RESEARCH_STACK_CACHE or ~/.cache/research_stack.
    - prompt, max_answer_tokens: as in `Reader`.
    """

    #: See research_stack.config.smoke.
    smoke = {"steps": 2, "batch_size": 2, "dim": 32, "layers": 1, "heads": 2, "vocab_size": 300}

    def __init__(
        self,
        architecture: Literal["llama", "qwen3"],
        facts: Facts,
        vocab_size: int = 450,
        dim: int = 128,
        layers: int = 3,
        heads: int = 4,
        steps: int = 300,
        batch_size: int = 32,
        questions: int = 3,
        lr: float = 5e-3,
        seed: int = 0,
        cache_dir: str | None = None,
        prompt: str = PROMPT,
        max_answer_tokens: int = 12,
    ) -> None:
        require(vocab_size >= 300, f"vocab_size={vocab_size} must be at least 300: 256 bytes and some words")
        require(vocab_size <= 1_000_000, f"vocab_size={vocab_size} must be at most 1,000,000")
        require(steps >= 1, f"steps={steps} must be at least 1")
        require(steps <= 1_000_000, f"steps={steps} must be at most 1,000,000")
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        require(batch_size <= 10_000, f"batch_size={batch_size} must be at most 10,000")
        require(questions >= 1, f"questions={questions} must be at least 1")
        require(layers >= 1, f"layers={layers} must be at least 1")
        require(
            heads >= 1 and dim >= 1 and dim % (2 * heads) == 0,
            f"dim={dim} must be a multiple of 2 * heads={heads}: positions rotate pairs",
        )
        require(lr > 0, f"lr={lr} must be positive")
        distribution = replace(
            facts.distribution,
            questions=min(questions, facts.distribution.facts),
            contexts=steps * batch_size + TOKENIZER_CONTEXTS + HELD_OUT,
        )
        recipe: dict[str, Any] = {
            "layout": LAYOUT,
            "architecture": architecture,
            "facts": asdict(distribution),
            "vocab_size": vocab_size,
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "prompt": prompt,
        }
        fingerprint = hashlib.sha256(json.dumps(["reader", recipe], sort_keys=True).encode()).hexdigest()[:20]
        folder, self.facts = FolderCache(cache_dir, fingerprint).folder(
            lambda empty: trained(empty, recipe, distribution)
        )
        super().__init__(
            str(folder), prompt=prompt, max_answer_tokens=max_answer_tokens, attention="eager"
        )  # for few keys on a CPU several times faster than sdpa

    @staticmethod
    def least_numbers(dim: int, layers: int, vocab_size: int, batch_size: int) -> int:
        """Weights, and a few tokens of a batch, at the very least; the check reads it."""
        return 4 * layers * dim * dim + vocab_size * dim + batch_size * dim * layers


def trained(folder: Path, recipe: dict[str, Any], distribution: ContextDistribution) -> dict[str, Any]:
    """Train the reader of the recipe and save it; returns what is known of it."""
    started, made = time.monotonic(), distribution.made()
    tokenizer = tokenizer_of(
        recipe["architecture"],
        [_whole(next(made), recipe["prompt"]) for _ in range(TOKENIZER_CONTEXTS)],
        recipe["vocab_size"],
    )
    held_out = [next(made) for _ in range(HELD_OUT)]
    qwen = recipe["architecture"] == "qwen3"
    model = Transformer(
        len(tokenizer),
        recipe["dim"],
        recipe["layers"],
        recipe["heads"],
        kv_heads=recipe["heads"] // 2 if qwen else None,
        ffn_dim=3 * recipe["dim"],
        max_length=LONGEST,
        causal=True,
        qk_norm=qwen,
        seed=seed_of(recipe["seed"], recipe["architecture"]),
    )
    log.info("training the tiny %s reader: %d steps", recipe["architecture"], recipe["steps"])
    fit(model, rows_of(tokenizer, made, recipe["prompt"]), recipe)
    hub_logging.disable_progress_bar()  # of the shards written
    saved(model, tokenizer, qwen).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text, none = shares_right(FrozenReader(str(folder), prompt=recipe["prompt"]), held_out)
    log.info(
        "the tiny %s reader answers %.0f %% of new questions from the context, %.0f %% without it; %.0f s",
        recipe["architecture"],
        100 * text,
        100 * none,
        time.monotonic() - started,
    )
    return {"recipe": recipe, "exact_text": text, "exact_none": none, "seconds": round(time.monotonic() - started, 1)}


def tokenizer_of(architecture: str, texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer (Sennrich et al. 2016) of the texts over UTF-8 bytes: with words as pieces, or for qwen3
    digits and letters apart.
    """
    own = Tokenizer(models.BPE())
    whole_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.pre_tokenizer = (
        whole_words
        if architecture == "llama"
        else pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True), whole_words]
        )
    )
    own.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"] if architecture == "llama" else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=sorted(alphabet), special_tokens=special, show_progress=False
        ),
    )
    if architecture == "qwen3":
        return PreTrainedTokenizerFast(tokenizer_object=own, eos_token=special[0])
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", own.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")


def _whole(made: GeneratedContext, prompt: str) -> str:
    return made.context + "".join(
        f"{prompt.replace(QUESTION, question)} {answer}" for question, answer, _ in made.asked
    )


def rows_of(
    tokenizer: PreTrainedTokenizerFast, made: Iterator[GeneratedContext], prompt: str
) -> Iterator[tuple[list[int], list[float]]]:
    """(tokens, weights of their loss) of each context with its questions and answers; an end token follows each answer,
    and leads the text as `Reader` does where the tokenizer has no begin token."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    lead = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for number, one in enumerate(made, 1):
        tokens = [lead, *(ids(one.context) if number % WITHOUT else [])]
        weights = [CONTEXT_WEIGHT] * len(tokens)
        for question, answer, _ in one.asked:
            asked, said = ids(prompt.replace(QUESTION, question)), [*ids(f" {answer}"), tokenizer.eos_token_id]
            tokens, weights = tokens + asked + said, weights + [CONTEXT_WEIGHT] * len(asked) + [1.0] * len(said)
        yield tokens, weights


def fit(model: Transformer, rows: Iterator[tuple[list[int], list[float]]], recipe: dict[str, Any]) -> None:
    """Next-token prediction with Muon; a pass over as many rows as steps need."""
    optimization = Optimization(lr=recipe["lr"], optimizer="muon", schedule="wsd", decay_share=0.4, weight_decay=0.01)
    optimizer, factor = optimization.optimizer(model), optimization.factor(recipe["steps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    spoken = time.monotonic()
    for step in range(recipe["steps"]):
        loss = _loss(model, *_tensors(list(islice(rows, recipe["batch_size"]))))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if time.monotonic() - spoken > LINES:
            spoken = time.monotonic()
            log.info("reader step %d/%d  loss %.3f", step + 1, recipe["steps"], loss.item())


def _tensors(batch: list[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
    """(tokens (B, L), weights (B, L)), padded on the right with weight 0."""
    tokens_BL, _ = padded([tokens for tokens, _ in batch], 0, left=False)
    weights_BL = torch.zeros(tokens_BL.shape)
    for row, (_, weights) in enumerate(batch):
        weights_BL[row, : len(weights)] = torch.tensor(weights)
    return tokens_BL, weights_BL


def _loss(model: Transformer, tokens_BL: Tensor, weights_BL: Tensor) -> Tensor:
    kept_BL = weights_BL[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
        logits_nV = model.head(model(tokens_BL[:, :-1])[kept_BL]).float()
    weights_n = weights_BL[:, 1:][kept_BL]
    return (F.cross_entropy(logits_nV, tokens_BL[:, 1:][kept_BL], reduction="none") * weights_n).sum() / weights_n.sum()


@torch.no_grad()
def saved(model: Transformer, tokenizer: PreTrainedTokenizerFast, qwen: bool) -> LlamaForCausalLM | Qwen3ForCausalLM:
    """The model as one of the two architectures, with the same logits."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": block.attention.heads,
        "num_key_value_heads": block.attention.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": LONGEST,
        "rms_norm_eps": torch.finfo(torch.float32).eps,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    own = Qwen3ForCausalLM(Qwen3Config(**sizes)) if qwen else LlamaForCausalLM(LlamaConfig(**sizes))
    own.load_state_dict(llama_weights(model))
    return own.eval()


def shares_right(reader: FrozenReader, made: list[GeneratedContext]) -> tuple[float, float]:
    """Shares of the first questions that are answered word for word, from the context and without it."""
    prompts, right = [reader.prompt_ids(one.asked[0][0]) for one in made], []
    for texts in ([reader.token_ids(one.context) for one in made], [[] for _ in made]):
        answers, _ = greedy(reader, prefill_text(reader, texts), prompts, reader.max_answer_tokens)
        right.append(
            float(np.mean([reader.decode(ids) == one.asked[0][1] for ids, one in zip(answers, made, strict=True)]))
        )
    return right[0], right[1]
