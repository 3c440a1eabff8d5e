"""Tokens on their way to experts where one rank has all of them."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor


class OneRankDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's dispatcher without its second sorting, there and back.

    It sorts by expert what comes from several ranks, each rank's part sorted already. With a single rank that is
    everything, and two copies of all tokens and their gradients less.
    """

    num_local_experts: int

    def dispatch_postprocess(self, *args: Any) -> Any:
        """Tokens, how many each expert has, and their probabilities."""
        return self._in_one_chunk(super().dispatch_postprocess, *args)

    def combine_preprocess(self, hidden_states: Tensor) -> Any:
        """The experts' outputs, as they are."""
        return self._in_one_chunk(super().combine_preprocess, hidden_states)

    def _in_one_chunk(self, method: Any, *args: Any) -> Any:
        experts, self.num_local_experts = self.num_local_experts, 1
        try:
            return method(*args)
        finally:
            self.num_local_experts = experts
