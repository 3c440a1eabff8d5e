"""Seconds between the phases: weights to the engine, and what leaves the GPU for a rollout."""

from __future__ import annotations

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.parameter_counts import held, trained
from grpo_hpc.plan.rates import Part, link_of
from grpo_hpc.plan.setup import Execution, Task

WAKE = 0.2  # seconds to put the engine to sleep and wake it, and to give back what is cached
SYNC_CHECK = 0.01  # seconds for hashes of sampled tensors, whatever the size
SYNC_CALL = 35e-6  # seconds to hand one tensor to the engine
SYNC_EXPERT_CALL = 22e-6  # an expert's
SYNC_RELOAD = 0.2e-3  # either, where vLLM reloads layer by layer, as it does with latent attention
SYNC_MERGE = 2.2e-3  # and to compute a layer's matrices with their adapters, from 36 layers beside an H200
SYNC_SHARE = 0.25  # share of the device's copy rate that conversion and loading of tensors reach


def sync(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """Every rank rebuilds the whole model from the shards and hands it to its engine."""
    s, d = task.shape, execution.degrees
    size = task.parameters * task.width
    tensors = len(s.dense_layers) * 11 + len(s.moe_layers) * 9 + 3
    experts = len(s.moe_layers) * 3 * s.experts.count if s.experts else 0
    cut = d.tp * d.pp * d.ep
    device = 2 * size / (hw.hbm_gb_per_s * 1e9 * SYNC_SHARE)
    merged = s.layers * SYNC_MERGE if task.lora_rank else 0.0
    call, expert_call = (SYNC_RELOAD, SYNC_RELOAD) if s.mla else (SYNC_CALL, SYNC_EXPERT_CALL)
    host = tensors * call + experts * expert_call + merged
    parts = [
        Part("checks", SYNC_CHECK, "host", "hashes of sampled tensors"),
        Part(
            "convert and load",
            max(device, host),
            "HBM" if device > host else "host",
            f"{size / 1e9:.1f} GB read and written at {SYNC_SHARE:.0%} of the copy rate; the host hands over "
            f"{tensors:,} tensors at {call * 1e6:.0f} us and {experts:,} of experts at "
            f"{expert_call * 1e6:.0f} us" + (f", and merges adapters in {merged:.2f} s" if merged else ""),
        ),
    ]
    if cut > 1:
        rate, bound = link_of(execution, hw, d.tp * d.pp * max(1, d.ep // d.tp))
        parts.append(Part("gather", size * (cut - 1) / cut / rate, bound, f"shards of {cut} ranks"))
    if execution.server_nodes:
        parts.append(
            Part("to the servers", size / (hw.nic_gb_per_s * 1e9), "NIC", "one copy per node, over its network")
        )
    return parts


def offload(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """What leaves the GPU for the rollout and comes back."""
    d, rate = execution.degrees, hw.pcie_gb_per_s * 1e9
    have = max((held(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    learn = max((trained(task, execution, stage) for stage in (0, d.pp - 1)), key=lambda h: h.total)
    parts = []
    if execution.offload_model:
        size: float = have.total * task.width * (2 if task.reference and not task.lora_rank else 1)
        parts.append(Part("model", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    if execution.offload_optimizer:
        ranks, edp = (d.dp * d.cp, d.edp) if execution.distributed_optimizer else (1, 1)
        size = (learn.dense / ranks + learn.expert / edp) * (4 + execution.moments)
        parts.append(Part("optimizer", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    if execution.sleep_level and not execution.server_nodes:
        parts.append(Part("sleep and wake", WAKE, "host", "memory of the engine unmapped and mapped again"))
    if execution.sleep_level == 1 and not execution.server_nodes:
        size = task.parameters * task.engine_width / execution.engine_tp
        parts.append(Part("vLLM weights", 2 * size / rate, "PCIe", f"{size / 1e9:.1f} GB out and back"))
    return parts
