"""Readers of a few thousand random weights, questions, and a LatentWire of them small enough to be differentiated
number by number.
"""

import copy
import functools
import tempfile
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from pretrained_models import llama, qwen

from research_stack.data.questions.question import Question
from research_stack.latentwire.encoder import ByteEncoder, as_bytes
from research_stack.latentwire.quantize import FSQ
from research_stack.latentwire.reader import FrozenReader
from research_stack.streams import Draws, generator

FACTS = [
    ("Ada eats rice. Ada is nine.", "What does Ada eat?", "rice"),
    ("Ben has a cat.", "Which pet does Ben have?", "cat"),
    ("Mira lives in New York and drinks cocoa.", "Where does Mira live?", "New York"),
    ("Omar drives a van.", "What does Omar drive?", "van"),
]
ASKED = [
    Question(f"test:{i}", "qa_facts", context, question, (answer,), "squad", str(i))
    for i, (context, question, answer) in enumerate(FACTS)
]
STEPS = 10


@functools.cache
def folder_of(kind):
    """A folder with a saved Llama (4 layers) or Qwen3 (2 layers), made once for each process and removed at its end."""
    place = tempfile.TemporaryDirectory(prefix=f"tiny-{kind}-")
    KEPT.append(place)
    return str(llama(place.name, seed=1, num_hidden_layers=4) if kind == "llama" else qwen(place.name, seed=2))


KEPT = []


@functools.cache
def _made(kind):
    return FrozenReader(folder_of(kind), max_answer_tokens=8)


def reader(kind="llama", double=False):
    """A reader of its own."""
    made = copy.deepcopy(_made(kind))
    return doubled(made) if double else made


def doubled(module):
    """The module in float64, and the norms of transformers too, which would compute in float32."""
    for norm in module.modules():
        if type(norm).__name__ in ("LlamaRMSNorm", "Qwen3RMSNorm"):
            norm.forward = functools.partial(
                F.rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=norm.variance_epsilon
            )
    return module.double()


def method(features=None, double=False, train=True, **options):
    """A LatentWire of both readers, with a trainer that only counts."""
    from research_stack.latentwire.losses import AnswerTokens, FirstToken  # these import lightning, which takes seconds
    from research_stack.latentwire.module import LatentWire
    from research_stack.training.optimization import Optimization

    made = LatentWire(
        **{
            "model": ByteEncoder(dim=16, layers=1, heads=2, grams=[2], buckets=32, max_length=64),
            "quantizer": FSQ(8, normalize=False),
            "readers": {"llama": reader("llama"), "qwen": reader("qwen")},
            "losses": {"first": FirstToken(), "answer": AnswerTokens()},
            "questions": ASKED,
            "optimization": Optimization(lr=1e-2, warmup_steps=0),
            "seed": 0,
            "features": features,
            "num_latents": 5,
            "num_private": 1,
            "latent_dim": 3,
            "loss_tokens": 4,
            "pooling_heads": 2,
            "adapter_dim": 8,
            "adapter_heads": 2,
            **options,
        }
    )
    made._trainer = SimpleNamespace(max_steps=STEPS, world_size=1, global_step=0, global_rank=0)
    made.train(train)
    return doubled(made) if double else made


def prepared(made, number=0, rows=4):
    """The rows and denominators of one step."""
    made._trainer.global_step = number
    draws = Draws(0, "test", number, total=rows)
    return made.prepare({"question": torch.arange(rows)}, draws)


def adapted_of(made, name, num_latents=None, rows=4, dtype=None):
    """Random latents on their way to the reader, with the bytes of the contexts."""
    index_M = made.latent_index(name, num_latents or made.num_latents)
    latents_BMd = torch.rand((rows, len(index_M), made.latent_dim), generator=generator(0, "latents", name)) * 2 - 1
    bytes_BN, mask_BN = as_bytes([q.context for q in ASKED[:rows]])
    return made.adapt(
        name,
        latents_BMd.to(dtype or next(made.adapters.parameters()).dtype),
        index_M,
        bytes_BN=bytes_BN,
        mask_BN=mask_BN,
    )


def stirred(module, scale=0.3):
    """The module after its parameters have been moved from where they start, those that are 0 too."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator(0, "stir", name)).to(parameter))
    return module


def train_step(made, optimizer, number):
    """One optimizer step as the trainer takes it; the loss."""
    torch.manual_seed(number)
    rows, denominator = prepared(made, number)
    loss = (made.loss_sum(rows) / denominator.clamp_min(1) * torch.tensor(list(made.loss_terms.values()))).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    made.said = made.after_update()
    return float(loss.detach())


@torch.no_grad()
def slope(of, step=1e-5):
    """The derivative of `of` at 0 by central differences."""
    return float(of(step) - of(-step)) / (2 * step)
