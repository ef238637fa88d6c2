"""How much the texts of one prompt differ: shared n-grams, distance of meanings, distance of syntax trees. Numpy only.

Everything is measured within a prompt and then averaged over prompts (`per_prompt`): pooled over prompts, a model that
repeats itself at each of them looks diverse. Garbage is diverse too, so measure the right answers alone as well. A
prompt with too few texts has no diversity: NaN, counted and left out, never 0.

Shapes: P prompts, n texts of a prompt, D width of a vector.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from research_stack.metrics.passk import Band, over_prompts
from research_stack.metrics.syntax import Labels, tree_distance, tree_of
from research_stack.require import require

Text = str | Sequence[Hashable]
Unit = Literal["word", "char", "token"]
ORDER = 4  # longest n-gram of BLEU
NAN = float("nan")


def per_prompt(
    measure: Callable[[Sequence], float],
    texts_Pn: Sequence[Sequence],
    right_Pn: Sequence[Sequence[bool]] | None = None,
    least: int = 2,
) -> Band:
    """Mean over prompts of a measure of the texts of one prompt, with its interval over prompts (`over_prompts`).

    - measure: one of this module, options bound by a lambda; NaN where it is not defined.
    - texts_Pn: what it measures, per prompt: texts, or vectors (n, D). Prompts may have different numbers.
    - right_Pn: which of them count; None for all.
    - least: prompts with fewer that count are NaN. It must be 2 for distances; 0 suits a count of kinds.

    Raises ValueError where right_Pn is not of the shape of texts_Pn, and for a measure that is infinite.
    """
    if right_Pn is not None:
        shapes = [list(map(len, of)) for of in (texts_Pn, right_Pn)]
        require(
            shapes[0] == shapes[1],
            f"right_Pn={sum(shapes[1])} flags must be one for each of {sum(shapes[0])} texts, prompt by prompt",
        )
        texts_Pn = [
            [text for text, counts in zip(texts, right, strict=True) if counts]
            for texts, right in zip(texts_Pn, right_Pn, strict=True)
        ]
    return over_prompts([measure(texts) if len(texts) >= least else NAN for texts in texts_Pn])


# -------------------------------------------------------------------------------------------------------- kinds
def normalised(text: Text) -> Hashable:
    """A text in Unicode's composed form with single spaces and none at its ends; other sequences as tuples."""
    return " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else tuple(text)


def kinds(texts: Sequence[Text]) -> np.ndarray:
    """(n,) int64: the kind of each text, from 0 in order of appearance; texts whose `normalised` forms are equal are of
    one.
    """
    forms = [normalised(text) for text in texts]
    index = {form: i for i, form in enumerate(dict.fromkeys(forms))}
    return np.array([index[form] for form in forms], dtype=np.int64)


def unique_answers(texts: Sequence[Text]) -> float:
    """How many kinds of text there are; 0 without any."""
    return float(len(set(kinds(texts).tolist())))


# ------------------------------------------------------------------------------------------------------ n-grams
def units_of(text: Text, unit: Unit = "word") -> list[Hashable]:
    """What n-grams are made of: "word", what stands between white space; "char", every character, spaces included;
    "token", the elements of a sequence. Raises ValueError for a string as tokens or another sequence as words or
    characters.
    """
    require(unit in ("word", "char", "token"), f"unit={unit} must be word, char or token")
    require(
        isinstance(text, str) != (unit == "token"), f"unit={unit} must fit the texts, which are {type(text).__name__}"
    )
    return list(text.split() if isinstance(text, str) and unit == "word" else text)


