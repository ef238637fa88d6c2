"""Loading a Hugging Face causal language model: what there is at a path, how long a text it reads, rows for all ids.
Every refusal is one line.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as hub_logging

from research_stack.data.sources.text import nearest
from research_stack.records.paths import expanded
from research_stack.require import require

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
LINE = 200  # characters of a foreign error that are told


def load(
    path: str,
    revision: str | None,
    dtype: torch.dtype,
    attention: str,
    quantization: str | None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The saved model on CPU (quantised: on this process's GPU; with a device map: as it says). Raises ValueError in
    one line when that is no causal language model.
    """
    place, options = _place(path), {} if quantization is None else _quantized(quantization)
    if device_map is not None:
        require(
            importlib.util.find_spec("accelerate") is not None,
            f"device_map={device_map} needs the package accelerate, which is not installed",
        )
        options["device_map"] = device_map
    try:
        config = AutoConfig.from_pretrained(place, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # damaged files and the network raise anything
        raise ValueError(f"path={path} holds no model that can be loaded: {_line(error)}{_near(path)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"path={path} is no causal language model but a {config.model_type}")
    if cap := config.get_text_config().to_dict().get("final_logit_softcapping"):
        raise ValueError(
            f"path={path}: {config.model_type} caps its logits (final_logit_softcapping={cap}): they are no product"
            " with the unembedding"
        )
    try:
        with without_progress_bars():
            own, found = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                place,
                config=config,
                revision=revision or "main",
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,  # then it gives a pair, which its annotation leaves out
                **options,
            )
    except Exception as error:
        if "support an attention implementation" in str(error):
            raise ValueError(
                f"attention={attention} must be eager: transformers has no other for the {config.model_type} at"
                f" path={path}"
            ) from error
        raise ValueError(f"path={path} holds no causal language model that can be loaded: {_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"path={path} lacks {len(missing)} weights of a {type(own).__name__}, {missing[0]} among them: is it"
            " another kind of model?"
        )
    return own


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars, which are done before anybody sees them."""
    showed = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if showed:
            hub_logging.enable_progress_bar()


def _place(path: str) -> str:
    """The folder, or the name on the hub. Raises ValueError when a path that can only be local holds no model."""
    place = expanded(path)
    if place.is_dir():
        require((place / "config.json").is_file(), f"path={path} holds no model: there is no config.json in it")
        return str(place)
    local = place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    require(not place.exists(), f"path={path} must be a folder that holds a model, not a file")
    require(not local, f"path={path} does not exist{nearest(place)}")
    return path


def _near(path: str) -> str:
    """A folder beside the one that was meant, for a name that could have been local."""
    place = Path(path)
    return nearest(place) if not place.exists() and place.parent.is_dir() else ""


def _line(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:LINE]


def _quantized(quantization: str) -> dict[str, Any]:
    """Options of from_pretrained. Raises ValueError where bitsandbytes or a CUDA device is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantization={quantization} needs the package bitsandbytes, which is not installed")
    require(torch.cuda.is_available(), f"quantization={quantization} needs a CUDA device, and there is none")
    four: dict[str, Any] = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    kind: dict[str, Any] = {"load_in_4bit": True, **four} if quantization == "4bit" else {"load_in_8bit": True}
    return {
        "quantization_config": BitsAndBytesConfig(**kind),
        "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))},
    }


def longest(own: PreTrainedModel, path: str, max_length: int | None) -> int:
    """Longest text within the model's limit and its sliding window, inside which it is plain attention."""
    text = own.config.get_text_config()
    kinds = set(text.to_dict().get("layer_types") or KNOWN_LAYERS)
    if kinds - KNOWN_LAYERS:
        raise ValueError(
            f"path={path}: layers of the kind {', '.join(sorted(kinds - KNOWN_LAYERS))} cannot read packed texts"
        )
    limit = text.max_position_embeddings if hasattr(text, "max_position_embeddings") else None
    window = text.to_dict().get("sliding_window") if "sliding_attention" in kinds else None
    bounds = [bound for bound in (limit, window) if bound is not None]
    if max_length is None:
        require(bool(bounds), f"max_length={max_length} must be given: the model at path={path} states no limit")
        return min(bounds)
    require(
        limit is None or max_length <= limit,
        f"max_length={max_length} must be at most {limit}, the longest text of the model",
    )
    require(
        window is None or max_length <= window,
        f"max_length={max_length} must be at most {window}, the model's sliding window",
    )
    return max_length


def weight_of(table: nn.Module | None) -> Tensor:
    """The weight, (rows, D), of a model's embedding or unembedding."""
    assert table is not None
    weight = table.weight
    assert isinstance(weight, Tensor)
    return weight


def make_room(own: PreTrainedModel, vocab_size: int) -> None:
    """Rows for all ids, the new ones the mean of the old; tables are never cut."""
    table = own.get_input_embeddings()
    if isinstance(table, nn.Embedding):
        table.padding_idx = None  # a pad token that is the end token too must learn
    old = weight_of(table).shape[0]
    if vocab_size <= old:
        return
    own.resize_token_embeddings(vocab_size, mean_resizing=False)
    for grown in {
        id(m): m for m in (own.get_input_embeddings(), own.get_output_embeddings()) if m is not None
    }.values():
        weight = weight_of(grown).data
        weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


def logit_scale(own: PreTrainedModel) -> float:
    """The constant that some models multiply their logits with; here the hidden states carry it."""
    text = own.config.get_text_config().to_dict()
    return float(text.get("logit_scale") or 1) / float(text.get("logits_scaling") or 1)


def cache_name(own: PreTrainedModel) -> str:
    """How the model's forward calls its key-value cache: transformers 5.24 renamed it, older releases and models with
    code of their own did not.
    """
    return "cache" if "cache" in inspect.signature(own.base_model.forward).parameters else "past_key_values"
