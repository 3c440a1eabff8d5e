"""Episodes of one rollout, side by side: each is played as long as it needs, and scored when it has ended.

They run on an event loop in a thread of their own, beside the one that steps the engine, on the first rank of a
replica. What they await are completions, answers of environments and rewards; nothing here computes for long.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from grpo_hpc.rollout.replica_loop import Desk
from grpo_hpc.rollout.sample import Key

LOOK_S = 1.0
"""Seconds between two looks whether somebody asked to stop."""
GRACE_S = 5.0
"""Seconds that episodes which have ended have to get their rewards when somebody asked to stop."""

_Played = TypeVar("_Played")
_Scored = TypeVar("_Scored")
_Result = TypeVar("_Result")


class EventThread:
    """An event loop in a thread that ends with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="episodes", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Begin with ``work``."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End the thread; what still runs in it is dropped."""
        self.loop.call_soon_threadsafe(self.loop.stop)


class _StopHeard(Exception):
    """Somebody asked to stop in the middle of a rollout."""


class Playing(Generic[_Played, _Scored]):
    """A replica's part of one rollout.

    Args:
        keys: episodes to play; asked for one when there is a place for it.
        places: episodes at a time.
        play: one episode, from first to last turn.
        score: what it is worth.
        stop: whether somebody asked to stop.

    Attributes:
        cut: whether it was stopped before all were played.
    """

    def __init__(
        self,
        desk: Desk,
        keys: Iterator[Key],
        places: int,
        play: Callable[[Key], Awaitable[_Played]],
        score: Callable[[_Played], Coroutine[Any, Any, _Scored]],
        stop: Callable[[], bool],
    ) -> None:
        self.desk = desk
        self._keys, self._places, self._play, self._score, self._stop = keys, places, play, score, stop
        self._running = 0
        self._scoring: list[asyncio.Task[_Scored]] = []
        self._played: Future[None] | None = None
        self.cut = False

    def begin(self, events: EventThread) -> None:
        """Set them going."""
        self._played = events.start(self.played())

    def lose(self) -> None:
        """Give up what is still played: nobody samples any more."""
        if self._played and not self._played.done():
            self.cut = True
            self._played.cancel()

    def result(self, events: EventThread) -> list[_Scored]:
        """What has ended, scored.

        Raises:
            Exception: the first of what an episode or its scoring raised.
        """
        assert self._played is not None
        try:
            with suppress(CancelledError):
                self._played.result()
            return events.start(self.scored()).result()
        except BaseExceptionGroup as several:
            raise _first(several) from None

    async def played(self) -> None:
        """Until every episode has ended, or somebody asked to stop; nothing is sampled afterwards."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch())
                over = asyncio.Event()
                for _ in range(self._places):
                    self._begin_next(group, over)
                await over.wait()
                watching.cancel()
        except* _StopHeard:
            self.cut = True
        finally:
            self.desk.close()

    async def scored(self) -> list[_Scored]:
        """What has ended and was scored. After a stop, what does not get its rewards soon is left out."""
        if self._scoring:
            await asyncio.wait(self._scoring, timeout=GRACE_S if self.cut else None)
        for late in (task for task in self._scoring if not task.done()):
            late.cancel()
        return [task.result() for task in self._scoring if task.done() and not task.cancelled()]

    def _begin_next(self, group: asyncio.TaskGroup, over: asyncio.Event) -> None:
        """Give a free place to the next episode; ``over`` is set when there is none and every place is free."""
        key = next(self._keys, None)
        if key is not None:
            self._running += 1
            group.create_task(self._one(key, group, over))
        elif not self._running:
            over.set()

    async def _one(self, key: Key, group: asyncio.TaskGroup, over: asyncio.Event) -> None:
        ended = await self._play(key)
        self._running -= 1
        self._begin_next(group, over)  # first the place is taken again, then rewards are asked for
        self._scoring.append(asyncio.create_task(self._score(ended)))

    async def _watch(self) -> None:
        while not self._stop():
            for task in self._scoring:
                if task.done():
                    task.result()  # an error ends the rollout now
            await asyncio.sleep(LOOK_S)
        raise _StopHeard


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
