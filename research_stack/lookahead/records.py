"""What a model says and does at each position of held-out text: one record a position, kept for later questions.

Shapes: B sequences, L positions, n positions that count, m own tokens drawn at each, V tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from research_stack.data.batches import batch_of
from research_stack.data.packing import PackedRows
from research_stack.lookahead.module import MiniGPT
from research_stack.sampling.categorical import draw
from research_stack.streams import Draws

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

CHUNK = 1024  # positions whose logits are held at once
BATCH = 32  # rows a pass


@dataclass
class Records:
    """n positions at which both the next token and the future loss count.

    - document, row, position, token: where it is; the real next token.
    - nats: cross entropy of the real next token. probability: of it. square: sum of the squared probabilities.
    - entropy (nats), largest (probability), margin (between the two largest), correct (the likeliest token is the real
      one).
    - confidence: c_i in nats; NaN without a head.
    - future_nm: future loss behind each of m own tokens, nats. own_correct_nm: the own token was the real one.
    - real_future: future loss behind the real token.
    """

    document: np.ndarray
    row: np.ndarray
    position: np.ndarray
    token: np.ndarray
    nats: np.ndarray
    probability: np.ndarray
    square: np.ndarray
    entropy: np.ndarray
    largest: np.ndarray
    margin: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    future_nm: np.ndarray
    own_correct_nm: np.ndarray
    real_future: np.ndarray

    def __len__(self) -> int:
        return len(self.nats)

    def take(self, where: np.ndarray) -> Records:
        """Some of the records."""
        return Records(*(getattr(self, field.name)[where] for field in fields(self)))

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of a table; the m own tokens become future_0, own_correct_0, ..."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.endswith("_nm")}
        for k in range(self.future_nm.shape[1]):
            found |= {f"future_{k}": self.future_nm[:, k], f"own_correct_{k}": self.own_correct_nm[:, k]}
        return found


def records(
    context: Context, rows: PackedRows, document: np.ndarray, samples: int, first_row: np.ndarray | None = None
) -> Records:
    """The records of these rows, in order.

    - document: (rows,) number of the document of each. samples: m. first_row: numbers of the rows; None: 0, 1, ...

    Raises ValueError when the model's confidence is not finite.
    """
    numbers = np.arange(len(rows)) if first_row is None else first_row
    parts = [record(context, piece, document[at], numbers[at], samples) for at, piece in batches(rows)]
    return Records(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Records)))


def batches(rows: PackedRows) -> Iterator[tuple[slice, PackedRows]]:
    """The rows, BATCH at a time, and where they stand."""
    for start in range(0, len(rows), BATCH):
        at = slice(start, start + BATCH)
        yield at, rows.take(at)


def record(context: Context, rows: PackedRows, document: np.ndarray, numbers: np.ndarray, samples: int) -> Records:
    """The records of one batch."""
    method: MiniGPT = context.method  # type: ignore[assignment]
    batch = {name: tensor.to(context.device) for name, tensor in batch_of(rows).items()}
    counts_BL = method.future_counts(batch)
    length, where_BL = counts_BL.shape[1], counts_BL > 0
    tokens_BL = batch["tokens"][:, :length]
    draws = Draws(context.seed, "records", int(numbers[0]), total=len(rows), device=context.device)
    u_BLmh = draws.uniform(length, samples, method.horizon - 1)
    reading = method.read(tokens_BL, method.previous(tokens_BL))
    confidence_BL = method.confidence(reading.hidden_BLD)
    if confidence_BL is not None and not bool(torch.isfinite(confidence_BL).all()):
        raise ValueError("method.head gives a confidence that is not finite: the run has diverged")
    seen, own_BLm = next_token_statistics(
        method, reading.hidden_BLD, batch["tokens"][:, 1 : length + 1], u_BLmh[..., 0], where_BL
    )
    given = {"tokens": batch["tokens"], "counts": counts_BL}
    futures = [
        method.future(reading, own_BLm[..., k], confidence_BL, given | {"u": u_BLmh[:, :, k]})[where_BL]
        for k in range(samples)
    ]
    real = method.future(reading, batch["tokens"][:, 1 : length + 1], confidence_BL, given | {"u": u_BLmh[:, :, 0]})[
        where_BL
    ]
    row_n, position_n = (index.cpu().numpy() for index in where_BL.nonzero(as_tuple=True))
    confidence_n = torch.full_like(real, torch.nan) if confidence_BL is None else confidence_BL[where_BL]
    tensors = [*seen, confidence_n, torch.stack(futures, 1), own_BLm[where_BL] == seen[0].unsqueeze(1), real]
    return Records(
        document[row_n],
        numbers[row_n],
        position_n,
        *(tensor.float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy() for tensor in tensors),
    )


def next_token_statistics(
    method: MiniGPT, hidden_BLD: Tensor, target_BL: Tensor, u_BLm: Tensor, where_BL: Tensor
) -> tuple[list[Tensor], Tensor]:
    """([target, nats, probability, square, entropy, largest, margin, correct] each (n,), own tokens (B, L, m), targets
    elsewhere).
    """
    hidden_nD, target_n, u_nm = hidden_BLD[where_BL], target_BL[where_BL], u_BLm[where_BL]
    parts, own_nm = [], target_n.unsqueeze(1).repeat(1, u_nm.shape[1])
    for start in range(0, len(hidden_nD), CHUNK):
        at = slice(start, start + CHUNK)
        logits_cV = (hidden_nD[at] @ method.model.unembedding.T.to(hidden_nD.dtype)).float() + method.bias_V
        parts.append(torch.stack(statistics(logits_cV, target_n[at])))
        for k in range(u_nm.shape[1]):
            own_nm[at, k] = draw(logits_cV, u_nm[at, k])
    nats_n, probability_n, square_n, entropy_n, largest_n, margin_n, best_n = torch.cat(parts, 1)
    own_BLm = target_BL.unsqueeze(-1).repeat(1, 1, u_nm.shape[1])
    own_BLm[where_BL] = own_nm
    return [target_n, nats_n, probability_n, square_n, entropy_n, largest_n, margin_n, best_n > 0], own_BLm


def statistics(logits_cV: Tensor, target_c: Tensor) -> tuple[Tensor, ...]:
    """(nats, probability, sum of squares, entropy, largest, margin, 1 where the likeliest is the target), each (c,)."""
    log_p_cV = logits_cV.log_softmax(-1)
    p_cV = log_p_cV.exp()
    top_c2, best_c2 = p_cV.topk(2, dim=-1)
    log_p_c = log_p_cV.gather(1, target_c.unsqueeze(1)).squeeze(1)
    return (
        -log_p_c,
        log_p_c.exp(),
        p_cV.square().sum(-1),
        torch.special.entr(p_cV).sum(-1),
        top_c2[:, 0],
        top_c2[:, 0] - top_c2[:, 1],
        (best_c2[:, 0] == target_c).float(),
    )
