"""Two ranks that share one engine: who decodes and scores what. Arguments: run file, file that rewards write to."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np


def main() -> None:
    import torch.distributed as dist

    from grpo_hpc.config import load_run
    from grpo_hpc.control import Control
    from grpo_hpc.data.rows import Row
    from grpo_hpc.rollout.collect import Asked, Collector
    from grpo_hpc.rollout.engine import Completion
    from grpo_hpc.rollout.episodes import SingleTurns
    from grpo_hpc.rollout.scoring import Scorer, start_rewards

    cfg, written = load_run(sys.argv[1]), Path(sys.argv[2])
    assert cfg.rollout.ranks_of_engine == 2
    dist.init_process_group("gloo")
    control = Control(timedelta(minutes=2))
    decoded: list[list[int]] = []

    class Prompts:
        def __len__(self) -> int:
            return 8

        def tokens(self, index: int) -> np.ndarray:
            return np.arange(3, 6 + index, dtype=np.int32)

        def row(self, index: int) -> Row:
            columns = {"written": str(written) if index < 4 else None}
            return Row(f"row {index}", [{"role": "user", "content": str(index)}], columns)

    class Engine:
        """Gives up one completion, and one before its first token."""

        def __init__(self):
            self.asked, self.running = 0, []

        def submit(self, name, request):
            self.running.append((name, self.answer(self.asked % 16, len(request.prompt_tokens))))
            self.asked += 1

        def step(self):
            return [self.running.pop(0)]

        def answer(self, number, length):
            tokens = np.arange(length + number, dtype=np.int32)
            reason = "abort" if number == 5 else "stop"
            tokens = tokens[:0] if number == 2 else tokens
            return Completion(tokens, np.full(len(tokens), -1.0, np.float32), reason, 4)

    class Tokenizer:
        def decode(self, tokens):
            decoded.append(tokens)
            return f"{len(tokens)} tokens"

        def opening(self, row):
            return f"answer to {row.prompt_id}: "

    engine = Engine()
    scorer = None if control.rank else Scorer(cfg.rewards, Tokenizer(), start_rewards(cfg))
    collector = Collector(cfg, engine, SingleTurns(12), scorer, control, lambda: False)
    asked = Asked(Prompts(), {10 + n: n for n in range(4)})
    found = collector.score(collector.collect(asked, 4), asked)
    table = found.table
    assert len(table) == 16 and table["position"].tolist() == sorted(table["position"].tolist())
    given_up = ~table["answers"]
    assert given_up.sum() == 2 and np.isnan(table["reward"][given_up]).all() and (table["failures"] == 0).all()
    assert not np.isnan(table["reward"][~given_up]).any() and set(table["newest"].tolist()) <= {0, 4}
    assert engine.asked == 16, "every rank of an engine gives it the same"
    assert not table["owner"].any() and len(found.scored) == (0 if control.rank else 16), "the first rank holds them"
    counts = control.gather(len(decoded), "decoded")
    assert sum(counts) == 14, f"{counts} completions were decoded, and there are 14"
    calls = written.read_text().splitlines()
    assert len(calls) == 14, f"the reward was called {len(calls)} times for 14 completions"
    assert {call.partition(": ")[0] for call in calls} == {f"answer to row {n}" for n in range(4)}
    nulls = Asked(Prompts(), {20 + n: 4 + n for n in range(4)})
    assert np.isnan(collector.score(collector.collect(nulls, 4), nulls).table["reward"]).all(), "and the run goes on"
    collector.close()


if __name__ == "__main__":
    main()
