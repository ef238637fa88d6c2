"""Training: tokens per second, share of the machine's matrix peak, and the ratio to a plain implementation.

    python benchmarks/training.py [overrides, as for research-stack]

Ours is the stack's own training step (precision of the hardware node, logits only where loss is carried, the GIDD bound
in closed form). Plain is the same model, batch and loss as a paper would write them down: float32, logits at every
position, one-hot vectors and the two distributions over the vocabulary. Both take the same corrupted batches; each runs
in a process of its own, in turn, so that the peak of memory is its own and drifts of the machine hit both.

The model is 256 wide (3.7 M parameters), with 64 x 128 tokens a step. What bounds ours on a CPU: half of the step is
matrix products; the rest is memory-bound (attention, norms, activations, exp and log over the vocabulary), so the share
of the peak and the ratio grow with the width of the model. At the demo's 96 (`model.dim=96 model.heads=3
data.batch_size=16`) exp and log over the vocabulary dominate both.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

CONFIG = [
    "experiment=flowlm",
    "corruption=gidd",
    "method.loss.weight=elbo",
    "method.loss.normalize=tokens",
    "eval=none",
    "model.dim=256",
    "model.heads=4",
    "data.batch_size=64",
]


def seconds_each(function, warm=2, runs=5):
    """The median of some runs after a warm-up."""
    for i in range(warm):
        function(i)
    times = []
    for i in range(runs):
        start = time.perf_counter()
        function(warm + i)
        times.append(time.perf_counter() - start)
    return sorted(times)[runs // 2]


def peak_flops(dtype, size=2048):
    """FLOP/s of a square matrix product."""
    import torch

    a, b = torch.randn(2, size, size).to(dtype)
    return 2 * size**3 / seconds_each(lambda _: a @ b)


def plain_loss(method, rows):
    """The summed GIDD bound with explicit distributions over the real tokens and the mask (B, L, N + 1)."""
    import torch
    import torch.nn.functional as F

    vocab, process = method.vocab, method.corruption.process
    real = torch.from_numpy(vocab.real)
    index = torch.full((vocab.size,), len(real))
    index[real] = torch.arange(len(real))
    x, z, t = index[rows["x"]], index[rows["z"]], rows["t"].clamp(1e-6, 1 - 1e-6)
    logits = method.model.head(method.model(rows["z"], rows["attention_mask"], rows["t"]))
    parts = process.coefficients(t[:, None, None])
    noise = torch.zeros(1, 1, len(real) + 1)
    noise[..., :-1] = 1 / len(real)
    mask = F.one_hot(torch.tensor(len(real)), len(real) + 1).float()

    def q(p):  # the process's marginal for a distribution p over the real tokens
        return parts.keep * F.pad(p, (0, 1)) + parts.mask * mask + parts.uniform * noise

    true, model = q(F.one_hot(x.clamp_max(len(real) - 1), len(real)).float()), q(logits[..., real].softmax(-1))
    kl = (true * ((true + 1e-30).log() - (model + 1e-30).log())).sum(-1)
    ratio = true.gather(-1, z[..., None]).squeeze(-1) / model.gather(-1, z[..., None]).squeeze(-1)
    return ((kl + ratio - ratio.log() - 1) * rows["weight"] * rows["carry"]).sum()


def measure(mode, overrides):
    """One JSON line: seconds per step, tokens, parameters, FLOPs, loss, peak memory."""
    import torch

    from research_stack import compose
    from research_stack.running.assemble import assemble
    from research_stack.streams import Draws

    parts = assemble(compose([*CONFIG, *overrides]))
    method, batches = parts.method, iter(parts.data.train_dataloader())
    optimizer, losses = method.optimization.optimizer(method), []

    def step(i):
        batch = next(batches)
        rows, denominator = method.prepare(batch, Draws(1, "corruption", i, total=len(batch["tokens"])))
        if mode == "ours":
            with parts.hardware.autocast():
                loss = method.loss_sum(rows) / denominator
        else:
            loss = plain_loss(method, rows) / denominator
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = seconds_each(step)
    length, size = parts.data.sequence_length, parts.data.batch_size
    return {
        "seconds": seconds,
        "tokens": size * length,
        "losses": losses,
        "parameters": sum(p.numel() for p in method.parameters()),
        "flops": 3 * size * length * method.model.flops_per_token(length),
        "precision": parts.hardware.resolved_precision(),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024,
    }


def in_process(mode, overrides):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--mode", mode, *overrides]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["ours", "plain", "both"], default="both")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.mode != "both":
        print(json.dumps(measure(arguments.mode, arguments.overrides)))
        return
    import torch

    rounds = [(in_process("ours", arguments.overrides), in_process("plain", arguments.overrides)) for _ in range(2)]
    ours, plain = (min((r[i] for r in rounds), key=lambda m: m["seconds"]) for i in (0, 1))
    dtype = torch.bfloat16 if ours["precision"] == "bf16-mixed" else torch.float32
    peak = peak_flops(dtype)
    result = {
        "parameters": ours["parameters"],
        "precision": ours["precision"],
        "peak_gflops": round(peak / 1e9),
        "tokens_per_second": round(ours["tokens"] / ours["seconds"]),
        "share_of_peak": round(ours["flops"] / ours["seconds"] / peak, 3),
        "plain_tokens_per_second": round(plain["tokens"] / plain["seconds"]),
        "ratio_to_plain": round(plain["seconds"] / ours["seconds"], 2),
        "step_memory_mib": round(ours["peak_mib"]),
        "plain_step_memory_mib": round(plain["peak_mib"]),
        "first_loss": round(ours["losses"][0], 3),
        "plain_first_loss": round(plain["losses"][0], 3),
    }
    for name, value in result.items():
        print(f"{name:26s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
