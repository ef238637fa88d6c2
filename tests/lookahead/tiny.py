"""Lookahead models small enough to be written out position by position, in float64, and batches with every kind of
row.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from research_stack.backbones.transformer import Transformer
from research_stack.data.tokenizers import specials_last
from research_stack.lookahead.module import Lookahead, MiniGPT
from research_stack.streams import Draws
from research_stack.training.optimization import Optimization

VOCAB = specials_last(11)
PLACES = 16  # longest sequence


def batch(rows=3, length=8, seed=0, plain=False):
    """Rows as the data gives them: the first plain; unless `plain`, the second with an end token, the third with prompt
    and padding.
    """
    tokens = torch.randint(VOCAB.n_real, (rows, length), generator=torch.Generator().manual_seed(seed))
    attend, prompt = torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.bool)
    if not plain:
        tokens[1, length // 2] = VOCAB.end
        prompt[2, :2], attend[2, -1], tokens[2, -1], tokens[2, -2] = True, False, VOCAB.pad, VOCAB.end
    special = torch.isin(tokens, torch.tensor(VOCAB.special))
    return {"tokens": tokens, "eligible": attend & ~prompt & ~special, "attention_mask": attend, "prompt": prompt}


def backbone(**options):
    """A causal transformer with a condition of five numbers."""
    return Transformer(
        VOCAB.size,
        **{
            "dim": 16,
            "layers": 2,
            "heads": 4,
            "causal": True,
            "max_length": PLACES,
            "condition_dim": 5,
            "seed": 3,
            **options,
        },
    )


def minigpt(model=None, horizon=2):
    """MiniGPT in float64 with weights that have an effect."""
    return shaken(
        MiniGPT(backbone(**{"condition_dim": 0, **(model or {})}), VOCAB, Optimization(), seed=1, horizon=horizon)
    )


def lookahead(model=None, fresh=False, **options):
    """Lookahead in float64; unless `fresh`, every weight has an effect and the running statistics are no trivial
    ones.
    """
    options = {"alpha": 0.7, "dropout": 0.0, "max_gradient_ratio": None, **options}
    module = Lookahead(backbone(**(model or {})), VOCAB, Optimization(), seed=1, **options)
    return module.double() if fresh else shaken(module)


def shaken(module, seed=5, scale=0.3):
    """The module in float64 with noise on all parameters, so that nothing is zero, and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if hasattr(module, "normaliser"):
            module.normaliser.mean.fill_(1.7)
            module.normaliser.variance.fill_(0.6)
    return module


def prepared(module, data, seed=0):
    """(rows, denominators) of a step, with own tokens that differ by the seed."""
    return module.prepare(data, Draws(seed, "corruption", 0, total=len(data["tokens"])))


def gradients(module, parts, denominators):
    """The gradients of the training objective at every parameter, by name."""
    weights = torch.tensor(list(module.loss_terms.values()), dtype=torch.float64)
    names, parameters = zip(*module.named_parameters(), strict=True)
    values = torch.autograd.grad(
        (parts / denominators.clamp_min(1) * weights).sum(), parameters, materialize_grads=True
    )
    return dict(zip(names, values, strict=True))


def far(a, b):
    """The largest difference between two tensors, or between the tensors of two dicts."""
    pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def alone(module):
    """The module with what it needs of a trainer of one device."""
    module._trainer = SimpleNamespace(world_size=1)
    return module
