"""Output that nobody reads, or that a terminal cannot show, says nothing about the run: the exit code is its own."""

from __future__ import annotations

import os
import subprocess
import sys

RUN = """
import logging, sys
from pathlib import Path

def run(cfg, folder):
    for number in range(2000):
        logging.getLogger("run").info("step %d of \\u6f22", number)
        sys.stdout.write(f"text \\u6f22 {number}\\n")
    Path(folder, "done").write_text("")
    if cfg.seed == 7:
        raise OSError(28, "No space left on device", "last.ckpt")

from research_stack.running import jobs
jobs.run = run
from research_stack.cli.main import main
sys.exit(main())
"""


def test_a_run_goes_on_whatever_becomes_of_its_output(tmp_path):
    (tmp_path / "command.py").write_text(RUN)
    cases = [("2>&1 | head -1", 1, 0), ("2>&1 | head -1", 7, 2), ("<&- >&- 2>&-", 1, 0), ("> ascii.txt 2>&1", 1, 0)]
    cases += [("> /dev/full", 1, 1)]  # how the output is read, the seed (the run of seed 7 fails), the exit code
    wrong, processes = [], []
    for number, (how, seed, _) in enumerate(cases):
        where = tmp_path / str(number)
        where.mkdir()
        shell = f"set -o pipefail; {sys.executable} ../command.py seed={seed} {how}; code=$?; echo $code > code"
        env = dict(os.environ) | {"PYTHONIOENCODING": "ascii"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append((where, subprocess.Popen(["bash", "-c", shell], cwd=where, env=env, **quiet)))
    for (how, seed, wanted), (where, process) in zip(cases, processes, strict=True):
        process.wait(timeout=600)
        code, done = int((where / "code").read_text()), list(where.glob("outputs/flowlm/*/done"))
        if code != wanted or len(done) != 1:
            wrong.append((how, seed, code, done))
    assert not wrong
    written = (tmp_path / "3/ascii.txt").read_text(encoding="ascii")
    assert "text \\u6f22 1999\n" in written and "step 1999 of \\u6f22" in written and "Traceback" not in written
