"""Reward models: classes that are called with several completions at a time.

    class Longest:
        def __init__(self, *, batch_size: int = 8) -> None: ...
        def __call__(self, completions: list[str], prompts: list[list[dict]], answer: list) -> list[float | None]: ...

An attribute ``at_once`` says how many completions the object takes at a time (8 if it has none). A class whose
``__call__`` is async is called with one completion at a time instead, ``at_once`` of them concurrently.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.calling import wanted

_DEFAULT = 8
_GATHERING_S = 0.01  # for the rest of a batch to arrive


def together(column: str, model: Any) -> Any:
    """``model`` as an async reward function with an attribute ``at_once``."""
    if inspect.iscoroutinefunction(type(model).__call__):
        return model
    return Batched(column, model, getattr(model, "at_once", _DEFAULT))


class Batched:
    """Gathers single completions into batches for a model, and computes one batch after the other.

    Nothing else happens in the process meanwhile: where a model hangs, the pool notices and starts a new process.

    A batch that fails is computed again one by one, so that one bad completion does not take the others with it.
    """

    def __init__(self, column: str, model: Any, at_once: int) -> None:
        self._column, self._model, self.at_once = column, model, at_once
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[Any]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, **offered: Any) -> list[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((offered, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return [await future]

    async def _work(self) -> None:
        await asyncio.sleep(_GATHERING_S)
        while self._waiting:
            batch, self._waiting = self._waiting[: self.at_once], self._waiting[self.at_once :]
            batch = [(offered, future) for offered, future in batch if not future.cancelled()]
            self._answer(batch)
            await asyncio.sleep(_GATHERING_S)

    def _answer(self, batch: Sequence[tuple[Mapping[str, Any], asyncio.Future[Any]]]) -> None:
        try:
            scores = self._scores([offered for offered, _ in batch]) if batch else []
        except Exception as error:
            if len(batch) == 1:
                return batch[0][1].set_exception(error)
            for one in batch:
                self._answer([one])
            return None
        for (_, future), score in zip(batch, scores, strict=True):
            future.set_result(score)
        return None

    def _scores(self, offered: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        """One score per completion; ``offered`` has lists of length 1. A column that a row lacks is null there."""
        names = dict.fromkeys(chain(*offered))
        merged = {name: [entry.get(name, [None])[0] for entry in offered] for name in names}
        scores = self._model(**wanted(self._column, self._model, merged))
        if not isinstance(scores, list | tuple) or len(scores) != len(offered):
            got = f"{len(scores)} scores" if isinstance(scores, list | tuple) else f"a {type(scores).__name__}"
            raise RewardError(
                f"it returned {got} for {len(offered)} completions", "Return a list, one number for each."
            )
        return scores
