"""What task=export writes: a folder of transformers or PEFT that gives the same ids and the same logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from research_stack import compose, load, run
from research_stack.backbones.as_llama import as_llama
from research_stack.backbones.pretrained import LoRA, PretrainedCausal
from research_stack.backbones.transformer import Transformer
from research_stack.cli.main import main
from research_stack.data.tokenizers import ByteBPE, Bytes
from research_stack.data.vocabulary import Vocabulary
from research_stack.evaluation.exporting import export
from research_stack.records.files import atomic_folder

sys.path.append(str(Path(__file__).parents[1] / "backbones"))
import pretrained_models  # noqa: E402

VOCAB = Vocabulary(40, mask=37, pad=38, end=39, special=(37, 38, 39))


def stirred(model):
    """Weights that differ everywhere, norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def test_our_transformer_is_a_llama_or_a_qwen3_with_the_same_logits(tmp_path):
    ids = torch.randint(37, (3, 20), generator=torch.Generator().manual_seed(1))
    shapes = {
        "LlamaForCausalLM": [{}, {"kv_heads": 2, "tie_embeddings": False, "ffn_dim": 40}],
        "Qwen3ForCausalLM": [{"qk_norm": True, "kv_heads": 1}],
    }
    for kind, shape in ((k, s) for k, several in shapes.items() for s in several):
        model = stirred(Transformer(40, dim=32, layers=2, heads=4, causal=True, max_length=24, **shape))
        as_llama(model, VOCAB).save_pretrained(tmp_path / "model")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert type(again).__name__ == kind and again.generation_config.suppress_tokens == [37, 38]
        assert again.config.eos_token_id == 39 and again.config.max_position_embeddings == 24
        torch.testing.assert_close(again(ids).logits, model.head(model(ids)), atol=2e-5, rtol=1e-5)


def test_what_no_class_of_transformers_does_is_named():
    for key, shape in {
        "causal=false": {"causal": False},
        "positions=learned": {"positions": "learned"},
        "activation=relu2": {"activation": "relu2"},
        "time_conditioning=true": {"time_conditioning": True},
        "condition_dim=4": {"condition_dim": 4, "keep_size": False},
    }.items():
        model = Transformer(40, dim=32, layers=1, heads=2, **{"causal": True, **shape})
        with pytest.raises(ValueError, match=f"^{key} has no counterpart"):
            as_llama(model, VOCAB)


def test_our_tokenizers_give_the_same_ids_in_transformers(tmp_path):
    texts = ["def f(x):\n    return x ** 2  # ä, 漢, 🙂\t", "", "  two  spaces "]
    for codec in (Bytes().fit([]), ByteBPE(300).fit(texts * 50)):
        codec.to_transformers().save_pretrained(tmp_path / "tokenizer")
        again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert [again(text)["input_ids"] for text in texts] == [codec.encode(text) for text in texts]
        assert [again.decode(codec.encode(text)) for text in texts] == texts
        vocab = codec.vocab
        assert (again.mask_token_id, again.pad_token_id, again.eos_token_id, len(again)) == (
            vocab.mask,
            vocab.pad,
            vocab.end,
            vocab.size,
        )


def test_modules_to_save_are_trained_kept_and_switched_off_with_the_adapters(tmp_path):
    folder = pretrained_models.qwen(tmp_path / "qwen", tied=False)
    model = PretrainedCausal(300, str(folder), lora=LoRA(rank=2, modules_to_save=["lm_head"]))
    assert {name for name in model.kept_names() if "lora_" not in name} == {
        "model.base_model.model.lm_head.modules_to_save.default.weight"
    }
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        base = model.head(model.read(ids))
        model.unembedding.add_(1.0)
        assert not torch.allclose(model.head(model.read(ids)), base)
        with model.without_adapters():
            torch.testing.assert_close(model.head(model.read(ids)), base)
    model.head(model.read(ids)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "modules_to_save" in n)
    second = PretrainedCausal(300, str(folder), lora=LoRA(rank=2, modules_to_save=["lm_head"]))
    second.load_state_dict(model.state_dict())
    torch.testing.assert_close(second.head(second.read(ids)), model.head(model.read(ids)))
    with pytest.raises(ValueError, match="lm_head is tied"):
        PretrainedCausal(300, str(pretrained_models.qwen(tmp_path / "tied")), lora=LoRA(modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="heads is none of them"):
        PretrainedCausal(300, str(folder), lora=LoRA(modules_to_save=["heads"]))


def test_adapters_of_a_run_go_out_to_peft_and_a_policy_to_transformers(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    chats = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 3 ?"}, {"role": "assistant", "content": f"{i + 3} ."}]}
        for i in range(60)
    ]
    chats.write_text("\n".join(map(json.dumps, rows)))
    folder = pretrained_models.qwen(tmp_path / "qwen")
    lora = [
        "experiment=sft",
        "data=instructions",
        f"data.path={chats}",
        "data/tokenizer=pretrained",
        f"data.tokenizer.path={folder}",
        "data.sequence_length=64",
        "data.validation_fraction=0.2",
        "model=hf_causal_lora",
        f"model.path={folder}",
        "model.dtype=float32",
        "eval=none",
        "callbacks=default",
        "optimization.optimizer=adamw",
        "optimization.lr=.01",
    ]
    for overrides, written in (
        (lora, "adapter_config.json"),
        (["experiment=sft", "eval=none", "callbacks=default"], "config.json"),
    ):
        result = run(compose(*overrides, "debug=smoke"), tmp_path / f"run of {written}")
        assert main(["task=export", f"run={result.folder}"]) == 0
        folder = result.folder / "export" / "hf"
        assert capfd.readouterr().out.endswith(f"{folder.relative_to(tmp_path)}\n")
        assert (folder / written).is_file() and (folder / "tokenizer.json").is_file()
        assert export(load(result.folder), tmp_path / "again") < 1e-4


def test_a_denoiser_is_refused_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    result = run(compose("debug=smoke", "model=smoke", "data=smoke", "eval=none"), tmp_path / "denoiser")
    assert main(["task=export", f"run={result.folder}"]) == 2
    assert (
        capfd.readouterr()
        .err.splitlines()[-1]
        .startswith("research-stack: error: task=export: model.causal=false has no counterpart")
    )
    assert not (result.folder / "export" / "hf").exists()


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "export") as unfinished:
            (unfinished / "file").write_text(text)
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "export") as unfinished:
        (unfinished / "file").write_text("third")
        raise ValueError("no")
    assert (tmp_path / "export" / "file").read_text() == "second" and [p.name for p in tmp_path.iterdir()] == ["export"]
