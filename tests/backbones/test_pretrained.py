"""Hugging Face models as backbones: against their own forward pass, alone against packed, adapters against what LoRA
promises.
"""

import importlib.util
import warnings
from types import SimpleNamespace

import pytest
import torch
from pretrained_models import ROWS, SHAPE, llama, llama_tokenizer, qwen, qwen_tokenizer, saved
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from research_stack.backbones.pretrained import LoRA, PretrainedCausal
from research_stack.backbones.pretrained_loading import cache_name
from research_stack.config.build import build
from research_stack.config.compose import compose
from research_stack.data.tokenizers_pretrained import Pretrained

KINDS = {"qwen_tied": (qwen, True), "qwen": (qwen, False), "llama": (llama, False), "llama_tied": (llama, True)}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {name: make(tmp_path_factory.mktemp(name), tied) for name, (make, tied) in KINDS.items()}
    return {name: str(folder) for name, folder in made.items()}


def model(path, vocab_size=ROWS, **options):
    return PretrainedCausal(vocab_size, str(path), **options).eval()


def tokens(rows=2, length=10, seed=0):
    return torch.randint(ROWS, (rows, length), generator=torch.Generator().manual_seed(seed))


def own(path):
    return AutoModelForCausalLM.from_pretrained(path).eval()


