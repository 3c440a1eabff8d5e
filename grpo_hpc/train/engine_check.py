"""Before a run samples in earnest: do engine and trainer compute the same log-probabilities?

A weight that was lost, transposed or read under the wrong name, another rotary base or another chat head: all of these
leave a run going and only make it learn badly. They all show in the log-probabilities of a handful of tokens.
"""

from __future__ import annotations

import numpy as np

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import RolloutError

TOKENS = 16
"""Tokens of each completion that is compared."""


def tolerance(cfg: RunConfig) -> float:
    """Largest mean distance in nat that passes."""
    if cfg.rollout.canary_tolerance is not None:
        return cfg.rollout.canary_tolerance
    return 0.02 if cfg.model.dtype == cfg.rollout.vllm_dtype == "float32" else 0.2


def check(cfg: RunConfig, engine: np.ndarray, trainer: np.ndarray) -> float:
    """The mean distance between the engine's log-probabilities and the trainer's, over all tokens.

    Args:
        engine, trainer: [N], of the same tokens.

    Raises:
        RolloutError: it is larger than the tolerance, or not a number.
    """
    apart = np.abs(engine.astype(np.float64) - trainer)
    distance, limit = float(apart.mean()), tolerance(cfg)
    if not distance <= limit:
        worst = int(np.argmax(np.nan_to_num(apart, nan=np.inf)))
        raise RolloutError(
            f"engine and trainer disagree about the same weights: over {len(apart)} tokens their log-probabilities are "
            f"{distance:.3g} nat apart on average (at worst {engine[worst]:.3f} in the engine, {trainer[worst]:.3f} in "
            f"the trainer); rollout.canary_tolerance is {limit:g}",
            "Likely causes: a weight that the engine does not take over at a sync, another rotary scaling or attention "
            "than config.json asks for, or a version of vLLM that does not fit this model. If the model is only noisy "
            "in low precision (many experts), set rollout.vllm_dtype: float32 to see, or raise the tolerance.",
        )
    return distance
