"""Lookahead against its definition: every branch is run as a sequence of its own, with no use of `branches`. All in
float64.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import VOCAB, alone, backbone, batch, far, gradients, lookahead, minigpt, prepared

from research_stack.backbones.attention import causal_bias, repeat_kv
from research_stack.backbones.transformer import Transformer
from research_stack.lookahead import branches as branches_module
from research_stack.lookahead import module as lookahead_module
from research_stack.lookahead.branches import Branches, RecordingAttention
from research_stack.lookahead.gradient_limit import GradientNorms, limit_gradient
from research_stack.lookahead.heads import BINS, TOP, Scalar
from research_stack.lookahead.module import Lookahead, MiniGPT, Prefix
from research_stack.lookahead.previous import confidence_features, shift_right
from research_stack.sampling.categorical import draw
from research_stack.training.module import split_batch

pytestmark = pytest.mark.exact

KERNEL_NAMES = ("lse", "sink", "math", "flex")
pytestmark = pytest.mark.exact
RULED_OUT = torch.zeros(VOCAB.size, dtype=torch.float64).index_fill(0, torch.tensor(VOCAB.special), -torch.inf)


# The definition, written out
# -------------------------------------------------------------------------------------------


def run(module, tokens_BL, previous_next_BL=None):
    """Hidden states of sequences from their beginning."""
    width = module.model.condition_dim
    return module.model(
        tokens_BL,
        condition_BLC=confidence_features(previous_next_BL, width) if width and previous_next_BL is not None else None,
    )


def scaled(module, confidence):
    normaliser = module.normaliser
    return (confidence - float(normaliser.mean)) / max(float(normaliser.variance) ** 0.5, 0.1)


def predicted(module, hidden_BD):
    """(raw, nats) of the confidence head."""
    raw = hidden_BD @ module.head.weight.T + module.head.bias
    centres = torch.arange(BINS) * TOP / (BINS - 1)
    kind = type(module.head).__name__
    return raw, {"Scalar": lambda: raw[:, 0], "Softplus": lambda: (1 + raw[:, 0].exp()).log(),
                 "TwoHot": lambda: (raw.softmax(-1) * centres).sum(-1)}[kind]()  # fmt: skip


def miss(module, raw, nats, future):
    """(B,) the loss of a prediction."""
    if type(module.head).__name__ != "TwoHot":
        return (nats - future) ** 2
    target = torch.zeros_like(raw)
    for row, value in enumerate(future.detach().clamp(0, TOP)):
        low = min(int(value * (BINS - 1) / TOP), BINS - 2)
        share = value * (BINS - 1) / TOP - low
        target[row, low], target[row, low + 1] = 1 - share, share
    return -(target * raw.log_softmax(-1)).sum(-1)


def told(module, tokens_BL, keep_B, first_B=None):
    """(B, L) a_j of `zeros` and `shift`, one position after another."""
    start = torch.zeros(tokens_BL.shape, dtype=torch.float64)
    if first_B is not None:
        start[:, 0] = first_B
    result = start
    for _ in range(module.passes if module.previous_mode != "zeros" and module.model.condition_dim else 0):
        hidden, result = run(module, tokens_BL, result), start.clone()
        for j in range(1, tokens_BL.shape[1]):
            same_document = tokens_BL[:, j - 1] != VOCAB.end
            result[:, j] = torch.where(same_document, scaled(module, predicted(module, hidden[:, j - 1])[1]), 0.0)
    return (result * keep_B[:, None]).detach()


def losses(module, hidden_BD, target_B, counts_B):
    """((B,) cross entropies, 0 where nothing counts; logits with special tokens ruled out)."""
    logits, nats = hidden_BD @ module.model.unembedding.T + RULED_OUT, []
    for b, target in enumerate(target_B):
        nats.append(logits[b].logsumexp(0) - logits[b, target] if counts_B[b] > 0 else logits.new_zeros(()))
    return torch.stack(nats), logits


def naive(module, rows, graph=False, through=False):
    """(2,) the two summed losses: the model is run anew on every prefix, and on every prefix and its own tokens.

    - graph: the second pass is run with a graph, and cut off behind it. through: it is not cut off.
    """
    tokens, length = rows["tokens"], rows["weight"].shape[1]
    at = rows.get("at", torch.arange(length).expand(len(tokens), -1))
    counts = torch.zeros(len(tokens), length).scatter_(1, at, rows["counts"])
    a = told(module, tokens[:, :length], rows["keep"], rows.get("first"))
    lm = confidence = torch.zeros((), dtype=torch.float64)
    for i in range(length):
        hidden = run(module, tokens[:, : i + 1], a[:, : i + 1])[:, -1]
        nats, logits = losses(module, hidden, tokens[:, i + 1], rows["weight"][:, i])
        raw, c = predicted(module, hidden.detach() if module.detach else hidden)
        with torch.set_grad_enabled(graph or through):
            future = ahead(module, rows, i, counts, a[:, : i + 1], logits, c)
        lm = lm + (nats * rows["weight"][:, i]).sum()
        confidence = confidence + (miss(module, raw, c, future if through else future.detach()) * counts[:, i]).sum()
    return torch.stack([lm, confidence])


def ahead(module, rows, i, counts, a, logits, c):
    """(B,) future loss behind position i."""
    sequence, future = rows["tokens"][:, : i + 1], 0.0
    for depth in range(1, module.horizon):
        own = draw(logits.detach(), rows["u"][:, i, depth - 1])
        # `zeros` tells no token anything, an own one neither; nor is a sequence told that is trained with zeros
        branch = torch.zeros_like(c) if module.previous_mode == "zeros" else scaled(module, c) * rows["keep"]
        sequence, a = torch.cat((sequence, own[:, None]), 1), torch.cat((a, branch[:, None]), 1)
        hidden = run(module, sequence, a)[:, -1]
        nats, logits = losses(module, hidden, rows["tokens"][:, i + depth + 1], counts[:, i])
        future, c = future + nats, predicted(module, hidden)[1]
    return future / (module.horizon - 1)


def difference(module, data=None, seed=0, reference=naive):
    """(of the two losses, of the gradients): the largest difference from the definition."""
    rows, total = prepared(module, batch() if data is None else data, seed)
    assert bool((total > 2).all())
    ours, theirs = module.loss_sum(rows), reference(module, rows)
    slopes = gradients(module, ours, total), gradients(module, theirs, total)
    return far(ours / total, theirs / total), far(*slopes), slopes[0]


def agrees(module, **options):
    value, slope, gradient = difference(module, **options)
    assert all(
        bool(g.abs().max() > 1e-6) for g in gradient.values()
    )  # nothing is compared that is zero for want of an effect
    assert value < 1e-12 and slope < 1e-12


# 1. Every branch equals a sequence of its own
# --------------------------------------------------------------------------


def test_dense_is_the_loop_over_positions():
    for kernel in KERNEL_NAMES:
        for positions, kv_heads, conditioning in (
            ("rotary", 4, "adaptive"),
            ("learned", 2, "additive"),
            ("rotary", 2, None),
            ("learned", 4, "adaptive"),
        ):
            condition = {"conditioning": conditioning} if conditioning else {"condition_dim": 0}
            agrees(
                lookahead({"positions": positions, "kv_heads": kv_heads, **condition}, kernel=kernel),
                data=batch(length=7),
            )


def test_and_so_is_every_variant_of_it():
    for options in (
        {"horizon": 3},
        {"fraction": 0.5},
        {"fraction": 0.5, "horizon": 3},
        {"passes": 2},
        {"previous": "zeros"},
        {"dropout": 0.5},
        {"head": "softplus"},
        {"head": "two_hot"},
        {"detach": True},
    ):
        for kernel in KERNEL_NAMES if {"horizon", "fraction"} & set(options) else ("math",):
            agrees(lookahead({"kv_heads": 1}, kernel=kernel, **options), data=batch(length=9))


def test_and_of_the_backbone():
    for model, fraction in itertools.product(
        (
            {"qk_norm": True},
            {"checkpoint_blocks": True},
            {"tie_embeddings": False},
            {"activation": "relu2"},
            {"positions": "learned", "kv_heads": 2},
        ),
        (1.0, 0.6),
    ):
        agrees(lookahead(model, fraction=fraction, horizon=3), data=batch(length=9))


def test_a_first_position_that_goes_on_from_the_row_before():
    module = lookahead(previous="carry", passes=2)
    module._carried = torch.tensor([0.4, -1.1, 0.8])
    agrees(module, data={**batch(), "fresh": torch.tensor([False, False, True])})


def test_the_future_of_a_model_without_confidence():
    for horizon in (2, 3):
        module, data = minigpt(horizon=horizon), batch(length=9)
        counts, length = module.future_counts(data), 9 - horizon
        u = torch.rand(3, length, horizon - 1, generator=torch.Generator().manual_seed(0))
        rows = {"tokens": data["tokens"], "counts": counts, "u": u}
        reading = module.read(data["tokens"][:, :length])
        own = module.next_token(
            reading.hidden_BLD, data["tokens"][:, 1 : length + 1], module.next_counts(data), u[..., 0]
        )[2]
        expected = torch.zeros(3, length, dtype=torch.float64)
        for i in range(length):
            sequence, logits = (
                data["tokens"][:, : i + 1],
                run(module, data["tokens"][:, : i + 1])[:, -1] @ module.model.unembedding.T + RULED_OUT,
            )
            for depth in range(1, horizon):
                y = draw(logits.detach(), u[:, i, depth - 1])
                assert depth > 1 or torch.equal(y[counts[:, i] > 0], own[:, i][counts[:, i] > 0])
                sequence = torch.cat((sequence, y[:, None]), 1)
                nats, logits = losses(
                    module, run(module, sequence)[:, -1], data["tokens"][:, i + depth + 1], counts[:, i]
                )
                expected[:, i] += nats.detach() / (horizon - 1)
        assert counts.sum() > 4
        for kernel in KERNEL_NAMES:
            assert far(module.future(reading, own, None, rows, kernel), expected) < 1e-12


def test_forms_agree_in_float32_to_its_precision():
    modules = [lookahead(kernel=kernel, horizon=3).float() for kernel in KERNEL_NAMES]
    values = [module.loss_sum(prepared(module, batch())[0]) for module in modules]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=1e-5)


def test_forms_run_in_bfloat16():
    """Under autocast, with the same own tokens in every form, each near what float32 gives for them."""
    for fraction, kernel in itertools.product((1.0, 0.5), ("auto", *KERNEL_NAMES)):
        module = lookahead(kernel=kernel, fraction=fraction).float()
        data, own = batch(), torch.randint(VOCAB.n_real, (3, 6), generator=torch.Generator().manual_seed(0))
        rows, _ = prepared(module, data)

        def future():
            reading = module.read(rows["tokens"][:, :6], module.previous(rows["tokens"][:, :6]))
            return module.future(reading, own, module.confidence(reading.hidden_BLD), rows, kernel)

        exact = future()
        with torch.autocast("cpu", torch.bfloat16):
            found = future()
            module.loss_sum(rows).sum().backward()
        assert found.dtype == torch.float32 and float(exact.max()) > 1
        assert far(found, exact) < 0.15


# 2. and 3. The last position; no graph
# ---------------------------------------------------------------------------------


def last_token(module, rows):
    """The step as first conceived: two passes, the second over the whole row and one own token."""
    tokens, length = rows["tokens"], rows["weight"].shape[1]
    a = told(module, tokens[:, :length], rows["keep"])
    hidden = run(module, tokens[:, :length], a)
    lm = sum(
        (losses(module, hidden[:, i], tokens[:, i + 1], rows["weight"][:, i])[0] * rows["weight"][:, i]).sum()
        for i in range(length)
    )
    raw, c = predicted(module, hidden[:, -1])
    logits = hidden[:, -1] @ module.model.unembedding.T + RULED_OUT
    own = draw(logits.detach(), rows["u"][:, length - 1, 0])
    with torch.no_grad():
        second = run(
            module, torch.cat((tokens[:, :length], own[:, None]), 1), torch.cat((a, scaled(module, c)[:, None]), 1)
        )
        future, _ = losses(module, second[:, -1], tokens[:, length + 1], rows["counts"][:, -1])
    return torch.stack([lm, (miss(module, raw, c, future) * rows["counts"][:, -1]).sum()])


def test_last_is_the_two_pass_step_at_the_last_token():
    for positions, conditioning in itertools.product(("rotary", "learned"), ("adaptive", "additive")):
        module, data = (
            lookahead({"positions": positions, "conditioning": conditioning, "kv_heads": 2}, lookahead="last"),
            batch(rows=4, plain=True),
        )
        rows, total = prepared(module, data)
        assert rows["counts"].shape == (4, 1) and total[1] == 4
        ours, theirs = module.loss_sum(rows), last_token(module, rows)
        assert far(ours / total, theirs / total) <= 2e-14
        assert far(gradients(module, ours, total), gradients(module, theirs, total)) < 1e-13


def test_last_is_dense_with_weight_on_the_last_position_only():
    for kernel in KERNEL_NAMES:
        data, model = batch(rows=4, plain=True), {"kv_heads": 2}
        dense, last = lookahead(model, kernel=kernel), lookahead(model, lookahead="last")
        (rows, total), (rows_last, total_last) = prepared(dense, data), prepared(last, data)
        assert torch.equal(rows["u"], rows_last["u"])  # the own tokens do not depend on where branches stand
        rows["counts"][:, :-1] = 0
        total[1] = rows["counts"].sum()
        assert torch.equal(total, total_last)
        ours, theirs = dense.loss_sum(rows), last.loss_sum(rows_last)
        assert far(ours / total, theirs / total) <= 1e-14
        assert far(gradients(dense, ours, total), gradients(last, theirs, total)) < 1e-13


def test_a_graph_behind_the_second_pass_changes_no_gradient():
    for horizon in (2, 3):
        module = lookahead(horizon=horizon)
        rows, total = prepared(module, batch())
        ours = gradients(module, module.loss_sum(rows), total)
        with_graph, without = (gradients(module, naive(module, rows, graph=graph), total) for graph in (True, False))
        assert far(with_graph, without) == 0
        assert far(ours, with_graph) < 1e-12
        assert (
            far(ours, gradients(module, naive(module, rows, through=True), total)) > 1e-3
        )  # one that is not cut off would


# 4. Causality ---------------------------------------------------------------------------------------------------------


def influence(function, tokens):
    """bool (positions j, outputs i): whether the output i changes with x_j."""
    before, found = function(tokens), []
    for j in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, j] = (tokens[:, j] + 1) % VOCAB.n_real
        found.append((function(changed) - before).abs().flatten(2).amax((0, 2)) > 1e-12)
    return torch.stack(found)


MODES = {
    "MiniGPT": None,
    "zeros": {"previous": "zeros"},
    "shift": {},
    "two passes": {"passes": 2},
    "rollout": {"previous": "rollout"},
}


def model_of(mode, **options):
    return minigpt(**options) if MODES[mode] is None else lookahead(**MODES[mode], **options)


def test_nothing_before_a_token_knows_it():
    for mode, positions in itertools.product(MODES, ("rotary", "learned")):
        module, tokens = model_of(mode, model={"positions": positions}), batch(plain=True)["tokens"]

        def hidden(ids):
            return module.read(ids, module.previous(ids)).hidden_BLD

        up_to = torch.ones(8, 8, dtype=torch.bool).triu()
        assert torch.equal(
            influence(lambda ids: (module.model.head(hidden(ids)) + RULED_OUT).softmax(-1).detach(), tokens), up_to
        )
        if mode != "MiniGPT":
            assert torch.equal(influence(lambda ids: module.confidence(hidden(ids)).unsqueeze(-1), tokens), up_to)
            strictly = (
                up_to & ~torch.eye(8, dtype=torch.bool) if mode != "zeros" else torch.zeros(8, 8, dtype=torch.bool)
            )
            assert not bool((influence(lambda ids: module.previous(ids).unsqueeze(-1), tokens) & ~strictly).any())


def test_a_future_loss_knows_its_prefix_and_its_target_only():
    """With own tokens held fixed: x_{<=i} and x_{i+2}, ..., x_{i+h}, and not the x_{i+1} whose position the own token
    takes.
    """
    for (kernel, horizon), mode in itertools.product(zip(KERNEL_NAMES, (2, 3, 3, 2), strict=True), MODES):
        module, tokens, length = model_of(mode, horizon=horizon), batch(length=8, plain=True)["tokens"], 8 - horizon
        generator = torch.Generator().manual_seed(3)
        own = torch.randint(VOCAB.n_real, (3, length), generator=generator)
        u = torch.rand(3, length, horizon - 1, generator=generator)

        def future(ids):
            reading = module.read(ids[:, :length], module.previous(ids[:, :length]))
            rows = {"tokens": ids, "counts": torch.ones(3, length), "u": u}
            return module.future(reading, own, module.confidence(reading.hidden_BLD), rows, kernel).unsqueeze(-1)

        j, i = torch.arange(8)[:, None], torch.arange(length)
        assert torch.equal(influence(future, tokens), (i >= j) | ((i + 2 <= j) & (j <= i + horizon)))


# 5. The start ---------------------------------------------------------------------------------------------------------

NORMAL = [math.exp(-((k / 4 - 2) ** 2) / 2) for k in range(49)]  # at the centres 0, 1/4, ..., 12
CUT_NORMAL = sum(k / 4 * p for k, p in enumerate(NORMAL)) / sum(NORMAL)  # 2.042


def test_a_fresh_model_does_not_heed_its_confidences():
    for (head, start), conditioning in itertools.product(
        (("scalar", 2.0), ("softplus", 2.0), ("two_hot", CUT_NORMAL)), ("adaptive", "additive")
    ):
        module, tokens = lookahead({"conditioning": conditioning}, fresh=True, head=head), batch(plain=True)["tokens"]
        added = (
            [block.modulation for block in module.model.blocks] if conditioning == "adaptive" else [module.model.added]
        )
        assert all(bool((layer.weight == 0).all()) and bool((layer.bias == 0).all()) for layer in added)
        previous_next_BL = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        plain, fed = (module.read(tokens, a).hidden_BLD for a in (None, previous_next_BL))
        assert torch.equal(module.model.head(plain), module.model.head(fed))
        assert torch.allclose(module.confidence(plain), torch.tensor(start, dtype=torch.float64), atol=1e-6)
        with torch.no_grad():
            added[-1].weight.normal_(generator=torch.Generator().manual_seed(1))
        assert far(module.read(tokens, previous_next_BL).hidden_BLD, plain) > 1e-3


def test_a_model_with_conditions_is_as_large_as_one_without():
    for options in ({}, {"activation": "relu2"}, {"conditioning": "additive"}):
        sizes = [
            sum(p.numel() for p in backbone(dim=64, condition_dim=width, **options).parameters()) for width in (0, 5)
        ]
        assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)


# 6. The shift ---------------------------------------------------------------------------------------------------------


def test_what_it_learns_is_the_next_token_and_so_is_what_it_then_says():
    """A b c a b c ...: the loss goes to 0 on x_{t+1}, in passes over whole rows and token by token with the cache."""
    module = lookahead(fresh=True, alpha=0.1).float()
    phase = torch.arange(3)[:, None]
    tokens = torch.tensor([4, 7, 2])[(phase + torch.arange(12)) % 3]
    data = {"tokens": tokens, "eligible": torch.ones_like(tokens, dtype=torch.bool)}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(150):
        rows, total = prepared(module, data, seed=step)
        parts = module.loss_sum(rows) / total
        (parts[0] + module.alpha * parts[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        alone(module).after_update()
    module.eval()
    parts = module.loss_sum(prepared(module, data)[0]) / total
    assert parts[0] < 0.05 and parts[1] < 0.05
    cache, previous, said = module.model.new_cache(), torch.zeros(3, 1), []
    for token in tokens[:, :-1].split(1, dim=1):
        hidden, confidence = module.advance(token, previous, cache)
        previous = module.normalised(confidence)
        said.append(module.model.head(hidden).argmax(-1))
    assert torch.equal(torch.cat(said, 1), tokens[:, 1:])


# 7. The cache ---------------------------------------------------------------------------------------------------------


def test_token_by_token_is_the_pass_over_the_whole_row():
    for conditioning, positions in itertools.product(("adaptive", "additive"), ("rotary", "learned")):
        module, tokens = (
            lookahead({"positions": positions, "conditioning": conditioning, "kv_heads": 2}),
            batch(length=10)["tokens"],
        )
        a = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        whole, cache = module.read(tokens, a).hidden_BLD, module.model.new_cache()
        pieces = [module.advance(tokens[:, j : j + 1], a[:, j : j + 1], cache) for j in range(10)]
        assert far(torch.cat([hidden for hidden, _ in pieces], 1), whole) < 1e-13
        assert far(torch.cat([c for _, c in pieces], 1), module.confidence(whole)) < 1e-13
        assert cache.length == 10


def test_jacobi_passes_arrive_at_the_rollout():
    for first in (None, torch.tensor([0.5, -1.0, 2.0])):
        tokens, length = batch(length=9)["tokens"], 9
        exact = lookahead(previous="rollout").previous(tokens, first)
        assert far(lookahead(passes=length - 1).previous(tokens, first), exact) < 1e-13
        for passes in range(1, length - 1):  # and each pass makes one more position exact
            reached = (lookahead(passes=passes).previous(tokens, first) - exact).abs().amax(0)
            assert reached[: passes + 1].max() < 1e-13
        assert float(reached[-1]) > 1e-9


def test_the_rollout_feeds_back_what_the_model_then_says():
    module, tokens = lookahead(previous="rollout"), batch(length=9)["tokens"]
    a = module.previous(tokens)
    c = module.confidence(module.read(tokens, a).hidden_BLD)
    assert far(shift_right(module.normaliser(c), torch.zeros(3), tokens, VOCAB.end), a) < 1e-13
    assert float(a[1, 5]) == 0 and float(a[1, 4]) != 0  # tokens[1, 4] ends a document


# 8. Mutants -----------------------------------------------------------------------------------------------------------


def one_place_on(monkeypatch, module):
    through = Transformer.forward_at

    def mutant(self, tokens, positions, attention_fn, condition=None):
        if isinstance(attention_fn, Branches):
            positions = (
                slice(positions.start + 1, positions.stop + 1) if isinstance(positions, slice) else positions + 1
            )
        return through(self, tokens, positions, attention_fn, condition)

    monkeypatch.setattr(Transformer, "forward_at", mutant)


def zeros_for_confidence(monkeypatch, module):
    monkeypatch.setattr(Lookahead, "normalised", lambda self, c: torch.zeros_like(c))


def no_own_key(monkeypatch, module):
    own = Branches._own
    monkeypatch.setattr(
        Branches,
        "_own",
        lambda self, q, block: (torch.full(q.shape[:3], -torch.inf, dtype=q.dtype), own(self, q, block)[1]),
    )


def prefix_by(by, name):
    def mutant(monkeypatch, module):
        def mask(queries, keys, like):
            return torch.full((queries, keys), -torch.inf, dtype=like.dtype).triu_(1 + by)

        monkeypatch.setattr(branches_module, "causal_bias", mask)
        chosen = branches_module.chosen
        monkeypatch.setattr(branches_module, "chosen", lambda q, k, v, s, own, at: chosen(q, k, v, s, own, at + by))

    mutant.__name__ = name
    return mutant


def branches_see_each_other(monkeypatch, module):
    def mutant(self, q, k_own, v_own, block):
        k, v = (repeat_kv(x, q.shape[1]) for x in self.pairs[block])
        k_own, v_own = repeat_kv(k_own, q.shape[1]), repeat_kv(v_own, q.shape[1])
        at = torch.arange(q.shape[2]).expand(len(q), -1) if self.at_Bn is None else self.at_Bn
        unseen = torch.arange(k.shape[2]) > at.unsqueeze(-1)
        masks = (
            torch.zeros(unseen.shape).masked_fill(unseen, -torch.inf)[:, None],
            causal_bias(q.shape[2], q.shape[2], q),
        )
        scores = [q @ keys.mT * q.shape[-1] ** -0.5 + mask for keys, mask in zip((k, k_own), masks, strict=True)]
        return torch.cat(scores, -1).softmax(-1) @ torch.cat((v, v_own), 2)

    monkeypatch.setattr(Branches, "__call__", mutant)


def earlier_target(monkeypatch, module):
    future = MiniGPT.future
    monkeypatch.setattr(MiniGPT, "future", lambda self, reading, own, c, rows, kernel: future(
        self, reading, own, c, {**rows, "tokens": rows["tokens"].roll(1, 1)}, kernel))  # fmt: skip


def pairs_of_another_pass(monkeypatch, module):
    future = MiniGPT.future

    def mutant(self, reading, own, c, rows, kernel):
        tokens = rows["tokens"][:, : own.shape[1]]
        return future(
            self,
            Prefix(reading.hidden_BLD, self.read(tokens, torch.zeros(tokens.shape, dtype=torch.float64)).pairs),
            own,
            c,
            rows,
            kernel,
        )

    monkeypatch.setattr(MiniGPT, "future", mutant)


def pairs_of_another_block(monkeypatch, module):
    call = RecordingAttention.__call__
    monkeypatch.setattr(
        RecordingAttention,
        "__call__",
        lambda self, q, k, v, block: (
            call(self, q, k, v, block)
            if block == 0
            else (self.pairs.update({block: self.pairs[0]}), self.attention_fn(q, k, v, block))[1]
        ),
    )


def pairs_without_the_last_token(monkeypatch, module):
    call = RecordingAttention.__call__

    def mutant(self, q, k, v, block):
        out = call(self, q, k, v, block)
        self.pairs[block] = tuple(
            torch.cat((x[:, :, :-1], torch.zeros_like(x[:, :, -1:])), 2) for x in self.pairs[block]
        )
        return out

    monkeypatch.setattr(RecordingAttention, "__call__", mutant)


def likeliest_token(monkeypatch, module):
    monkeypatch.setattr(lookahead_module, "draw", lambda logits, u, **options: logits.argmax(-1))


def real_token(monkeypatch, module):
    future = MiniGPT.future
    monkeypatch.setattr(MiniGPT, "future", lambda self, reading, own, c, rows, kernel: future(
        self, reading, rows["tokens"][:, 1 : own.shape[1] + 1], c, rows, kernel))  # fmt: skip


def own_token_one_late(monkeypatch, module):
    future = MiniGPT.future
    monkeypatch.setattr(
        MiniGPT,
        "future",
        lambda self, reading, own, c, rows, kernel: future(self, reading, own.roll(1, 1), c, rows, kernel),
    )


def confidence_one_late(monkeypatch, module):
    future = MiniGPT.future
    monkeypatch.setattr(
        MiniGPT,
        "future",
        lambda self, reading, own, c, rows, kernel: future(self, reading, own, c.roll(1, 1), rows, kernel),
    )


def confidence_not_normalised(monkeypatch, module):
    monkeypatch.setattr(Lookahead, "normalised", lambda self, c: c)


def graph_through_the_target(monkeypatch, module):
    """The values are the same; only the gradient is not."""

    def slope_of_target(self, reading, own, c, rows, kernel):
        value = future(self, reading, own, c, rows, kernel)
        with torch.enable_grad():
            graph = torch.stack([ahead_with_graph(self, rows, i) for i in range(own.shape[1])], 1)
        return lookahead_module.gather_positions(graph - graph.detach(), rows.get("at")) + value

    future = MiniGPT.future
    monkeypatch.setattr(MiniGPT, "future", slope_of_target)
    monkeypatch.setattr(Scalar, "losses", lambda self, raw, target: (self.prediction(raw) - target).square())


def ahead_with_graph(module, rows, i):
    length = rows["weight"].shape[1]
    a = told(module, rows["tokens"][:, :length], rows["keep"])[:, : i + 1]
    hidden = run(module, rows["tokens"][:, : i + 1], a)[:, -1]
    logits, counts = hidden @ module.model.unembedding.T + RULED_OUT, torch.zeros(len(hidden), length)
    at = rows.get("at", torch.arange(length).expand(len(hidden), -1))
    return ahead(module, rows, i, counts.scatter_(1, at, rows["counts"]), a, logits, predicted(module, hidden)[1])


MUTANTS = [
    one_place_on,
    zeros_for_confidence,
    no_own_key,
    prefix_by(-1, "short_prefix"),
    prefix_by(1, "long_prefix"),
    branches_see_each_other,
    earlier_target,
    pairs_of_another_pass,
    pairs_of_another_block,
    pairs_without_the_last_token,
    likeliest_token,
    real_token,
    own_token_one_late,
    confidence_one_late,
    confidence_not_normalised,
    graph_through_the_target,
]


def test_mutants_are_caught():
    for fraction, positions, mutant in itertools.product((1.0, 0.5), ("rotary", "learned"), MUTANTS):
        with pytest.MonkeyPatch.context() as monkeypatch:
            module = lookahead({"positions": positions}, kernel="math", fraction=fraction)
            data = batch(rows=4, length=8)
            value, slope, _ = difference(module, data)
            assert value < 1e-12 and slope < 1e-12
            mutant(monkeypatch, module)
            value, slope, _ = difference(module, data)
            assert slope > 1e-4
            assert value > 1e-4 or mutant is graph_through_the_target and value < 1e-12


def test_a_graph_in_the_second_pass_reaches_nothing():
    """Neither what is recorded nor the future loss hangs on the parameters, in training or under a graph outside."""
    module = lookahead()
    rows, _ = prepared(module, batch())
    reading = module.read(rows["tokens"][:, :6], module.previous(rows["tokens"][:, :6]))
    assert reading.hidden_BLD.requires_grad
    assert not any(x.requires_grad for pair in reading.pairs.values() for x in pair)
    raw = module.head(reading.hidden_BLD)
    future = module.future(reading, rows["tokens"][:, 1:7], module.head.prediction(raw), rows, "lse")
    assert raw.requires_grad and not future.requires_grad
    assert not module.confidence(reading.hidden_BLD).requires_grad
    assert not module.previous(rows["tokens"]).requires_grad
    module.loss_sum(rows)
    assert not any(
        kept.requires_grad for kept in (*module._sums, *module._last)
    )  # what is kept for the log keeps no graph
    leaf = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)  # and no head lets a gradient into its target
    assert torch.autograd.grad(module.head.losses(raw, leaf).sum(), leaf, materialize_grads=True)[0].abs().max() == 0


def test_only_the_pass_over_the_real_tokens_keeps_a_graph(monkeypatch):
    passes, through = [], Transformer.forward_at

    def noted(self, tokens, positions, attention_fn, condition=None):
        passes.append((type(attention_fn).__name__, torch.is_grad_enabled()))
        return through(self, tokens, positions, attention_fn, condition)

    monkeypatch.setattr(Transformer, "forward_at", noted)
    module = lookahead(passes=2, horizon=3)
    module.loss_sum(prepared(module, batch())[0])
    assert passes == [("StandardAttention", False)] * 2 + [("RecordingAttention", True)] + [("Branches", False)] * 2


# 9. Accumulation and gradients apart
# -----------------------------------------------------------------------------------


def test_no_cut_of_the_batch_changes_loss_or_gradient():
    for options, pieces in itertools.product(
        (
            {},
            {"max_gradient_ratio": 0.05},
            {"max_gradient_ratio": 0.05, "dropout": 0.4, "fraction": 0.5},
            {"lookahead": "last", "max_gradient_ratio": 0.5},
            {"target": "real", "max_gradient_ratio": 0.1},
            {"horizon": 3, "head": "two_hot", "max_gradient_ratio": 0.01},
        ),
        (2, 3, 6),
    ):
        data = {name: torch.cat((batch(length=9)[name], batch(length=9, seed=1, plain=True)[name])) for name in batch()}
        whole, parted = lookahead(**options), lookahead(**options)
        rows, total = prepared(whole, data)
        value = whole.loss_sum(rows)
        sums = [parted.loss_sum(piece) for piece in split_batch(rows, pieces)]
        assert len(sums) == pieces and far(sum(sums), value) < 1e-12
        slopes = gradients(whole, value, total)
        each = [gradients(parted, part, total) for part in sums]
        assert far({name: sum(g[name] for g in each) for name in slopes}, slopes) < 1e-13
        assert far(whole._norms.take(), parted._norms.take()) < 1e-13
        numbers = alone(whole).after_update(), alone(parted).after_update()
        assert numbers[0].keys() == numbers[1].keys()
        for name, number in numbers[0].items():
            assert float(number) == pytest.approx(float(numbers[1][name]), rel=1e-5)
        assert far(whole._carried, parted._carried) < 1e-13


def test_the_ratio_limits_the_share_of_the_second_gradient_in_each_row():
    free, held = lookahead(alpha=20.0), lookahead(alpha=20.0, max_gradient_ratio=0.1)
    (rows, total), seen = prepared(free, batch()), {}
    apart_of = lookahead_module.limit_gradient

    def spy(hidden, ratio, norms):
        hidden = hidden.detach().requires_grad_()
        seen["hidden"] = hidden
        return apart_of(hidden, ratio, norms)

    def of_hidden(module, weights):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lookahead_module, "limit_gradient", spy)
            parts = module.loss_sum(rows) / total
        return torch.autograd.grad((parts * torch.tensor(weights)).sum(), seen["hidden"], materialize_grads=True)[0]

    lm, confidence = of_hidden(free, [1.0, 0.0]), of_hidden(free, [0.0, 20.0])
    size = [g.flatten(1).norm(dim=1) for g in (lm, confidence)]
    share = (0.1 * size[0] / size[1]).clamp_max(1)
    assert bool((share < 1).all())
    assert far(of_hidden(held, [1.0, 20.0]), lm + share[:, None, None] * confidence) < 1e-13
    assert far(of_hidden(free, [1.0, 20.0]), lm + confidence) < 1e-13


def test_gradients_apart_written_out():
    for dtype in (torch.float64, torch.float32):
        for ratio, zero in itertools.product((None, 0.1, 1.0, 100.0), (None, "first", "second", "both")):
            generator = torch.Generator().manual_seed(0)
            hidden = torch.randn(4, 3, 2, generator=generator, dtype=dtype, requires_grad=True)
            first, second = torch.randn(2, 4, 3, 2, generator=generator, dtype=dtype)
            second *= 3
            if zero in ("first", "both"):
                first[1] = 0
            if zero in ("second", "both"):
                second[1] = 0
            norms = GradientNorms()
            a, b = limit_gradient(hidden, ratio, norms)
            assert torch.equal(a, hidden) and torch.equal(b, hidden) and norms.take() is None
            (gradient,) = torch.autograd.grad((a * first).sum() + (b * second).sum(), hidden)
            for row in range(4):
                one, two = float(first[row].norm()), float(second[row].norm())
                share = 1.0 if ratio is None or two == 0 else min(1.0, ratio * one / two)
                torch.testing.assert_close(gradient[row], first[row] + share * second[row])
            assert norms.take().tolist() == pytest.approx(
                [float(first.square().sum()), float(second.square().sum())], rel=1e-6
            )
            assert norms.take() is None


def test_gradients_apart_when_one_of_the_two_is_not_used():
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for use, expected in ((0, 1.0), (1, 0.0)):  # without a first gradient there is no budget for the second
        norms = GradientNorms()
        (gradient,) = torch.autograd.grad(limit_gradient(hidden, 0.5, norms)[use].sum(), hidden)
        assert torch.equal(gradient, torch.full_like(hidden, expected))
        assert norms.take().tolist() == pytest.approx([24.0, 0.0] if use == 0 else [0.0, 24.0])


# 10. The confidence loss's gradient
# ------------------------------------------------------------------------------------


def with_fixed_target(monkeypatch, module, rows):
    """The confidence loss as a function of the parameters, with the target as it now is."""
    kept, future = [], MiniGPT.future
    with monkeypatch.context() as patch:
        patch.setattr(MiniGPT, "future", lambda self, *given: kept.append(future(self, *given)) or kept[0])
        module.loss_sum(rows)
    assert bool((kept[0] > 0).any())
    monkeypatch.setattr(MiniGPT, "future", lambda self, *given: kept[0])
    return lambda: module.loss_sum(rows)[1]


def test_the_gradient_of_the_confidence_loss():
    for head, detach in itertools.product(("scalar", "softplus", "two_hot"), (False, True)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            module = lookahead(head=head, detach=detach, previous="zeros")
            rows, _ = prepared(module, batch())
            loss = with_fixed_target(monkeypatch, module, rows)
            names, parameters = zip(*module.named_parameters(), strict=True)
            slopes = torch.autograd.grad(loss(), parameters, materialize_grads=True)
            for name, slope in zip(names, slopes, strict=True):
                assert bool(slope.abs().max() > 1e-6) == (name.startswith("head") or not detach), name
                assert not detach or name.startswith("head") or bool((slope == 0).all())
            generator, values = torch.Generator().manual_seed(2), []
            moved = [
                (p, slope)
                for name, p, slope in zip(names, parameters, slopes, strict=True)
                if name.startswith("head") or not detach
            ]
            steps = [1e-6 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p, _ in moved]
            for sign in (1, -2):
                with torch.no_grad():
                    for (p, _), step in zip(moved, steps, strict=True):
                        p += sign * step
                values.append(float(loss().detach()))
            expected = sum(float((slope * step).sum()) for (_, slope), step in zip(moved, steps, strict=True))
            assert (values[0] - values[1]) / 2 == pytest.approx(expected, rel=1e-6)


def test_alpha_zero_trains_the_language_model_alone():
    for alpha in (0.0, 0.01):
        module = lookahead(alpha=alpha)
        rows, total = prepared(module, batch())
        slopes = gradients(module, module.loss_sum(rows), total)
        assert bool((slopes["head.weight"] != 0).any()) == (alpha > 0)
        lm = torch.autograd.grad(module.loss_sum(rows)[0] / total[0], list(module.model.parameters()))
        same = max(
            float((slopes[f"model.{name}"] - g).abs().max())
            for (name, _), g in zip(module.model.named_parameters(), lm, strict=True)
        )
        assert (same < 1e-15) == (alpha == 0)
