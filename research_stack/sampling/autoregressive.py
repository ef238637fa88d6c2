"""Writing from left to right: one token at a time, chosen by what the model says behind those before it.

What holds for every chooser:

- Prompts of different lengths share a batch without padding: all rows read as many tokens at once as the shortest
  context has; then one token a step goes to each, its prompt's where that is not used up, else the one that was chosen.
- A text without a prompt begins behind the separator `vocab.end`, which is read and is no part of the text.
- A sequence has a random stream of its own, so that it comes out the same alone and in any batch, up to the rounding of
  batched matrix products. Texts that are done leave the batch.

Shapes: B texts, G = `length` positions to write, L columns (prompt, written, padding), W tokens of the longest context.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require
from research_stack.sampling.causal import CausalModel, IncrementalReader, NextTokenPrediction
from research_stack.sampling.choosers import Chooser, ChooserInput
from research_stack.sampling.layout import Layout
from research_stack.sampling.prompts import check_fit, prompt_ids
from research_stack.sampling.state import RowStreams
from research_stack.sampling.trace import Trace

log = logging.getLogger(__name__)


class Autoregressive:
    """A decoder for models of the next token.

    - chooser: what comes next, see `choosers`.
    - stop: a text ends behind the first `vocab.end` it writes. Models that never predict special tokens write none.
    """

    def __init__(self, chooser: Chooser, stop: bool = True) -> None:
        self.chooser, self.stop = chooser, stop

    @property
    def name(self) -> str:
        """What tells it from other decoders: its chooser."""
        return f"{type(self).__name__} {type(self.chooser).__name__}"

    def lacks_confidence(self, read: IncrementalReader) -> bool:
        """Whether the chooser asks for predicted losses that the model does not give."""
        return self.chooser.needs_confidence and not read.predicts_loss

    def unsuited(self, model: type) -> str | None:
        """Why models of this class cannot be sampled from so, and what can; None if they can."""
        fits = hasattr(model, "reader")
        return (
            None
            if fits
            else (
                f"sampler=Autoregressive writes from left to right, and {model.__name__} is no model of the next token;"
                " sampler=llada or another that fills masks fits it"
            )
        )

    @torch.inference_mode()
    def sample(
        self,
        model: CausalModel,
        prompts: Sequence[Tensor | Sequence[int]] | None = None,
        count: int | None = None,
        length: int = 64,
        seed: int = 0,
        record: bool = False,
        device: torch.device | str = "cpu",
        first_row: int = 0,
    ) -> Trace:
        """Write `count` texts of `length` tokens behind their prompts, as one batch.

        - model: in eval mode, on `device`. prompts: token ids, one prompt per text or one for all; None: no prompts.
        - count: texts; None: as many as prompts, or 1.
        - seed: of the streams (seed, "sampling", row). first_row: the row number of the first text: text b of a batch
          is the one that `first_row=b` gives alone.
        - record: keep the history, in which step s writes the s-th token of each text.

        `calls_B` counts what a text takes alone: one call for each choice, the first of which reads the prompt, and
        those of the chooser. A text that ends early has padding behind it that is not `generated`.

        Raises ValueError when the model is not causal, lacks what the chooser needs, or the lengths do not fit it.
        """
        if reason := self.unsuited(type(model)):
            raise ValueError(reason)
        read = model.reader()
        kind = type(self.chooser).__name__
        require(
            not self.lacks_confidence(read),
            f"sampler.chooser={kind} needs a predicted future loss, which {type(model).__name__} does not give; "
            "sampler=gpt, gpt_min_p or gpt_entropy fits it, or a run whose method predicts one",
        )
        ids = prompt_ids(prompts, count, device)
        check_fit(model, model.vocab, ids, length)
        texts = Texts(
            ids, length, model.vocab, RowStreams(seed, range(first_row, first_row + len(ids)), device), device
        )
        self._write(read, texts)
        ended = int((texts.made_B < length).sum())
        if ended:
            log.info("%d of %d texts ended before length=%d", ended, len(ids), length)
        return texts.trace(record)

    def _write(self, read: IncrementalReader, texts: Texts) -> None:
        """Write all texts to their ends."""
        if texts.length == 0:
            return
        tokens_nL = texts.first()
        while True:
            prediction = read.read(tokens_nL)
            texts.seen += tokens_nL.shape[1]
            token_n = self._step(read, texts, prediction)
            going_n = texts.unfinished()
            if not len(going_n):
                return
            if len(going_n) < len(token_n):
                read.keep(going_n)
                texts.live, token_n = texts.live[going_n], token_n[going_n]
            tokens_nL = token_n.unsqueeze(1)

    def _step(self, read: IncrementalReader, texts: Texts, prediction: NextTokenPrediction) -> Tensor:
        """(n,) the next tokens of the live texts: of the prompt where that is not used up, else chosen and written."""
        token_n, rows = texts.given()
        if not len(rows):
            return token_n
        at, every = texts.live[rows], len(rows) == len(token_n)
        inputs = ChooserInput(
            prediction.logits_BV[rows],
            *(None if part is None else part[rows] for part in prediction[1:]),
            confidence_at=lambda tokens: read.confidence_at(tokens, None if every else rows),
        )
        token, ends = self.chooser(
            inputs, texts.streams.uniform(at.tolist(), self.chooser.n_uniforms(inputs.logits_nV.shape[1]))
        )
        p = inputs.logits_nV.softmax(-1).gather(1, token.unsqueeze(1)).squeeze(1)
        texts.calls_B[at] += 1 + self.chooser.calls
        texts.put(at, token, p, ends, self.stop)
        token_n[rows] = token
        return token_n


class Texts:
    """All B texts of one call of `Autoregressive.sample`.

    - live: indices of those that go on, in the order in which the reader holds them. seen: tokens each of these has
      read.
    - made_B: tokens written. done_B: whether it has ended. calls_B: model calls.
    """

    def __init__(
        self, prompts: Sequence[Tensor], length: int, vocab: Vocabulary, streams: RowStreams, device: torch.device | str
    ) -> None:
        count, self.vocab, self.length, self.streams = len(prompts), vocab, length, streams
        self.layout = Layout(prompts, length, vocab, device)
        nothing = torch.tensor([vocab.end], device=device)
        self.context_BW = pad_sequence(
            [prompt if len(prompt) else nothing for prompt in prompts], batch_first=True, padding_value=vocab.pad
        )
        self.width_B = self.layout.width_B.clamp_min(1)
        self.z_BG = torch.full((count, length), vocab.pad, device=device)
        self.p_BG = torch.ones(count, length, device=device)
        self.made_B, self.calls_B = torch.zeros(2, count, dtype=torch.int64, device=device).unbind(0)
        self.done_B = torch.zeros(count, dtype=torch.bool, device=device)
        self.live, self.seen = torch.arange(count, device=device), 0

    def first(self) -> Tensor:
        """(B, L) what all texts read at once."""
        return self.context_BW[:, : int(self.width_B.min())]

    def given(self) -> tuple[Tensor, Tensor]:
        """((n,) next tokens of the prompts, meaningless behind them; indices of the live texts that are behind
        theirs).
        """
        column = min(self.seen, self.context_BW.shape[1] - 1)
        return self.context_BW[self.live, column], (self.width_B[self.live] <= self.seen).nonzero()[:, 0]

    def put(self, at: Tensor, token_n: Tensor, p_n: Tensor, ends_n: Tensor | None, stop: bool) -> None:
        """Write a token of probability p to each of the texts `at`, or end it."""
        ends_n = torch.zeros_like(token_n, dtype=torch.bool) if ends_n is None else ends_n
        where = (at, self.made_B[at])
        self.z_BG[where] = token_n.masked_fill(ends_n, self.vocab.pad)
        self.p_BG[where] = p_n.float().masked_fill(ends_n, 1.0)
        self.made_B[at] += (~ends_n).long()
        self.done_B[at] = ends_n | (self.made_B[at] == self.length) | ((token_n == self.vocab.end) & stop)

    def unfinished(self) -> Tensor:
        """Indices of the live texts that are not done."""
        return (~self.done_B[self.live]).nonzero()[:, 0]

    def trace(self, record: bool) -> Trace:
        """The result."""
        layout, all_rows = self.layout, torch.arange(len(self.z_BG), device=self.z_BG.device)
        order_G = torch.arange(self.length, device=self.z_BG.device)
        written_BG = order_G < self.made_B.unsqueeze(1)
        history = confidence = None
        if record:
            ahead_SBG = [written_BG & (order_G >= step) for step in range(int(self.made_B.max()) + 1)]
            history = torch.stack(
                [layout.tokens(self.z_BG.masked_fill(ahead_BG, self.vocab.mask), all_rows) for ahead_BG in ahead_SBG]
            )
            confidence = torch.stack(
                [layout.full_width(self.p_BG.masked_fill(ahead_BG, 0.0), 1.0) for ahead_BG in ahead_SBG]
            )
        generated_BL = layout.to_columns(written_BG, all_rows)
        return Trace(
            layout.tokens(self.z_BG, all_rows), generated_BL, self.calls_B, history, confidence, self.vocab.mask
        )
