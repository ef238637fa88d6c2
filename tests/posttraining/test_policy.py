"""What post-training methods share: scores of completions, weights of another run, and the proofs of the first step."""

import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research_stack.backbones.pretrained import LoRA
from research_stack.data.tokenizers import specials_last
from research_stack.posttraining.policy import Policy, require_room_for_completions
from research_stack.training.optimization import Optimization

VOCAB = specials_last(9)
CLOSE = {
    "own": {"rtol": 0, "atol": 1e-12},
    "pretrained": {"rtol": 1e-4, "atol": 1e-5},
}  # Llama's norms and rotations are in float32


class Plain(Policy):
    """Two parts; what they are, each test says."""

    loss_terms = {"policy": 1.0, "entropy": -0.5}


@pytest.fixture
def policy(backbone, alone):
    def make(kind="own", model=None, **options):
        return alone(Plain(model or backbone(kind, **options), VOCAB, Optimization(), seed=1).double())

    return make


# ---------------------------------------------------------------------------------------------------- scores
@pytest.mark.exact
def test_scores_are_the_log_softmax_of_each_text_read_alone(policy, completions, naive_laws):
    for kind, temperature in itertools.product(("own", "pretrained"), (1.0, 0.6)):
        method, texts = policy(kind), completions()
        scores, wanted = method.completion_logps(*texts, temperature), naive_laws(method.model, *texts, temperature)
        assert scores.mask_BT.tolist() == [[place < made for place in range(6)] for made in (4, 6, 1, 3)]
        for row, (logp, entropy) in enumerate(wanted):
            torch.testing.assert_close(scores.logp_BT[row, : len(logp)], logp, **CLOSE[kind])
            torch.testing.assert_close(scores.entropy_BT[row, : len(logp)], entropy, **CLOSE[kind])
            assert not scores.logp_BT[row, len(logp) :].any() and not scores.entropy_BT[row, len(logp) :].any()


@pytest.mark.exact
def test_gradients_of_scores_are_those_of_the_full_forward(policy, completions, naive_laws):
    for kind in ("own", "pretrained"):
        method, texts = policy(kind), completions()
        scores, parameters = method.completion_logps(*texts, 0.8), list(method.trainable_parameters().values())
        up_BT, bend_BT = (
            torch.randn(scores.mask_BT.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
            for s in (1, 2)
        )
        found = torch.autograd.grad((up_BT * scores.logp_BT + bend_BT * scores.entropy_BT).sum(), parameters)
        wanted = sum(
            (up[: len(p)] * p + bend[: len(p)] * h).sum()
            for (p, h), up, bend in zip(naive_laws(method.model, *texts, 0.8), up_BT, bend_BT, strict=True)
        )
        for ours, theirs in zip(found, torch.autograd.grad(wanted, parameters), strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-9 if kind == "own" else 1e-3, atol=1e-10 if kind == "own" else 1e-4
            )
        assert all(bool(grad.any()) for grad in found)


def test_padding_changes_no_score(policy, completions):
    for kind, garbage in itertools.product(("own", "pretrained"), (0, VOCAB.pad, VOCAB.end)):
        method = policy(kind)
        short, long = (
            method.completion_logps(*completions()),
            method.completion_logps(*completions(padding=5, garbage=garbage)),
        )
        torch.testing.assert_close(short.logp_BT, long.logp_BT, **CLOSE[kind])
        torch.testing.assert_close(short.entropy_BT, long.entropy_BT, **CLOSE[kind])
        assert torch.equal(short.mask_BT, long.mask_BT)


@pytest.mark.exact
def test_the_first_token_is_scored_by_the_law_behind_the_prompt_and_all_firsts_add_up_to_one(policy):
    """Its law is over the real tokens and the end; mask and padding have probability 0."""
    method = policy()
    firsts = torch.arange(VOCAB.size)
    tokens = torch.cat([torch.tensor([[2, 5, 1]]).expand(len(firsts), -1), firsts[:, None]], dim=1)
    ones = torch.ones(len(firsts), dtype=torch.int64)
    scores = method.completion_logps(tokens, 3 * ones, ones)
    p = scores.logp_BT[:, 0].exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12) and p[VOCAB.end] > 0
    assert p[VOCAB.mask] == p[VOCAB.pad] == 0
    assert float(scores.entropy_BT[0, 0]) == pytest.approx(
        float(torch.distributions.Categorical(p).entropy()), abs=1e-6
    )
    other = method.completion_logps(tokens.index_fill(1, torch.tensor(2), 4), 3 * ones, ones).logp_BT
    assert (other - scores.logp_BT)[: VOCAB.n_real].abs().max() > 1e-2, "it must hang on the last token of the prompt"


