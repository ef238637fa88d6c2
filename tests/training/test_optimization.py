"""The schedule's values, what decays, and Muon and AdamW as one optimizer."""

import copy
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from research_stack.config.check_node import check_node
from research_stack.running.assemble import model_facts
from research_stack.training import machine
from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints, load_checkpoint
from research_stack.training.ema import Ema
from research_stack.training.module import TrainingModule
from research_stack.training.muon import CombinedOptimizer, Muon, hidden_matrices, orthogonal
from research_stack.training.optimization import Optimization


def test_cosine_with_warmup_has_the_values_of_its_formula():
    at = Optimization(warmup_steps=10, schedule="cosine", final_ratio=0.1).factor(110)
    assert at(0) == pytest.approx(0.1)
    assert at(9) == pytest.approx(1.0)
    assert at(10) == pytest.approx(1.0)
    assert at(60) == pytest.approx(0.55)  # half way: (1 + 0.1) / 2
    assert at(110) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_linear():
    at = Optimization(warmup_steps=0, schedule="wsd", decay_share=0.25, final_ratio=0.0).factor(100)
    assert at(0) == at(75) == 1.0
    assert at(85) == pytest.approx(0.6)
    assert at(100) == pytest.approx(0.0)


def test_warmup_below_one_is_a_share_of_the_steps():
    at = Optimization(warmup_steps=0.1, schedule="constant").factor(50)
    assert [at(s) for s in (0, 4, 5)] == pytest.approx([0.2, 1.0, 1.0])


def test_decay_acts_on_matrices_only():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = Optimization(weight_decay=0.1).optimizer(module)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(module[1].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.parameters()))


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_a_dry_run_says_of_the_memory_is_what_a_step_keeps(algorithm, ema):
    module = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 3), nn.LayerNorm(3))
    module[3].bias.requires_grad_(False)
    module.optimization = Optimization(optimizer=algorithm, ema=ema)
    module.optimizer_groups, module.training_flops = lambda: None, lambda length: 1.0
    optimizer = module.optimization.optimizer(module)
    module(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    moments = [
        value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value) and value.ndim
    ]
    kept = [
        *module.parameters(),
        *(p.grad for p in module.parameters() if p.grad is not None),
        *moments,
        *(module.parameters() if ema else ()),
    ]
    facts = model_facts(SimpleNamespace(method=module, data=SimpleNamespace(batch_size=2, sequence_length=3)))
    assert facts["state_bytes"] == sum(value.numel() * value.element_size() for value in kept)
    matrices, others = (
        6 * 5 + 5 * 3,
        7 * 6 + 5 + 3 + 3,
    )  # Muon keeps one average of each matrix, AdamW two of everything
    assert sum(value.numel() for value in moments) == (2 if algorithm == "adamw" else 1) * matrices + 2 * others


@pytest.mark.parametrize("bad", [{"lr": 0}, {"final_ratio": 2}, {"clip": 0}, {"accumulate": 0}, {"ema": 1.0}])
def test_a_bad_value_is_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Optimization(**bad)


def test_the_average_follows_its_recursion():
    from research_stack.training.ema import Ema

    ema, model = Ema(decay=0.5), nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(model, **ema._kwargs, use_buffers=False)
    expected = None
    for step, value in enumerate([4.0, 8.0, 0.0]):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))  # the first update copies
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected)


# Muon -------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """One parameter of every kind: what Muon takes, and what it must leave."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8, bias=False)
        self.tied, self.untied, self.unembedding = (
            nn.Linear(8, 11, bias=False),
            nn.Parameter(torch.randn(11, 8)),
            nn.Linear(8, 11),
        )
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.score, self.from_one, self.convolution = nn.Linear(8, 1), nn.Linear(1, 8), nn.Conv1d(8, 8, 3)

    def get_output_embeddings(self):
        return self.unembedding

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.down(self.norm(self.up(x)).relu()) + self.frozen(x) + self.from_one(self.score(x))
        x = x + self.convolution(x.mT).mean(-1)[:, None]
        return self.tied(x) + x @ self.untied.T + self.unembedding(x)


