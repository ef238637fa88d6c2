"""Every file in conf/corruption builds, and the static check accepts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from research_stack.config.build import build
from research_stack.data.vocabulary import Vocabulary
from research_stack.streams import Draws

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "corruption").glob("*.yaml"))
MATRIX = {
    "mask80_random0": (0.8, 0.0),
    "mask50_random20": (0.5, 0.2),
    "mask30_random40": (0.3, 0.4),
    "mask0_random80": (0.0, 0.8),
}


def built(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose(overrides=[f"+corruption={name}"]).corruption
    return build(node, "corruption").bind(Vocabulary(40, 1, 0, 2, (0, 1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_every_file_corrupts(name):
    tokens = torch.randint(3, 40, (32, 50), generator=torch.Generator().manual_seed(0))
    prompt = (torch.arange(50) < 10).expand(32, 50)
    drawn = built(name)(tokens, ~prompt, Draws(1, total=32), prompt)
    assert torch.equal(drawn.z_BL, tokens) == (name == "none")


@pytest.mark.parametrize("name", MATRIX)
def test_rows_of_the_matrix_have_the_fractions_in_their_names(name):
    tokens = torch.full((4, 50), 7)
    drawn = built(name)(tokens, tokens > 0, Draws(1, total=4))
    fractions = [float(e.float().mean()) for e in (drawn.masked_BL, drawn.replaced_BL)]
    assert fractions == pytest.approx(MATRIX[name])


def test_every_file_opens_with_a_comment():
    for name in NAMES:
        assert (CONF / "corruption" / f"{name}.yaml").read_text().startswith("# ")
