"""Objects, groups, keys nothing reads, Lightning's keys and sizes: each mistake is told before anything is built; what
is right passes.
"""

from __future__ import annotations

import inspect
import math

import pytest

from research_stack.backbones.regressor import Regressor
from research_stack.backbones.transformer import Transformer
from research_stack.config import memory
from research_stack.config.check import check
from research_stack.config.check_node import check_node
from research_stack.config.compose import preflight
from research_stack.config.composer import Composer
from research_stack.config.hints import UserError
from research_stack.latentwire.encoder import ByteEncoder
from research_stack.latentwire.features.deep_prefix import DeepPrefix

PROGRESS = "{_target_: research_stack.training.progress.Progress}"
WRONG = {
    "corruption.positions=0": "corruption.positions=0 must be Positional | None (a mapping with _target_)",
    "method.loss=null": "method.loss=null must be DenoisingLoss",
    "~method.loss._target_": "method.loss._target_ is missing: it names the class of method.loss, a DenoisingLoss",
    f"method.loss={PROGRESS}": "method.loss._target_=research_stack.training.progress.Progress must be DenoisingLoss",
    # a Protocol
    f"data.source={PROGRESS}": "data.source._target_=research_stack.training.progress.Progress must be Source",
    f"model.dim={PROGRESS}": "model.dim._target_=research_stack.training.progress.Progress must be int",
    "data.tokenizer=abc": "data.tokenizer=abc must be Tokenizer",
    "callbacks.checkpoints=5": "callbacks.checkpoints=5 must be Callback",
    "callbacks.progress=null": "to leave it out: ~callbacks.progress",
    f"eval.likelihood={PROGRESS}": "has no parameter 'processes'",
    "eval.samples.samplers.llada=abc": "eval.samples.samplers.llada=abc must be Sampler",
    "~sampler.committer": "sampler.committer is missing: Sampler needs it",
    "~eval.samples.samplers.llada.stopper": "eval.samples.samplers.llada.stopper is missing: Sampler needs it",
    "experiment=latentwire +method.lr_factors={encoder: abc, adapter: 1.0}": (
        "method.lr_factors.encoder=abc must be float"
    ),
    "experiment=grpo eval.passk.metrics=null": "eval.passk.metrics=null must be AnswerMetrics",
    "~data.tokenizer": "data.tokenizer is missing: TokenData needs it",
    "experiment=latentwire method.readers.llama.questions=0": "method.readers.llama.questions=0 must be at least 1",
    "~method": "method is missing: every config has one",
    "method=[]": "method is missing: every config has one",
    "~model._target_": "model._target_ is missing",
    "~seed": "seed is missing: every config has one",
    "seed=-1": "seed=-1 must lie in [0, 2^63)",
    "seed=1000000000000000000000": "seed=1000000000000000000000 must be int",
    "++sed=5": "sed=5: nothing reads this key; did you mean 'seed'?",
    "++optimisation.lr=1": "nothing reads this key; did you mean 'optimization'?",
    "optimization.warmup_steps=inf": "optimization.warmup_steps=inf must be a finite number",
    "optimization.lr=nan": "optimization.lr=nan must be a finite number",
    "optimization.lr=-1": "optimization.lr=-1 must be positive",
    "trainer.val_check_interval=abc": "trainer.val_check_interval=abc must be a whole number of steps",
    "~trainer.val_check_interval": "trainer.val_check_interval is missing",
    "trainer.max_steps=1000000000000000000": "trainer.max_steps=1000000000000000000 must be a whole number of steps",
    "trainer.limit_val_batches=1.5": (
        "trainer.limit_val_batches=1.5 must be a whole number of batches, or a share of them in [0.0, 1.0]"
    ),
    "+trainer.limit_train_batches=0": "nothing would be learnt",
    "+trainer.fast_dev_run=true": "keeps nothing of what is trained",
    "+trainer.max_time=soon": "trainer.max_time=soon must be days:hours:minutes:seconds",
    "+trainer.profiler=abc": "trainer.profiler=abc must be one of simple",
    "model.layers=1000000000": "model.layers=1000000000: at least",
    "model.layers=1000000000000000000": "model.layers=1000000000000000000: at least",
    "data.batch_size=1000000000000000000": "data.batch_size=1000000000000000000: at least",
    "data.sequence_length=1000000000": "data.sequence_length=1000000000: at least",
    "experiment=latentwire model.dim=-1": "model.dim=-1 must be a multiple of 2 * heads",
    "experiment=latentwire method.adapter_dim=-128": "method.adapter_heads=4 must divide adapter_dim=-128",
    "experiment=grpo method.num_generations=1000000000000000000": "method.num_generations=1000000000000000000 must be"
    " at most 10,000",
    "experiment=latentwire model.buckets=1000000000000": "model.buckets=1000000000000: at least",
    "experiment=reward model.hidden=[1000000,1000000]": "model.hidden",
    "eval.samples.count=1000000000000000000": "eval.samples.count=1000000000000000000 must be at most",
    "sampler.steps=1000000000": "sampler.steps=1000000000 must be at most",
}
RIGHT = [
    "corruption.positions=null",
    "~callbacks.progress",
    "eval=none",
    "trainer.limit_val_batches=0.5",
    "trainer.limit_val_batches=0",
    "+trainer.max_time=00:01:00:00",
    "+trainer.profiler=simple",
    "data.validation_rows=1000000000",
    "seed=0",
    "optimization.clip=null",
    "experiment=grpo method/reward=heuristic",
    "experiment=latentwire method/features=[deep_prefix,lora]",
    "experiment=llada sampler=remdm",
    "experiment=lookahead sampler=lookahead_abstain",
    "hardware=gpu model=base",
    "+width=64 model.dim=${width} model.heads=2",
]