def learn(net, optimizer, steps, schedulers=()):
    """Steps on batches that are a function of the step."""
    for step in steps:
        ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(net(ids).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()


def same(net, other):
    return all(map(torch.equal, net.parameters(), other.parameters()))


def test_muon_takes_the_hidden_matrices_and_adamw_each_other_parameter_once():
    net = Net()
    optimizer = Optimization(optimizer="muon").optimizer(net)
    muon, adamw = optimizer.parts
    names = {id(p): name for name, p in net.named_parameters()}
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    assert [names[id(p)] for group in muon.param_groups for p in group["params"]] == ["up.weight", "down.weight"]
    everything = sorted(names[id(p)] for group in optimizer.param_groups for p in group["params"])
    assert everything == sorted(name for name, p in net.named_parameters() if p.requires_grad)


def test_muon_decays_what_adamw_decays():
    net = Net()

    def decayed(kind):
        groups = Optimization(optimizer=kind, weight_decay=0.3).optimizer(net).param_groups
        assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
        return {id(p) for group in groups if group["weight_decay"] for p in group["params"]}

    assert decayed("muon") == decayed("adamw") and id(net.up.weight) in decayed("muon")


def test_one_optimizer_is_bit_for_bit_the_two_run_apart():
    together = Net()
    apart = copy.deepcopy(together)
    learn(together, Optimization(lr=0.01, weight_decay=0.2, optimizer="muon").optimizer(together), range(3))
    hidden = [apart.up.weight, apart.down.weight]
    others = [p for p in apart.parameters() if p.requires_grad and all(p is not h for h in hidden)]
    tables = [
        apart.untied,
        apart.unembedding.weight,
        apart.score.weight,
        apart.from_one.weight,
        apart.convolution.weight,
    ]
    groups = [
        {"params": tables, "weight_decay": 0.2},
        {"params": [p for p in others if all(p is not t for t in tables)], "weight_decay": 0.0},
    ]
    muon = Muon(hidden, lr=0.01, weight_decay=0.2)
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)

    class Both:
        def step(self):
            muon.step(), adamw.step()

        def zero_grad(self):
            muon.zero_grad(), adamw.zero_grad()

    learn(apart, Both(), range(3))
    assert same(together, apart)
    assert not torch.equal(together.up.weight, Net().up.weight) and not torch.equal(
        together.norm.weight, Net().norm.weight
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_that_of_torch_but_for_the_dtype_of_its_iteration(dtype):
    own, peer = Net(), Net()
    of_own, of_peer = (
        Muon([own.up.weight, own.down.weight], 0.01, 0.2, dtype),
        torch.optim.Muon([peer.up.weight, peer.down.weight], 0.01, 0.2, adjust_lr_fn="match_rms_adamw"),
    )
    learn(own, of_own, range(3)), learn(peer, of_peer, range(3))
    start = Net()
    for a, b, c in zip(own.parameters(), peer.parameters(), start.parameters(), strict=True):
        assert (
            torch.equal(a, b) if dtype == torch.bfloat16 else (a - b).norm() <= 0.03 * (b - c).norm()
        )  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_the_iteration_is_its_polynomial_of_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    found = orthogonal(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(found, left @ values.diag() @ right)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    ("flags", "dtype"), [("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)]
)
def test_a_cpu_without_products_of_bfloat16_iterates_in_float32(monkeypatch, flags, dtype):
    monkeypatch.setattr(machine, "cpu_flags", lambda: {flags})
    assert Muon([nn.Parameter(torch.zeros(2, 2))], 0.01, 0.0).on_cpu == dtype


@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (128, 32)])
def test_an_update_of_muon_is_as_large_as_one_of_adamw(shape):
    """A fifth of lr in RMS, whatever the shape: 0.2 sqrt(max) lr times an orthogonal matrix; five iterations come
    within a third of one.
    """
    torch.manual_seed(0)
    layer = nn.Linear(*shape, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn_like(layer.weight)
    Optimization(lr=0.01, weight_decay=0.0, optimizer="muon").optimizer(layer).step()
    assert (layer.weight - before).square().mean().sqrt().item() == pytest.approx(0.002, rel=1 / 3)


def test_a_schedule_moves_both():
    net = Net()
    optimizer = Optimization(lr=0.5, optimizer="muon").optimizer(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step == 0 else 0.0)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.25, 0.25, 0.25]
    learn(net, optimizer, [0], [schedule])
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.0, 0.0, 0.0]
    before = copy.deepcopy(net)
    learn(net, optimizer, [1])
    assert same(net, before) and not same(net, Net())


