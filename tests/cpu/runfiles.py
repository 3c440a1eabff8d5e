"""Run files for the tests, as a person would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write_run(folder: Path, model: Path, **changed: Any) -> Path:
    """A small CPU run in fp32; ``changed`` sets leaf keys such as ``train_iters=4``, and None unsets one."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl")},
        "resources": {"device": "cpu", "nodes": 1, "nproc_per_node": 1},
        "parallel": {},
        "moe": {},
        "batch": {"micro_batch_size": 2, "global_batch_size": 16, "num_generations": 4, "train_iters": 4},
        "rollout": {"vllm_dtype": "float32", "max_completion_length": 12, "vllm_max_model_len": 64},
        "algorithm": {},
        "rewards": {"reward_funcs": ["exact_number"]},
        "optimizer": {"lr": 1e-3},
        "tuner": {},
        "checkpoint": {},
        "evaluation": {},
        "logging": {},
        "cluster": {},
    }
    top: dict[str, Any] = {"name": "tiny", "output_dir": str(folder / "runs")}
    from grpo_hpc.config.sections import RunConfig

    owner = {
        leaf: name
        for name, field in RunConfig.model_fields.items()
        for leaf in getattr(field.annotation, "model_fields", {})
    }
    for key, value in changed.items():
        (sections[owner[key]] if key in owner else top)[key] = value
    for section in sections.values():
        for key in [key for key, value in section.items() if value is None]:
            del section[key]  # back to the default
    path = folder / f"{top['name']}.yaml"
    path.write_text(yaml.safe_dump(top | {name: values for name, values in sections.items() if values}))
    return path