def test_another_model_can_be_asked(policy, backbone, completions):
    method, other, texts = policy(), backbone(seed=8), completions()
    found = method.completion_logps(*texts, model=other)
    assert torch.equal(found.logp_BT, policy(model=other).completion_logps(*texts).logp_BT)
    assert not torch.allclose(found.logp_BT, method.completion_logps(*texts).logp_BT)


def test_scores_in_bf16_are_float32_and_near(policy, backbone, completions):
    for precision in ("bf16", "weights"):
        method, texts = policy(model=backbone().float()), completions()
        wanted = method.float().completion_logps(*texts)
        if precision == "weights":
            method.model.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            found = method.completion_logps(*texts)
        found.logp_BT.sum().backward()
        assert found.logp_BT.dtype == found.entropy_BT.dtype == torch.float32
        assert (found.logp_BT - wanted.logp_BT).abs().max() < 0.2 and all(
            bool(torch.isfinite(p.grad).all()) for p in method.parameters()
        )


def test_the_reader_predicts_no_special_token_but_the_end(policy):
    logits = policy().reader().read(torch.tensor([[1, 2]])).logits_BV[0]
    assert (logits == -torch.inf).nonzero()[:, 0].tolist() == [VOCAB.mask, VOCAB.pad]


def test_rows_of_the_unembedding_beyond_the_vocabulary_are_ruled_out(codec, alone, completions):
    from research_stack.backbones.transformer import Transformer

    wide = alone(
        Plain(Transformer(40, dim=16, layers=1, heads=2, causal=True, max_length=16), VOCAB, Optimization(), seed=1)
    )
    assert (wide.bias_V[VOCAB.size :] == -torch.inf).all() and torch.isfinite(
        wide.completion_logps(*completions()).logp_BT
    ).all()


# ------------------------------------------------------------------------------------------------- the model
def test_quiet_is_without_dropout_and_gradients_and_ends_as_it_began(policy, completions):
    method, texts = policy(dropout=0.5), completions()
    assert not torch.equal(method.completion_logps(*texts).logp_BT, method.completion_logps(*texts).logp_BT)
    with method.eval_mode():
        first, second = method.completion_logps(*texts).logp_BT, method.completion_logps(*texts).logp_BT
        assert not first.requires_grad
    assert torch.equal(first, second) and method.model.training and torch.is_grad_enabled()
    with pytest.raises(KeyError), method.eval_mode():
        raise KeyError
    assert method.model.training and torch.is_grad_enabled()
    method.eval()
    with method.eval_mode():
        pass
    assert not method.model.training


def test_a_model_that_sees_both_ways_is_no_policy(backbone):
    with pytest.raises(ValueError, match=r"model.causal=False.*set model.causal=true"):
        Plain(backbone(causal=False), VOCAB, Optimization(), seed=1)


def test_begin_from_takes_the_weights_over(policy, completions):
    for kind, options in (("own", {}), ("pretrained", {}), ("pretrained", {"lora": LoRA(rank=2)})):
        first, second, texts = policy(kind, **options), policy(kind, **options), completions()
        with torch.no_grad():
            for parameter in first.trainable_parameters().values():
                parameter.mul_(1.3)
        state = first.state_dict() | {"reference.norm.weight": torch.zeros(3)}  # of a method that keeps more
        assert not torch.equal(first.completion_logps(*texts).logp_BT, second.completion_logps(*texts).logp_BT)
        second.load_initial_weights(state)
        assert torch.equal(first.completion_logps(*texts).logp_BT, second.completion_logps(*texts).logp_BT)


def test_begin_from_another_model_is_refused_in_one_line(policy):
    for state in (policy(dim=24).state_dict(), policy(layers=1).state_dict(), {}):
        with pytest.raises(ValueError, match=r"^init_from: that run's model is another one than model \([^\n]*\)$"):
            policy().load_initial_weights(state)


