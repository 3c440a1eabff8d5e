"""Forward operations of a sequence, from the model's shape. Free of torch: planner and packing both count with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from grpo_hpc.models.families.counting import count_active, count_by_part
from grpo_hpc.models.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np

Count = TypeVar("Count", float, "np.ndarray")


@dataclass(frozen=True)
class Cost:
    """Forward operations of a sequence of n tokens, ``scored`` of which need a log-probability.

    Attributes:
        linear: of the matrix products of all layers, for each token; of routed experts, those that a token visits.
        quadratic: of causal attention in all layers, for each squared token: half of the score matrix.
        head: of the output matrix, for each scored token.
    """

    linear: float
    quadratic: float = 0.0
    head: float = 0.0

    def of(self, tokens: Count, scored: Count) -> Count:
        """Operations of one sequence, or of many: both arguments are numbers, or float64 arrays of one shape."""
        return self.linear * tokens + self.quadratic * tokens * tokens + self.head * scored


@cache
def sequence_cost(shape: ModelShape) -> Cost:
    """What a sequence of a model costs; its vision tower, which sees images and not tokens, is left out.

    A multiplication and an addition are two operations. Latent attention has queries and keys of another width than
    values (DeepSeek-V2, arXiv 2405.04434); it is counted as it is trained, with keys and values expanded.
    """
    c = count_by_part(shape)
    products = count_active(shape) - c.embedding - c.output - c.vision
    width = shape.heads * ((shape.head_dim + shape.mla.v_dim) / 2 if shape.mla else shape.head_dim)
    return Cost(2.0 * products, 2.0 * shape.layers * width, 2.0 * (c.output or c.embedding))
