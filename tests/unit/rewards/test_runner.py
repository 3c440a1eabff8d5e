"""Futures of several parts, and rewards that are asked for from an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from grpo_hpc.rewards.runner import RewardRunner, together
from grpo_hpc.rewards.worker_pool import Task

OWN = """
import asyncio, time
from pathlib import Path

def plain(completions):
    time.sleep(1000 if completions[0] == "hang" else 0)
    return [len(completions[0])]

async def waits(completions):
    await asyncio.sleep(0.01)
    return [-len(completions[0])]

class Batches:
    def __init__(self, *, path: str):
        self.at_once, self.file = 4, Path(path)

    def __call__(self, completions):
        with self.file.open("a") as file:
            file.write(f"{len(completions)} ")
        return [0.5] * len(completions)
"""


@pytest.fixture
def runner(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    names = [f"{tmp_path}/own.py:{name}" for name in ("plain", "waits", "Batches")]
    made = RewardRunner(names, {"Batches": {"path": str(tmp_path / "batches")}}, {}, timeout=60.0)
    made.start()
    yield made
    made.close()


def test_the_parts_together():
    parts = [Future[int](), Future[int]()]
    whole = together(parts, sum)
    parts[1].set_result(2)
    assert not whole.done()
    parts[0].set_result(1)
    assert whole.result(timeout=0) == 3 and together([], list).result(timeout=0) == []


def test_a_part_that_fails_and_a_whole_that_nobody_wants():
    parts = [Future[int](), Future[int]()]
    whole = together(parts, list)
    parts[0].set_exception(ValueError("one"))
    parts[1].set_exception(KeyError("two"))
    with pytest.raises(ValueError, match="one"):
        whole.result(timeout=0)
    parts = [Future[int](), Future[int]()]
    parts[0].set_result(1)
    assert together(parts, list).cancel() and parts[1].cancelled()


def test_episodes_are_scored_as_they_end(runner, tmp_path):
    """Twelve ask at once for three rewards each, while another's hangs; the model is given batches all the same."""

    async def episode(text):
        asked = [Task(name, {"completions": [text]}) for name in ("plain", "waits", "Batches")]
        return [outcome.score for outcome in await asyncio.wrap_future(runner.submit(asked))]

    async def all_of_them():
        hanging = asyncio.wrap_future(runner.submit([Task("plain", {"completions": ["hang"]})]))
        found = await asyncio.gather(*(episode("x" * n) for n in range(12)))
        assert not hanging.done()
        hanging.cancel()
        return found

    assert asyncio.run(all_of_them()) == [[n, -n, 0.5] for n in range(12)]
    batches = [int(size) for size in (tmp_path / "batches").read_text().split()]
    assert sum(batches) == 12 and max(batches) == 4
