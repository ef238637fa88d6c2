"""Who else predicts the future loss: what any language model says of itself, and a probe on its frozen states.

A confidence head is worth its cost only if it beats these. Curves of entropy and the like are fitted on other documents
than they are judged on, but on held-out ones: an advantage over the head, which is judged as it is.

Shapes: n positions, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from research_stack.data.batches import batch_of
from research_stack.data.packing import PackedRows
from research_stack.lookahead.module import MiniGPT
from research_stack.lookahead.records import Records, batches
from research_stack.metrics.calibration import Ridge, fit_curve, fit_ridge

if TYPE_CHECKING:
    from research_stack.evaluation.context import Context

FOLDS = 5


def scores(records: Records) -> dict[str, np.ndarray]:
    """Predicted badness by name, low where the model is sure: the confidence, if there is one, and what needs no
    head.
    """
    found = {"entropy": records.entropy, "max probability": -records.largest, "margin": -records.margin}
    return ({"confidence head": records.confidence} if np.isfinite(records.confidence).all() else {}) | found


def cross_fit(x_n: np.ndarray, y_n: np.ndarray, document_n: np.ndarray) -> np.ndarray:
    """(n,) y predicted from x by a smooth curve, each document by a curve fitted to other documents.

    Raises ValueError for fewer than two documents.
    """
    names, index_n = np.unique(document_n, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            "data.validation_fraction leaves one validation document: a control needs others to be fitted on; raise it"
        )
    fold_n, predicted_n = index_n % min(FOLDS, len(names)), np.empty(len(x_n))
    for fold in range(fold_n.max() + 1):
        inside = fold_n == fold
        predicted_n[inside] = fit_curve(x_n[~inside], y_n[~inside]).predict(x_n[inside])
    return predicted_n


def hidden_states(context: Context, rows: PackedRows) -> np.ndarray:
    """(n, D) float32 last hidden states at the positions of `records`, in the same order."""
    method: MiniGPT = context.method  # type: ignore[assignment]
    parts = []
    for _, piece in batches(rows):
        batch = {name: tensor.to(context.device) for name, tensor in batch_of(piece).items()}
        where_BL = method.future_counts(batch) > 0
        tokens_BL = batch["tokens"][:, : where_BL.shape[1]]
        parts.append(method.read(tokens_BL, method.previous(tokens_BL)).hidden_BLD[where_BL].float().cpu().numpy())
    return np.concatenate(parts)


def fit_probe(context: Context, rows: PackedRows, known: Records) -> Ridge:
    """A linear probe of the future loss, trained on the frozen states of these (training) rows and their records."""
    return fit_ridge(hidden_states(context, rows), known.future_nm.mean(1), penalty=10.0)
