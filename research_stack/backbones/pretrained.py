"""A Hugging Face causal language model as a `CausalBackbone`, all of it trained or low-rank adapters alone (LoRA, Hu et
al. 2021).

What the architecture promises is tried out when the model is built: that it reads from left to right, that a mask and
positions separate packed texts, that a cache changes nothing and that its logits are its hidden states times its
unembedding. A model that does otherwise is refused in one line.

Shapes as in `causal.py`; V is the size of the data's vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from research_stack.backbones.pretrained_loading import cache_name, load, logit_scale, longest, make_room, weight_of
from research_stack.backbones.pretrained_trial import try_out
from research_stack.data.vocabulary import Vocabulary
from research_stack.require import require
from research_stack.streams import generator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DIGEST = "base_digest"  # in a checkpoint of adapters: which weights they were put on
DIGESTED = 256  # numbers of each tensor that the digest reads


@dataclass
class LoRA:
    """Low-rank adapters W + s B A on the linear maps of a frozen model; B is zero at the start.

    - rank: r. alpha: s = alpha / r, or alpha / sqrt(r) with `rslora` (Kalajdzievski 2023).
    - dropout: of what A reads, in training.
    - targets: names of linear maps (q_proj, ...), or all-linear: every one but the unembedding. Experts of a mixture
      that are kept in one tensor are no linear maps: they stay as they are.
    - modules_to_save: names of modules that are trained whole beside the adapters and saved with them (lm_head,
      embed_tokens); None: none.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    rslora: bool = False
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"rank={self.rank} must be at least 1")
        require(self.rank <= 100_000, f"rank={self.rank} must be at most 100,000")
        require(self.alpha > 0, f"alpha={self.alpha} must be positive")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")


class PretrainedCache:
    """Keys and values of the tokens read so far; `select` copies rows, so the two grow apart."""

    def __init__(self) -> None:
        self.held = DynamicCache()  # without a config: it keeps all tokens, whatever the window

    @property
    def length(self) -> int:
        """Tokens seen."""
        return int(self.held.get_seq_length())

    def select(self, rows_R: Tensor) -> PretrainedCache:
        """The cache of these rows, in the order asked for; a row may come more than once."""
        chosen = PretrainedCache()
        chosen.held.layers = [copy.copy(layer) for layer in self.held.layers]
        for layer in chosen.held.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[rows_R], layer.values[rows_R]
        return chosen


