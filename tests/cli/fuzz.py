"""Wrong values for every key of every experiment, and what becomes of each command.

    python tests/cli/fuzz.py [--train SECONDS] [EXPERIMENT ...]

prints how many commands were refused in one line, how many were accepted, and of these how many could be built and
trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from research_stack.config import check
from research_stack.config.build import build, plain
from research_stack.config.compose import preflight
from research_stack.config.composer import Composer
from research_stack.config.hints import UserError
from research_stack.config.saved_run import effective
from research_stack.records.paths import CONF
from research_stack.records.run_folder import RunFolder
from research_stack.running import assemble as assembling
from research_stack.running.assemble import assemble
from research_stack.running.errors import is_mistake, message_of
from research_stack.running.evaluate import measurements
from research_stack.running.fit import chosen_loggers
from research_stack.running.run import run

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
QUICK = [
    "trainer=smoke",
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "trainer.limit_val_batches=1",
    "hardware.threads=1",
]
ANSWERS = [
    f"{node}.{option}"
    for node in ("callbacks.dynamics", "eval.passk")
    for option in (
        "max_prompts=2",
        "metrics.num_generations=8",
        "metrics.ks=[1,8]",
        "metrics.rollouts.max_completion_length=6",
    )
]
POLICY = ["model=smoke", "model.causal=true", *QUICK, *ANSWERS, "callbacks.dynamics.every=3"]
WIRE = [
    *(
        f"method.readers.{reader}.{option}"
        for reader in ("llama", "qwen")
        for option in ("steps=2", "batch_size=2", "dim=32", "layers=1", "heads=2", "vocab_size=300")
    ),
    "model.dim=32",
    "model.layers=1",
    "data.batch_size=4",
    "data.sources.qa_facts.contexts=60",
    "eval.latentwire.max_questions=8",
    "eval.latentwire.latency.lengths=[32]",
    *QUICK,
]
#: The overrides that make an experiment a matter of seconds.
SMALL = dict.fromkeys(EXPERIMENTS, ["model=smoke", "data=smoke", *QUICK]) | {
    "sft": [*POLICY, "data.batch_size=16"],
    "grpo": [*POLICY, "data.batch_size=2", "method.num_generations=4", "method.rollouts.max_completion_length=6"],
    "polychromic": [
        *POLICY,
        "data.batch_size=16",
        "method.num_generations=8",
        "method.advantage.size=4",
        "method.rollouts.max_completion_length=6",
    ],
    "reward": [*QUICK, "data.source.count=200"],
    "latentwire": WIRE,
    "latentwire_curriculum": [*WIRE, "trainer.max_steps=6"],
}
#: Values of every kind, most of them wrong for most keys.
VALUES = (
    "null",
    "[]",
    "{}",
    "abc",
    "''",
    "true",
    "-1",
    "0",
    "1",
    "0.5",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1000000000",
    "1000000000000000000",
    "1000000000000000000000000000000",
    "1e308",
    "[abc]",
    "[1,2]",
    "[-1,nan]",
    "{a: 1}",
    "{_target_: research_stack.training.progress.Progress}",
)
SECONDS = 20


@dataclass(frozen=True)
class Command:
    """A mutated command: the experiment, its overrides, the key and what was done to it."""

    experiment: str
    key: str
    override: str

    @property
    def overrides(self) -> list[str]:
        """All that stands on the command line."""
        return [f"experiment={self.experiment}", *SMALL[self.experiment], self.override]


def keys(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key of a plain config, nodes before what they hold."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        key = f"{path}.{name}" if path else str(name)
        yield key
        yield from keys(value, key)


def mutations(experiment: str, key: str) -> Iterator[Command]:
    """Everything that is done to a key."""
    parent, _, last = key.rpartition(".")
    typo = last[:-1] + "x" if len(last) > 1 else last + "x"
    for override in (
        *(f"++{key}={value}" for value in VALUES),
        f"~{key}",
        f"+{key}_x=1",
        f"++{f'{parent}.' if parent else ''}{typo}=1",
    ):
        yield Command(experiment, key, override)


class TookTooLong(Exception):
    """A command that came to no end."""


class Fuzzer:
    """Judges commands: `refused`, `accepted`; of accepted ones `built`, `late` (refused in one line when built),
    `trace`, `hang`.
    """

    def __init__(self) -> None:
        self.composer = Composer()
        self.bases: dict[str, Any] = {}
        self.data: dict[str, Any] = {}

    def base(self, experiment: str) -> Any:
        """The experiment's config without a mutation."""
        if experiment not in self.bases:
            self.bases[experiment] = self.composer.compose_point([f"experiment={experiment}", *SMALL[experiment]]).cfg
        return self.bases[experiment]

    def commands(self, experiment: str) -> list[Command]:
        """Every mutation of every key of an experiment."""
        return [c for key in keys(plain(self.base(experiment))) for c in mutations(experiment, key)]

    def check(self, command: Command) -> tuple[str, Any]:
        """(`refused`, the line) or (`accepted`, the config); whatever else is raised is a trace."""
        try:
            composed = effective(self.composer.compose_point(command.overrides))
            if problems := check.check(composed.cfg):  # as preflight does, which also looks up the file and line
                raise UserError(problems[0].message)
            preflight([composed], self.composer)
        except UserError as error:
            return (
                ("refused", str(error))
                if str(error).strip() and "\n" not in str(error)
                else ("trace", f"not one line: {error}")
            )
        except Exception:
            return "trace", traceback.format_exc()
        return "accepted", composed.cfg

    def build(self, cfg: Any) -> tuple[str, str]:
        """Build every object of an accepted config."""
        return timed(lambda: self.assemble(cfg))

    def assemble(self, cfg: Any) -> None:
        """Every object of a config, the data of one that has been seen before taken from there."""
        node = json.dumps(plain(cfg.data), sort_keys=True, default=str) + f"{cfg.seed}"
        parts = self._assemble(cfg, node)
        measurements(cfg)
        chosen_loggers(cfg, RunFolder(tempfile.gettempdir()))
        callbacks = [build(value, f"callbacks.{name}") for name, value in plain(cfg.callbacks).items()]
        build(
            cfg.trainer,
            "trainer",
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            check_val_every_n_epoch=None,
            use_distributed_sampler=False,
            plugins=parts.hardware.plugins(),
            **parts.hardware.trainer_arguments(),
        )

    def _assemble(self, cfg: Any, node: str) -> Any:
        if node not in self.data:
            parts = assemble(cfg)
            self.data[node] = parts.data
            return parts
        kept = self.data[node]

        def known(value: Any, path: str, /, **arguments: Any) -> Any:
            return kept if path == "data" else build(value, path, **arguments)

        with mock.patch.object(assembling, "build", known), mock.patch.object(kept, "prepare", lambda: None):
            return assemble(cfg)


