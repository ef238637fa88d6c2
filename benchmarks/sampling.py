"""Sampling: model calls and tokens per second of every named decoder, a batch against one sequence at a time.

    python benchmarks/sampling.py [--count 8] [--length 32] [overrides, as for research-stack]

The model is `model=tiny` with random weights. Each decoder has the settings of its file, but at most as many steps as
there are tokens; prompts are of 0 to a quarter of the length. A stopwatch around its calls gives the share of the time
in the model; the rest is the decoder's own: probabilities, draws, ranking, bookkeeping. Random weights are unsure
everywhere, so decoders that stop when the model is sure (threshold, editing) take every call they may: that is their
dear end, and what a trained model saves shows in `calls`.

What bounds them: model calls, which are 80 to 95 % of the time of most decoders, in a batch and alone; so tokens per
second are tokens per call over the time of a call, and a batch gains what wider matrix products gain. Two decoders
spend about as long themselves, in proportion to the vocabulary and not to the model: ancestral, which computes the
reverse kernel of every position in float64, and remdm, which sorts every prediction for its nucleus.

One thread, unless hardware.threads says otherwise: calls are short, and where other work shares the cores two threads
wait for each other longer than they help.
"""

import argparse
import json
import time

CONFIG = ["model=tiny", "corruption=gidd", "eval=none", "hardware.threads=1"]
#: of the table, and where the number stands in the JSON
COLUMNS = {
    "calls": "calls",
    "tok/s in batch": "batch_tokens_per_second",
    "tok/s alone": "alone_tokens_per_second",
    "batch/alone": "speedup",
    "ms in model": "model_ms_per_call",
    "ms own": "own_ms_per_call",
    "model's share": "batch_model_share",
    "alone": "alone_model_share",
    "bound by": "bound_by",
}


class Timed:
    """A denoiser with a stopwatch."""

    def __init__(self, denoiser, device):
        self.denoiser, self.device, self.seconds, self.calls, self.positions = denoiser, device, 0.0, 0, 0
        self.vocab, self.predicts, self.corruption = denoiser.vocab, denoiser.predicts, denoiser.corruption

    def now(self):
        """The time at which the device has done what it was told."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def logits(self, z_BL, attention_mask_BL=None, t_B=None, where_BL=None):
        """As the denoiser's."""
        start = self.now()
        logits = self.denoiser.logits(z_BL, attention_mask_BL, t_B, where_BL)
        self.seconds += self.now() - start
        self.calls, self.positions = self.calls + 1, self.positions + len(logits)
        return logits


def prompts(vocab, count, length):
    """Prompts of 0 to length / 4 random tokens, so that rows need padding."""
    import torch

    from research_stack.streams import generator

    stream, real = generator(0, "prompts"), torch.from_numpy(vocab.real)
    widths = torch.linspace(0, length // 4, count).long().tolist()
    return [real[torch.randint(len(real), (width,), generator=stream)] for width in widths]


def measure(sampler, denoiser, rows, length, device, first_row=0):
    """Seconds, calls per sequence, steps, share of the time in the model, positions asked for per call and sequence."""
    timed = Timed(denoiser, device)
    start = timed.now()
    trace = sampler.sample(timed, prompts=rows, length=length, device=device, first_row=first_row)
    seconds = timed.now() - start
    return {
        "seconds": seconds,
        "model": timed.seconds,
        "steps": timed.calls,
        "calls": float(trace.calls_B.double().mean()),
        "asked": timed.positions / max(int(trace.calls_B.sum()), 1),
    }


def compare(name, method, rows, length, device, overrides, alone=2):
    """One decoder: the whole batch, then `alone` of its rows by themselves; None for one of next-token models."""
    from research_stack import compose
    from research_stack.config.build import build

    sampler = build(compose([*CONFIG, *overrides, f"sampler={name}"]).sampler, "sampler")
    if sampler.unsuited(type(method)):
        return None
    sampler.steps = min(sampler.steps or length, length)
    batch = measure(sampler, method, rows, length, device)
    picked = [round((i + 0.5) * len(rows) / alone - 0.5) for i in range(alone)]
    singles = [measure(sampler, method, rows[b : b + 1], length, device, first_row=b) for b in picked]
    seconds, model = (sum(single[key] for single in singles) for key in ("seconds", "model"))
    share = batch["model"] / batch["seconds"]
    return {
        "calls": round(batch["calls"], 1),
        "asked": round(batch["asked"], 1),
        "batch_tokens_per_second": round(len(rows) * length / batch["seconds"]),
        "alone_tokens_per_second": round(alone * length / seconds),
        "speedup": round(len(rows) * seconds / alone / batch["seconds"], 2),
        "model_ms_per_call": round(1e3 * batch["model"] / batch["steps"], 2),
        "own_ms_per_call": round(1e3 * (batch["seconds"] - batch["model"]) / batch["steps"], 2),
        "batch_model_share": round(share, 2),
        "alone_model_share": round(model / seconds, 2),
        "bound_by": "model" if share > 0.5 else "selection",
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    import torch

    from research_stack import compose
    from research_stack.config.composer import Composer
    from research_stack.running.assemble import assemble

    parts = assemble(compose([*CONFIG, *arguments.overrides]))
    device = parts.hardware.device()
    method = parts.method.eval().to(device)
    rows = prompts(parts.data.vocab, arguments.count, arguments.length)
    found = {}
    with parts.hardware.autocast():
        for name in Composer().groups()["sampler"]:
            if not found:
                compare(name, method, rows, 4, device, arguments.overrides)  # a warm-up
            found[name] = compare(name, method, rows, arguments.length, device, arguments.overrides)
    found = {name: row for name, row in found.items() if row}
    print(f"{'':13s}" + "".join(f"{title:>{len(title) + 4}s}" for title in COLUMNS))
    for name, row in found.items():
        print(f"{name:13s}" + "".join(f"{row[key]!s:>{len(title) + 4}s}" for title, key in COLUMNS.items()))
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in method.parameters()),
                "vocabulary": parts.data.vocab.size,
                "precision": parts.hardware.resolved_precision(),
                "threads": torch.get_num_threads(),
                "count": arguments.count,
                "length": arguments.length,
                "samplers": found,
            }
        )
    )


if __name__ == "__main__":
    main()