class PretrainedCausal(nn.Module):
    """Token ids to hidden states; `head` makes logits of them.

    - vocab_size: V, given by the data. Where the model's tables have fewer rows, they get new ones, the mean of the old
      (Hewitt 2021); where they have more, the surplus is never predicted.
    - path: a folder with a saved model, or its name on the hub. revision: commit or tag on the hub; null for the
      newest.
    - lora: adapters to train on the frozen model, kept in float32; null trains all weights in `dtype`.
    - dtype: of the weights.
    - max_length: longest text, in tokens; null: the model's own limit, or its sliding window where that is shorter.
    - quantization: of the frozen linear maps, through bitsandbytes: 8 bit, or NF4 with double quantisation (QLoRA,
      Dettmers et al. 2023).
    - attention: sdpa (torch's scaled dot product) or eager (written out, slower).
    - checkpoint_blocks: recompute each block in the backward pass instead of keeping its activations.
    - frozen: no weight is trained; `adapt` may put adapters on it later. device_map: how a frozen model is laid over
      devices (`auto`); null: on one device, with the rest of the run.
    - seed: of the adapters' initial weights, drawn from the stream (seed, "init").

    With adapters or `frozen`, `state_dict` holds the adapters alone, and a digest of the weights they belong to; others
    are refused on loading.
    """

    causal = True
    _prefix: str  # of the names of a state that is being loaded

    def __init__(
        self,
        vocab_size: int,
        path: str,
        revision: str | None = None,
        lora: LoRA | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_length: int | None = None,
        quantization: Literal["4bit", "8bit"] | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        checkpoint_blocks: bool = False,
        frozen: bool = False,
        device_map: str | None = None,
        seed: int = 0,
    ) -> None:
        require(
            device_map is None or frozen,
            f"device_map={device_map} must come with a frozen model: what is trained lies on one device",
        )
        require(vocab_size >= 1, f"vocab_size={vocab_size} must be at least 1")
        require(max_length is None or max_length >= 2, f"max_length={max_length} must be at least 2")
        require(
            quantization is None or lora is not None or frozen,
            f"quantization={quantization} must come with lora: quantised weights are not trained",
        )
        super().__init__()
        own = load(path, revision, DTYPES[dtype], attention, quantization, device_map)
        self.mapped = device_map is not None
        self.path, self.max_length, self.vocab_rows = path, longest(own, path, max_length), vocab_size
        self.checkpoint_blocks, self.quantized = checkpoint_blocks, quantization is not None
        self.saved_rows = len(weight_of(own.get_input_embeddings()))  # of the model at `path`
        make_room(own, vocab_size)
        self.model: PreTrainedModel | PeftModel = own
        self.scale, self._cache_name = logit_scale(own), cache_name(own)
        self.eval()
        try_out(self, own)
        self.dim, self.layers = self.unembedding.shape[1], own.config.get_text_config().num_hidden_layers
        if checkpoint_blocks:
            own.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._frozen, self._kept = False, frozenset()
        self._apart = False  # whether the adapters are off
        if lora is not None or frozen:
            self._freeze(own)
        if lora is not None:
            self.adapt(lora, seed)
        self.train()

    def _freeze(self, own: PreTrainedModel) -> None:
        """Train none of the weights, and keep none of them in a checkpoint."""
        self._digest, self._frozen = _digest(own), True
        own.requires_grad_(False)
        self.register_state_dict_post_hook(_leave_base_out)
        self.register_load_state_dict_pre_hook(_refuse_other_base)
        self.register_load_state_dict_post_hook(_miss_no_base)

    def adapt(self, lora: LoRA, seed: int) -> None:
        """Put adapters, which are trained, on the frozen model; once. Raises ValueError for targets that it has not."""
        require(
            self._frozen and not isinstance(self.model, PeftModel),
            f"lora={lora} must be put on a frozen model without adapters",
        )
        own = self.own
        targets = _targets(own, lora.targets)
        self.model = get_peft_model(
            own,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  only divided by the rank
                lora_dropout=lora.dropout,
                target_modules=targets,
                use_rslora=lora.rslora,
                task_type="CAUSAL_LM",
                modules_to_save=_whole(own, lora.modules_to_save),
                fan_in_fan_out=any(isinstance(module, Conv1D) for module in own.modules()),
            ),
        )
        stream = generator(seed, "init")
        for name, parameter in self.model.named_parameters():
            if ".lora_A." in name:  # as PEFT draws them, but from our stream
                drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=stream)
                parameter.data.copy_(drawn)
        self._kept = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    @property
    def own(self) -> PreTrainedModel:
        """The Hugging Face model; adapters, if any, sit in its linear maps."""
        own = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(own, PreTrainedModel)
        return own

    @property
    def blocks(self) -> nn.ModuleList:
        """Its decoder layers, the first one first. Raises ValueError for an architecture that has no list of them."""
        found = [m for m in self.own.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == self.layers]
        if not found:
            raise ValueError(f"path={self.path}: {type(self.own).__name__} has no list of {self.layers} layers")
        return found[0]

    @property
    def unembedding(self) -> Tensor:
        """(V, D)."""
        weight = weight_of(self.own.get_output_embeddings())
        return weight if len(weight) == self.vocab_rows else weight[: self.vocab_rows]

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return hidden_xD @ self.unembedding.T.to(hidden_xD.dtype)

    def new_cache(self) -> PretrainedCache:
        """An empty key-value cache for `read`."""
        return PretrainedCache()

    def read(
        self,
        tokens_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        attention_mask_BLS: Tensor | None = None,
        cache: PretrainedCache | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D), normalised, ready for `head`; see `CausalBackbone.read`.

        - tokens_BL: int64, or float (B, L, D): vectors that are read as if they were embeddings.

        Raises ValueError for more than max_length tokens without places, another S than cache and pass have, and for a
        cache in a training pass with checkpoint_blocks.
        """
        length = tokens_BL.shape[1] + (cache.length if cache is not None else 0)
        require(
            position_ids_BL is not None or length <= self.max_length,
            f"max_length={self.max_length} is less than the {length} tokens asked for",
        )
        if attention_mask_BLS is not None and attention_mask_BLS.shape[-1] != length:
            raise ValueError(
                f"attention_mask_BLS has {attention_mask_BLS.shape[-1]} columns and must have {length}: the"
                " cache's tokens, then these"
            )
        if cache is not None and self.training and self.checkpoint_blocks:
            raise ValueError(
                f"checkpoint_blocks={self.checkpoint_blocks}: blocks that are recomputed cannot fill a cache; call"
                " eval() before"
            )
        if attention_mask_BLS is not None:
            mask = self._mask(attention_mask_BLS)
        elif position_ids_BL is not None:  # without a mask, a step in the positions would be taken for a new text
            mask = torch.ones(len(tokens_BL), length, dtype=torch.bool, device=tokens_BL.device)
        else:
            mask = None
        given = {"inputs_embeds" if tokens_BL.is_floating_point() else "input_ids": tokens_BL}
        hidden_BLD = self.own.base_model(
            **given,
            position_ids=position_ids_BL,
            attention_mask=mask,
            use_cache=cache is not None,
            **{self._cache_name: None if cache is None else cache.held},
        ).last_hidden_state
        return hidden_BLD if self.scale == 1 else hidden_BLD * self.scale

    forward = read

    def _mask(self, attention_mask_BLS: Tensor) -> Tensor:
        """(B, 1, L, S) as the attention takes it; a query that may look nowhere takes nothing (sdpa) or the mean of all
        (eager), no nan.
        """
        mask = attention_mask_BLS.unsqueeze(1)
        if self.own.config._attn_implementation != "eager":
            return mask
        dtype = weight_of(self.own.get_input_embeddings()).dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PretrainedCausal:
        """A model that is laid over devices stays where it lies."""
        return self if self.mapped else super()._apply(fn, recurse)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Within it, reading gives the model that the adapters were put on. Raises ValueError for a model that has
        none.
        """
        if not isinstance(self.model, PeftModel):
            raise ValueError("lora=null: the model has no adapters to do without")
        if self._apart:
            yield
            return
        self._apart = True
        # PEFT's own context looks at every module first, which takes three times as long
        adapted = self.model.base_model
        assert isinstance(adapted, LoraModel)
        adapted.disable_adapter_layers()
        try:
            yield
        finally:
            self._apart = False
            adapted.enable_adapter_layers()

    def to_transformers(self, vocab: Vocabulary) -> PreTrainedModel | PeftModel:
        """What `save_pretrained` of transformers or PEFT writes.

        Raises ValueError for adapters of a model without a row for the end token: the new row is none of theirs.
        """
        grown = self.saved_rows <= vocab.end
        require(
            not (self._frozen and grown),
            f"path={self.path} has {self.saved_rows} rows and none for the end token {vocab.end}, which adapters "
            "cannot bring: train all weights (lora=null), or choose a tokenizer with an end of its own",
        )
        return self.model

    def kept_names(self) -> frozenset[str]:
        """Names of the parameters that `state_dict` holds: the adapters of a frozen model, else all."""
        return self._kept if self._frozen else frozenset(name for name, _ in self.named_parameters())

    def parameters_count(self, embeddings: bool = False) -> int:
        """Parameters, by default without embedding and unembedding; a quantised one counts as its packed numbers."""
        own = self.own
        weights = (weight_of(own.get_input_embeddings()), weight_of(own.get_output_embeddings()))
        tables = {id(p): p.numel() for p in weights}
        return sum(p.numel() for p in self.parameters()) - (0 if embeddings else sum(tables.values()))

    def flops_per_token(self, length: int, logits: bool = True) -> float:
        """Of one forward pass: 2 per weight of a matrix (of the unembedding, if `logits`), 4 L (heads * head width) for
        the attention of a block.

        Of a mixture's experts, stored as (experts, out, in), those a token goes through count.
        """
        text = self.own.config.get_text_config()
        head_dim = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
        matrices = sum(_matrix_weights(module, text.to_dict()) for module in self.own.base_model.modules())
        return (
            2 * (matrices + logits * self.unembedding.numel())
            + text.num_hidden_layers * 4 * length * text.num_attention_heads * head_dim
        )


