"""Answers against gold answers: exact match and F1 by the rule of each data set, and the first token among the
likeliest. Numpy only.

The rules are those of the data sets' own scripts, numbers included: `squad` (evaluate-v1.1.py), `squad_v2`
(evaluate-v2.0.py), `hotpotqa` (hotpot_evaluate_v1.py), `nq` (NQ-open, orqa's eval_utils.py). Scores are per question;
means and intervals are in `paired`.

Shapes: n questions, B rows, V tokens, K cut-offs.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike

from research_stack.require import require

Rule = Literal["squad", "squad_v2", "hotpotqa", "nq"]
RULES: tuple[Rule, ...] = get_args(Rule)
VERDICTS = ("yes", "no", "noanswer")  # HotpotQA: right as a whole or not at all
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str, rule: Rule = "squad") -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces, in this order; for `nq` Unicode's decomposed form
    (NFD) first.
    """
    _check_rule(rule)
    text = unicodedata.normalize("NFD", text) if rule == "nq" else text
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(prediction: str, golds: Sequence[str], rule: Rule = "squad") -> float:
    """1 if the prediction equals a gold answer once both are normalised, else 0.

    - golds: at least one; "" is no answer. `squad_v2` leaves out those that normalise to nothing, as long as there are
      others.

    Raises ValueError without gold answers and for another rule.
    """
    return float(any(normalize(prediction, rule) == normalize(gold, rule) for gold in _golds(golds, rule)))


def f1(prediction: str, golds: Sequence[str], rule: Rule = "squad") -> float:
    """Harmonic mean of precision and recall of the normalised words, repeated ones counted, with the gold answer that
    makes it largest.

    Where a side has no words it is 0, except for `squad_v2`: 1 if neither has. For `hotpotqa` it is 0 if either side is
    yes, no or noanswer and they differ. NQ-open has no F1: for `nq` this is ours, with the normalisation of its exact
    match. Gold answers and errors as in `exact`.
    """
    return max(_f1(normalize(prediction, rule), normalize(gold, rule), rule) for gold in _golds(golds, rule))


def _f1(said: str, gold: str, rule: Rule) -> float:
    if rule == "hotpotqa" and said != gold and (said in VERDICTS or gold in VERDICTS):
        return 0.0
    words, gold_words = said.split(), gold.split()
    if rule == "squad_v2" and not (words and gold_words):
        return float(words == gold_words)
    common = (Counter(words) & Counter(gold_words)).total()
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


def _golds(golds: Sequence[str], rule: Rule) -> Sequence[str]:
    require(not isinstance(golds, str) and len(golds) > 0, f"golds={golds!r} must be a sequence of at least one answer")
    return ([gold for gold in golds if normalize(gold, rule)] or [""]) if rule == "squad_v2" else golds


def _check_rule(rule: str) -> None:
    require(rule in RULES, f"rule={rule} must be one of {', '.join(RULES)}")


@dataclass(frozen=True)
class AnswerScores:
    """Of n answers: exact_n 0 or 1, f1_n in [0, 1], both float64 (n,)."""

    exact_n: np.ndarray
    f1_n: np.ndarray


def scores(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], rules: Rule | Sequence[Rule] = "squad"
) -> AnswerScores:
    """Scores of n answers. rules: one for all, or one for each. Raises ValueError for other numbers of golds or
    rules than of answers.
    """
    # A str is a sequence too, of str: the type checker does not see that the one here is a rule.
    each: Sequence[Rule] = [cast("Rule", rules) for _ in predictions] if isinstance(rules, str) else rules
    require(
        len(golds) == len(predictions) == len(each),
        f"predictions={len(predictions)} must be as many as golds={len(golds)} and rules={len(each)}",
    )
    rows = list(zip(predictions, golds, each, strict=True))
    return AnswerScores(
        np.array([exact(*row) for row in rows], dtype=np.float64),
        np.array([f1(*row) for row in rows], dtype=np.float64),
    )


def first_token_at(
    logits_BV: ArrayLike, gold_ids: Sequence[Collection[int]], ks: Sequence[int] = (1, 5, 10)
) -> np.ndarray:
    """FirstTok@k, float64 (B, K): 1 where a first token of a gold answer is among the k likeliest, 0 where none is, NaN
    without any.

    - logits_BV: at the last position of the prompt. Of equal ones the lowest token comes first, as for an argmax: a
      reader that finds all tokens alike is not right.
    - gold_ids: for each row the tokens that a gold answer can begin with, each from the joint tokenisation of prompt
      and answer; empty where the prompt's tokens are not a beginning of the joint ones in any of them, so that there is
      nothing to look for.

    Raises ValueError for NaN in logits_BV, tokens outside of 0 .. V - 1 and k < 1.
    """
    logits_BV = np.asarray(logits_BV)
    require(
        logits_BV.ndim == 2 and len(logits_BV) == len(gold_ids),
        f"logits_BV={logits_BV.shape} must be of shape (B, V) with B={len(gold_ids)}",
    )
    require(not np.isnan(logits_BV).any(), f"logits_BV={logits_BV.shape} must not have NaN")
    require(min(ks, default=0) >= 1, f"ks={tuple(ks)} must be at least 1 each")
    places_B = np.array(
        [_rank(logits_V, ids) for logits_V, ids in zip(logits_BV, gold_ids, strict=True)], dtype=np.float64
    )
    return np.where(np.isnan(places_B)[:, None], np.nan, places_B[:, None] < np.array(ks))


def _rank(logits_V: np.ndarray, ids: Collection[int]) -> float:
    """How many tokens come before the first of `ids`; NaN without any."""
    require(all(0 <= i < len(logits_V) for i in ids), f"gold_ids={sorted(ids)} must lie in 0 .. {len(logits_V) - 1}")
    if not ids:
        return float("nan")
    best = min(ids, key=lambda i: (-logits_V[i], i))
    return float(np.count_nonzero(logits_V > logits_V[best]) + np.count_nonzero(logits_V[:best] == logits_V[best]))
