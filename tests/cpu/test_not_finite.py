"""A loss or gradient that is not finite on one rank changes nothing on any, and ends the run when it lasts."""

from __future__ import annotations

from layouts import CP2, EP2, OVERLAP, PP2, TP2, VPP2
from ranks import run_ranks
from runfiles import write_run

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
