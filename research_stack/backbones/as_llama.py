"""Our causal transformer as one that transformers knows: Llama's, or Qwen3's where queries and keys have norms.

Both are pre-norm blocks of RMSNorm, rotary positions (first half of a head against the second, base 10,000), SwiGLU and
grouped key/value heads, as ours are; what they lack is refused. Weights are copied, so the logits are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from research_stack.backbones.norm import RMSNorm
from research_stack.backbones.transformer import Block, SwiGLU, Transformer
from research_stack.data.vocabulary import Vocabulary


def as_llama(model: Transformer, vocab: Vocabulary) -> PreTrainedModel:
    """The same function as a LlamaForCausalLM or Qwen3ForCausalLM in float32; a copy.

    Raises ValueError in one line, opening with the key of the model, for what neither of them can do.
    """
    require_llama_form(model)
    attention = _block(model.blocks[0]).attention
    config: dict[str, Any] = {
        "vocab_size": len(model.unembedding),
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": torch.finfo(torch.float32).eps,
        "rope_theta": 10000.0,
        "tie_word_embeddings": model.untied is None,
        "attention_bias": False,
        "hidden_act": "silu",
        "attention_dropout": model.dropout,
        "bos_token_id": None,
        "eos_token_id": vocab.end,
        "pad_token_id": vocab.pad,
    }
    if isinstance(attention.q_norm, RMSNorm):
        own = Qwen3ForCausalLM(Qwen3Config(**config))
    else:
        own = LlamaForCausalLM(LlamaConfig(**config))
    own.load_state_dict(llama_weights(model), strict=True)
    never = [token for token in vocab.special if token != vocab.end]  # our samplers give them no probability either
    own.generation_config = GenerationConfig(eos_token_id=vocab.end, pad_token_id=vocab.pad, suppress_tokens=never)
    return own.eval()


def require_llama_form(model: Transformer) -> None:
    """Raise ValueError, opening with the key, for a model that neither Llama nor Qwen3 is."""
    lacks = {
        "causal=false": not model.causal and "a denoiser reads in both directions",
        "positions=learned": model.position_embedding is not None and "positions must be rotary",
        "activation=relu2": not isinstance(_block(model.blocks[0]).ffn, SwiGLU) and "the feed-forward must be swiglu",
        "time_conditioning=true": model.time is not None and "the noise level has no input there",
        f"condition_dim={model.condition_dim}": bool(model.condition_dim) and "conditions have no input there",
    }
    for key, reason in lacks.items():
        if reason:
            raise ValueError(f"{key} has no counterpart among the models of transformers: {reason}")


def llama_weights(model: Transformer) -> dict[str, Tensor]:
    """Copies of the weights, float32, under the names that Llama and Qwen3 of transformers share."""
    found = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.unembedding,
    }
    for index, block in enumerate(model.blocks):
        found |= {f"model.layers.{index}.{name}": tensor for name, tensor in _of_block(_block(block)).items()}
    return {name: tensor.detach().float().clone() for name, tensor in found.items()}


def _block(module: nn.Module) -> Block:
    assert isinstance(module, Block)  # as all in `Transformer.blocks` are
    return module


def _of_block(block: Block) -> dict[str, Tensor]:
    attention, ffn, width = block.attention, block.ffn, block.attention.head_dim
    assert isinstance(ffn, SwiGLU)  # `require_llama_form`
    q, k, v = attention.qkv.weight.split([width * n for n in (attention.heads, attention.kv_heads, attention.kv_heads)])
    gate, up = ffn.gate_up.weight.chunk(2)
    pairs = (("q_norm", attention.q_norm), ("k_norm", attention.k_norm))
    norms = {f"self_attn.{name}.weight": norm.weight for name, norm in pairs if isinstance(norm, RMSNorm)}
    return {
        "input_layernorm.weight": block.attention_norm.weight,
        "post_attention_layernorm.weight": block.ffn_norm.weight,
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": attention.out.weight,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": ffn.down.weight,
        **norms,
    }
