"""Small worlds where everything can be enumerated: joint laws over V tokens and L positions, and their true
predictors.
"""

from __future__ import annotations

import itertools
import math

import torch

from research_stack.corruption.elbo import bound_terms
from research_stack.data.vocabulary import Vocabulary

#: token ids: 0 pad, 1 mask, 2 end, then the real ones
OFFSET = 3


def vocabulary(n_real):
    return Vocabulary(size=n_real + OFFSET, mask=1, pad=0, end=2, special=(0, 1, 2))


def ids(states, n_real):
    """State indices (0..N-1 real, N the mask) to token ids."""
    return torch.where(states == n_real, torch.ones_like(states), states + OFFSET)


def joint(n_real, length, seed=0, sharpness=1.5):
    """A random law over all n_real ** length sequences, shape (n_real,) * length, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn((n_real,) * length, generator=generator, dtype=torch.float64)
    return logits.flatten().softmax(0).reshape(logits.shape)


def sequences(n_states, length):
    return torch.tensor(list(itertools.product(range(n_states), repeat=length)))


def leave_one_out(law, z, i, q):
    """p(x_i | z without z_i), (N,): q is the (N, N+1) marginal q_t(z|x) of the other positions."""
    weight = law
    for j, state in enumerate(z.tolist()):
        if j != i:
            shape = [1] * law.dim()
            shape[j] = -1
            weight = weight * q[:, state].reshape(shape)
    other = [j for j in range(law.dim()) if j != i]
    p = weight.sum(other) if other else weight
    return p / p.sum()


def times(step=0.25, end=80.0):
    """Nodes (t, 1 - t) and weights for integrals over t in (0, 1): the trapezoid rule in ln(t / (1 - t))."""
    x = torch.arange(-end, end + step / 2, step, dtype=torch.float64)
    t, rest = torch.sigmoid(x), torch.sigmoid(-x)
    return t, rest, t * rest * step


def integrand(process, law_logits, x, z, t, rest):
    """w_t(z, x) g for one position; logits (n, N) over real tokens, states x, z (n,), t (n,)."""
    n = process.n_real
    logits = torch.cat([torch.full((len(law_logits), OFFSET), -torch.inf, dtype=law_logits.dtype), law_logits], dim=1)
    terms = bound_terms(logits, ids(x, n), ids(z, n), 1, process, t, rest)
    weight = process.weights(t, rest).at(z == n, z == x)
    return torch.where(weight > 0, weight * terms, 0.0)


def marginal(process, t, rest):
    """q_t(z|x) for a vector of times: (T, N, N+1)."""
    parts, n = process.coefficients(t, rest), process.n_real
    q = torch.zeros(len(t), n, n + 1, dtype=t.dtype)
    q[:, :, :n] = (parts.uniform / n)[:, None, None] + parts.keep[:, None, None] * torch.eye(n, dtype=t.dtype)
    q[:, :, n] = parts.mask[:, None]
    return q


class Denoiser:
    """A predictor given as a function (z states (B, L), t (B,)) -> log p (B, L, N); counts what it is asked."""

    def __init__(self, n_real, function, predicts="leave_one_out"):
        self.vocab, self.function, self.predicts = vocabulary(n_real), function, predicts
        self.masks_per_row = []

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        n = self.vocab.n_real
        states = torch.where(z_BL == self.vocab.mask, n, z_BL - OFFSET)
        self.masks_per_row.append((z_BL == self.vocab.mask).sum(1))
        real = self.function(states, t_B)
        logits = torch.cat([torch.full((*z_BL.shape, OFFSET), -torch.inf), real.float()], dim=-1)
        return logits if where_BL is None else logits[where_BL]


def conditionals(law):
    """The true conditionals given the unmasked tokens, as a function for `Denoiser` (visible tokens are trusted)."""
    n, length = law.shape[0], law.dim()
    table = torch.zeros((n + 1,) * length + (length, n))
    q = torch.cat([torch.eye(n), torch.ones(n, 1)], dim=1).double()
    for z in sequences(n + 1, length):
        for i in range(length):
            table[tuple(z)][i] = leave_one_out(law, z, i, q).log().float()
    return lambda states, t: table[tuple(states.unbind(1))]


def by_subsets(predict, x, n):
    """The absorbing NELBO of a sequence: every non-empty set S of masks with weight 1 / (|S| C(L, |S|))."""
    length, total = len(x), 0.0
    for size in range(1, length + 1):
        for masked in itertools.combinations(range(length), size):
            z = x.clone()
            z[list(masked)] = n
            log_p = predict(z[None], None)[0].double()
            total += -sum(float(log_p[i, x[i]]) for i in masked) / (size * math.comb(length, size))
    return total
