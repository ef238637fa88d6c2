"""Startup: CPU seconds of the commands that need no torch, against what importing the libraries alone would cost.

    python benchmarks/startup.py

Each command runs several times in processes of their own; the least CPU time (user and system) counts. What bounds
them: the interpreter and the imports of Hydra, OmegaConf and its grammar; composing and checking take the rest.
"""

import json
import os
import subprocess
import sys
import tempfile

STACK = [sys.executable, "-m", "research_stack"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "--cfg job": [*STACK, "--cfg", "job"],
    "a mistake": [*STACK, "modle=tiny"],
    "why": [*STACK, "why", "trainer.max_steps"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import lightning": [sys.executable, "-c", "import lightning"],
}
LIMIT = 0.5  # CPU seconds of --cfg job


def cpu_seconds(command, folder, runs=5):
    """The least user + system time of some runs, after one that fills the file cache."""
    found = []
    for _ in range(runs + 1):
        before = os.times()
        done = subprocess.run(command, cwd=folder, capture_output=True)
        after = os.times()
        assert done.returncode in (0, 2), done.stderr.decode()
        found.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(found[1:])


def main():
    with tempfile.TemporaryDirectory() as folder:
        seconds = {
            name: cpu_seconds(command, folder, runs=2 if "lightning" in name else 5)
            for name, command in COMMANDS.items()
        }
    for name, value in seconds.items():
        print(f"{name:18s} {value:6.2f} CPU s")
    print(
        json.dumps(
            {
                "cfg_job_cpu_seconds": round(seconds["--cfg job"], 3),
                "within_limit": seconds["--cfg job"] <= LIMIT,
                "ratio_of_import_lightning": round(seconds["import lightning"] / seconds["--cfg job"], 1),
                "ratio_to_import_hydra": round(seconds["--cfg job"] / seconds["import hydra"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
