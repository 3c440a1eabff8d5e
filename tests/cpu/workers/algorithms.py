"""Whole runs one after another in one process, with one inference engine. Arguments: output folder, run files.

Each run is trained to its end with a checkpoint after every step, and then once more from the checkpoint in its middle.
OUTPUT/<name>.json holds the metrics of both and how far the weights moved.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onlayouts import control

from grpo_hpc.config import RunConfig
from grpo_hpc.train.rollout_source import Rollout, RolloutSource
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

    def completions(self, step: int, members: Sequence[bytes]) -> None:
        rows = [json.loads(row) for part in members for row in gzip.decompress(part).splitlines()]
        self.groups.append(sorted({row["position"] for row in rows if not row["dropped"]}))
        self.dropped.append(sorted({row["position"] for row in rows if row["dropped"]}))

    def watch(self, source: RolloutSource) -> None:
        """Write down what is carried over, too."""
        real = source.next

        def following(*args: Any) -> Rollout:
            rollout = real(*args)
            self.carried.append(sorted(set(rollout.surplus["position"].tolist())))
            return rollout

        source.next = following

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
    from gradients import files_of, made_step

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.data.prompts import open_prompts
    from grpo_hpc.data.tokenizer import Tokenizer
    from grpo_hpc.rollout.collect import Collector
    from grpo_hpc.rollout.episodes import SingleTurns
    from grpo_hpc.rollout.residency import Residency
    from grpo_hpc.rollout.scoring import Scorer, start_rewards
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.colocation import Colocation
    from grpo_hpc.train.entry import _reference_scores
    from grpo_hpc.train.loop import Parts, Trainer
    from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy, copy_of
    from grpo_hpc.train.telemetry.step_profile import StepProfile
    from grpo_hpc.train.watch import StopRequest

    engine.version = None  # the weights of the last run are not this one's
    tokenizer, policy = Tokenizer(cfg.model.path), TrainedPolicy(cfg, platform, control())
    reference = copy_of(policy.chunks, cfg, platform) if cfg.algorithm.beta else None
    step = made_step(cfg, platform, policy, _reference_scores(cfg, policy, reference, platform))
    ranks, place, clock, state = step._control, step._scorer._place, step._clock, TrainerState()
    moving = reference if cfg.algorithm.sync_ref_model else None
    if begin is not None:
        state = files_of(step).load(checkpoints / f"step_{begin:08d}", policy, platform, reference=moving)
    before = {name: value.clone() for name, value in policy.exporter.tensors()}
    recorder = Recorder()
    colocation = Colocation(Residency(), platform, policy, reference or (), clock)
    colocation.attach(engine)
    player, scorer = SingleTurns(cfg.rollout.max_completion_length), Scorer(cfg.rewards, tokenizer, start_rewards(cfg))
    collector = Collector(cfg, engine, player, scorer, ranks, lambda: False)
    prompts = open_prompts(cfg.data.train, tokenizer, checkpoints.parent / "prompts").fitting(40)
    source = RolloutSource(cfg, schedule(cfg), collector, prompts, clock)
    recorder.watch(source)
    parts = Parts(
        policy=policy,
        reference=reference,
        contents=DistributedCheckpoint(policy, platform, moving),
        engine=engine,
        colocation=colocation,
        collector=collector,
        tokenizer=tokenizer,
        source=source,
        step=step,
        eval_prompts=None,
        control=ranks,
        place=place,
        clock=clock,
        stop=StopRequest(checkpoints / "stop", ranks),
        reporter=recorder,
        profile=StepProfile(checkpoints / "profile", None, [0], ranks.rank),
    )
    trainer = Trainer(cfg, schedule(cfg), platform, parts, state, checkpoints)
    assert trainer.run()
    moved = sum(float((value - before[name]).abs().sum()) for name, value in policy.exporter.tensors())
    return recorder, moved


if __name__ == "__main__":
    main()
