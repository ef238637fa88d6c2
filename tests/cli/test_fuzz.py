"""Wrong values for every key of every experiment: one line, or a run; never a trace, never a hang."""

from __future__ import annotations

import logging

import pytest
from fuzz import EXPERIMENTS, Fuzzer, quiet, survey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def fuzzer():
    quiet()
    yield Fuzzer()
    logging.disable(logging.NOTSET)


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_sample_of_commands_is_refused_in_one_line_or_builds(fuzzer, data):
    experiment = data.draw(st.sampled_from(["flowlm", "lookahead", "llada", "minigpt"]))
    command = data.draw(st.sampled_from(fuzzer.commands(experiment)))
    verdict, found = fuzzer.check(command)
    assert verdict in ("refused", "accepted"), (command, found)
    if verdict == "accepted":
        how, text = fuzzer.build(found)
        assert how in ("built", "late"), (command, text)


@pytest.mark.slow
def test_a_share_of_the_commands_of_every_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = survey(EXPERIMENTS, share=0.03, seconds=60)  # `python tests/cli/fuzz.py --train 240` takes all of them
    print(f"\n{table}")
    assert not table.wrong, table.mistakes()
