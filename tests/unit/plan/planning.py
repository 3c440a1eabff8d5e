"""What the planner's tests share."""

from __future__ import annotations

from pathlib import Path

from grpo_hpc.config import RunConfig, load_run

CONFIGS = Path(__file__).parents[3] / "configs"
SMOLLM2 = CONFIGS / "models" / "SmolLM2-135M-Instruct.json"


def quickstart(*overrides: str) -> RunConfig:
    elsewhere = ["model.path=no-such-folder", f"model.config={SMOLLM2}"]
    return load_run(CONFIGS / "quickstart.yaml", [*elsewhere, *overrides])


def shipped(name: str, *overrides: str) -> RunConfig:
    return load_run(CONFIGS / f"{name}.yaml", overrides)
