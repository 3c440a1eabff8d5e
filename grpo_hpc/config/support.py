"""What a run file may describe and plan may lay out, but the trainer cannot do yet."""

from __future__ import annotations

from grpo_hpc.config.sections import RunConfig
from grpo_hpc.errors import ConfigError


def untrainable(cfg: RunConfig) -> list[str]:
    """One sentence for each thing in ``cfg`` that the trainer cannot do."""
    found: list[str] = []
    roll, tuner = cfg.rollout, cfg.tuner
    if roll.vllm_mode == "server":
        found.append("rollout.vllm_mode is server: the trainer has vLLM in its own processes only; use colocate")
    if tuner.tuner_type == "lora":
        found.append("tuner.tuner_type is lora: the trainer trains all parameters; use full")
    if tuner.freeze_parameters_regex:
        found.append("tuner.freeze_parameters_regex: the trainer trains all parameters")
    return found


def require_trainable(cfg: RunConfig) -> None:
    """Refuse a run that can be planned but not trained.

    Raises:
        ConfigError: names every such option.
    """
    if found := untrainable(cfg):
        raise ConfigError("this run can be planned but not trained:\n" + "\n".join(f"  {text}" for text in found))
