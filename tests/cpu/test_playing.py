"""Many episodes side by side: places, refilling, rewards, a wish to stop, errors. The engine is a loop that counts."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from grpo_hpc.errors import RewardError
from grpo_hpc.rollout import playing
from grpo_hpc.rollout.engine import Completion, Request
from grpo_hpc.rollout.playing import EventThread, Playing
from grpo_hpc.rollout.replica_loop import Desk, ReplicaLoop
from grpo_hpc.rollout.sample import Key


class Engine:
    """Ends a completion after as many steps as its seed says; knows how many it had at once, and what was aborted."""

    def __init__(self):
        self.left, self.most, self.aborted = {}, 0, []

    def submit(self, name, request):
        self.left[name] = request.seed
        self.most = max(self.most, len(self.left))

    def abort(self, name):
        self.aborted.append(name)
        self.left.pop(name, None)

    def step(self):
        threading.Event().wait(0.001)
        self.left = {name: left - 1 for name, left in self.left.items()}
        ended = [name for name, left in self.left.items() if left <= 0]
        for name in ended:
            del self.left[name]
        return [(name, Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop")) for name in ended]


@pytest.fixture
def events():
    thread = EventThread()
    yield thread
    thread.close()


def played(events, count, seconds, places=4, score=None, stop=lambda: False, turns=1):
    """What came of ``count`` episodes of so many steps each, and the engine."""
    engine, desk, order = Engine(), Desk(events.loop), []

    async def play(key):
        for _ in range(turns):
            order.append(("asked", key.position))
            await desk.sample(Request(np.zeros(3, np.int32), seconds(key.position), {}))
        return key.position

    async def scored(position):
        order.append(("scored", position))
        return await score(position) if score else position

    keys = (Key(number, 0) for number in range(count))
    found = Playing(desk, keys, places, play, scored, stop)
    found.begin(events)
    ReplicaLoop(engine).run(desk)
    return found, engine, order


def test_every_episode_is_played_and_scored_once_with_so_many_at_a_time(events):
    found, engine, _ = played(events, 50, lambda n: 1 + n % 7, turns=3)
    assert sorted(found.result(events)) == list(range(50)) and not found.cut
    assert engine.most == 4 and not engine.aborted


def test_a_place_is_taken_again_before_rewards_are_asked_for(events):
    found, _, order = played(events, 3, lambda n: 1, places=1)
    found.result(events)
    assert order.index(("asked", 1)) < order.index(("scored", 0))


def test_a_stop_keeps_what_has_ended_and_gives_up_the_rest(events, monkeypatch):
    monkeypatch.setattr(playing, "LOOK_S", 0.01)
    asked = threading.Event()

    async def score(position):
        asked.set()
        return position

    found, engine, _ = played(events, 8, lambda n: 1 if n < 2 else 10**6, score=score, stop=asked.is_set)
    assert set(found.result(events)) <= {0, 1} and found.result(events) and found.cut
    assert engine.aborted and not engine.left, "nothing is sampled any more"


def test_rewards_that_take_too_long_are_not_waited_for_after_a_stop(events, monkeypatch):
    monkeypatch.setattr(playing, "LOOK_S", 0.01)
    monkeypatch.setattr(playing, "GRACE_S", 0.05)
    begun = threading.Event()

    async def score(position):
        begun.set()
        await asyncio.sleep(600)

    found, _, _ = played(events, 3, lambda n: 1 if n < 1 else 10**6, score=score, stop=begun.is_set)
    assert found.result(events) == [] and found.cut


@pytest.mark.parametrize("error", [RewardError("broken"), RuntimeError("a fault")])
def test_an_error_of_a_reward_ends_the_rollout_at_once_and_is_raised_as_it_is(events, monkeypatch, error):
    monkeypatch.setattr(playing, "LOOK_S", 0.01)

    async def score(position):
        raise error

    found, engine, _ = played(events, 5, lambda n: 1 if n < 1 else 10**6, score=score)
    with pytest.raises(type(error), match=str(error)):
        found.result(events)
    assert not engine.left
