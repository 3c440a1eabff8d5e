"""Whole runs one after another in one process, with one inference engine. Arguments: output folder, run files.

Each run is trained to its end with a checkpoint after every step, and then once more from the checkpoint in its middle.
OUTPUT/<name>.json holds the metrics of both and how far the weights moved.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from grpo_hpc.config import RunConfig
from grpo_hpc.train.rollout_source import Rollout
from grpo_hpc.train.step_metrics import Reporter


@dataclass
class Recorder(Reporter):
    """Keeps what a trainer reports."""

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    dropped: list[list[int]] = field(default_factory=list)
    carried: list[list[int]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps[step] = dict(metrics)

    def completions(self, step: int, rollout: Rollout, rows: Mapping) -> None:
        used = {t.position for t in rollout.used}
        later = {t.position for t in rollout.surplus}
        self.groups.append(sorted(used))
        self.carried.append(sorted(later))
        self.dropped.append(sorted({t.position for t in rollout.sampled} - used - later))
        assert all(rows[t.position].prompt_id == t.prompt_id for t in rollout.used + rollout.sampled)

    def message(self, text: str) -> None:
        self.messages.append(text)


def main() -> None:
    from grpo_hpc.config import load_run
    from grpo_hpc.rollout.engine import ColocateEngine
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform

    folder, runs = Path(sys.argv[1]), [load_run(file) for file in sys.argv[2:]]
    platform = make_platform("cpu")
    platform.init_distributed()
    init_model_parallel(runs[0], platform)
    engine = ColocateEngine(runs[0], platform)
    for cfg in runs:
        whole, moved = train(cfg, platform, engine, folder / cfg.name, None)
        middle = cfg.batch.train_iters // 2
        rest, _ = train(cfg, platform, engine, folder / cfg.name, middle)
        result = {"moved": moved, "whole": vars(whole), "rest": vars(rest)}
        (folder / f"{cfg.name}.json").write_text(json.dumps(result, default=str))
    engine.close()


def train(cfg: RunConfig, platform, engine, checkpoints: Path, begin: int | None):
    """Train from the start, or from the checkpoint after ``begin`` steps; what was reported and how far it moved."""
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.data.prompts import open_prompts
    from grpo_hpc.data.tokenizer import Tokenizer
    from grpo_hpc.rollout.collect import Collector, start_rewards
    from grpo_hpc.rollout.residency import Residency
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.colocation import Colocation
    from grpo_hpc.train.loop import Parts, Trainer
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy, build_model
    from grpo_hpc.train.watch import PhaseClock, StopRequest

    engine.version = None  # the weights of the last run are not this one's
    tokenizer, policy = Tokenizer(cfg.model.path), TrainedPolicy(cfg, platform)
    reference = [chunk.eval() for chunk in build_model(cfg, platform)] if cfg.algorithm.beta else None
    state = TrainerState()
    if begin is not None:
        moving = reference if cfg.algorithm.sync_ref_model else None
        state = checkpoints.load(checkpoints / f"step_{begin:08d}", policy, platform, moving)
    before = {name: value.clone() for name, value in policy.exporter.tensors()}
    recorder, clock = Recorder(), PhaseClock(platform, None)
    colocation = Colocation(Residency(), platform, policy, reference or (), clock)
    colocation.attach(engine)
    parts = Parts(
        policy=policy,
        reference=reference,
        engine=engine,
        colocation=colocation,
        collector=Collector(cfg, engine, tokenizer, start_rewards(cfg)),
        prompts=open_prompts(cfg.data.train, tokenizer, checkpoints.parent / "prompts").fitting(40),
        eval_prompts=None,
        clock=clock,
        stop=StopRequest(checkpoints / "stop", platform),
        reporter=recorder,
    )
    trainer = Trainer(cfg, schedule(cfg), platform, parts, state, checkpoints)
    assert trainer.run()
    moved = sum(float((value - before[name]).abs().sum()) for name, value in policy.exporter.tensors())
    return recorder, moved


if __name__ == "__main__":
    main()
