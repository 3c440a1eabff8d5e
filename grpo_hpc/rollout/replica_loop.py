"""One engine, stepped by all ranks of its replica, and many that want completions of it.

vLLM inside the trainer has a scheduler in every rank of a replica; they stay alike as long as all of them are told the
same in the same order. So the first rank decides what the engine shall do, and tells the others before a step. What
comes out of a step is the same everywhere, and needs no message. Whoever wants a completion is in another thread of
the first rank (:class:`Desk`); only :class:`ReplicaLoop` touches the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from grpo_hpc.rollout.engine import Completion, Engine, Request

STEPS = 8
"""Steps of an engine between two messages of its first rank, at most."""
HEARTBEAT_S = 5.0
"""Seconds without a request, after which the first rank lets the others know that it is there."""


@dataclass
class Decisions:
    """What the engine shall do next, in this order.

    Attributes:
        abort: names of completions that nobody wants any more.
        add: completions wanted, with their names.
        over: whether nothing will come any more.
    """

    abort: list[str] = field(default_factory=list)
    add: list[tuple[str, Request]] = field(default_factory=list)
    over: bool = False

    @property
    def empty(self) -> bool:
        return not (self.abort or self.add or self.over)


class Desk:
    """Where episodes ask for completions, and the loop finds what it is asked for. For one rollout.

    Args:
        events: the loop that episodes run on, in another thread.
    """

    def __init__(self, events: asyncio.AbstractEventLoop) -> None:
        self._events = events
        self._changed = threading.Condition()
        self._next = Decisions()
        self._wanted: dict[str, asyncio.Future[Completion]] = {}
        self._names = itertools.count()

    # -- in the thread of the episodes -------------------------------------------------------------------------------

    async def sample(self, request: Request) -> Completion:
        """A completion; whoever is cancelled while it waits gives it up."""
        name, answer = str(next(self._names)), self._events.create_future()
        self._wanted[name] = answer
        with self._changed:
            self._next.add.append((name, request))
            self._changed.notify()
        try:
            return await answer
        except asyncio.CancelledError:
            with self._changed:
                self._next.abort.append(name)
            raise
        finally:
            del self._wanted[name]

    def close(self) -> None:
        """Nothing will be asked for any more."""
        with self._changed:
            self._next.over = True
            self._changed.notify()

    def _settle(self, ended: list[tuple[str, Completion]]) -> None:
        for name, completion in ended:
            answer = self._wanted.get(name)
            if answer is not None and not answer.done():
                answer.set_result(completion)

    # -- in the thread of the engine ---------------------------------------------------------------------------------

    def decisions(self, wait: bool) -> Decisions:
        """What has been decided since the last call.

        Args:
            wait: whether to wait for something, for some seconds at most.
        """
        with self._changed:
            if wait and self._next.empty:
                self._changed.wait(HEARTBEAT_S)
            decided, self._next = self._next, Decisions()
        # what was given up before it began never begins
        given_up = set(decided.abort)
        both = given_up & {name for name, _ in decided.add}
        decided.add = [(name, request) for name, request in decided.add if name not in both]
        decided.abort = [name for name in decided.abort if name not in both]
        return decided

    def deliver(self, ended: list[tuple[str, Completion]]) -> None:
        """Let episodes have their completions."""
        self._events.call_soon_threadsafe(self._settle, ended)


class ReplicaLoop:
    """Steps an engine.

    Args:
        share: hands what the first rank of the replica decided to its others, called by all of them together; None
            where there are no others.
    """

    def __init__(self, engine: Engine, share: Callable[[Decisions | None], Decisions] | None = None) -> None:
        self._engine, self._share = engine, share

    def run(self, desk: Desk | None) -> None:
        """Work until the first rank says that it is over; collective over the ranks of the replica.

        Args:
            desk: where things are asked for; None on all ranks but the first.
        """
        running: set[str] = set()
        while True:
            decided = self._decided(desk, wait=not running)
            for name in decided.abort:
                self._engine.abort(name)
                running.discard(name)
            for name, request in decided.add:
                self._engine.submit(name, request)
                running.add(name)
            if decided.over:
                assert not running, "the rollout is over, and completions of it are being sampled"
                return
            for _ in range(STEPS if self._share else 1):
                ended = self._engine.step() if running else []
                running.difference_update(name for name, _ in ended)
                if desk and ended:
                    desk.deliver(ended)
                if ended:
                    break

    def _decided(self, desk: Desk | None, *, wait: bool) -> Decisions:
        decided = desk.decisions(wait) if desk else None
        if self._share:
            return self._share(decided)
        assert decided is not None
        return decided
