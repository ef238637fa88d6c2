"""A wire of latents between random readers of a few thousand weights, and questions about made-up facts."""

import sys
from pathlib import Path

import torch

from research_stack.data.questions.facts import Facts
from research_stack.data.questions.module import QuestionData
from research_stack.evaluation.context import Context
from research_stack.latentwire.encoder import ByteEncoder
from research_stack.latentwire.losses import FirstToken
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.quantize import FSQ
from research_stack.latentwire.reader import FrozenReader
from research_stack.running.hardware import Hardware
from research_stack.training.optimization import Optimization

sys.path.append(str(Path(__file__).parents[1] / "backbones"))
from pretrained_models import llama, qwen  # noqa: E402

ROOM = {"max_position_embeddings": 512}


def folders(place):
    """Saved models with tokenizers: {name: folder}."""
    return {"llama": str(llama(place / "llama", **ROOM)), "qwen": str(qwen(place / "qwen", **ROOM))}


def facts(contexts=40, **options):
    """Prepared questions about made-up facts, two of each context."""
    data = QuestionData(
        {"qa_facts": Facts(contexts=contexts, facts=3, questions=2, **options)}, batch_size=4, validation_fraction=0.3
    )
    data.prepare()
    return data


def wire(places, data, features=None, **options):
    """In eval mode, with running statistics and latents that differ from context to context."""
    readers = {name: FrozenReader(path, max_answer_tokens=4) for name, path in places.items()}
    model = ByteEncoder(dim=16, layers=1, heads=2, grams=[2, 3], buckets=64, max_length=256)
    sizes = {
        "num_latents": 5,
        "num_private": 2,
        "latent_dim": 4,
        "adapter_dim": 16,
        "adapter_heads": 2,
        "pooling_heads": 2,
    }
    made = LatentWire(
        model,
        FSQ(16),
        readers,
        {"first": FirstToken()},
        data.questions,
        Optimization(),
        1,
        features,
        **(sizes | options),
    )
    with torch.no_grad():
        for adapter in made.adapters.values():
            adapter.size.mul_(4)  # so that answers depend on the latents
    return made.eval()


def context(method, data, folder):
    """As a run gives it to an evaluation, in float32."""
    hardware = Hardware(precision="32", threads=1)
    return Context(
        method=method,
        data=data,
        sampler=None,
        folder=folder,
        seed=1,
        device=torch.device("cpu"),
        autocast=hardware.autocast,
    )
