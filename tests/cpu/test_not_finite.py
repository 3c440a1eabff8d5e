"""A loss or gradient that is not finite on one rank changes nothing on any, and ends the run when it lasts."""

from __future__ import annotations

import json

from layouts import CP2, EP2, OVERLAP, PP2, TP2, VPP2
from ranks import run_ranks
from runfiles import write_run
from test_training import call, metrics, new_run

DP2 = {"micro_batch_size": 1}
MOE = {"moe_aux_loss_coeff": 0.1, "moe_router_bias_update_rate": 0.01}
CASES = {
    "dp2": ("llama", True, DP2),
    "dp2-overlap": ("llama", True, DP2 | OVERLAP),
    "pp2": ("llama", True, PP2),
    "vpp2-pp2": ("qwen3", False, VPP2),
    "tp2": ("llama", True, TP2),
    "cp2": ("llama", True, CP2),
    "ep2-dp2": ("deepseek_v3", False, EP2 | DP2 | MOE),
}
"""Family, whether the embedding is tied, keys of the run file."""


def test_no_rank_makes_the_update(tiny, tmp_path):
    runs = [
        write_run(
            tmp_path,
            tiny(family, tied),
            name=name,
            nproc_per_node=2,
            max_skipped_updates=2,
            **({"use_distributed_optimizer": False} | keys),
        )
        for name, (family, tied, keys) in CASES.items()
    ]
    run_ranks("not_finite", 2, *runs)


def test_a_run_that_diverges_saves_nothing_more_and_ends_with_the_reason(tiny, tmp_path):
    """Its first update makes the weights so large that no later step of the rollout has a finite loss."""
    run = new_run(
        tmp_path,
        tiny("qwen3", False),
        "diverges",
        nproc_per_node=1,
        steps_per_generation=4,
        lr=3e37,
        max_skipped_updates=2,
        eval=None,
    )
    ended = call("submit", run)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "not finite in 2 optimizer steps in a row, the last of them step 3" in ended.stderr
    run_dir = tmp_path / "runs" / "diverges"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000001"]
    assert [row["skipped_updates"] for row in metrics(run_dir).values()] == [0, 1]
    messages = [json.loads(line).get("text", "") for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert any("no update is made; completions: " in message for message in messages)
