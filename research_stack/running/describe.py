"""dry_run=true: the composed config, and what the run would cost."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from research_stack.config.build import plain
from research_stack.records import terminal
from research_stack.records.escaping import as_config
from research_stack.records.redaction import masked
from research_stack.records.run_folder import Result, RunFolder
from research_stack.running.assemble import assemble, model_facts
from research_stack.running.evaluate import measurements
from research_stack.running.fit import refuse_idle


def describe(cfg: DictConfig, run_folder: RunFolder) -> Result:
    """dry_run=true: the config, and what the run would cost; nothing is trained or written."""
    refuse_idle(plain(cfg.trainer), plain(cfg.callbacks) or {})
    parts = assemble(cfg)
    parts.method.check_devices(parts.data, parts.hardware.processes)
    measurements(cfg)
    facts, data = model_facts(parts), parts.data.describe()
    batch, length = parts.data.batch_size, parts.data.sequence_length
    tokens = cfg.trainer.max_steps * batch * length
    rows = {
        "folder": str(run_folder.path),
        "parameters": f"{facts['parameters']:,}",
        "weights, gradients, optimizer, average": f"{facts['state_bytes'] / 2**20:,.0f} MiB",
        "steps": f"{cfg.trainer.max_steps:,} of {batch} sequences x {length} tokens ({tokens:,} tokens)",
        "training FLOPs": f"{cfg.trainer.max_steps * facts['flops_per_step']:.2e}",
        **{
            f"data {key}": f"{value:,}" if isinstance(value, int | float) else str(value) for key, value in data.items()
        },
    }
    width = max(map(len, rows))
    terminal.write(OmegaConf.to_yaml(as_config(masked(plain(cfg)))) + "\n")
    terminal.write("".join(f"{key:<{width}}  {value}\n" for key, value in rows.items()))
    return Result(run_folder.path, "ok", {"parameters": float(facts["parameters"]), "tokens": float(tokens)})
