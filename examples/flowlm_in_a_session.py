"""Train, sample and plot from a REPL: run the cells one by one, or the file as a script (under a minute)."""

# %% Compose a config as on the command line, with the same checks, and look at it
from research_stack import compose, load, run

cfg = compose(
    ["experiment=flowlm", "trainer=short", "corruption.mask_ratio=[0.0,0.8]", "corruption.corruption_rate=[0.0,0.2]"]
)
print(cfg.corruption)

# %% Train; the folder holds everything the run knows
result = run(cfg)
print(result.status, f"{result.seconds:.0f} s", result.folder)
for name, value in result.metrics.items():
    print(f"{name:40s} {value:.4f}")

# %% Sample from it with any decoder
context = load(result.folder, ["sampler=flowlm"])
with context.inference():
    prompt = context.data.codec.encode("The function returns")
    trace = context.sampler.sample(context.method, prompts=[prompt], count=1, length=48, seed=0, record=True)
print(context.data.codec.decode(trace.tokens_BL[0].tolist()))

# %% Plot the loss
import matplotlib.pyplot as plt  # noqa: E402

from research_stack.records.files import read_jsonl  # noqa: E402

rows = [row for row in read_jsonl(result.folder / "metrics.jsonl") if "train/loss" in row]
plt.plot([row["step"] for row in rows], [row["train/loss"] for row in rows], lw=0.8)
plt.xlabel("optimizer step")
plt.ylabel("training loss, nats per position")
plt.savefig(result.folder / "figures" / "loss_from_example.png", dpi=120)
print(result.folder / "figures" / "loss_from_example.png")
