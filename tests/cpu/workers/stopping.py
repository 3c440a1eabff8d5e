"""Ranks agree about a stop, and about an end because another attempt has the run directory."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from grpo_hpc.control import Control
from grpo_hpc.errors import RunTaken
from grpo_hpc.runs.attempt_hold import Hold
from grpo_hpc.runs.attempts import begin
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.train.watch import StopRequest


def main() -> None:
    dist.init_process_group("gloo")
    run, control = RunDir(Path(sys.argv[1])), Control(timedelta(seconds=60))
    hold = Hold(run, begin(run, "local", ["here"], 1)) if control.first else None
    stop = StopRequest(run.stop, control, hold)
    assert not stop.agreed()
    stop.require_hold()
    if control.first:
        run.ask_to_stop("stopped")
    assert stop.agreed()
    if control.first:
        (run.path / "attempt_2").mkdir()
    for ask in (stop.agreed, stop.require_hold):
        with pytest.raises(RunTaken, match="attempt_2 has begun"):
            ask()


if __name__ == "__main__":
    main()
