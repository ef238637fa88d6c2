"""GRPO against its loss written out completion by completion, and everything around it: references, groups, masks,
proofs.
"""

import copy
import itertools
import logging
import math

import numpy as np
import pytest
import torch

from research_stack.backbones.pretrained import LoRA
from research_stack.data.tokenizers import specials_last
from research_stack.posttraining.advantages import RLOO, GroupRelative, SetMarginal
from research_stack.posttraining.grpo import GRPO
from research_stack.posttraining.objectives import PolicyLoss
from research_stack.posttraining.rollout import Rollouts
from research_stack.streams import Draws
from research_stack.training.checkpoint import load_checkpoint
from research_stack.training.module import split_batch
from research_stack.training.optimization import Optimization

VOCAB = specials_last(9)
LONGEST, GROUP = 5, 4
LOSSES = [
    PolicyLoss("grpo"),
    PolicyLoss("dapo", 0.2, 0.28),
    PolicyLoss("dapo", 0.1, delta=1.3),
    PolicyLoss("bnpo", 0.05),
    PolicyLoss("dr_grpo"),
    PolicyLoss("gspo", 0.02, 0.03),
    PolicyLoss("cispo", epsilon_high=1.1),
]
PROMPTS = ([3], [0, 4, 2], [7, 1])


class Vowels:
    """The share of letters that are a, e or i, and a little for the end of the prompt."""

    name = "vowels"
    loss_terms = ()

    def check(self):
        pass

    def __call__(self, prompts, completions):
        return np.array(
            [
                sum(letter in "aei" for letter in text) / max(len(text), 1) + 0.1 * (prompt[-1] == "b")
                for prompt, text in zip(prompts, completions, strict=True)
            ]
        )


class Constant(Vowels):
    """The same for all."""

    def __call__(self, prompts, completions):
        return np.full(len(prompts), 0.25)


def batch(prompts=PROMPTS):
    """Prompts alone, as the data gives them."""
    tokens = torch.tensor([list(prompt) + [VOCAB.pad] * (4 - len(prompt)) for prompt in prompts])
    given = torch.arange(4) < torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return {"tokens": tokens, "eligible": torch.zeros_like(given), "attention_mask": given, "prompt": given}


def plain(**options):
    """AdamW without anything beside it."""
    return Optimization(
        **{
            "lr": 0.01,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "schedule": "constant",
            "clip": None,
            "ema": 0.0,
            **options,
        }
    )


@pytest.fixture
def grpo(backbone, codec, alone):
    """Makes the method on a model whose weights have an effect."""

    def make(
        kind="own", model=None, optimization=None, reward=None, advantage=None, loss=None, rollouts=None, **options
    ):
        return alone(
            GRPO(
                backbone(kind) if model is None else model,
                VOCAB,
                codec,
                optimization or plain(),
                seed=1,
                reward=reward or Vowels(),
                rollouts=rollouts or Rollouts(LONGEST),
                advantage=advantage or GroupRelative(),
                loss=loss or PolicyLoss("dapo"),
                **{"num_generations": GROUP, **options},
            )
        )

    return make


def draws(step=0, total=3):
    return Draws(1, "corruption", step, total=total)


# ------------------------------------------------------------------------------------------ written out, slowly
def naive_advantages(rows, codec, reward, prompts):
    """(r - mean) / (std + 1e-4) within each group, from texts decoded anew."""
    found = []
    for start in range(0, len(rows["tokens"]), GROUP):
        worth = []
        for row in range(start, start + GROUP):
            width, made = int(rows["prompt_length"][row]), int(rows["completion_length"][row])
            ids = rows["tokens"][row].tolist()
            assert ids[:width] in [list(p) for p in prompts]
            worth.append(float(reward([codec.decode(ids[:width])], [codec.decode(ids[width : width + made])])[0]))
        mean = sum(worth) / GROUP
        std = math.sqrt(sum((r - mean) ** 2 for r in worth) / (GROUP - 1))
        found += [(r - mean) / (std + 1e-4) for r in worth]
    return found


