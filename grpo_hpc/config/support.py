"""What a run file may describe and plan may lay out, but the trainer cannot do yet."""

from __future__ import annotations

from grpo_hpc.config.sections import RunConfig
from grpo_hpc.errors import ConfigError


def untrainable(cfg: RunConfig) -> list[str]:
    """One sentence for each thing in ``cfg`` that the trainer cannot do."""
    found: list[str] = []
    if (size := cfg.parallel.context_parallel_size) > 1:
        found.append(f"parallel.context_parallel_size is {size}: the trainer does not cut sequences over ranks; use 1")
    return found


def require_trainable(cfg: RunConfig) -> None:
    """Refuse a run that can be planned but not trained.

    Raises:
        ConfigError: names every such option.
    """
    if found := untrainable(cfg):
        raise ConfigError("this run can be planned but not trained:\n" + "\n".join(f"  {text}" for text in found))
