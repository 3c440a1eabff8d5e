"""What a vLLM server's workers can do besides sampling: take over the trainer's weights (`--worker-extension-cls`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from grpo_hpc.errors import RolloutError
from grpo_hpc.models.families import synced_names
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.rollout.digest import EngineTensors, compare, sample
from grpo_hpc.rollout.engine import forget_packed_experts, loads_in_place, ranks_of_one_engine, refresh_tied_head
from grpo_hpc.rollout.link import Link
from grpo_hpc.rollout.loading import Loading
from grpo_hpc.rollout.reload_warnings import expect_no_weights

JOIN, RECEIVE = "join_trainer", "receive_policy"
"""Names of the methods, for ``collective_rpc``."""


class PolicyReceiver:
    """Mixed into vLLM's own worker, whose attributes these are."""

    rank: int
    device: Any
    model_config: Any
    model_runner: Any
    reload_weights: Any

    def join_trainer(self, host: str, port: int, first_rank: int, size: int, nonce: str, timeout_s: float) -> None:
        """Become an end of the trainer's broadcast; ``first_rank`` is that of this engine's first worker."""
        model = self.model_runner.get_model()
        in_place = self.device.type == "cuda" and loads_in_place(model)
        link = Link(host, port, first_rank + self.rank, size, nonce, self.device, timeout_s)
        held = EngineTensors(model, synced_names(read_shape(self.model_config.model)))
        expect_no_weights(model)
        self._policy_ends = (link, held, Loading() if in_place else None)

    def receive_policy(self, seed: int) -> dict[str, Any]:
        """Replace all weights by what the trainer broadcasts, and compare a sample of them with it.

        Returns:
            ``bytes`` and ``compared``, or ``error``: what differs.
        """
        link, held, loading = self._policy_ends
        model = self.model_runner.get_model()
        sent = sample(held, seed)
        stream = sent.watch(link.receive(seed))
        try:
            try:
                self._replace_policy(model, stream, loading)
            finally:
                for _ in stream:  # a broadcast: every end must hear all of it
                    pass
            refresh_tied_head(model)
            return {"bytes": sent.bytes, "compared": compare(held, sent, ranks_of_one_engine())}
        except RolloutError as error:
            return {"error": str(error)}

    def _replace_policy(self, model: Any, stream: Iterator[tuple[str, Tensor]], loading: Loading | None) -> None:
        if loading is not None:
            loading.load(model, stream)
        else:
            forget_packed_experts(model)
            self.reload_weights(weights_iterator=stream)
