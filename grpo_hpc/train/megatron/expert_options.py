"""What the run file's section ``moe`` means for a model."""

from __future__ import annotations

from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import schedule
from grpo_hpc.models.routing import Balance


def balance_of(cfg: RunConfig) -> Balance:
    """The losses that keep experts evenly used, averaged over the sequences of an optimizer step."""
    return Balance(cfg.moe.moe_aux_loss_coeff, cfg.moe.moe_z_loss_coeff, schedule(cfg).global_batch_size)


def router_options(cfg: RunConfig) -> dict[str, Any]:
    """Options of Megatron's TransformerConfig for a model with experts."""
    return {"moe_router_dtype": None if cfg.moe.moe_router_dtype == "none" else cfg.moe.moe_router_dtype}
