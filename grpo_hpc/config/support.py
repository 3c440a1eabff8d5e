"""What a run file may describe and plan may lay out, but the trainer cannot do yet."""

from __future__ import annotations

from grpo_hpc.config.sections import RunConfig
from grpo_hpc.errors import ConfigError


def untrainable(cfg: RunConfig) -> list[str]:
    """One sentence for each thing in ``cfg`` that the trainer cannot do."""
    found: list[str] = []
    if cfg.rollout.vllm_mode == "server":
        found.append("rollout.vllm_mode is server: the trainer has vLLM in its own processes only; use colocate")
    return found


def require_trainable(cfg: RunConfig) -> None:
    """Refuse a run that can be planned but not trained.

    Raises:
        ConfigError: names every such option.
    """
    if found := untrainable(cfg):
        raise ConfigError("this run can be planned but not trained:\n" + "\n".join(f"  {text}" for text in found))
