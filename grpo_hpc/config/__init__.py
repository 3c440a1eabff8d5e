"""The run file: typed, validated and free of torch.

One YAML file describes a run. :func:`load_run` reads it, applies ``key=value`` overrides, checks every rule that needs
no model and returns a :class:`RunConfig`; :func:`dump_run` writes one back with every default spelled out.
"""

from __future__ import annotations

from grpo_hpc.config.load import dump_run, load_run
from grpo_hpc.config.sections import RunConfig

__all__ = ["RunConfig", "dump_run", "load_run"]
