"""A reader: a frozen causal language model with its own tokenizer, and how a question is put to it.

What a reader sees is `begin tokens, context or latents, prompt, answer, end`. The pieces are tokenised apart, so the
prompt is the same whatever comes before it: the begin tokens are what the tokenizer itself puts in front of a text (or
the end token, where that is nothing) and serves as attention sink (Xiao et al. 2024); the answer's tokens are those of
prompt and answer read together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from research_stack.backbones.pretrained import PretrainedCausal
from research_stack.require import require

QUESTION = "{question}"
PROMPT = f"\nQ: {QUESTION}\nA:"


class FrozenReader(nn.Module):
    """A frozen causal language model that answers questions about what it is given.

    - path: a folder with a saved model and tokenizer, or a name on the hub. revision: commit or tag on the hub.
    - prompt: what follows the context; `{question}` stands for the question. The answer follows it behind a blank.
    - max_answer_tokens: tokens of an answer at most, its end included.
    - dtype, attention, quantization, device_map: as in `PretrainedCausal`; `auto` lays the model over the devices there
      are.

    Raises ValueError in one line for a path without model or tokenizer, an encoder, a model without a key-value cache
    (each model is tried out) and a tokenizer that knows no end of text.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        prompt: str = PROMPT,
        max_answer_tokens: int = 12,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: Literal["sdpa", "eager"] = "sdpa",
        quantization: Literal["4bit", "8bit"] | None = None,
        device_map: str | None = None,
    ) -> None:
        require(QUESTION in prompt, f"prompt={prompt} must hold {QUESTION}")
        require(
            prompt.strip() != QUESTION,
            f"prompt={prompt} must hold more than {QUESTION}: an empty question would leave nothing to read",
        )
        require(max_answer_tokens >= 1, f"max_answer_tokens={max_answer_tokens} must be at least 1")
        super().__init__()
        self.path, self.prompt, self.max_answer_tokens = path, prompt, max_answer_tokens
        self._prompt_ids: dict[str, list[int]] = {}  # tokenising each batch anew took a tenth of a training step
        self._answer_ids: dict[tuple[str, str], list[int] | None] = {}
        self.tokenizer = _tokenizer(path, revision)
        self.eos_id = _eos_id(self.tokenizer, path)
        self.model = PretrainedCausal(
            len(self.tokenizer),
            path,
            revision,
            dtype=dtype,
            attention=attention,
            quantization=quantization,
            device_map=device_map,
            frozen=True,
        )
        front = self.tokenizer("").input_ids
        self.bos_ids = [i for i in front if i != self.tokenizer.eos_token_id] or [self.eos_id]
        text = self.model.own.config.get_text_config()
        said = text.to_dict()  # older architectures do not tell key heads from query heads
        self.num_layers, self.hidden_size, self.num_kv_heads = (
            text.num_hidden_layers,
            text.hidden_size,
            said.get("num_key_value_heads") or text.num_attention_heads,
        )
        self.head_dim = said.get("head_dim") or text.hidden_size // text.num_attention_heads
        self.eval()

    def train(self, mode: bool = True) -> FrozenReader:
        """A frozen model is never in training mode: its dropout stays off."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where its embeddings lie."""
        return self.model.unembedding.device

    @property
    def embeddings(self) -> nn.Embedding:
        """The table of input embeddings."""
        found = self.model.own.get_input_embeddings()
        assert isinstance(found, nn.Embedding)
        return found

    def blocks(self) -> nn.ModuleList:
        """Its decoder layers, the first one first."""
        return self.model.blocks

    # Words ---------------------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that a tokenizer puts around it."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def format_prompt(self, question: str) -> str:
        """The prompt with the question in it."""
        return self.prompt.replace(QUESTION, question)

    def prompt_ids(self, question: str) -> list[int]:
        """The tokens of the prompt."""
        if question not in self._prompt_ids:
            self._prompt_ids[question] = self.token_ids(self.format_prompt(question))
        return self._prompt_ids[question]

    def answer_ids(self, question: str, answer: str) -> list[int] | None:
        """The tokens of the answer and the end, as prompt and answer are tokenised together, cut to
        `max_answer_tokens`.

        None where they run into one another, so that the prompt's tokens do not begin those of both.
        """
        if (question, answer) not in self._answer_ids:
            self._answer_ids[question, answer] = self._answer_ids_of_any_length(question, answer)
        both = self._answer_ids[question, answer]
        return None if both is None else both[: self.max_answer_tokens]

    def _answer_ids_of_any_length(self, question: str, answer: str) -> list[int] | None:
        """As `answered`, of any length; the end alone for an answer that is empty."""
        front = self.prompt_ids(question)
        both = self.token_ids(f"{self.format_prompt(question)} {answer}") if answer else front
        if both[: len(front)] != front or (answer and len(both) == len(front)):
            return None
        return [*both[len(front) :], self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The answer that the tokens spell: up to the end token or the end of the line, without blanks around it."""
        kept = list(ids)
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip().split("\n")[0].strip()


def padded(
    ids: Sequence[Sequence[int]], fill: int, left: bool, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(tokens int64 (B, L), seen bool (B, L)) of rows of different lengths; L is at least 1."""
    longest = max(1, *map(len, ids)) if ids else 1
    tokens_BL, mask_BL = torch.full((len(ids), longest), fill), torch.zeros(len(ids), longest, dtype=torch.bool)
    for row, own in enumerate(ids):
        where = slice(longest - len(own), longest) if left else slice(0, len(own))
        tokens_BL[row, where] = torch.tensor(own, dtype=torch.long)
        mask_BL[row, where] = True
    return tokens_BL.to(device), mask_BL.to(device)


def _tokenizer(path: str, revision: str | None) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # damaged files and the network raise anything
        line = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise ValueError(f"path={path} holds no tokenizer that can be loaded: {line}") from error


def _eos_id(tokenizer: Any, path: str) -> int:
    """The id of the end of a text. Raises ValueError when there is none."""
    eos_id = tokenizer.eos_token_id
    require(eos_id is not None, f"path={path}: its tokenizer has no end token (eos_token): answers could not end")
    return int(eos_id)