@pytest.fixture(scope="module")
def composer():
    return Composer()


def problems(composer, line):
    overrides = (
        line.replace(": ", ":").split(" ")
        if "{" not in line.replace("${", "")
        else line.split(" ", 1)
        if line.startswith("experiment=")
        else [line]
    )
    return [p.message for p in check(composer.compose_point(overrides).cfg)]


def test_each_mistake_is_told(composer):
    missed = {
        line: found
        for line, text in WRONG.items()
        if not (found := problems(composer, line)) or not any(text in message for message in found)
    }
    assert missed == {}


def test_what_is_right_passes(composer):
    assert {line: found for line in RIGHT if (found := problems(composer, line))} == {}


def test_files_that_nothing_reads(composer, tmp_path):
    for name, text in {
        "nopkg": "optimization:\n  lr: 0.1\n",
        "typo": "# @package _global_\n# x\nsed: 5\n",
        "nodefaults": "# @package _global_\nmodel: small\n",
        "nullnode": "# @package _global_\noptimization: null\n",
        "near": "# @package _global_\ndefaults:\n  - override /corruption: absorbin  # x\n",
        "able": "# @package _global_\ndefaults:\n  - override /corruption: absorbing\n",
    }.items():
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    own = Composer(extra=tmp_path)
    for name, text, line in (
        ("nopkg", "begins with `# @package _global_`", 1),
        ("typo", "did you mean 'seed'", 3),
        ("nullnode", "optimization=null must be a mapping", 2),
        (
            "nodefaults",
            "model=small must be a mapping; to choose an option write `- override /model: small` under defaults",
            2,
        ),
        ("near", "did you mean 'absorbing'?", 3),
    ):
        with pytest.raises(UserError) as error:
            preflight([own.compose([f"experiment={name}"])], own)
        assert text in str(error.value) and f"{name}.yaml:{line}" in str(error.value) and "\n" not in str(error.value)


def test_a_group_without_an_option(composer):
    with pytest.raises(UserError, match=r"model=null: a group takes the name of an option; the choices are base"):
        composer.compose(["model=null"])


def test_own_classes_are_judged_by_their_sources(conf):
    def messages(**node):
        return [p.message for p in check_node("node", node)]

    child = {"_target_": "toylib.Child", "vocab_size": 3}
    assert messages(_target_="toylib.Holder", model=child, several={"a": child}, some=[child]) == []
    assert (
        messages(_target_="toylib.Holder", model=None)
        == messages(_target_="toylib.Holder", model={"_target_": "toylib.Outside"})
        == []
    )
    assert messages(_target_="toylib.Holder", scored={"_target_": "toylib.Scorer"}) == []
    strange = {"_target_": "toylib.Corruption"}
    for wrong in (
        {"model": strange},
        {"model": 3},
        {"model": [child]},
        {"several": {"a": strange}},
        {"several": child},
        {"some": [strange]},
        {"scored": strange},
        {"scored": "x"},
    ):
        assert len(messages(_target_="toylib.Holder", **wrong)) == 1, wrong


@pytest.mark.parametrize(
    "kind, options",
    [
        (Transformer, {"vocab_size": 300, "dim": 96, "layers": 5, "heads": 3}),
        (ByteEncoder, {"dim": 64, "layers": 3, "patch": 2}),
        (Regressor, {"inputs": 9, "hidden": [64, 32]}),
        (
            Transformer,
            {
                "vocab_size": 99,
                "dim": 64,
                "layers": 2,
                "ffn_dim": 128,
                "spared": 60,
                "condition_dim": 8,
                "positions": "learned",
            },
        ),
    ],
)
def test_least_numbers_are_at_most_those_there_are(kind, options):
    names = kind.least_numbers.__code__.co_varnames[: kind.least_numbers.__code__.co_argcount]
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    least = kind.least_numbers(**{n: 0 if n in ("rows", "tokens") else options.get(n, defaults.get(n)) for n in names})
    assert (
        sum(p.numel() for p in kind(**options).parameters()) / 12
        < least
        <= sum(p.numel() for p in kind(**options).parameters())
    )


def test_sizes_ask_the_machine_that_will_run(monkeypatch):
    node = {
        "_target_": "research_stack.backbones.transformer.Transformer",
        "dim": 65536,
        "layers": 64,
        "heads": 64,
    }  # a terabyte
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**36)
    monkeypatch.setattr(memory, "gpu_bytes", lambda: 2**37)
    config = {"model": node, "hardware": {"accelerator": "cpu"}}
    ((key, text, _),) = memory.mistakes(config)
    assert key == "model.dim" and "64 GiB" in text
    assert "128 GiB" in next(memory.mistakes(config | {"hardware": {"accelerator": "gpu"}}))[1]
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert list(memory.mistakes(config | {"hardware": {"accelerator": "gpu", "submit": True}})) == []
    assert list(memory.mistakes({"model": {"_target_": "toylib.Unknown", "layers": 10**18}})) == [] and math.isfinite(
        memory.machine_bytes()
    )


def test_a_whole_number_will_do_for_a_float():
    assert isinstance(DeepPrefix(gate=1).gate, float)  # a tensor of integers has no gradient
