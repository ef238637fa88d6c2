"""The curriculum: stages as a function of the step, what is kept at their ends, and a run cut anywhere that goes on as
if it had not been.
"""

import contextlib
import json
import logging

import lightning
import pytest
import torch
from tiny_wires import ROOM, facts, folders, llama, qwen

from research_stack import compose, run
from research_stack.config.check_node import check_node
from research_stack.config.compose import preflight
from research_stack.config.composer import Composer
from research_stack.latentwire.curriculum import Curriculum
from research_stack.latentwire.distillation import KD
from research_stack.latentwire.encoder import ByteEncoder
from research_stack.latentwire.losses import AnswerTokens, FirstToken
from research_stack.latentwire.losses_latents import RawRMS
from research_stack.latentwire.module import LatentWire
from research_stack.latentwire.quantize import FSQ
from research_stack.latentwire.reader import FrozenReader
from research_stack.latentwire.stages import StageHandoff
from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, load_checkpoint
from research_stack.training.loggers import JsonlLogger, RowBeforeCheckpoint
from research_stack.training.optimization import Optimization

THREE = [
    {"share": 0.3, "num_latents": 7, "losses": {"kd": 1.0, "answer": 0.0, "first": 0.0}},
    {"share": 0.3, "num_latents": 5, "losses": {"kd": 0.5}},
    {"share": 0.4, "num_latents": 4},
]
LOSSES = {"first": 0.5, "answer": 1.0, "kd": 0.0}


def laws(stages, total, steps):
    made = Curriculum(stages).bind(LOSSES, 8, 2)
    return [
        (made.stage_index(step, total), made.num_latents(step, total, 8), made.weights(step, total, LOSSES))
        for step in steps
    ]


