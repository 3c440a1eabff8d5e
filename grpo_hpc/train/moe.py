"""What the run file's section ``moe`` means for a model."""

from __future__ import annotations

from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.config.adapters import target_linears
from grpo_hpc.config.batch import schedule
from grpo_hpc.errors import ConfigError
from grpo_hpc.models.routing import Balance
from grpo_hpc.models.shape import ModelShape


def balance_of(cfg: RunConfig) -> Balance:
    """The losses that keep experts evenly used, averaged over the sequences of an optimizer step."""
    return Balance(cfg.moe.moe_aux_loss_coeff, cfg.moe.moe_z_loss_coeff, schedule(cfg).global_batch_size)


def router_options(cfg: RunConfig) -> dict[str, Any]:
    """Options of Megatron's TransformerConfig for a model with experts."""
    options: dict[str, Any] = {
        "moe_router_dtype": None if cfg.moe.moe_router_dtype == "none" else cfg.moe.moe_router_dtype
    }
    if cfg.tuner.tuner_type == "lora" and target_linears(cfg.tuner.target_modules) & {"linear_fc1", "linear_fc2"}:
        options["moe_grouped_gemm"] = False  # experts with adapters are computed one by one
    if cfg.moe.moe_router_bias_update_rate:
        options["moe_router_bias_update_rate"] = cfg.moe.moe_router_bias_update_rate
    return options


def require_experts(cfg: RunConfig, shape: ModelShape) -> None:
    """Refuse options that have no meaning for this model.

    Raises:
        ConfigError: it has no experts, or its routers no correction bias, and the run file says how to train them.
    """
    given = sorted(cfg.moe.model_fields_set)
    if shape.experts is None and given:
        raise ConfigError(f"{', '.join(f'moe.{key}' for key in given)}: {shape.family} has no experts")
    if shape.experts is not None and cfg.moe.moe_router_bias_update_rate and not shape.experts.bias:
        raise ConfigError(
            f"moe.moe_router_bias_update_rate: the routers of {shape.family} have no correction bias",
            "Balance its experts with moe.moe_aux_loss_coeff.",
        )