def naive_loss(kind, laws, olds, advantages, counted, epsilon, high, delta, references=None, beta=0.0, entropy=0.0):
    """The loss by the papers' formulas. laws: (log-probabilities, entropies) by completion; counted: whether a
    completion carries loss.
    """
    high = epsilon if high is None else high
    sums, lengths = [], []
    for place, ((logp, _), old, A) in enumerate(zip(laws, olds, advantages, strict=True)):
        if not counted[place]:
            sums.append(0.0), lengths.append(0)
            continue
        ratio = (logp - old).exp()
        if kind == "gspo":
            ratio = (logp - old).mean().exp().expand(len(logp))
        total = 0.0
        for t in range(len(logp)):
            if kind == "cispo":
                term = -min(float(ratio[t]), high) * A * logp[t]
            else:
                r = ratio[t] if delta is None else torch.clamp(ratio[t], max=delta)
                term = -torch.minimum(r * A, torch.clamp(ratio[t], 1 - epsilon, 1 + high) * A)
            if references is not None:
                d = references[place][t] - logp[t]
                term = term + beta * (d.exp() - d - 1)
            total = total + term
        sums.append(total), lengths.append(len(logp))
    entropies = sum(H.sum() for (_, H), here in zip(laws, counted, strict=True) if here)
    bonus = entropy * entropies / max(sum(lengths), 1)  # a token mean, whatever the kind
    if kind in ("grpo", "gspo"):
        return sum(s / max(n, 1) for s, n in zip(sums, lengths, strict=True)) / len(sums) - bonus
    return sum(sums) / (len(sums) * LONGEST if kind == "dr_grpo" else sum(lengths)) - bonus


def settings(loss):
    return {"kind": loss.loss_type, "epsilon": loss.epsilon, "high": loss.epsilon_high, "delta": loss.delta}


def logps(laws):
    return [logp.detach() for logp, _ in laws]


def texts(rows):
    return rows["tokens"], rows["prompt_length"], rows["completion_length"]


def whole_loss(method, rows, denominator):
    """As the training step puts it together."""
    return (
        method.loss_sum(rows)
        / denominator.clamp_min(1)
        * torch.tensor(list(method.loss_terms.values()), dtype=torch.float64)
    ).sum()


def shift(model, scale, seed=9):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)


@pytest.mark.exact
def test_loss_and_gradient_are_the_written_out(grpo, naive_laws, codec):
    """Penalty on a reference that is another model, bonus on the entropy, completions of all lengths; after the policy
    has moved, too.
    """
    for temperature, moved, loss in itertools.product((1.0, 0.7), (0.0, 0.03), LOSSES):
        method = grpo(loss=loss, beta=0.3, entropy_coef=0.2, num_iterations=2, rollouts=Rollouts(LONGEST, temperature))
        shift(method.reference, 0.05, seed=4)
        drawn_from = copy.deepcopy(method.model)
        method.prepare(batch(), draws())
        shift(method.model, moved)
        method._trainer.global_step = 1
        rows, denominator = method.prepare(batch(), draws(step=1))
        lengths = rows["completion_length"].tolist()
        assert (
            len(set(lengths)) >= 3
            and len(set(rows["prompt_length"].tolist())) == 3
            and {True, False} == set(rows["terminated"].tolist())
        )
        laws, reference = (naive_laws(model, *texts(rows), temperature) for model in (method.model, method.reference))
        olds = logps(naive_laws(drawn_from, *texts(rows), temperature))
        advantages = naive_advantages(rows, codec, Vowels(), PROMPTS)
        wanted = naive_loss(
            laws=laws,
            olds=olds,
            advantages=advantages,
            counted=[True] * 12,
            references=logps(reference),
            beta=0.3,
            entropy=0.2,
            **settings(loss),
        )
        found, parameters = whole_loss(method, rows, denominator), list(method.trainable_parameters().values())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        for ours, theirs in zip(
            torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
        ):
            assert theirs.abs().max() > 1e-5
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        clipped = float(method._sums["clip_ratio"]) / sum(lengths)
        assert (clipped == 0) == (moved == 0) and clipped < 1
        assert float(method._sums["kl"]) / sum(lengths) == pytest.approx(
            float(
                sum((q - p).expm1().sum() - (q - p).sum() for p, q in zip(logps(laws), logps(reference), strict=True))
            )
            / sum(lengths)
        )


