"""What generation is, spelled out without a cache, and small models to try it on; float64."""

from __future__ import annotations

import torch

from research_stack.backbones.transformer import Transformer
from research_stack.data.tokenizers import specials_last
from research_stack.lookahead.module import Lookahead
from research_stack.training.optimization import Optimization

TOKENS = specials_last(5)  # real tokens 0..4, then mask, pad, end
END = TOKENS.end


def model(kind=Lookahead, vocab=TOKENS, shake=0.35, seed=0, backbone=None, **options):
    """A method in eval mode whose every weight has an effect, with running statistics that are no trivial ones."""
    conditioned = {"condition_dim": 5} if kind is Lookahead else {}
    shape = {"dim": 16, "layers": 2, "heads": 2, "causal": True, "max_length": 24, "seed": seed}
    network = Transformer(vocab.size, **{**shape, **conditioned, **(backbone or {})})
    method = kind(network, vocab, Optimization(), seed=1, **options).double().eval()
    generator = torch.Generator().manual_seed(seed + 7)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += shake * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if kind is Lookahead:
            method.head.weight += 0.6 * torch.randn(method.head.weight.shape, generator=generator, dtype=torch.float64)
            method.normaliser.mean.fill_(1.8)
            method.normaliser.variance.fill_(0.5)
    return method


@torch.no_grad()
def predict_next(method, text):
    """(logits_V, confidence) behind a text: every token is told the confidence before it, each from a pass over the
    whole text so far, none of them cached. The first token, and each behind a separator, is told 0."""
    told, confidence = [0.0], None
    for j in range(1, len(text) + 1):
        tokens_1L, previous_1L = torch.tensor([text[:j]]), torch.tensor([told], dtype=torch.float64)
        reads_confidence = isinstance(method, Lookahead) and method.previous_mode != "zeros"
        hidden = method.read(tokens_1L, previous_1L if reads_confidence else torch.zeros_like(previous_1L)).hidden_BLD
        found = method.confidence(hidden)
        if found is not None:
            confidence = float(found[0, -1])
            told.append(
                0.0
                if text[j - 1] == method.vocab.end
                else float((found[0, -1] - method.normaliser.mean) / method.normaliser.deviation)
            )
        else:
            told.append(0.0)
    return (hidden[0, -1] @ method.model.unembedding.T) + method.bias_V, confidence


def consequences(method, text):
    """(V,) the confidence there would be at each token if it were next."""
    return torch.tensor(
        [predict_next(method, [*text, token])[1] for token in range(method.vocab.size)], dtype=torch.float64
    )


def random_text(length, seed=0, real=5):
    return torch.randint(real, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