def ngrams(units: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n units occurs."""
    return Counter(zip(*(units[i:] for i in range(n)), strict=False))


def distinct_n(texts: Sequence[Text], n: int = 2, unit: Unit = "word") -> float:
    """Distinct n-grams over all n-grams of the texts of one prompt (Li et al. 2016), in (0, 1]: 1 where none occurs
    twice.

    NaN for fewer than 2 texts and without any n-gram. It falls with the amount of text: compare equal numbers and
    lengths.
    """
    require(n >= 1, f"n={n} must be at least 1")
    counts = Counter[tuple[Hashable, ...]]()
    for text in texts:
        counts.update(ngrams(units_of(text, unit), n))
    return len(counts) / counts.total() if len(texts) > 1 and counts else NAN


def self_bleu(texts: Sequence[Text], unit: Unit = "word") -> float:
    """Mean BLEU of each text against all others, 0 to 100: 100 where all are the same (Zhu et al. 2018). NaN for fewer
    than 2.

    Sentence BLEU up to 4-grams as sacrebleu 2.6 has it, with exponential smoothing (n-th order without a match counts 1
    / 2^m matches at the m-th such order) and effective order (orders longer than the text are left out). Words are not
    split further, as by its `tokenize="none"`. BLEU is not defined for an empty text: 100 where another is empty too,
    otherwise 0.
    """
    if len(texts) < 2:
        return NAN
    units = [units_of(text, unit) for text in texts]
    lengths = Counter(map(len, units))
    scores, matched_no = [], [[] for _ in units]
    for n in range(1, ORDER + 1):
        counts = [ngrams(row, n) for row in units]
        most = _two_most(counts)
        for matched, count in zip(matched_no, counts, strict=True):
            in_others = {
                gram: most[gram][1] if times == most[gram][0] else most[gram][0] for gram, times in count.items()
            }
            matched.append(sum(min(times, in_others[gram]) for gram, times in count.items()))
    for row, matched in zip(units, matched_no, strict=True):
        length = len(row)
        if not length:
            scores.append(100.0 * (lengths[0] > 1))
            continue
        others = (other for other, times in lengths.items() if other != length or times > 1)
        scores.append(_bleu(matched, length, min(others, key=lambda other, own=length: (abs(other - own), other))))
    return math.fsum(scores) / len(scores)


def _two_most(counts: Sequence[Counter]) -> dict[tuple[Hashable, ...], tuple[int, int]]:
    """The two highest counts of each n-gram over texts: the most in the others of a text that has the highest is the
    second.
    """
    most: dict[tuple[Hashable, ...], tuple[int, int]] = {}
    for count in counts:
        for gram, times in count.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (times, first) if times > first else (first, max(second, times))
    return most


def _bleu(matched: Sequence[int], length: int, reference: int) -> float:
    """BLEU (Papineni et al. 2002) from clipped matches of each order, smoothed as in `self_bleu`."""
    if not any(matched):
        return 0.0
    logs, halved = [], 1.0
    for n, match in enumerate(matched[:length], 1):
        halved *= 1.0 if match else 2.0
        logs.append(math.log((match or 1 / halved) / (length - n + 1)))
    return 100.0 * math.exp(min(0.0, 1 - reference / length) + math.fsum(logs) / len(logs))


# ------------------------------------------------------------------------------------------------------ meanings
def cosine_distances(vectors_nD: np.ndarray) -> np.ndarray:
    """(n, n) float64 of 1 - cosine, in [0, 2] with a diagonal of 0; NaN where a vector is zero and has no direction."""
    vectors_nD = np.asarray(vectors_nD, dtype=np.float64)
    require(vectors_nD.ndim == 2, f"vectors_nD={vectors_nD.shape} must be of shape (n, D)")
    require(bool(np.isfinite(vectors_nD).all()), f"vectors_nD={vectors_nD.shape} must be finite")
    norm_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    unit_nD = vectors_nD / np.where(norm_n1 > 0, norm_n1, np.nan)
    distance_nn = np.clip(1 - unit_nD @ unit_nD.T, 0, 2)
    distance_nn[np.diag_indices(len(distance_nn))] = np.where(norm_n1[:, 0] > 0, 0.0, np.nan)
    return distance_nn


def mean_distance(distance_nn: np.ndarray) -> float:
    """Mean over the pairs whose distance is known; NaN where there is none, so for fewer than 2 texts."""
    pairs = np.asarray(distance_nn, dtype=np.float64)[np.triu_indices(len(distance_nn), 1)]
    return float(pairs[~np.isnan(pairs)].mean()) if (~np.isnan(pairs)).any() else NAN


def mean_cosine_distance(vectors: Sequence[np.ndarray]) -> float:
    """Mean pairwise 1 - cosine of n vectors of width D: 0 where all point the same way. NaN for fewer than 2."""
    return mean_distance(cosine_distances(np.asarray(vectors))) if len(vectors) > 1 else NAN


def vendi(kernel_nn: np.ndarray) -> float:
    """Vendi score exp(-sum_i l_i ln l_i), l the eigenvalues of K / n: the effective number of texts, 1 to n
    (Friedman and Dieng 2023, definition 1).

    - kernel_nn: similarities, positive semidefinite with a diagonal of 1. Raises ValueError for anything else.

    NaN for fewer than 2 texts: of one, it says nothing.
    """
    kernel_nn = np.asarray(kernel_nn, dtype=np.float64)
    n = len(kernel_nn)
    require(kernel_nn.shape == (n, n), f"kernel_nn={kernel_nn.shape} must be square")
    require(np.allclose(kernel_nn, kernel_nn.T, atol=1e-5), f"kernel_nn={kernel_nn.shape} must be finite and symmetric")
    require(
        np.allclose(np.diag(kernel_nn), 1, atol=1e-4), f"kernel_nn={np.diag(kernel_nn)[:4]} on its diagonal must be 1"
    )
    if n < 2:
        return NAN
    share_n = np.linalg.eigvalsh(kernel_nn) / n
    require(
        bool(share_n[0] > -1e-4), f"kernel_nn must be positive semidefinite: it has the eigenvalue {share_n[0] * n}"
    )
    share_n = share_n[share_n > 1e-12]
    return float(np.exp(-(share_n * np.log(share_n)).sum()))


def vendi_cosine(vectors: Sequence[np.ndarray]) -> float:
    """`vendi` of the cosines of n vectors of width D; zero vectors are left out. NaN for fewer than 2."""
    if len(vectors) < 2:
        return NAN
    kernel_nn = 1 - cosine_distances(np.asarray(vectors))
    known_n = ~np.isnan(np.diag(kernel_nn))
    return vendi(kernel_nn[np.ix_(known_n, known_n)])


# ------------------------------------------------------------------------------------------------------- syntax
def ast_distances(texts: Sequence[str], labels: Labels = "types", relative: bool = False) -> np.ndarray:
    """(n, n) float64 of `tree_distance` between the Python syntax trees of texts; NaN where one of the two does not
    parse.

    - labels: "types", only the shape of the program; "values", names and constants too (`tree_of`).
    - relative: 2 d / (sizes + d) in [0, 1], a metric too (Li and Zhang 2011), so that long programs do not count for
      more.

    Trees are compared once per pair of different ones; the time of a pair grows up to the fourth power of their size.
    """
    trees = [tree_of(text, labels) for text in texts]
    index = {tree: i for i, tree in enumerate(dict.fromkeys(tree for tree in trees if tree is not None))}
    distance_kk = np.zeros((len(index), len(index)))
    for (a, i), (b, j) in combinations(index.items(), 2):
        d = tree_distance(a, b)
        distance_kk[i, j] = distance_kk[j, i] = 2 * d / (len(a.labels) + len(b.labels) + d) if relative else d
    distance_nn = np.full((len(texts), len(texts)), NAN)
    rows = np.array([i for i, tree in enumerate(trees) if tree is not None], dtype=np.int64)
    which = np.array([index[trees[i]] for i in rows], dtype=np.int64)
    distance_nn[np.ix_(rows, rows)] = distance_kk[np.ix_(which, which)]
    return distance_nn


def mean_ast_distance(texts: Sequence[str], labels: Labels = "types", relative: bool = False) -> float:
    """Mean pairwise `ast_distances` of the texts that parse; NaN for fewer than 2 of them. Report `share_parsed` beside
    it.
    """
    return mean_distance(ast_distances(texts, labels, relative))


def share_parsed(texts: Sequence[str]) -> float:
    """Share of the texts that are Python; NaN without any text."""
    return float(np.mean([tree_of(text) is not None for text in texts])) if len(texts) else NAN