@pytest.mark.exact
def test_one_optimizer_step_is_that_of_the_written_out_loss_however_it_is_cut(grpo, naive_laws, codec, fit):
    for pieces, loss in itertools.product((1, 3), LOSSES):
        method = grpo(loss=loss, entropy_coef=0.2, optimization=plain(accumulate=pieces))
        twin = copy.deepcopy(method.model)
        rows, _ = method.prepare(batch(), draws())
        laws = naive_laws(twin, *texts(rows))
        wanted = naive_loss(
            laws=laws,
            olds=logps(laws),
            advantages=naive_advantages(rows, codec, Vowels(), PROMPTS),
            counted=[True] * 12,
            entropy=0.2,
            **settings(loss),
        )
        optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
        wanted.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
        optimizer.step()
        (logged,) = fit(method, [batch()])
        for ours, theirs in zip(method.model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        assert logged["train/loss"] == pytest.approx(float(wanted), abs=1e-6) and logged[
            "train/grad_norm"
        ] == pytest.approx(norm, rel=1e-5)
        assert logged["train/clip_ratio"] == 0
        assert logged["train/loss"] == pytest.approx(
            logged["train/loss_policy"] - 0.2 * logged["train/loss_entropy"], abs=1e-6
        )


@pytest.mark.exact
def test_no_part_of_a_loss_depends_on_the_pieces_and_the_entropy_is_the_mean_over_tokens(grpo):
    """After the policy has moved, so that ratios are clipped; in float64."""
    for loss in LOSSES:
        method = grpo(loss=loss, entropy_coef=0.2, beta=0.3, num_iterations=2)
        method.prepare(batch(), draws())
        shift(method.model, 0.05)
        method._trainer.global_step = 1
        rows, denominator = method.prepare(batch(), draws(step=1))
        parameters, found = list(method.trainable_parameters().values()), {}
        for pieces in (1, 2, 4):
            means, gradients = 0.0, [0.0] * len(parameters)
            for piece in split_batch(rows, pieces):
                part = method.loss_sum(piece) / denominator
                weighted = (part * method._term_weights().double()).sum()
                gradients = [g + p for g, p in zip(gradients, torch.autograd.grad(weighted, parameters), strict=True)]
                means = means + part.detach()
            found[pieces] = means, gradients
        for pieces in (2, 4):
            torch.testing.assert_close(found[pieces][0], found[1][0], rtol=0, atol=1e-12)
            torch.testing.assert_close(found[pieces][1], found[1][1], rtol=0, atol=1e-12)
        tokens = rows["completion_length"].sum()
        entropy = method._logps(rows).entropy_BT.detach().sum() / tokens
        assert float(found[1][0][2]) == pytest.approx(float(entropy), abs=1e-12)


@pytest.mark.exact
def test_passes_and_minibatches_follow_the_written_out_steps(grpo, naive_laws, codec, fit):
    """Two passes of two steps each over the completions of a batch, two batches: the old law is that of the policy that
    drew them.
    """
    loss = PolicyLoss("dapo", 0.2)
    method = grpo(loss=loss, num_iterations=2, num_mini_batches=2, beta=0.5, rollouts=Rollouts(LONGEST))
    assert method.steps_per_batch == 4
    twin, reference = copy.deepcopy(method.model), copy.deepcopy(method.model)
    sampler = grpo(model=copy.deepcopy(twin))
    optimizer, firsts, wanted_losses = (
        torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
        [],
        [],
    )
    prompts = [PROMPTS, ([5, 5], [2], [8, 0, 1])]
    for number, asked in enumerate(prompts):
        sampler.model.load_state_dict(twin.state_dict())
        rows = sampler.experience(batch(asked), draws(step=4 * number))
        olds, references = (logps(naive_laws(model, *texts(rows))) for model in (twin, reference))
        advantages = naive_advantages(rows, codec, Vowels(), asked)
        for turn in range(4):
            part = slice(6 * (turn % 2), 6 * (turn % 2) + 6)
            laws = naive_laws(twin, *(tensor[part] for tensor in texts(rows)))
            value = naive_loss(
                laws=laws,
                olds=olds[part],
                advantages=advantages[part],
                counted=[True] * 6,
                references=references[part],
                beta=0.5,
                **settings(loss),
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            wanted_losses.append(float(value.detach()))
        firsts.append(number * 4)
    logged = fit(method, [batch(prompts[step // 4]) for step in range(8)])
    assert [row["train/loss"] for row in logged] == pytest.approx(wanted_losses, rel=1e-4, abs=1e-6)
    for ours, theirs in zip(method.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    for step, row in enumerate(logged):
        assert (row["train/clip_ratio"] == 0) == (step in firsts), step
    assert logged[0]["train/kl"] < 1e-20 < logged[1]["train/kl"]


def test_the_ratio_is_one_at_the_first_step_although_the_old_law_was_read_apart(grpo):
    method = grpo(num_iterations=3, num_mini_batches=3)
    rows, _ = method.prepare(batch(), draws())
    assert len(rows["tokens"]) == 4 and rows["old_logp"].shape[1] >= int(rows["completion_length"].max())
    scores = method._logps(rows)
    torch.testing.assert_close(
        scores.logp_BT, rows["old_logp"][:, : scores.logp_BT.shape[1]] * scores.mask_BT, rtol=0, atol=1e-12
    )


def test_minibatches_cover_every_completion_once(grpo):
    method = grpo(num_mini_batches=5)
    seen = []
    for step in range(5):
        method._trainer.global_step = step
        seen.append(method.prepare(batch(), draws(step))[0]["tokens"])
    assert torch.equal(torch.cat(seen), method.rows["tokens"]) and [len(part) for part in seen] == [2, 2, 3, 2, 3]
    assert method.rows["mini_batch"].diff().min() == 0


# ------------------------------------------------------------------------------------------------ the groups
class Decided(Vowels):
    """Told apart within the groups of some prompts only."""

    def __init__(self, differing):
        self.differing = differing

    def __call__(self, prompts, completions):
        return np.array(
            [place % GROUP if prompt in self.differing else 0.5 for place, prompt in enumerate(prompts)], dtype=float
        )


def test_groups_of_equal_rewards_give_way_to_spare_prompts(grpo):
    """Six prompts, two groups: those that tell nothing are replaced, in the order of the prompts, as long as there are
    spare ones.
    """
    for differing, kept in (
        ("cef", [2, 4]),
        ("ab", [0, 1]),
        ("af", [0, 5]),
        ("d", [3, 1]),
        ("", [0, 1]),
        ("b", [0, 1]),
        ("bcdef", [2, 1]),
    ):
        prompts, method = [[token] for token in range(6)], grpo(reward=Decided(differing), num_groups=2)
        everything = grpo(reward=Decided("abcdef"))
        rows, all_rows = (
            method.experience(batch(prompts), draws(total=6)),
            everything.experience(batch(prompts), draws(total=6)),
        )
        assert rows["tokens"][::GROUP, 0].tolist() == kept
        for place, prompt in enumerate(kept):  # with the very completions that this prompt gets anyway
            ours, theirs = slice(place * GROUP, (place + 1) * GROUP), slice(prompt * GROUP, (prompt + 1) * GROUP)
            columns = min(rows["tokens"].shape[1], all_rows["tokens"].shape[1])
            assert torch.equal(rows["tokens"][ours, :columns], all_rows["tokens"][theirs, :columns])
            assert torch.equal(rows["completion_length"][ours], all_rows["completion_length"][theirs]) and torch.equal(
                rows["terminated"][ours], all_rows["terminated"][theirs]
            )
            assert bool(rows["advantage"][ours].any()) == ("abcdef"[prompt] in differing)
        assert float(method._numbers["frac_reward_zero_std"]) == np.mean(
            ["abcdef"[prompt] not in differing for prompt in kept]
        )


def test_replaced_groups_of_other_widths_are_scored_right(grpo, naive_laws):
    method = grpo(reward=Decided({"iba"}), num_groups=2)
    rows, _ = method.prepare(batch(([3], [4], [8, 1, 0])), draws())
    assert rows["prompt_length"].tolist() == [3] * 4 + [1] * 4
    wanted = naive_laws(method.model, *texts(rows))
    for row, (logp, _) in enumerate(wanted):
        torch.testing.assert_close(method._logps(rows).logp_BT[row, : len(logp)], logp, rtol=0, atol=1e-12)


def test_equal_rewards_warn_have_no_gradient_and_move_nothing(grpo, fit, caplog):
    method = grpo(reward=Constant())
    before = copy.deepcopy(method.model.state_dict())
    with caplog.at_level(logging.WARNING):
        logged = fit(method, [batch()] * 22)
    assert [r.message.partition(";")[0] for r in caplog.records if "equal rewards" in r.message] == [
        f"step {step}: in all 3 groups the answers have equal rewards (mean reward 0.25), so that there is nothing to"
        " learn from"
        for step in (0, 20)
    ]
    assert all(
        row["train/grad_norm"] == row["train/loss"] == 0 and row["train/frac_reward_zero_std"] == 1 for row in logged
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())


def test_equal_rewards_still_serve_an_advantage_of_diversity(grpo, caplog):
    method = grpo(reward=Constant(), advantage=SetMarginal("polychromic", 2), rollouts=Rollouts(1), num_generations=8)
    with caplog.at_level(logging.WARNING):
        rows = method.experience(batch(), draws())
    assert rows["advantage"].any() and not caplog.records


def test_sampled_subsets_and_distances_have_what_they_need(grpo):
    class Lengths:
        def embed(self, texts):
            angles = np.array([len(text) for text in texts], dtype=float)
            return np.stack([np.cos(angles), np.sin(angles)], 1)

    sampled = grpo(advantage=SetMarginal("polychromic", 2, num_subsets=6)).experience(batch(), draws())
    assert torch.equal(
        sampled["advantage"],
        grpo(advantage=SetMarginal("polychromic", 2, num_subsets=6)).experience(batch(), draws())["advantage"],
    )
    rows = grpo(advantage=SetMarginal("diversity", 2, diversity="distance"), encoder=Lengths()).experience(
        batch(), draws()
    )
    letters = (rows["completion_length"] - rows["terminated"].long()).double().view(3, GROUP)
    distance = 1 - (letters[:, :, None] - letters[:, None]).cos()
    mine, mean = distance.sum(2) / (GROUP - 1), distance.sum((1, 2)) / (GROUP * (GROUP - 1))
    torch.testing.assert_close(rows["advantage"].view(3, GROUP).double(), mine - mean[:, None], rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError,
        match="^encoder=null must be a sentence encoder: advantage=SetMarginal asks how far answers are apart",
    ):
        grpo(advantage=SetMarginal("diversity", 2, diversity="distance"))


# ------------------------------------------------------------------------------------------- truncated answers
@pytest.mark.exact
def test_truncated_completions_carry_no_loss(grpo, naive_laws, codec):
    """They stay in the count of completions, and in their group's mean."""
    for loss in LOSSES:
        method = grpo(loss=loss, mask_truncated_completions=True, beta=0.3, entropy_coef=0.2)
        shift(method.reference, 0.05)
        rows, denominator = method.prepare(batch(), draws())
        assert 0 < int(rows["terminated"].sum()) < 12
        laws, references = (naive_laws(model, *texts(rows)) for model in (method.model, method.reference))
        wanted = naive_loss(
            laws=laws,
            olds=logps(laws),
            advantages=naive_advantages(rows, codec, Vowels(), PROMPTS),
            counted=rows["terminated"].tolist(),
            references=logps(references),
            beta=0.3,
            entropy=0.2,
            **settings(loss),
        )
        found, parameters = whole_loss(method, rows, denominator), list(method.trainable_parameters().values())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        for ours, theirs in zip(
            torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_nothing_but_truncated_completions_is_no_loss_and_no_false_alarm(grpo, fit):
    for loss in LOSSES:
        method = grpo(loss=loss, mask_truncated_completions=True, beta=0.3, entropy_coef=0.2)
        with torch.no_grad():
            method.bias_V[VOCAB.end] = -torch.inf  # no completion ends
        logged = fit(method, [batch()] * 2)
        assert all(
            row["train/loss"] == row["train/grad_norm"] == row["train/entropy"] == 0 and row["train/truncated"] == 1
            for row in logged
        )


# ------------------------------------------------------------------------------------------------- references
def test_a_copy_stays_what_the_policy_was(grpo, fit):
    method = grpo(beta=0.1)
    begun = copy.deepcopy(method.model.state_dict())
    logged = fit(method, [batch()] * 3)
    assert all(torch.equal(tensor, begun[name]) for name, tensor in method.reference.state_dict().items())
    assert not torch.equal(method.model.norm.weight, begun["norm.weight"])
    assert logged[0]["train/kl"] == 0 < logged[1]["train/kl"] and logged[0]["train/loss_kl"] == 0
    assert not any(name.startswith("reference") for name in method.trainable_parameters())
    method.train()
    assert (
        method.training and method.model.training and not any(module.training for module in method.reference.modules())
    )


def test_without_a_penalty_no_reference_is_kept(grpo):
    assert grpo().reference is None and not any(name.startswith("reference") for name in grpo().state_dict())


@pytest.mark.exact
def test_the_reference_follows_every_so_many_steps(grpo, fit):
    for mix in (1.0, 0.25):
        method = grpo(beta=0.1, ref_model_sync_steps=2, ref_model_mixup_alpha=mix)
        theirs, ours = [], []
        update = method.after_update

        def watched():
            found = update()
            theirs.append(method.reference.norm.weight.clone())
            ours.append(method.model.norm.weight.detach().clone())
            return found

        begun = method.model.norm.weight.detach().clone()
        method.after_update = watched
        fit(method, [batch()] * 4)
        assert torch.equal(theirs[0], begun) and torch.equal(theirs[2], theirs[1])
        torch.testing.assert_close(theirs[1], begun + mix * (ours[1] - begun), rtol=0, atol=1e-12)
        torch.testing.assert_close(theirs[3], theirs[1] + mix * (ours[3] - theirs[1]), rtol=0, atol=1e-12)
        assert mix < 1 or torch.equal(theirs[3], ours[3])


def test_the_reference_begins_as_the_policy_of_another_run(grpo, backbone, completions):
    for lora in (None, LoRA(rank=2)):
        first, method = (
            grpo(model=backbone("pretrained", lora=lora)),
            grpo(model=backbone("pretrained", fresh=True, lora=lora).double(), beta=0.1),
        )
        assert not torch.equal(
            first.completion_logps(*completions()).logp_BT, method.completion_logps(*completions()).logp_BT
        )
        method.load_initial_weights(first.state_dict())
        wanted = first.completion_logps(*completions()).logp_BT
        assert torch.equal(method.completion_logps(*completions()).logp_BT, wanted) and torch.equal(
            method.completion_logps(*completions(), model=method.reference).logp_BT, wanted
        )


def test_adapters_alone_are_trained_against_the_model_without_them(grpo, backbone, fit, naive_laws):
    model = backbone("pretrained", fresh=True, lora=LoRA(rank=2, dropout=0.3), checkpoint_blocks=True)
    method = grpo(model=model, beta=0.5, reference="adapters", num_iterations=2)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert method.reference is None and all("lora" in name for name in method.trainable_parameters())
    bare = copy.deepcopy(model)
    logged = fit(method, [batch()] * 6)
    assert logged[0]["train/kl"] < 0.05 and logged[-1]["train/kl"] > 0
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert any(bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name)
    method._trainer = None
    with method.eval_mode():
        rows = {name: tensor[:4] for name, tensor in method.rows.items()}
        with model.without_adapters():
            without = method._logps(rows).logp_BT
        torch.testing.assert_close(
            without, method.completion_logps(*texts(rows), model=bare.eval()).logp_BT, rtol=0, atol=1e-5
        )


def test_a_reference_that_is_not_the_policy_is_refused_at_the_first_step(grpo, backbone, fit):
    changed = grpo(beta=0.1)
    shift(changed.reference, 0.01)
    trained_before = grpo(
        model=backbone("pretrained", lora=LoRA(rank=2)), beta=0.1, reference="adapters"
    )  # adapters that are not zero
    for method, kind in ((changed, "copy"), (trained_before, "adapters")):
        with pytest.raises(
            ValueError,
            match=(
                rf"^reference={kind}: at the first step the reference must be the policy, and a token's k3 is [^\n]*;"
                r" reference=copy is the policy"
            ),
        ):
            fit(method, [batch()])


def test_rounding_and_dropout_make_no_other_model_of_the_reference(grpo, backbone, fit):
    """The policy is compared without dropout, in the pass that the reference gets, whatever pieces it learns in."""
    for precision in ("32-true", "bf16-mixed"):
        model = backbone(dropout=0.4).float()
        with torch.no_grad():
            model.embedding.weight.mul_(6)  # logits that bf16 rounds coarsely
        logged = fit(
            grpo(model=model, beta=0.1, num_mini_batches=3, optimization=plain(accumulate=2)),
            [batch()] * 3,
            precision=precision,
        )
        assert all(math.isfinite(row["train/loss"]) for row in logged)


def test_what_cannot_be_is_refused(grpo, backbone):
    with pytest.raises(
        ValueError, match="^reference=adapters needs adapters, and lora=null: the model has no adapters"
    ):
        grpo("pretrained", reference="adapters", beta=0.1)
    for options, message in (
        (
            {"reference": "adapters", "beta": 0.1},
            "reference=adapters needs adapters, and model=Transformer has none; use reference=copy",
        ),
        ({"reference": "none", "beta": 0.1}, "beta=0.1 needs a reference: reference=copy or adapters"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"num_groups": 0}, "num_groups=0 must be at least 1, or null"),
        ({"beta": -1.0}, "beta=-1.0 must be at least 0"),
        ({"ref_model_sync_steps": -1}, "ref_model_sync_steps=-1 must be at least 0"),
        ({"ref_model_sync_steps": 2, "reference": "none"}, "ref_model_sync_steps=2 needs reference=copy"),
        ({"ref_model_mixup_alpha": 0.0}, r"ref_model_mixup_alpha=0.0 must lie in \(0, 1\]"),
        *(
            ({name: 10**18}, f"{name}={10**18} must be at most")
            for name in ("num_generations", "num_groups", "num_mini_batches")
        ),
        ({"num_iterations": 10**18}, f"num_iterations={10**18} must be at most 10,000"),
        *(({name: math.nan}, f"{name}=nan must be at least 0") for name in ("beta", "entropy_coef")),
        ({"beta": math.inf}, "beta=inf must be at most 1000"),
        ({"entropy_coef": -0.1}, "entropy_coef=-0.1 must be at least 0"),
        ({"entropy_coef": math.inf}, "entropy_coef=inf must be at least 0 and at most 1000"),
        ({"num_iterations": 0}, "num_iterations=0 must be at least 1"),
        ({"num_mini_batches": 0}, "num_mini_batches=0 must be at least 1"),
        ({"advantage": SetMarginal("mean", 4)}, "size=4 must be less than num_generations=4"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            grpo(**options)


# ----------------------------------------------------------------------------------------- the first step's proofs
class Deaf(GRPO):
    """Its entropies have lost their graph."""

    def _logps(self, rows, model=None):
        found = super()._logps(rows, model)
        return found._replace(entropy_BT=found.entropy_BT.detach())


def test_a_term_without_a_gradient_stops_the_run(grpo, fit):
    method = grpo(entropy_coef=0.1)
    method.__class__ = Deaf
    with pytest.raises(
        ValueError, match="^loss_entropy has a gradient of exactly zero at the first step: it would train nothing$"
    ):
        fit(method, [batch()])


def test_a_model_without_trained_parameters_stops_the_run(grpo, fit):
    method = grpo()
    method.model.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^model: no parameter is trained; unfreeze some, or put adapters on it \(model.lora\)$"
    ):
        fit(method, [batch()])


def test_parameters_that_nothing_reaches_stop_the_run(grpo, fit):
    """Adapters that hang beside the model."""
    method = grpo()
    method.model.requires_grad_(False)
    method.model.adapter = torch.nn.Linear(3, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError,
        match=(
            r"^loss_policy reaches none of the 2 trained parameters \(the first is model.adapter.weight\): it would"
            r" train nothing$"
        ),
    ):
        fit(method, [batch()])


def test_a_learning_rate_that_moves_nothing_stops_the_run(grpo, fit):
    with pytest.raises(ValueError, match="^optimization.lr=1e-30: the first step has moved no weight$"):
        fit(grpo(optimization=plain(lr=1e-30)), [batch()])


def test_proofs_wait_for_rewards_that_differ(grpo, fit):
    class Late(Vowels):
        """Tells answers apart from the second call on."""

        calls = 0

        def __call__(self, prompts, completions):
            self.calls += 1
            return super().__call__(prompts, completions) if self.calls > 1 else np.zeros(len(prompts))

    logged = fit(grpo(reward=Late()), [batch()] * 2)
    assert logged[0]["train/grad_norm"] == 0 < logged[1]["train/grad_norm"]
    with pytest.raises(ValueError, match="has moved no weight"):
        fit(grpo(reward=Late(), optimization=plain(lr=1e-30)), [batch()] * 2)


# ------------------------------------------------------------------------------------ data, validation, checkpoints
def test_data_that_does_not_fit_is_refused(grpo, backbone, codec, tmp_path):
    from research_stack.data.module import TokenData
    from research_stack.data.sources.expressions import Expressions
    from research_stack.data.tokenizers import Bytes

    data = TokenData(Expressions(high=9, answers=0), Bytes(), 4, batch_size=4, cache_dir=str(tmp_path))
    data.prepare()
    grpo(num_groups=4, num_mini_batches=16).check_data(data)
    for options, message in (
        ({"num_groups": 5}, "method.num_groups=5 must be at most data.batch_size=4"),
        ({"num_mini_batches": 17}, "method.num_mini_batches=17 must be at most the 16 completions"),
        ({"num_groups": 2, "num_mini_batches": 9}, "method.num_mini_batches=9 must be at most the 8 completions"),
        (
            {"rollouts": Rollouts(15)},
            (
                "method.rollouts.max_completion_length=15 behind the longest prompt of 2 tokens exceeds"
                " model.max_length=16; lower it"
                " to 14"
            ),
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            grpo(**options).check_data(data)


@pytest.mark.exact
def test_validation_is_the_mean_reward_and_pass_at_k_of_the_same_draws_each_time(grpo, fit):
    class Starts(Vowels):
        def __call__(self, prompts, completions):
            return np.array([float(text[:1] in "abcd") for text in completions])

    held_out = [batch(), batch(([6], [2, 2]))]
    method = grpo(reward=Starts(), num_generations=8, optimization=plain(lr=1e-12))  # it stays the same policy
    logged = fit(method, [batch()] * 2, validation=held_out)
    worth = []
    for index, part in enumerate(held_out):
        u_PNT = Draws(1, "validation", index, total=len(part["tokens"])).uniform(8, LONGEST)
        worth.append(
            method.generate_and_score(
                [tokens[given] for tokens, given in zip(part["tokens"], part["prompt"], strict=True)], u_PNT
            ).reward_PN
        )
    right = torch.cat(worth).sum(1)
    assert len(right) == 5 and 0 < right.sum() < 40
    seen = logged[1]
    assert seen["val/reward"] == -seen["val/loss"] == pytest.approx(float(right.mean()) / 8, abs=1e-6)
    assert seen["val/pass@1"] == pytest.approx(float(right.mean()) / 8, abs=1e-6) and seen[
        "val/pass@8"
    ] == pytest.approx(float((right > 0).double().mean()), abs=1e-6)
    assert "val/pass@32" not in seen


def same_state(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_a_run_that_stopped_anywhere_goes_on_with_its_completions_and_its_reference(grpo, fit):
    """Three steps on the completions of a batch: they, their laws and what was logged of them are part of the state."""
    for stop in (1, 2, 3, 4, 5):
        options = {
            "beta": 0.2,
            "num_iterations": 3,
            "entropy_coef": 0.01,
            "ref_model_sync_steps": 2,
            "ref_model_mixup_alpha": 0.5,
        }
        whole, batches = grpo(**options), [batch()] * 3 + [batch(([5], [2, 6], [1]))] * 3
        logged = fit(whole, batches)
        first = fit(grpo(**options), batches[:stop])
        again = grpo(**options)
        rest = fit(again, batches[stop:], steps=6, goes_on=True)
        assert first + rest == logged and same_state(again, whole)
        assert not again._had_gradient and again._first_weights is None, "only a new run proves its first step"


def test_completions_are_kept_only_while_they_are_in_use(grpo, fit, tmp_path):
    last = tmp_path / "fit" / "checkpoints" / "last.ckpt"
    fit(grpo(num_iterations=2), [batch()] * 3)
    (kept,) = load_checkpoint(last)["completions"]
    assert (
        set(kept[0])
        == {"tokens", "prompt_length", "completion_length", "terminated", "advantage", "mini_batch", "old_logp"}
        and "reward" in kept[1]
    )
    fit(grpo(num_iterations=2), [batch()] * 4)
    assert "completions" not in load_checkpoint(last)


def test_completions_of_other_devices_are_refused(grpo):
    method = grpo(num_iterations=2)
    with pytest.raises(
        ValueError,
        match="^hardware.devices=1 must be 2: the run stopped between two steps on completions that 2 devices hold$",
    ):
        method.on_load_checkpoint({"completions": [[{}, {}], [{}, {}]]})


def test_the_cost_of_a_step_counts_writing_reading_again_and_learning(grpo):
    base = grpo(num_generations=3).model.flops_per_token(4 + LONGEST) * 3 * (4 + LONGEST) / 4
    assert grpo(num_generations=3).training_flops(4) == pytest.approx(4 * base)
    assert grpo(num_generations=3, beta=0.1).training_flops(4) == pytest.approx(5 * base)
    assert grpo(num_generations=3, num_iterations=2).training_flops(4) == pytest.approx((2 / 2 + 3) * base)
    assert grpo(num_generations=3, num_mini_batches=2).training_flops(4) == pytest.approx((2 / 2 + 3 / 2) * base)


def test_a_policy_learns_what_is_rewarded(grpo, backbone, fit):
    """The leave-one-out gradient lifts the share of vowels."""
    for kind in ("own", "pretrained"):
        logged = fit(
            grpo(
                model=backbone(kind, fresh=True),
                advantage=RLOO(),
                num_generations=16,
                loss=PolicyLoss("dr_grpo"),
                optimization=plain(lr=0.01),
            ),
            [batch()] * 12,
        )
        early, late = (np.mean([row["train/reward"] for row in part]) for part in (logged[:2], logged[-2:]))
        assert late > early + 0.2