# Linear maps ------------------------------------------------------------------------------------------------------


def _linear(own: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear maps by their full names, without the unembedding."""
    head = own.get_output_embeddings()
    return {
        name: module
        for name, module in own.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _targets(own: PreTrainedModel, targets: list[str] | str) -> list[str] | str:
    """The targets as PEFT takes them. Raises ValueError when one of them is no linear map of the model."""
    if targets == "all-linear":
        return targets
    names = list(_linear(own))
    wanted = [targets] if isinstance(targets, str) else list(targets)
    lost = [t for t in wanted if not any(name == t or name.endswith(f".{t}") for name in names)]
    known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
    require(
        bool(wanted) and not lost,
        f"lora.targets={wanted} must name linear maps of the model, which has {known} ({', '.join(lost) or 'nothing'}"
        " fits none)",
    )
    return wanted


def _whole(own: PreTrainedModel, names: list[str] | None) -> list[str] | None:
    """The modules to train whole. Raises ValueError for one that the model has not, and for a table that is tied to
    another one.
    """
    known = [name for name, module in own.named_modules() if name and not name.rpartition(".")[2].isdecimal()]
    for name in names or ():
        where = f"lora.modules_to_save={names}"
        if not any(module == name or module.endswith(f".{name}") for module in known):
            near = ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in known))
            raise ValueError(f"{where} must name modules of the model, which has {near} ({name} is none of them)")
        tables = (own.get_input_embeddings(), own.get_output_embeddings())
        tied = tables[1] is not None and tables[0].weight is tables[1].weight
        if tied and any(
            module is table
            for path, module in own.named_modules()
            for table in tables
            if path.rpartition(".")[2] == name
        ):
            raise ValueError(f"{where}: {name} is tied to the model's other table; trained whole they would come apart")
    return list(names) if names else None


def _matrix_weights(module: nn.Module, text: dict[str, Any]) -> float:
    """Weights that a token is multiplied with in this module itself."""
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, nn.Linear):  # a quantised one is packed, so its parameter is smaller
        return module.in_features * module.out_features
    share = {
        2: 1.0,
        3: (text.get("num_experts_per_tok") or 1) / (text.get("num_local_experts") or text.get("num_experts") or 1),
    }
    return sum(p.numel() * share.get(p.ndim, 0.0) for p in module.parameters(recurse=False))


# Checkpoints of adapters ------------------------------------------------------------------------------------------


def _digest(own: PreTrainedModel) -> Tensor:
    """(32,) uint8: SHA-256 over names, shapes and the first numbers of the weights."""
    digest = hashlib.sha256()
    for name, parameter in own.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:DIGESTED].cpu().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _leave_base_out(module: PretrainedCausal, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Take the frozen weights, which lie at `path`, out of the state."""
    for name in [n for n in state if n.startswith(prefix) and n[len(prefix) :] not in module.kept_names()]:
        del state[name]
    state[prefix + DIGEST] = module._digest.clone()


def _refuse_other_base(
    module: PretrainedCausal,
    state: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Adapters mean nothing on weights they were not trained on."""
    module._prefix = prefix
    found = state.pop(prefix + DIGEST, None)
    if found is not None and not torch.equal(found.cpu(), module._digest):
        errors.append(f"its adapters belong to other weights than those at path={module.path}")


def _miss_no_base(module: PretrainedCausal, keys: Any) -> None:
    """The frozen weights are not missing: they are there already."""
    mine = [name for name in keys.missing_keys if name.startswith(module._prefix)]
    for name in mine:
        if name[len(module._prefix) :] not in module.kept_names():
            keys.missing_keys.remove(name)
