"""What the tests of sampling share: a vocabulary, denoisers, states of a step, and the named decoders."""

from __future__ import annotations

import functools

import torch

from research_stack.backbones.transformer import Transformer
from research_stack.config.build import build
from research_stack.config.composer import Composer
from research_stack.data.vocabulary import Vocabulary
from research_stack.flowlm.module import FlowLM
from research_stack.sampling.state import Positions, Proposal, State

#: special ids at both ends and in the middle of the real ones
VOCAB = Vocabulary(size=14, mask=5, pad=0, end=13, special=(0, 5, 8, 13))
REAL = [1, 2, 3, 4, 6, 7, 9, 10, 11, 12]
M = VOCAB.mask
COMPOSER = Composer()
#: files for models of the next token, which are tried in test_autoregressive and in tests/lookahead
CAUSAL = ["gpt", "gpt_entropy", "gpt_min_p", "lookahead_abstain", "lookahead_rank", "lookahead_temperature"]
NAMES = [name for name in COMPOSER.groups()["sampler"] if name not in CAUSAL]


def named(name, *overrides):
    """The decoder of a file in conf/sampler."""
    return build(COMPOSER.compose_point([f"sampler={name}", *overrides]).cfg.sampler, "sampler")


@functools.cache
def transformer(corruption="gidd", timed=True):
    """A FlowLM with random weights large enough to see its context; float64, so that batches round as rows do."""
    cfg = COMPOSER.compose([f"corruption={corruption}"]).cfg
    model = Transformer(VOCAB.size, dim=16, layers=1, heads=2, max_length=40, time_conditioning=timed, seed=0)
    corruption, optimization = build(cfg.corruption, "corruption"), build(cfg.optimization, "optimization")
    flowlm = build(
        cfg.method,
        "method",
        model=model,
        corruption=corruption.bind(VOCAB),
        vocab=VOCAB,
        optimization=optimization,
        seed=0,
    )
    assert isinstance(flowlm, FlowLM)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in flowlm.named_parameters():
            if parameter.ndim == 2:  # large scales of the norms would leave each query one key, whatever the others are
                parameter.normal_(std=0.05 if "modulation" in name else 0.5, generator=generator)
    return flowlm.double().eval()


class Told:
    """Says p (columns, V), or what function(z_BL, t_B) gives, and writes down what it is asked."""

    predicts = "posterior"

    def __init__(self, p):
        self.vocab, self.p, self.asked = VOCAB, p, []

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        self.asked.append(
            {"z": z_BL.clone(), "attention_mask": attention_mask_BL, "t": t_B.clone(), "where": where_BL.clone()}
        )
        p_BLV = self.p(z_BL, t_B) if callable(self.p) else self.p[: z_BL.shape[1]].expand(len(z_BL), -1, -1)
        return p_BLV.log()[where_BL].float()


def wants(*table):
    """(columns, V): column i has token table[i][0] with probability table[i][1], the others share the rest."""
    p = torch.zeros(len(table), VOCAB.size, dtype=torch.float64)
    for i, (token, sure) in enumerate(table):
        p[i, REAL] = (1 - sure) / (len(REAL) - 1)
        p[i, token] = sure
    return p


def state(z, left=1, total=1, **changes):
    """The state of a step; z: rows of token ids, all of them inside the block."""
    z_BG = torch.tensor(z)
    many = torch.ones(len(z_BG), dtype=torch.int64)
    blank = torch.zeros(z_BG.shape, dtype=torch.float64)
    values = {
        "vocab": VOCAB,
        "process": None,
        "z_BG": z_BG,
        "inside_BG": torch.ones_like(z_BG) > 0,
        "mask_BG": z_BG == M,
        "left_B": left * many,
        "total_B": total * many,
        "masks_at_start_B": (z_BG == M).sum(1),
        "idle_B": 0 * many,
        "confidence_BG": blank,
        "t_B": many.double(),
        "draw_BG": blank,
        "coin_BG": blank,
    }
    return State(**(values | changes))


def proposal(score, token=None, p_token=None, p_current=None):
    """Proposals with these scores; -inf where nothing may be written."""
    score_BG = torch.tensor(score, dtype=torch.float64)
    zeros = torch.zeros_like(score_BG)
    other = [zeros if p is None else torch.tensor(p, dtype=torch.float64) for p in (p_token, p_current)]
    token_BG = torch.full(score_BG.shape, REAL[0]) if token is None else torch.tensor(token)
    return Proposal(token_BG, score_BG, *other, torch.ones_like(score_BG, dtype=torch.bool))


def positions(p, z, draw=0.0, coin=0.0, t=1.0, s=0.0):
    """Positions with probabilities p (n, V) and tokens z (n,)."""
    z_n = torch.tensor(z)
    full = [torch.as_tensor(value, dtype=torch.float64).expand(len(z_n)) for value in (draw, coin, t, s)]
    return Positions(p, z_n, z_n == M, *full)