def stir(m, seed=5):
    """Give the adapters' B weights, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in m.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return m


# Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_reading_is_the_models_own_forward(folders, kind, attention):
    m, ids = model(folders[kind], attention=attention), tokens()
    with torch.no_grad():
        torch.testing.assert_close(m.head(m.read(ids)), own(folders[kind])(ids).logits, **EXACT)
    assert m.max_length == SHAPE["max_position_embeddings"] and m.causal and m.unembedding.shape == (ROWS, 32)
    assert m.training is False and not any(inner.training for inner in m.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_step_by_step_gives_the_whole(folders, kind, attention):
    m, ids, cache = model(folders[kind], attention=attention), tokens(), None
    with torch.no_grad():
        cache = m.new_cache()
        assert cache.length == 0
        parts = (
            [m.read(ids[:, :4], cache=cache)]
            + [m.read(ids[:, i : i + 1], cache=cache) for i in range(4, 8)]
            + [m.read(ids[:, 8:], cache=cache)]
        )
        assert cache.length == 10
        torch.testing.assert_close(torch.cat(parts, 1), m.read(ids), **EXACT)


def test_the_cache_has_the_name_that_the_model_knows(folders):
    class Older:
        """As before transformers 5.24."""

        def forward(self, input_ids, past_key_values=None):
            raise AssertionError

    older = SimpleNamespace(base_model=Older())
    assert cache_name(older) == "past_key_values"
    m = model(folders["llama"])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", FutureWarning)
        cache = m.new_cache()
        m.read(tokens(), cache=cache)
    assert cache.length == tokens().shape[1]


def test_selected_rows_grow_apart_from_the_cache_they_come_from(folders):
    m, prompt, more = model(folders["qwen_tied"]), tokens(2, 5), tokens(4, 3, seed=1)
    rows = torch.tensor([1, 0, 1, 1])
    with torch.no_grad():
        cache = m.new_cache()
        m.read(prompt, cache=cache)
        copies = cache.select(rows)
        torch.testing.assert_close(
            m.read(more, cache=copies), m.read(torch.cat((prompt[rows], more), 1))[:, 5:], **EXACT
        )
        assert (cache.length, copies.length) == (5, 8)
        torch.testing.assert_close(
            m.read(more[:2], cache=cache), m.read(torch.cat((prompt, more[:2]), 1))[:, 5:], **EXACT
        )


def left_padded(lengths, width):
    order = torch.arange(width)
    before = width - torch.tensor(lengths).unsqueeze(1)
    seen = (order >= before).unsqueeze(1) & (order <= order.unsqueeze(1))
    return (order - before).clamp_min(0), seen


@pytest.mark.parametrize("kind", ["qwen_tied", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_changes_nothing_and_stays_finite(folders, kind, attention):
    m, ids, lengths = model(folders[kind], attention=attention), tokens(3, 8), [8, 3, 5]
    places, seen = left_padded(lengths, 8)
    assert not seen.any(-1).all()  # padding looks nowhere
    with torch.no_grad():
        cache = m.new_cache()
        hidden = m.read(ids, places, seen, cache)
        assert hidden.isfinite().all()
        step = m.read(
            ids[:, :1],
            torch.tensor(lengths).unsqueeze(1),
            torch.cat((seen[:, -1:], torch.ones(3, 1, 1, dtype=torch.bool)), -1),
            cache,
        )
        for row, length in enumerate(lengths):
            alone = ids[row : row + 1, 8 - length :]
            torch.testing.assert_close(hidden[row : row + 1, 8 - length :], m.read(alone), **EXACT)
            torch.testing.assert_close(
                step[row], m.read(torch.cat((alone, ids[row : row + 1, :1]), 1))[0, -1:], **EXACT
            )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_texts_do_not_leak(folders, attention):
    m, ids = model(folders["llama"], attention=attention), tokens(1, 9)
    text = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1]])
    seen = ((text.unsqueeze(1) == text) & torch.ones(9, 9, dtype=torch.bool).tril()).unsqueeze(0)
    with torch.no_grad():
        packed = m.read(ids, places, seen)
        torch.testing.assert_close(packed, torch.cat([m.read(ids[:, text == i]) for i in range(3)], 1), **EXACT)
        assert (packed - m.read(ids)).abs().max() > 0.1  # it matters


def test_positions_alone_move_nothing_apart(folders):
    """A step in the positions is no new text: rotary attention sees differences, so a constant shift changes nothing
    and a gap does.
    """
    m, ids = model(folders["qwen"]), tokens(1, 6)
    with torch.no_grad():
        plain = m.read(ids)
        torch.testing.assert_close(m.read(ids, torch.arange(7, 13).unsqueeze(0)), plain, rtol=1e-4, atol=1e-4)
        gap = torch.tensor([[0, 1, 2, 9, 10, 11]])
        explicit = m.read(ids, gap, torch.ones(1, 6, 6, dtype=torch.bool).tril())
        torch.testing.assert_close(m.read(ids, gap), explicit, **EXACT)
        assert (explicit - plain)[:, 3:].abs().max() > 1e-2


def test_too_long_a_text_is_refused(folders):
    m = model(folders["qwen"], max_length=8)
    with pytest.raises(ValueError, match="^max_length=8 is less than the 9 tokens"):
        m.read(tokens(1, 9))


def test_a_mask_covers_the_cache_too(folders):
    m = model(folders["qwen"])
    cache = m.new_cache()
    m.read(tokens(1, 4), cache=cache)
    with pytest.raises(ValueError, match="^attention_mask_BLS has 2 columns and must have 6"):
        m.read(tokens(1, 2), None, torch.ones(1, 2, 2, dtype=torch.bool), cache)


def test_bfloat16_is_near_float32(folders):
    half, full, ids = model(folders["qwen_tied"], dtype="bfloat16"), model(folders["qwen_tied"]), tokens()
    assert half.unembedding.dtype == torch.bfloat16
    with torch.no_grad():
        a, b = half.head(half.read(ids)).float(), full.head(full.read(ids))
        places, seen = left_padded([10, 6], 10)
        assert half.read(ids, places, seen).isfinite().all()
    assert 0 < (a - b).abs().mean() < 0.05 * b.abs().mean()


def test_blocks_that_are_recomputed_give_the_same_gradient_and_refuse_a_cache(folders):
    grads = []
    for again in (False, True):
        m = model(folders["qwen_tied"], checkpoint_blocks=again, lora=LoRA()).train()
        m.read(tokens()).square().sum().backward()
        grads.append([p.grad for p in m.parameters() if p.requires_grad])
    torch.testing.assert_close(*grads)
    with pytest.raises(ValueError, match="^checkpoint_blocks=True: .* call eval"):
        m.read(tokens(), cache=m.new_cache())
    assert m.eval().read(tokens(), cache=m.new_cache()).isfinite().all()


def test_flops_count_every_matrix(folders):
    m = model(folders["qwen"], vocab_size=280)
    block = 32 * (4 + 2 + 2) * 16 + 4 * 16 * 32 + 3 * 32 * 48
    assert m.flops_per_token(10, logits=False) == 2 * 2 * block + 2 * 4 * 10 * 4 * 16
    assert m.flops_per_token(10) - m.flops_per_token(10, logits=False) == 2 * 280 * 32
    adapters = model(folders["qwen"], lora=LoRA(rank=2)).flops_per_token(10, logits=False) - m.flops_per_token(
        10, logits=False
    )
    assert adapters == 2 * 2 * 2 * ((32 + 64) + 2 * (32 + 32) + (64 + 32) + 3 * (32 + 48))


# More or fewer rows than ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen_tied", "llama"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_new_ids_get_the_mean_row_and_the_old_stay(folders, kind, lora):
    m, plain = model(folders[kind], ROWS + 3, lora=lora), own(folders[kind])
    wanted = plain.get_output_embeddings().weight
    assert m.vocab_rows == ROWS + 3 and torch.equal(m.unembedding[:ROWS], wanted)
    torch.testing.assert_close(m.unembedding[ROWS:], wanted.mean(0).expand(3, -1))
    table = m.own.get_input_embeddings().weight
    torch.testing.assert_close(table[ROWS:], plain.get_input_embeddings().weight.mean(0).expand(3, -1))
    assert (table is m.own.get_output_embeddings().weight) == kind.endswith("tied")
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(m.head(m.read(ids))[..., :ROWS], plain(ids).logits, **EXACT)
        assert m.read(torch.tensor([[ROWS + 2, 1]])).isfinite().all()


def test_surplus_rows_are_kept_but_no_logits_are_made_of_them(folders):
    m, ids = model(folders["qwen_tied"], 280), tokens() % 280
    with torch.no_grad():
        torch.testing.assert_close(m.head(m.read(ids)), own(folders["qwen_tied"])(ids).logits[..., :280], **EXACT)
    assert m.unembedding.shape == (280, 32) and len(m.own.get_input_embeddings().weight) == ROWS
    m.head(m.read(ids)).logsumexp(-1).sum().backward()
    assert not m.own.lm_head.weight.grad[280:].any() and m.own.lm_head.weight.grad[:280].any()


def test_the_pad_row_learns_when_it_is_the_end_token_too(tmp_path):
    path = llama(tmp_path, pad_token_id=7)
    assert own(path).get_input_embeddings().padding_idx == 7  # its row would get no gradient
    for rows in (ROWS, ROWS + 1):
        m = PretrainedCausal(rows, str(path))
        m.read(torch.tensor([[7, 3]])).sum().backward()
        assert m.own.get_input_embeddings().weight.grad[7].any()


# Adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen_tied", "llama"])
def test_adapters_begin_as_the_model_and_can_be_done_without(folders, kind):
    m, ids = model(folders[kind], lora=LoRA(rank=4)), tokens()
    with torch.no_grad():
        base = model(folders[kind]).read(ids)
        assert torch.equal(m.read(ids), base)
        moved = stir(m).read(ids)
        assert (moved - base).abs().max() > 0.1
        with m.without_adapters():
            with m.without_adapters():
                assert torch.equal(m.read(ids), base)
            assert torch.equal(m.read(ids), base)
        assert torch.equal(m.read(ids), moved)
        with pytest.raises(RuntimeError), m.without_adapters():
            raise RuntimeError
        assert torch.equal(m.read(ids), moved)
    assert all(p.requires_grad == ("lora_" in name) for name, p in m.named_parameters())
    with pytest.raises(ValueError, match="^lora=null"), model(folders[kind]).without_adapters():
        pass


@pytest.mark.parametrize("rslora, scale", [(False, 8 / 4), (True, 8 / 2)])
def test_adapters_add_s_B_A(folders, rslora, scale):
    m = stir(model(folders["llama"], lora=LoRA(rank=4, alpha=8, rslora=rslora, targets=["q_proj", "down_proj"])))
    plain, ids = own(folders["llama"]), tokens()
    state = {name.replace("model.base_model.model.", ""): p for name, p in m.named_parameters() if "lora_" in name}
    assert len(state) == 2 * 2 * 2
    with torch.no_grad():
        for name in (n for n in state if "lora_A" in n):
            target = plain.get_parameter(name.replace("lora_A.default.weight", "weight"))
            target += scale * state[name.replace("lora_A", "lora_B")] @ state[name]
        torch.testing.assert_close(m.head(m.read(ids)), plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_gradients_reach_b_at_once_and_a_after_a_step(folders):
    m = PretrainedCausal(ROWS, folders["qwen_tied"], lora=LoRA(rank=2))
    trained = {name: p for name, p in m.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        m.head(m.read(tokens())).logsumexp(-1).sum().backward()
        for name, p in trained.items():
            assert p.grad.any() == (step == 1 or "lora_B" in name), (step, name)
        with m.without_adapters(), torch.no_grad():
            m.read(tokens())  # as a reference policy between two steps
        optimizer.step()
    assert not any(p.grad is not None for p in m.parameters() if not p.requires_grad)


def test_adapters_stay_float32_on_a_bfloat16_model(folders):
    m = model(folders["qwen_tied"], lora=LoRA(), dtype="bfloat16")
    assert {p.dtype for p in m.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in m.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert m.read(tokens()).dtype == torch.bfloat16


def test_the_seed_makes_the_adapters(folders):
    def first(seed):
        torch.manual_seed(torch.seed())  # nothing comes from the global stream
        return next(p for n, p in model(folders["llama"], lora=LoRA(), seed=seed).named_parameters() if "lora_A" in n)

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_dropout_of_adapters_works_in_training_alone(folders):
    m, ids = stir(PretrainedCausal(ROWS, folders["llama"], lora=LoRA(dropout=0.5))), tokens()
    assert m.training and all(inner.training for inner in m.modules())
    with torch.no_grad():
        assert not torch.equal(m.read(ids), m.read(ids))
        m.eval()
        assert torch.equal(m.read(ids), m.read(ids))


@pytest.mark.parametrize("targets", [["attention"], ["q_proj", "query"], ["lm_head"], ["embed_tokens"], []])
def test_targets_that_fit_nothing_are_refused_with_the_names_there_are(folders, targets):
    with pytest.raises(
        ValueError,
        match=(
            r"^lora.targets=\[.*\] must name linear maps of the model, which has q_proj, k_proj, v_proj, o_proj,"
            r" gate_proj, up_proj, down_proj"
        ),
    ):
        model(folders["qwen"], lora=LoRA(targets=targets))


def test_all_linear_leaves_the_unembedding_alone(folders):
    m = model(folders["qwen"], lora=LoRA())
    assert {n.split(".")[-4] for n, p in m.named_parameters() if "lora_A" in n} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


@pytest.mark.parametrize(
    "options, line", [({"rank": 0}, "rank=0"), ({"alpha": 0}, "alpha=0"), ({"dropout": 1}, "dropout=1")]
)
def test_settings_of_adapters_are_checked(options, line):
    with pytest.raises(ValueError, match=f"^{line} must"):
        LoRA(**options)


# Checkpoints ------------------------------------------------------------------------------------------------------


class Holder(torch.nn.Module):
    """As a method holds its backbone."""

    def __init__(self, model):
        super().__init__()
        self.model, self.more = model, torch.nn.Linear(2, 2)


@pytest.mark.parametrize("rows", [ROWS, ROWS + 3])
def test_a_checkpoint_holds_the_adapters_alone_and_comes_back(folders, tmp_path, rows):
    first = Holder(stir(model(folders["qwen_tied"], rows, lora=LoRA(rank=2))))
    state = first.state_dict()
    assert {n for n in state if "lora_" not in n} == {"more.weight", "more.bias", "model.base_digest"}
    assert {n.removeprefix("model.") for n in state if "lora_" in n} == first.model.kept_names()
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    second = Holder(model(folders["qwen_tied"], rows, lora=LoRA(rank=2), seed=9))
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(second.model.read(tokens()), first.model.read(tokens()))
    second.load_state_dict(loaded)
    assert torch.equal(second.model.read(tokens()), first.model.read(tokens()))
    assert list(loaded) == list(state)  # loading leaves the checkpoint as it is


def test_a_checkpoint_must_fit(folders, tmp_path):
    state = model(folders["qwen_tied"], lora=LoRA(rank=2)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model(folders["qwen_tied"], lora=LoRA(rank=3)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="belong to other weights"):
        model(qwen(tmp_path, seed=1), lora=LoRA(rank=2)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="lora_A"):
        model(folders["qwen_tied"], lora=LoRA(rank=2)).load_state_dict(
            {n: p for n, p in state.items() if "q_proj" not in n}
        )
    with pytest.raises(RuntimeError, match="Unexpected"):
        model(folders["qwen_tied"], lora=LoRA(rank=2)).load_state_dict(model(folders["qwen_tied"]).state_dict())


def test_without_adapters_a_checkpoint_holds_everything(folders):
    first, second = model(folders["llama"]), model(folders["llama"])
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(1.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.read(tokens()), first.read(tokens()))
    assert first.kept_names() == {n for n, _ in first.named_parameters()}


def test_the_weight_average_can_copy_it(folders):
    m = stir(model(folders["qwen_tied"], lora=LoRA(rank=2)))
    average = torch.optim.swa_utils.AveragedModel(Holder(m))
    state = average.state_dict()
    assert sum("lora_" not in n for n in state) == 4  # n_averaged, the digest and the holder's own
    average.load_state_dict(state)
    assert torch.equal(average.module.model.read(tokens()), m.read(tokens()))


# What is refused --------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA = {**SMALL, "head_dim": 8, "initializer_range": 0.2, "query_pre_attn_scalar": 8}


def kept(folder, cls, config):
    torch.manual_seed(0)
    m = cls(config)
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim == 1 and not p.any():
                p.normal_()  # biases begin at zero, where they would not show
    m.save_pretrained(folder)
    return folder


REFUSED = {
    "softcap": (Gemma2ForCausalLM, Gemma2Config(**GEMMA, sliding_window=16), "gemma2 caps its logits"),
    "bias": (
        GPTJForCausalLM,
        GPTJConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=32),
        "a bias on its unembedding",
    ),
    "state space": (
        MambaForCausalLM,
        MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1),
        "MambaForCausalLM (cannot be read|does not keep packed texts apart)",
    ),
    "encoder": (
        BertForMaskedLM,
        BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32),
        "does not read from left to right",
    ),
    "encoder and decoder": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4),
        "is no causal language model but a t5",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_something_else_are_refused_in_a_line(tmp_path, name):
    cls, config, line = REFUSED[name]
    with pytest.raises(ValueError, match=line) as caught:
        model(kept(tmp_path, cls, config), 60, attention="eager", max_length=32)
    assert "\n" not in str(caught.value) and f"path={tmp_path}" in str(caught.value)


UNUSUAL = {
    "granite": (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.2)),
    "cohere": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25, initializer_range=0.2)),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config(**SMALL, logit_scale=0.25, initializer_range=0.2, sliding_window=16)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
    "gemma2 without caps": (Gemma2ForCausalLM, Gemma2Config(**GEMMA, sliding_window=16, final_logit_softcapping=None)),
    "mixture": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2),
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_scaled_logits_and_other_architectures_are_right(tmp_path, name):
    cls, config = UNUSUAL[name]
    path = kept(tmp_path, cls, config)
    attention = "eager" if name.startswith("gemma2") else "sdpa"
    m, ids = model(path, 60, lora=LoRA(rank=2), attention=attention), tokens() % 60
    with torch.no_grad():
        torch.testing.assert_close(
            m.head(m.read(ids)),
            AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention)(ids).logits,
            **EXACT,
        )
        assert (stir(m).read(ids) - own(path).base_model(ids).last_hidden_state).abs().max() > 1e-3
    assert m.flops_per_token(8) > 0 and m.parameters_count() > 0


def test_logits_that_are_no_product_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("research_stack.backbones.pretrained.logit_scale", lambda own: 1.0)
    with pytest.raises(ValueError, match="^path=.*: GraniteForCausalLM makes other logits than the product"):
        model(kept(tmp_path, *UNUSUAL["granite"]), 60)


def test_a_model_without_sdpa_asks_for_eager(tmp_path):
    with pytest.raises(ValueError, match="^attention=sdpa must be eager: transformers has no other for the gemma2"):
        model(kept(tmp_path, *UNUSUAL["gemma2 without caps"]), 60)


def test_a_sliding_window_bounds_the_length(tmp_path):
    path = kept(
        tmp_path,
        MistralForCausalLM,
        MistralConfig(**SMALL, max_position_embeddings=32, sliding_window=12, initializer_range=0.2),
    )
    m, ids = model(path, 60), tokens(1, 12) % 60
    assert m.max_length == 12
    with torch.no_grad():
        torch.testing.assert_close(m.head(m.read(ids)), own(path)(ids).logits, **EXACT)
    with pytest.raises(ValueError, match="^max_length=13 must be at most 12, the model's sliding window"):
        model(path, 60, max_length=13)
    with pytest.raises(ValueError, match="^max_length=33 must be at most 32, the longest text"):
        model(path, 60, max_length=33)


def test_a_window_that_is_off_bounds_nothing(tmp_path):
    assert model(qwen(tmp_path, sliding_window=8, use_sliding_window=False)).max_length == 64


def test_a_headless_checkpoint_is_refused(folders, tmp_path):
    own(folders["llama"]).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 weights of a LlamaForCausalLM, lm_head.weight among them"):
        model(tmp_path)


def test_a_wrong_path_names_its_neighbour(folders, tmp_path):
    (tmp_path / "qwen3-tiny").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"^path=.*qwen-tiny does not exist; did you mean .*qwen3-tiny\?"):
        model(tmp_path / "qwen-tiny")
    with pytest.raises(ValueError, match="^path=.* holds no model: there is no config.json"):
        model(tmp_path / "qwen3-tiny")
    with pytest.raises(ValueError, match="^path=.*file must be a folder"):
        model(tmp_path / "file")


def test_a_damaged_model_is_refused_in_a_line(tmp_path):
    path = qwen(tmp_path / "a")
    (path / "model.safetensors").write_bytes(b"\x08" * 64)
    with pytest.raises(ValueError, match="^path=.* holds no causal language model that can be loaded: ") as caught:
        model(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="^path=.* holds no model that can be loaded: "):
        model(path)
    assert "\n" not in str(caught.value)


def test_quantisation_says_what_it_lacks(folders, monkeypatch):
    with pytest.raises(ValueError, match="^quantization=4bit must come with lora"):
        model(folders["qwen"], quantization="4bit")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else found(name, *more)
    )
    with pytest.raises(ValueError, match="^quantization=4bit needs the package bitsandbytes"):
        model(folders["qwen"], quantization="4bit", lora=LoRA())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^quantization=8bit needs a CUDA device"):
        model(folders["qwen"], quantization="8bit", lora=LoRA())


# From a config, and with the tokenizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("choice, adapters", [("hf_causal", False), ("hf_causal_lora", True)])
def test_the_presets_build(folders, choice, adapters):
    cfg = compose([f"model={choice}", f"model.path={folders['qwen_tied']}"])
    m = build(cfg.model, "model", vocab_size=ROWS, seed=1)
    assert any("lora_" in n for n, _ in m.named_parameters()) == adapters
    with pytest.raises(ValueError, match=r"^model.path=.*does not exist"):
        build(compose([f"model={choice}", "model.path=/nowhere/model"]).model, "model", vocab_size=ROWS, seed=1)


@pytest.mark.parametrize("make", [qwen_tokenizer, llama_tokenizer])
def test_a_chat_model_and_its_tokenizer_fit(tmp_path, make):
    """The codec adds what is missing, the model gets rows for it, and a chat is read to the end of its turn."""
    torch.manual_seed(0)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make()
    path = saved(tmp_path, Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "vocab_size": len(tokenizer)})), tokenizer)
    codec = Pretrained(str(path)).fit([])
    m = model(path, codec.vocab.size)
    assert codec.vocab.size > len(tokenizer) and m.unembedding.shape[0] == codec.vocab.size
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template(
        [{"role": "user", "content": "what is 2 + 3 ?"}], add_generation_prompt=True
    )
    ids = ids if isinstance(ids, list) else ids["input_ids"]
    assert codec.vocab.end in ids  # the turn's end is the end token
    assert m.read(torch.tensor([ids])).isfinite().all()