# ------------------------------------------------------------------------------------------------------ the law
def test_stages_by_step():
    found = laws(THREE, 10, range(10))
    assert [number for number, _, _ in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [num_latents for _, num_latents, _ in found] == [7, 7, 7, 5, 5, 5, 4, 4, 4, 4]
    assert (
        found[2][2] == {"first": 0.0, "answer": 0.0, "kd": 1.0}
        and found[3][2] == {"first": 0.5, "answer": 1.0, "kd": 0.5}
        and found[6][2] == LOSSES
    )
    assert list(found[0][2]) == list(LOSSES)  # in the order of the parts
    assert laws(THREE, 10, [None, 10, 99]) == [found[9]] * 3
    assert Curriculum(THREE).ends(10) == [3, 6, 10] and Curriculum(THREE).ends(1000) == [300, 600, 1000]
    assert Curriculum(THREE).uses("kd") and not Curriculum(THREE).uses("first")


def test_every_step_is_in_one_stage_whatever_the_rounding():
    made = Curriculum([{"share": 1 / 7}] * 7)
    for total in range(7, 60):
        ends = made.ends(total)
        assert ends == sorted(set(ends)) and ends[-1] == total
        assert [made.stage_index(step, total) for step in range(total)] == [
            sum(step >= end for end in ends) for step in range(total)
        ]


def test_without_stages_nothing_changes():
    none = Curriculum(None).bind(LOSSES, 8, 2)
    assert (
        len(none) == 0
        and none.num_latents(3, 10, 8) == 8
        and none.weights(3, 10, LOSSES) == LOSSES
        and none.ends(10) == []
        and not none.uses("kd")
    )


@pytest.mark.parametrize(
    "stages, message",
    [
        ([{"share": 0.5}], r"^stages=\[0.5\] must have shares that add up to 1, not 0.5$"),
        ([{"share": 0.0}], r"^stages\.0\.share=0.0 must lie in \(0, 1\]$"),
        ([{"num_latents": 3}], r"^stages\.0\.share must be given$"),
        (
            [{"share": 1.0, "num_latent": 3}],
            r"^stages\.0\.num_latent is no key of a stage; did you mean 'num_latents'\?$",
        ),
        ([{"share": 1.0, "losses": {"kdd": 1.0}}], r"^stages\.0\.losses\.kdd is no loss; did you mean 'kd'\?$"),
        ([{"share": 1.0, "losses": {"kd": -1.0}}], r"^stages\.0\.losses\.kd=-1.0 must not be negative$"),
        (
            [{"share": 0.5, "num_latents": 8}, {"share": 0.5, "num_latents": 2}],
            r"^stages\.1\.num_latents=2 must be more than num_private=2 and at most num_latents=8$",
        ),
        (
            [{"share": 1.0, "num_latents": 9}],
            r"^stages\.0\.num_latents=9 must be more than num_private=2 and at most num_latents=8$",
        ),
        (
            [{"share": 1.0, "losses": {"first": 0.0, "answer": 0.0}}],
            r"^stages\.0\.losses=.* must leave a loss with a weight above 0$",
        ),
    ],
)
def test_stages_that_cannot_be_are_one_line(stages, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(stages).bind(LOSSES, 8, 2)


def test_a_stage_without_a_step_is_named():
    with pytest.raises(ValueError, match=r"^stages\.1\.share=0.01 is less than one of trainer\.max_steps=20$"):
        Curriculum([{"share": 0.5}, {"share": 0.01}, {"share": 0.49}]).ends(20)


def test_a_stage_of_a_config_is_checked_before_anything_is_built():
    node = {"_target_": "research_stack.latentwire.curriculum.Stage", "share": 1.5}
    assert [p.message for p in check_node("method.stages.0", node)] == ["method.stages.0.share=1.5 must lie in (0, 1]"]


# ------------------------------------------------------------------------------------------------------ the runs
@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def questions():
    return facts()


class Watched(LatentWire):
    """Keeps the loss of each step, and the latents of each validation batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.validated.add(self._now.num_latents)


def wire(places, data, stages):
    losses = {"first": FirstToken(0.5), "answer": AnswerTokens(), "kd": KD(0.0, hard_weight=1.0), "rms": RawRMS(0.0)}
    method = Watched(
        ByteEncoder(dim=16, layers=1, heads=2, grams=[2], buckets=32, max_length=256),
        FSQ(16),
        {n: FrozenReader(p, max_answer_tokens=4) for n, p in places.items()},
        losses,
        data.questions,
        Optimization(lr=0.01, optimizer="muon", warmup_steps=2),
        1,
        num_latents=8,
        num_private=2,
        latent_dim=4,
        loss_tokens=3,
        pooling_heads=2,
        adapter_dim=16,
        adapter_heads=2,
        stages=stages,
        lr_factors={"adapter": 2.0},
    )
    method.seen, method.validated = [], set()
    return method


def fit(places, data, folder, stop=10, resume=False, stages=THREE):
    """Ten steps, or killed behind `stop`; last.ckpt at 2, 4, ...; validation at 5 and 10."""
    last = folder / "checkpoints" / "last.ckpt"
    data.start_step = start = load_checkpoint(last)["global_step"] if resume else 0
    method, logger = wire(places, data, stages), JsonlLogger(folder, start_step=start)
    trainer = lightning.Trainer(
        max_steps=10,
        accelerator="cpu",
        logger=[logger],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=[
            RowBeforeCheckpoint(logger),
            StageHandoff(),
            Checkpoints(every=2, monitor="val/loss_answer"),
            Killed(stop),
        ],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
    )
    with pytest.raises(EOFError) if stop < 10 else contextlib.nullcontext():
        trainer.fit(method, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
    return method


class Killed(lightning.Callback):
    """Ends the run before it makes the step behind this one."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *arguments):
        if trainer.global_step == self.step:
            raise EOFError("killed")


def rows_of(folder):
    return [
        {k: v for k, v in json.loads(line).items() if k != "time"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(places, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fit(places, questions, folder), folder


def test_slots_and_weights_of_each_step(whole):
    method, folder = whole
    rows = rows_of(folder)
    assert [row["train/num_latents"] for row in rows] == [7, 7, 7, 5, 5, 5, 4, 4, 4, 4]
    assert list(method.losses) == ["first", "answer", "kd"]  # no stage uses the other
    for row, (_, _, weights) in zip(rows, laws(THREE, 10, range(10)), strict=True):
        assert row["train/loss"] == pytest.approx(
            sum(weight * row[f"train/loss_{name}"] for name, weight in weights.items()), rel=1e-5
        )
    assert all(row["train/loss_kd"] > 0 for row in rows) and method.final_num_latents == 4


def test_validation_is_always_that_of_the_last_stage(whole):
    method, folder = whole
    assert method.validated == {4}
    for row in (rows_of(folder)[4], rows_of(folder)[9]):
        assert row["val/loss"] == pytest.approx(0.5 * row["val/loss_first"] + row["val/loss_answer"], rel=1e-5)


def test_what_is_sent_unasked_is_what_the_last_stage_trained(whole, questions):
    method, _ = whole
    contexts = [questions.questions[0].context]
    assert (
        method.eval().encode(contexts, "llama")
        == method.encode(contexts, "llama", num_latents=4)
        != method.encode(contexts, "llama", num_latents=8)
    )
    assert method.decode(method.encode(contexts, "llama"), "llama").latents_BMd.shape == (1, 4, 4)


def test_each_stage_leaves_a_checkpoint_and_its_numbers(whole):
    _, folder = whole
    rows = rows_of(folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "stage-1.ckpt",
        "stage-2.ckpt",
        "stage-3.ckpt",
    ]
    for number, (start, end, num_latents) in enumerate([(0, 3, 7), (3, 6, 5), (6, 10, 4)], 1):
        assert load_checkpoint(folder / "checkpoints" / f"stage-{number}.ckpt")["global_step"] == end
        kept = json.loads((folder / "stages" / f"{number}.json").read_text())
        weights = laws(THREE, 10, [start])[0][2]
        assert (kept["stage"], kept["steps"], kept["num_latents"], kept["weights"]) == (
            number,
            [start, end],
            num_latents,
            weights,
        )
        assert kept["next"] == (
            None if end == 10 else {"num_latents": [7, 5, 4][number], "weights": laws(THREE, 10, [end])[0][2]}
        )
        assert kept["metrics"]["train/loss"] == rows[end - 1]["train/loss"]
        assert (
            kept["metrics"].get("val/loss_answer")
            == {3: None, 6: rows[4].get("val/loss_answer"), 10: rows[9].get("val/loss_answer")}[end]
        )
    assert rows[4]["val/loss_answer"] != rows[9]["val/loss_answer"]


@pytest.mark.parametrize(
    "stop, last", [(3, 2), (6, 6)]
)  # behind the end of a stage that last.ckpt does not reach, and at one that it does
def test_a_resume_inside_a_stage_and_across_its_end_changes_no_number(whole, places, questions, tmp_path, stop, last):
    method, folder = whole
    first = fit(places, questions, tmp_path, stop=stop)
    assert len(first.seen) == stop and load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == last
    second = fit(places, questions, tmp_path, resume=True)
    assert first.seen[:last] + second.seen == method.seen and rows_of(tmp_path) == rows_of(folder)
    for one, other in zip(second.state_dict().values(), method.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for number in (1, 2, 3):
        assert json.loads((tmp_path / "stages" / f"{number}.json").read_text()) == json.loads(
            (folder / "stages" / f"{number}.json").read_text()
        )


def test_optimizer_groups_hold_each_trained_parameter_once_with_its_factor(whole):
    method, _ = whole
    names = {id(p): name for name, p in method.named_parameters()}
    found = {
        names[id(p)]: (group["name"], group["initial_lr"])
        for group in method.trainer.optimizers[0].param_groups
        for p in group["params"]
    }
    assert sorted(found) == sorted(name for name, p in method.named_parameters() if p.requires_grad)
    assert sum(len(group["params"]) for group in method.trainer.optimizers[0].param_groups) == len(found)
    for name, (group, lr) in found.items():
        part = name.split(".")[0]
        pooling = ("gates" if name.endswith("gate_M1") else "encoder", 0.01)
        assert (group, lr) == {
            "model": ("encoder", 0.01),
            "pooling": pooling,
            "adapters": (f"adapter.{name.split('.')[1]}", 0.02),
        }[part]


def test_a_factor_of_something_else_is_refused(places, questions):
    with pytest.raises(ValueError, match=r"^lr_factors=\{'lora': 2.0\} must be of encoder and adapter alone$"):
        LatentWire(
            ByteEncoder(dim=8, layers=1, heads=2, grams=[], max_length=64),
            FSQ(16),
            {"a": None},
            {},
            [],
            Optimization(),
            1,
            lr_factors={"lora": 2.0},
        )


def test_the_stages_are_told(places, questions, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fit(places, questions, tmp_path, stop=3)
    prefill_text = [r.getMessage() for r in caplog.records if r.getMessage().startswith("stage ")]
    assert prefill_text == [
        "stage 1 of 3: steps 1 to 3, 7 latents, kd 1",
        "stage 2 of 3: steps 4 to 6, 5 latents, first 0.5, answer 1, kd 0.5",
        "stage 3 of 3: steps 7 to 10, 4 latents, first 0.5, answer 1",
        "stage 1 of 3 ends at step 3 (7 latents, kd 1); next 5 latents, first 0.5, answer 1, kd 0.5",
    ]


def test_a_stage_without_a_step_stops_the_run_before_it_starts(places, questions, tmp_path):
    with pytest.raises(ValueError, match=r"^method\.stages\.0\.share=0.01 is less than one of trainer\.max_steps=10$"):
        fit(places, questions, tmp_path, stages=[{"share": 0.01}, {"share": 0.99}])


# ------------------------------------------------------------------------------------------------------ the experiment
def test_the_experiment_composes_and_is_checked():
    composer = Composer()
    _, points = composer.points(["experiment=latentwire_curriculum"])
    from hydra.types import RunMode

    composed = composer.compose(points[0], RunMode.RUN)
    preflight([composed], composer)
    method = composed.cfg.method
    assert [(stage.num_latents, stage.losses.answer > 0) for stage in method.stages] == [
        (64, False),
        (48, True),
        (32, True),
    ]
    assert (
        composed.cfg.optimization.schedule == "cosine"
        and composed.cfg.callbacks.checkpoints.monitor == "val/loss_answer"
    )


def test_the_experiment_runs_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readers = [
        f"method.readers.a.path={llama(tmp_path / 'a', **ROOM)}",
        f"method.readers.b.path={qwen(tmp_path / 'b', **ROOM)}",
    ]
    small = [
        "data.sources.qa_facts.bytes=null",
        "data.sources.qa_facts.contexts=40",
        "data.batch_size=4",
        "model.dim=16",
        "model.layers=1",
        "model.heads=2",
        "method.adapter_dim=16",
        "method.pooling_heads=2",
        "method.features.deep_prefix.texts=4",
        "trainer.max_steps=6",
        "trainer.val_check_interval=3",
        "trainer.limit_val_batches=1",
        "hardware.threads=1",
        "hardware.precision=32",
        "eval=none",
    ]
    cfg = compose(["experiment=latentwire_curriculum", "method/readers=pretrained", *readers, *small])
    result = run(cfg, tmp_path / "run")
    assert result.status == "ok" and result.steps == 6
    kept = [json.loads((tmp_path / "run" / "stages" / f"{n}.json").read_text()) for n in (1, 2, 3)]
    assert [(row["steps"], row["num_latents"]) for row in kept] == [([0, 2], 64), ([2, 4], 48), ([4, 6], 32)]
    assert set(json.loads((tmp_path / "run" / "run.json").read_text())["method"]["losses"]["kd"]["teachers"]) == {
        "a",
        "b",
    }
