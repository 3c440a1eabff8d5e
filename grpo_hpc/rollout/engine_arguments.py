"""What a run file hands to vLLM under vLLM's own names, checked against the vLLM that is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from grpo_hpc.config.keys import closest


def unknown_arguments(names: Iterable[str]) -> str | None:
    """What is wrong with ``rollout.vllm_engine_kwargs``; None when the vLLM here knows all ``names``.

    Importing vLLM takes seconds, so it is not asked about nothing.
    """
    wanted = list(names)
    if not wanted:
        return None
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in wanted:
        if name not in known:
            near = closest(name, known)
            return f"rollout.vllm_engine_kwargs: vLLM {vllm.__version__} has no {name!r}" + (
                f"; it has {near}" if near else ""
            )
    return None