def train(cfg: Any) -> tuple[str, str]:
    """Really run an accepted config."""

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(cfg, Path(folder) / "run")

    return timed(whole, 60)


def timed(work: Callable[[], Any], seconds: int = SECONDS) -> tuple[str, str]:
    """How a piece of work ended: `built`, `late`, `trace` or `hang`."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGPROF, stop)  # of CPU time: a busy machine is no hang
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        work()
    except TookTooLong:
        return "hang", traceback.format_exc()
    except Exception as error:
        if is_mistake(error):
            return "late", message_of(error)
        return ("hang" if "TookTooLong" in traceback.format_exc() else "trace"), traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return "built", ""


@dataclass
class Table:
    """Counts by experiment, and the commands that went wrong."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[tuple[Command, str, str]] = field(default_factory=list)
    COLUMNS: ClassVar = ("commands", "refused", "accepted", "built", "late", "trained", "trace", "hang")

    def add(self, command: Command, *what: str, text: str = "") -> None:
        """Count what became of a command."""
        self.counts.setdefault(command.experiment, Counter()).update(what)
        if {"trace", "hang"} & set(what):
            self.wrong.append((command, what[-1], text))

    def mistakes(self) -> str:
        """The commands that went wrong, each with the last line of its trace."""
        last = {c: text.strip().splitlines() or [""] for c, _, text in self.wrong}
        return "\n".join(f"{how}: {c.experiment} {c.override}: {last[c][-1]}" for c, how, _ in self.wrong)

    def __str__(self) -> str:
        rows = [
            ("experiment", *self.COLUMNS),
            *((name, *(str(c[column]) for column in self.COLUMNS)) for name, c in self.counts.items()),
        ]
        total = sum(self.counts.values(), Counter())
        rows.append(("all", *(str(total[column]) for column in self.COLUMNS)))
        return "\n".join("".join(f"{cell:>{24 if i == 0 else 10}}" for i, cell in enumerate(row)) for row in rows)


def quiet() -> None:
    """No warnings and no logs of what is built."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def survey(
    experiments: list[str], share: float = 1.0, seconds: float = 0, log: Callable[[str], object] = lambda line: None
) -> Table:
    """Judge a share of all commands, each that stands in several experiments once, and train accepted ones for so many
    seconds.
    """
    quiet()
    fuzzer, table, chance, seen = Fuzzer(), Table(), random.Random(0), set()
    sound: list[tuple[Command, Any]] = []
    for name in experiments:
        base = plain(fuzzer.base(name))
        fuzzer.assemble(fuzzer.base(name))
        for command in fuzzer.commands(name):
            group = command.key.split(".")[0]
            twin = command.override, json.dumps(base.get(group), sort_keys=True, default=str)
            if twin in seen or chance.random() >= share:
                continue
            seen.add(twin)
            verdict, found = fuzzer.check(command)
            how, text = fuzzer.build(found) if verdict == "accepted" else ("", str(found))
            table.add(command, "commands", verdict, *([how] if how else []), text=text)
            log(f"{how or verdict}\t{name}\t{command.override}\t{text.strip().splitlines()[-1] if text else ''}")
            sound += [(command, found)] if how == "built" else []
        log(f"{table}")
    chance.shuffle(sound)
    end = time.monotonic() + seconds
    for command, cfg in sound:
        if time.monotonic() > end:
            break
        how, text = train(cfg)
        table.add(command, "trained" if how == "built" else how, text=text)
        log(f"trained {how}\t{command.experiment}\t{command.override}\t{text.strip().splitlines()[-1] if text else ''}")
    return table


def main() -> int:
    """The script."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--train", type=float, default=0, metavar="SECONDS")
    options.add_argument("--share", type=float, default=1.0)
    options.add_argument("--log", default="")
    options.add_argument("experiments", nargs="*")
    given = options.parse_args()
    with open(given.log or "/dev/null", "a") as log:
        table = survey(
            given.experiments or EXPERIMENTS,
            given.share,
            given.train,
            lambda line: (log.write(line + "\n"), log.flush()),
        )
    sys.stdout.write(f"{table}\n{table.mistakes()}\n")
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
