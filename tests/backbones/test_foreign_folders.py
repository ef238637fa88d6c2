"""Opening a folder of somebody else runs no code of it: not its modules, not its pickles, not kernels that it names."""

import builtins
import json
import pickle
from pathlib import Path

import pytest
import torch
from pretrained_models import qwen

from research_stack.backbones.pretrained_loading import load
from research_stack.backbones.sentence import SentenceEncoder
from research_stack.data.sources.hub import Hub
from research_stack.data.sources.messages import OfTokenizer
from research_stack.data.tokenizers_pretrained import Pretrained
from research_stack.latentwire import reader

CODE = """
from pathlib import Path
Path("{mark}").write_text("this ran")
from transformers import Qwen3Config as C, Qwen3ForCausalLM as M, Qwen3Model as B, PreTrainedTokenizerFast as T
"""
MAP = {
    "AutoConfig": "own.C",
    "AutoModelForCausalLM": "own.M",
    "AutoModel": "own.B",
    "AutoTokenizer": ["own.T", "own.T"],
}


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def opened(folder):
    """Every way in which a folder of Hugging Face's is opened."""
    text = str(folder)
    yield lambda: load(text, None, torch.float32, "sdpa", None)
    yield lambda: reader._tokenizer(text, None)
    yield lambda: Pretrained(text).fit([])
    yield lambda: OfTokenizer(text)._tokenizer
    yield lambda: SentenceEncoder(text, max_length=8).embed(["a"])
    yield lambda: SentenceEncoder(text, max_length=8).dim
    yield lambda: list(Hub(text).documents())


def attempts(folder, mark):
    """How many of them were refused, in one line; none ran anything."""
    refused = 0
    for attempt in opened(folder):
        try:
            attempt()
        except (ValueError, OSError) as error:
            assert "\n" not in str(error).strip(), error
            refused += 1
        assert not mark.exists()
    return refused


def entries(file, **more):
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def test_no_folder_runs_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *question: "y")  # whoever is asked says yes
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark, folder = tmp_path / "mark", qwen(tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(mark=mark))
    (folder / "model.py").write_text(CODE.format(mark=mark))  # as a script of a data set is called
    usual = attempts(folder, mark)
    entries(folder / "config.json", auto_map=MAP)
    entries(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", "own.T"]}, tokenizer_class="T")
    attempts(folder, mark)
    entries(folder / "config.json", model_type="unheard-of")
    assert attempts(folder, mark) > usual


def test_no_pickle_is_loaded_and_no_kernel(tmp_path):
    mark, folder = tmp_path / "mark", qwen(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "kept")
    for content in (pickle.dumps(Hostile(mark)), None):
        if content is None:
            torch.save({"lm_head.weight": Hostile(mark)}, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match="safetensors"):
            load(str(folder), None, torch.float32, "sdpa", None)
        assert not mark.exists()
    (tmp_path / "kept").rename(folder / "model.safetensors")
    entries(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ValueError, match="attn_implementation=somebody/kernel, code on the hub"):
        SentenceEncoder(str(folder), max_length=8).embed(["a"])
