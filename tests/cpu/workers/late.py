"""Two ranks, the second of which never comes to where the first waits."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import torch.distributed as dist

from grpo_hpc.control import Control

ROWS = np.zeros(3, [("position", "<i8")])
WAITS = {
    "gather": lambda control: control.gather(1, "the slowest rollout"),
    "rows": lambda control: control.gather_rows(ROWS, "the slowest rollout"),
    "first": lambda control: control.gather_at_first(1, "the slowest rollout"),
    "any": lambda control: control.any(False, "the slowest rollout"),
    "sum": lambda control: control.sum(np.zeros(1), "the slowest rollout"),
}


def main() -> None:
    dist.init_process_group("gloo")
    controls = {name: Control(timedelta(seconds=0.5)) for name in WAITS}  # a group that has struck is of no use
    rank = dist.get_rank()
    while rank and not controls["gather"].said("over"):
        time.sleep(0.05)
    try:
        for name, control in controls.items() if rank == 0 else ():
            refused(WAITS[name], control)
    finally:
        controls["gather"].say("over")


def refused(wait, control):
    try:
        wait(control)
    except RuntimeError as error:
        assert str(error).startswith("rank 0 waited for the slowest rollout, at most 0:00:00.500000: "), error
    else:
        raise AssertionError("it went on alone")


if __name__ == "__main__":
    main()
