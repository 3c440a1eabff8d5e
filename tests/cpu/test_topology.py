"""The planner's rank grid against megatron.core.parallel_state on real process groups."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import product

from ranks import WORKERS

from grpo_hpc.plan.topology import GROUPS, Degrees, make_topology

WORLD = 8


def layouts() -> list[dict[str, int]]:
    """Every layout of eight ranks over powers of two that Megatron accepts."""
    found = []
    for tp, cp, pp, ep, etp in product((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8), (1, 2)):
        if WORLD % (tp * cp * pp) == 0 and WORLD % (etp * ep * pp) == 0 and math.lcm(tp * cp, ep * etp) * pp <= WORLD:
            found.append({"tp": tp, "cp": cp, "pp": pp, "ep": ep, "etp": etp})
    return found


def test_every_group_is_megatrons(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "1")  # hundreds of groups, of which most have nothing to say
    chosen = layouts()[::2]
    assert len(chosen) >= 30
    worker = [sys.executable, str(WORKERS / "topology.py"), str(tmp_path / "groups.json"), str(WORLD)]
    done = subprocess.run([*worker, json.dumps(chosen)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    megatron = json.loads((tmp_path / "groups.json").read_text())
    for layout, ranks in zip(chosen, megatron, strict=True):
        topology = make_topology(Degrees(WORLD, **layout), WORLD)
        for name in GROUPS:
            ours = {rank: group for group in topology.groups(name) for rank in group}
            for rank, groups in enumerate(ranks):
                assert sorted(ours[rank]) == sorted(groups[name]), (layout, name, rank)
                if name not in ("tp-pp", "etp-ep-pp", "etp-ep", "tp-cp", "dp-cp"):
                    assert ours[rank] == groups[name], (layout, name, rank)
