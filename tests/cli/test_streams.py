"""Output that nobody reads, or that a terminal cannot show, says nothing about the run: the exit code is its own."""

from __future__ import annotations

import os
import subprocess
import sys

RUN = """
import logging, sys, types
from pathlib import Path

def run(cfg, folder):
    for number in range(2000):
        logging.getLogger("run").info("step %d of \\u6f22", number)
        sys.stdout.write(f"text \\u6f22 {number}\\n")
    Path(folder, "done").write_text("")
    if cfg.seed == 7:
        raise OSError(28, "No space left on device", "last.ckpt")

module = types.ModuleType("research_stack.run")
module.run = run
sys.modules["research_stack.run"] = module
from research_stack.cli import main
sys.exit(main())
"""


def test_a_run_goes_on_whatever_becomes_of_its_output(tmp_path):
    (tmp_path / "command.py").write_text(RUN)
    cases = {  # how the output is read: exit codes of a run that ends well and of one that fails
        "2>&1 | head -1": (0, 2),
        "| head -1": (0, 2),
        ">&- 2>&-": (0, 2),
        "<&- >&-": (0, 2),
        "> ascii.txt 2>&1": (0, 2),
        "> /dev/full": (1, 2),
    }
    processes = {}
    for number, how in enumerate(cases):
        for seed in (1, 7):
            where = tmp_path / f"{number}_{seed}"
            where.mkdir()
            shell = f"set -o pipefail; {sys.executable} ../command.py seed={seed} {how}; code=$?; echo $code > code"
            env = dict(os.environ) | {"PYTHONIOENCODING": "ascii"}
            processes[how, seed] = (
                where,
                subprocess.Popen(
                    ["bash", "-c", shell], cwd=where, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ),
            )
    wrong = []
    for (how, seed), (where, process) in processes.items():
        process.wait(timeout=120)
        code, done = int((where / "code").read_text()), list(where.glob("outputs/flowlm/*/done"))
        if code != cases[how][seed == 7] or len(done) != 1 or list(where.glob("outputs/flowlm/*/*.log")):
            wrong.append((how, seed, code, done))
    assert not wrong
    written = (processes["> ascii.txt 2>&1", 1][0] / "ascii.txt").read_text(encoding="ascii")
    assert "text \\u6f22 1999\n" in written and "step 1999 of \\u6f22" in written and "Traceback" not in written