def test_a_save_in_the_middle_changes_no_bit(tmp_path):
    def made(net):
        optimizer = Optimization(lr=0.02, optimizer="muon").optimizer(net)
        return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    whole, optimizer, schedule = made(Net())
    learn(whole, optimizer, range(6), [schedule])
    first, optimizer, schedule = made(Net())
    learn(first, optimizer, range(3), [schedule])
    torch.save([part.state_dict() for part in (first, optimizer, schedule)], tmp_path / "middle.pt")
    second = made(Net())
    for part, state in zip(second, torch.load(tmp_path / "middle.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    second, optimizer, schedule = second
    inner = [group for part in optimizer.parts for group in part.param_groups]
    assert all(a is b for a, b in zip(inner, optimizer.param_groups, strict=True))
    assert all(part.state is optimizer.state for part in optimizer.parts)
    learn(second, optimizer, range(3, 6), [schedule])
    assert same(second, whole) and not same(first, whole)


def test_the_state_is_one_and_counts_each_parameter_once():
    net = Net()
    optimizer = Optimization(optimizer="muon").optimizer(net)
    learn(net, optimizer, [0])
    assert set(optimizer.state[net.up.weight]) == {"momentum_buffer"} and set(optimizer.state[net.untied]) == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert sorted(optimizer.state_dict()["state"]) == list(range(sum(p.requires_grad for p in net.parameters())))


def test_a_closure_is_called_once_with_gradients():
    net, calls = nn.Linear(3, 3), []
    before = net.weight.detach().clone()

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = net(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        loss = Optimization(optimizer="muon").optimizer(net).step(closure)
    assert calls == [True] and loss > 0 and not torch.equal(net.weight, before)


def test_muon_alone_and_with_nothing_to_do():
    assert [type(part) for part in Optimization(optimizer="muon").optimizer(nn.Linear(3, 3, bias=False)).parts] == [
        Muon
    ]
    assert hidden_matrices(nn.Linear(3, 1)) == []
    with pytest.raises(ValueError, match=r"^optimization\.optimizer=muon has no matrix to train"):
        Optimization(optimizer="muon").optimizer(nn.Linear(3, 1))


def test_parts_may_not_share_a_parameter():
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="more than one"):
        CombinedOptimizer(torch.optim.SGD([weight], lr=1), torch.optim.AdamW([weight]))


def test_a_misspelt_optimizer_gets_one_clear_line():
    node = {"_target_": "research_stack.training.optimization.Optimization", "optimizer": "moun"}
    assert [p.message for p in check_node("optimization", node)] == [
        "optimization.optimizer=moun must be one of adamw, muon; did you mean 'muon'?"
    ]


class Small(TrainingModule):
    """Two layers; the loss of each step is kept, and what Lightning has counted after it."""

    def __init__(self, steps):
        super().__init__(Optimization(lr=0.02, optimizer="muon", warmup_steps=2), seed=7)
        torch.manual_seed(0)
        self.layers, self.seen, self.counts, self.steps = (
            nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1)),
            [],
            [],
            steps,
        )

    def prepare(self, batch, draws):
        return {"x": batch["tokens"] + 0.1 * draws.uniform(3)}, torch.tensor(float(len(batch["tokens"])))

    def loss_sum(self, rows):
        return ((self.layers(rows["x"]).squeeze(1) - rows["x"].prod(1)) ** 2).sum()

    def training_step(self, batch, batch_idx):
        self.seen.append(super().training_step(batch, batch_idx).item())
        self.counts.append(self.global_step)

    def fit(self, folder, stop, last=None):
        trainer = lightning.Trainer(
            max_steps=self.steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Checkpoints(every=2), Ema(0.9), Stop(stop)],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        start = load_checkpoint(last)["global_step"] if last else 0
        rows = [
            {"tokens": torch.randn(6, 3, generator=torch.Generator().manual_seed(step))}
            for step in range(start, self.steps)
        ]
        trainer.fit(self, DataLoader(rows, batch_size=None), ckpt_path=last, weights_only=True)
        return trainer.global_step


class Stop(lightning.Callback):
    """Asks for a stop at a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        trainer.should_stop = trainer.global_step == self.step


def test_under_lightning_a_step_counts_once_and_a_resume_changes_no_bit(tmp_path):
    whole, first, second = Small(6), Small(6), Small(6)
    assert whole.fit(tmp_path / "whole", stop=6) == 6 and whole.counts == [1, 2, 3, 4, 5, 6]
    assert first.fit(tmp_path / "cut", stop=3) == 3
    assert second.fit(tmp_path / "cut", stop=6, last=tmp_path / "cut" / "checkpoints" / "last.ckpt") == 6
    assert first.seen + second.seen == whole.seen and second.counts == [4, 5, 6] and same(second, whole)
    saved = load_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 6 and [
        len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]
    ] == [1, 1, 2]
