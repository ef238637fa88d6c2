"""Every option that a file or a table documents composes with every other it is documented with."""

import re
from itertools import product

import pytest
import yaml

from research_stack.config import check
from research_stack.config.build import build, target
from research_stack.config.composer import Composer
from research_stack.records.paths import CONF

TOKENIZERS = sorted(path.stem for path in (CONF / "data" / "tokenizer").glob("*.yaml"))
TOKENIZED = sorted(
    path.stem
    for path in (CONF / "data").glob("*.yaml")
    if re.search(r"^  - (tokenizer: |expressions)", path.read_text(), re.MULTILINE)
)
DENOISERS, POLICIES, LANGUAGE_MODELS = ("flowlm", "llada"), ("sft", "polychromic", "grpo"), ("minigpt", "lookahead")
FOR_GPTS = ["gpt", "gpt_min_p", "gpt_entropy"]
FOR_LOOKAHEAD = sorted(path.stem for path in (CONF / "sampler").glob("lookahead_*.yaml"))
FOR_DENOISERS = sorted(
    path.stem for path in (CONF / "sampler").glob("*.yaml") if path.stem not in (*FOR_GPTS, *FOR_LOOKAHEAD)
)


def options(group):
    return sorted(path.stem for path in (CONF / "method" / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def composer():
    """The package's own configs, each file parsed once."""
    return Composer()


@pytest.fixture
def accepted(composer):
    """Composes and checks each list of overrides; what is refused, as {overrides: messages}. Points of the same groups
    cost one composition.
    """

    def refusals(points):
        found = {
            " ".join(point): [problem.message for problem in check.check(composer.compose_point(point).cfg)]
            for point in points
        }
        return {point: messages for point, messages in found.items() if messages}

    return refusals


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """What only the user has: the overrides that a data set or tokenizer needs."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "x.jsonl").write_text("".join(f'{{"text": "row {i}", "prompt": "p{i}"}}\n' for i in range(30)))
    (folder / "tokenizer.json").write_text("{}")
    return {
        **dict.fromkeys(("text", "hub", "prompts"), [f"data.path={folder / 'x.jsonl'}"]),
        "pretrained": [f"data.tokenizer.path={folder}"],
    }


def test_no_file_sets_keys_of_a_tokenizer_that_the_user_may_replace():
    """Each tokenizer has keys of its own: what a corpus or an experiment wants of one is an option of the group."""
    assert len(TOKENIZED) == 11
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        node = (
            content if path.parent.name == "data" else (content.get("data") or {}) if path.parent.parent == CONF else {}
        )
        assert "tokenizer" not in node, path
    for name in TOKENIZED:
        listed = re.search(r"^  - tokenizer: \w+ +# (.*)$", (CONF / "data" / f"{name}.yaml").read_text(), re.MULTILINE)
        assert listed is None or listed[1].split(" | ") == TOKENIZERS, name


def test_tokenizers_go_with_corpora_and_experiments(accepted, user):
    """Each corpus and each experiment with one of them, in turn, and those that were refused once."""
    pairs = [
        *((f"data={name}", user.get(name, [])) for name in TOKENIZED),
        *((f"experiment={name}", []) for name in (*DENOISERS, *LANGUAGE_MODELS, *POLICIES)),
    ]
    pairs = [(pair, TOKENIZERS[number % len(TOKENIZERS)]) for number, pair in enumerate(pairs)]
    pairs += [
        ((f"data={name}", user.get(name, [])), tokenizer)
        for name, tokenizer in (("hub", "bytes"), ("hub", "pretrained"), ("smoke", "bytes"))
    ]
    pairs += [(("experiment=minigpt", []), "bytes")]
    assert (
        accepted(
            [
                [choice, *needs, f"data/tokenizer={tokenizer}", *user.get(tokenizer, [])]
                for (choice, needs), tokenizer in pairs
            ]
        )
        == {}
    )


def test_every_advantage_goes_with_every_reward_and_every_loss(accepted):
    learned = {"learned": ["method.reward.run=."]}
    pairs = [("grpo", *pair) for pair in product(options("advantage"), options("reward"))]
    pairs += [
        ("polychromic", advantage, options("reward")[number % 3])
        for number, advantage in enumerate(options("advantage"))
    ]
    points = [
        [f"experiment={method}", f"method/advantage={advantage}", f"method/reward={reward}", *learned.get(reward, [])]
        for method, advantage, reward in pairs
    ]
    points += [
        ["experiment=grpo", f"method.loss.loss_type={kind}", "method.loss.epsilon_high=5.0"]
        for kind in ("grpo", "dapo", "bnpo", "dr_grpo", "gspo", "cispo")
    ]
    assert accepted(points) == {}


def test_every_feature_goes_with_every_quantizer_and_reader(accepted):
    """Each quantizer with each set of readers; the features in turn."""
    features, folders = options("features"), {"pretrained": [f"method.readers.{name}.path=." for name in "ab"]}
    points = [
        [
            "experiment=latentwire",
            f"method/quantizer={quantizer}",
            f"method/readers={readers}",
            f"method/features=[{features[number % 8]}]",
            *folders.get(readers, []),
        ]
        for number, (quantizer, readers) in enumerate(product(options("quantizer"), options("readers")))
    ]
    assert len(points) == len(features) == 8 and accepted(points) == {}


def test_every_loss_of_a_denoiser_that_has_a_meaning_is_accepted(accepted):
    points = []
    for positions, weight, normalize in product(
        ("masked", "corrupted", "all"), ("none", "inv_t", "elbo", "clip", "dynamic"), ("tokens", "positions", "answer")
    ):
        meaningless = (
            weight == "inv_t" and positions == "all" or weight in ("inv_t", "elbo") and normalize == "positions"
        )
        if not meaningless:
            points.append(
                [
                    f"method.loss.positions={positions}",
                    f"method.loss.weight={weight}",
                    f"method.loss.normalize={normalize}",
                    "corruption=gidd",
                ]
            )
    assert len(points) == 37 and accepted(points) == {}


def test_every_sampler_goes_with_the_methods_it_is_documented_for(composer, accepted):
    documented = [
        (FOR_DENOISERS, DENOISERS),
        (FOR_GPTS, (*LANGUAGE_MODELS, *POLICIES)),
        (FOR_LOOKAHEAD, ("lookahead",)),
    ]
    pairs = [(sampler, method) for samplers, methods in documented for sampler, method in product(samplers, methods)]
    assert (
        accepted(
            [
                [f"experiment={methods[number % len(methods)]}", f"sampler={sampler}"]
                for samplers, methods in documented
                for number, sampler in enumerate(samplers)
            ]
        )
        == {}
    )
    files = {
        name: yaml.safe_load((CONF / name).with_suffix(".yaml").read_text())
        for pair in pairs
        for name in (f"method/{pair[1]}",)
    }
    built = {
        sampler: build(composer.compose_point([f"sampler={sampler}"]).cfg.sampler, "sampler") for sampler, _ in pairs
    }
    classes = {method: target(files[f"method/{method}"]) for _, method in pairs}
    for sampler, method in pairs:
        assert built[sampler].unsuited(classes[method]) is None, (sampler, method)