def test_prompts_that_do_not_fit_are_refused(policy):
    def data(train, validation):
        sides = {
            name: SimpleNamespace(spans=np.array([[width, 9] for width in side]))
            for name, side in (("train", train), ("validation", validation))
        }
        return SimpleNamespace(source=object(), **sides)

    method = policy()  # 16 tokens
    require_room_for_completions(data([3, 6], [2, 5]), method, 10)
    for sides in (([3, 7], [2]), ([3], [2, 7])):
        with pytest.raises(
            ValueError,
            match=(
                r"^method.rollouts.max_completion_length=10 behind the longest prompt of 7 tokens exceeds"
                r" model.max_length=16; lower"
                r" it to 9$"
            ),
        ):
            require_room_for_completions(data(*sides), method, 10)
    with pytest.raises(ValueError, match="raise model.max_length to 30"):
        require_room_for_completions(data([20], [2]), method, 10)
    for sides, what in (
        (([0, 0], [0]), "no prompts"),
        (([3, 0], [2]), "rows without a prompt"),
        (([3], [0, 2]), "rows without a prompt"),
    ):
        with pytest.raises(ValueError, match=f"^data=object has {what}: completions need something to stand behind"):
            require_room_for_completions(data(*sides), method, 10)


# -------------------------------------------------------------------------------------------- the first step
def sums(method, policy=1.0, entropy=1.0):
    """Two parts, each a multiple of the sum of all weights that are trained."""
    total = sum(parameter.sum() for parameter in method.trainable_parameters().values())
    return torch.stack([policy * total, entropy * total])


def test_terms_are_asked_once_and_the_weights_must_have_moved(policy):
    method = policy()
    method.on_train_start()
    method.check_gradients(sums(method), {})
    with pytest.raises(ValueError, match="^optimization.lr=0.003: the first step has moved no weight$"):
        method.check_weights_moved()
    method.check_weights_moved()  # said once
    method.check_gradients(sums(method, policy=0.0), {})  # proven already


def test_one_weight_that_moves_is_enough(policy):
    method = policy()
    method.on_train_start()
    method.check_gradients(sums(method), {})
    with torch.no_grad():
        method.model.norm.weight[3] += 1e-6
    method.check_weights_moved()


def test_a_gradient_of_exactly_zero_is_one_line(policy):
    for which in ("policy", "entropy"):
        method = policy()
        method.on_train_start()
        with pytest.raises(
            ValueError, match=f"^loss_{which} has a gradient of exactly zero at the first step: it would train nothing$"
        ):
            method.check_gradients(sums(method, **{which: 0.0}), {})


def test_a_term_that_reaches_nothing_is_one_line(policy):
    method = policy()
    method.on_train_start()
    for value in (torch.ones(2), torch.ones(2, requires_grad=True).exp()):
        with pytest.raises(
            ValueError,
            match=(
                r"^loss_policy reaches none of the 14 trained parameters \(the first is model\.embedding\.weight\): it"
                r" would train nothing$"
            ),
        ):
            method.check_gradients(value, {})


def test_a_term_without_weight_is_not_asked(policy):
    method = policy()
    method.loss_terms = {"policy": 1.0, "entropy": 0.0}
    method.on_train_start()
    method.check_gradients(sums(method, entropy=0.0), {})


def test_a_term_with_a_good_reason_is_asked_again_until_it_has_a_gradient(policy, caplog):
    method = policy()
    method.on_train_start()
    excuse = {"policy": "all answers are equal"}
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            method.check_gradients(sums(method, policy=0.0, entropy=0.0), excuse | {"entropy": "so it is"})
            method.check_weights_moved()  # nothing has pushed the weights
    assert [r.message for r in caplog.records] == [
        "loss_policy has no gradient yet: all answers are equal",
        "loss_entropy has no gradient yet: so it is",
    ]
    with pytest.raises(ValueError, match="^loss_entropy has a gradient of exactly zero"):
        method.check_gradients(sums(method, entropy=0.0), excuse)
    method.check_gradients(sums(method), excuse)
    with pytest.raises(ValueError, match="has moved no weight"):
        method.check_weights_moved()


def test_a_resumed_run_proves_nothing(policy, alone):
    method = alone(policy(), step=4)
    method.on_train_start()
    method.check_gradients(sums(method, policy=0.0), {})
    method.check_weights_moved()


def test_without_gradients_nothing_is_asked(policy):
    method = policy()
    method.on_train_start()
    with torch.no_grad():
        method.check_gradients(sums(method, policy=0.0), {})


def test_a_model_without_trained_parameters_is_one_line(policy):
    method = policy()
    method.model.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^model: no parameter is trained; unfreeze some, or put adapters on it \(model.lora\)$"
    ):
        method.configure_optimizers()
