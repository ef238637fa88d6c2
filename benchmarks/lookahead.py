"""Lookahead: what a dense step costs in units of a MiniGPT step, and what the literal loop over positions would.

    python benchmarks/lookahead.py [overrides, as for research-stack]

Steps are forward, backward, clipping and optimizer, on the same batches in the same precision, each kind in a process
of its own, in turn, so that the peak of memory is its own and drifts of the machine hit all. `zeros` has no pass
before, `shift` one. MiniGPT is the same stack without confidence, of equal size. The literal loop is what the idea says
word for word: for each position its own pass over the prefix with gradients, its own token, its own second pass over
prefix and token, summed; it runs at L = 128, and the dense step beside it. Its loss on the same batch must be the dense
one's: both are printed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

LENGTH, LITERAL_LENGTH = 256, 128
CONFIG = [
    "eval=none",
    "model.dim=256",
    "model.heads=4",
    "data.batch_size=16",
    "optimization.optimizer=adamw",
    "data=python_docs",
]
KINDS = {
    "minigpt": ["experiment=minigpt"],
    "zeros": ["experiment=lookahead", "method.previous=zeros", "method.dropout=0"],
    "shift": ["experiment=lookahead", "method.previous=shift", "method.dropout=0"],
}


def seconds_each(function, warm, runs):
    """The median of some runs after a warm-up."""
    times = []
    for i in range(warm + runs):
        start = time.perf_counter()
        function(i)
        times.append(time.perf_counter() - start)
    return sorted(times[warm:])[runs // 2]


def literal_sums(method, rows):
    """(2,) the loss sums of the dense step without conditioning's pre-pass, one position after the other."""
    import torch
    import torch.nn.functional as F

    from research_stack.sampling.categorical import draw

    tokens, length = rows["tokens"], rows["weight"].shape[1]
    sums = torch.zeros(2)
    zeros = torch.zeros(tokens.shape)
    for i in range(length):
        prefix = tokens[:, : i + 1]
        hidden = method.read(prefix, zeros[:, : i + 1]).hidden_BLD[:, -1]
        logits = (hidden @ method.model.unembedding.T.to(hidden.dtype)).float() + method.bias_V
        counted = rows["weight"][:, i] > 0
        lm = F.cross_entropy(logits[counted], tokens[counted, i + 1], reduction="sum")
        raw = method.head(hidden)
        with torch.no_grad():
            own = torch.where(counted, draw(logits, rows["u"][:, i, 0]), tokens[:, i + 1])
            told = torch.cat((zeros[:, : i + 1], method.normalised(method.head.prediction(raw))[:, None]), 1)
            branch = method.read(torch.cat((prefix, own[:, None]), 1), told).hidden_BLD[:, -1]
            future = F.cross_entropy(
                (branch @ method.model.unembedding.T.to(branch.dtype)).float() + method.bias_V,
                tokens[:, i + 2],
                reduction="none",
            )
        wanted = rows["counts"][:, i] > 0
        part = torch.stack([lm, method.head.losses(raw[wanted], future[wanted]).sum()])
        yield part
        sums = sums + part.detach()


def measure(kind, length, overrides):
    """One JSON line: seconds per step, losses of the first step, parameters, FLOPs, peak memory."""
    import torch

    from research_stack import compose
    from research_stack.running.assemble import assemble
    from research_stack.streams import Draws

    literal = kind == "literal"
    parts = assemble(
        compose([*KINDS["zeros" if literal else kind], *CONFIG, f"data.sequence_length={length + 2}", *overrides])
    )
    method, batches = parts.method, iter(parts.data.train_dataloader())
    optimizer, losses = method.optimization.optimizer(method), []
    weights = torch.tensor(list(method.loss_terms.values()))

    def step(i):
        batch = next(batches)
        rows, denominator = method.prepare(batch, Draws(1, "corruption", i, total=len(batch["tokens"])))
        sums = torch.zeros(len(weights))
        with parts.hardware.autocast():
            for part in literal_sums(method, rows) if literal else [method.loss_sum(rows)]:
                (part / denominator * weights).sum().backward()
                sums += part.detach()
        method.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((sums / denominator).tolist())

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = seconds_each(step, 1, 1) if literal else seconds_each(step, 3, 9)
    return {
        "seconds": seconds,
        "first_losses": losses[0],
        "parameters": sum(p.numel() for p in method.parameters()),
        "flops": parts.data.batch_size * (length + 2) * method.training_flops(length + 2),
        "precision": parts.hardware.resolved_precision(),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024,
    }


def in_process(kind, length, overrides):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--kind", kind, "--length", str(length), *overrides]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def best(kinds, length, overrides, rounds):
    """Each kind's fastest of some rounds that go through all kinds in turn."""
    found = [{kind: in_process(kind, length, overrides) for kind in kinds} for _ in range(rounds)]
    return {kind: min((one[kind] for one in found), key=lambda m: m["seconds"]) for kind in kinds}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=[*KINDS, "literal"])
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.kind:
        print(json.dumps(measure(arguments.kind, arguments.length, arguments.overrides)))
        return
    long = best(["minigpt", "zeros", "shift"], LENGTH, arguments.overrides, rounds=3)
    short = best(["zeros", "literal"], LITERAL_LENGTH, arguments.overrides, rounds=1)
    plain = long["minigpt"]
    result = {
        "precision": plain["precision"],
        "minigpt_parameters": plain["parameters"],
        "lookahead_parameters": long["shift"]["parameters"],
        "minigpt_seconds": round(plain["seconds"], 4),
    }
    for kind in ("zeros", "shift"):
        result |= {
            f"{kind}_over_minigpt": round(long[kind]["seconds"] / plain["seconds"], 3),
            f"{kind}_flops_over_minigpt": round(long[kind]["flops"] / plain["flops"], 3),
            f"{kind}_memory_over_minigpt": round(long[kind]["peak_mib"] / plain["peak_mib"], 3),
        }
    result |= {
        "literal_over_dense": round(short["literal"]["seconds"] / short["zeros"]["seconds"], 1),
        "literal_seconds": round(short["literal"]["seconds"], 2),
        "dense_first_losses": [round(x, 4) for x in short["zeros"]["first_losses"]],
        "literal_first_losses": [round(x, 4) for x in short["literal"]["first_losses"]],
    }
    for name, value in result.items():
        print(f"{name:28s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
