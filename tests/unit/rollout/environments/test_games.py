"""Classes with reset and step: ms-swift's interface and Gymnasium's; and classes of the protocol, async or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Opening, Reply, Turn

ROW = Row("rows:1", [{"role": "user", "content": "Guess."}], {"seed": 5, "env_config": {"top": 9}})

GYMNASIUM = """
class Guess:
    def __init__(self, tries: int = 2, odd: str = ""):
        self.tries, self.odd = tries, odd

    def reset(self, *, seed=None, options=None):
        self.secret, self.left = seed, self.tries
        return (3 if self.odd == "observation" else f"0 to {options['env_config']['top']}?"), {}

    def step(self, action):
        self.left -= 1
        right = action.strip() == str(self.secret)
        reward = float("inf") if self.odd == "reward" else float(right)
        return "no", reward, right, self.left == 0, {}

    def close(self):
        print("closed")
"""

SWIFT = """
class Guess:
    def __init__(self, env_config):
        self.config = env_config

    async def reset(self, config):
        self.secret = config.data_dict["seed"]
        return f"0 to {self.config['top']} in {self.config['tries']} tries?", {}, "You guess."

    async def step(self, action):
        text = action[-1]["content"]
        right = text == str(self.secret)
        return f"no, and you said {len(action)}", 1.0 if right else -0.5, right, {}

    async def close(self):
        print("closed")
"""

OWN = """
from grpo_hpc.rollout.environments.protocol import Opening, Reply


class Guess:
    def __init__(self, *, kind: str = "sync"):
        self.kind = kind

    {x}def start(self, row):
        self.secret = row.columns["seed"]
        return Opening([*row.messages, {{"role": "user", "content": "0 to 9?"}}])

    {x}def reply(self, turn):
        right = turn.text == str(self.secret)
        return Reply([{{"role": "user", "content": f"no, not {{turn.number}}"}}], done=right, counts={{"guesses": 1}})

    {x}def close(self):
        print("closed")
"""


def said(text: str, number: int = 0) -> Turn:
    return Turn(number, {"role": "assistant", "content": text}, text, "stop")


def played(pool: EnvironmentPool, *texts: str) -> tuple[Opening, list[Reply]]:
    async def play() -> tuple[Opening, list[Reply]]:
        environment = pool.new("0/0")
        try:
            opening = await environment.start(ROW)
            return opening, [await environment.reply(said(text, n)) for n, text in enumerate(texts)]
        finally:
            await environment.close()

    return asyncio.run(play())


def test_gymnasium(pool_of: Callable[..., EnvironmentPool], tmp_path) -> None:
    pool = pool_of(GYMNASIUM, "Guess", {"tries": 2})
    assert pool.start() == "gym"
    opening, replies = played(pool, "4", "3")
    assert opening == Opening([{"role": "user", "content": "Guess.\n\n0 to 9?"}])
    assert replies == [Reply([{"role": "user", "content": "no"}], reward=0.0), Reply(done=True, reward=0.0)]
    assert played(pool, "5")[1] == [Reply(done=True, reward=1.0)]
    assert (tmp_path / "printed.log").read_text() == "0/0 | closed\n" * 2


def test_ms_swift(pool_of: Callable[..., EnvironmentPool], tmp_path) -> None:
    pool = pool_of(SWIFT, "Guess", {"tries": 3})
    assert pool.start() == "gym"
    opening, replies = played(pool, "4", "5")
    chat = [{"role": "system", "content": "You guess."}, {"role": "user", "content": "0 to 9 in 3 tries?"}]
    assert opening == Opening(chat)
    assert replies[0] == Reply([{"role": "user", "content": "no, and you said 3"}], reward=-0.5)
    assert replies[1] == Reply(done=True, reward=1.0)
    assert (tmp_path / "printed.log").read_text() == "0/0 | closed\n"


@pytest.mark.parametrize("prefix", ["", "async "])
def test_own_class(pool_of: Callable[..., EnvironmentPool], tmp_path, prefix: str) -> None:
    pool = pool_of(OWN.format(x=prefix), "Guess", {"kind": "async"})
    assert pool.start() == "class"
    opening, replies = played(pool, "4", "5")
    assert opening.messages[0] == ROW.messages[0]
    assert replies[0] == Reply([{"role": "user", "content": "no, not 0"}], counts={"guesses": 1})
    assert replies[1].done
    assert (tmp_path / "printed.log").read_text() == "0/0 | closed\n"


@pytest.mark.parametrize(
    ("odd", "says"), [("observation", "an observation is a int, not a text"), ("reward", "step gave the reward inf")]
)
def test_what_no_policy_can_use_ends_the_episode(pool_of: Callable[..., EnvironmentPool], odd: str, says: str) -> None:
    with pytest.raises(EpisodeFailed, match=says):
        played(pool_of(GYMNASIUM, "Guess", {"odd": odd}), "1")


def test_numbers_of_numpy_are_numbers(pool_of: Callable[..., EnvironmentPool]) -> None:
    text = OWN.format(x="").replace("done=right", "done=np.bool_(right), reward=np.float32(0.5)")
    _, replies = played(pool_of(f"import numpy as np\n{text}", "Guess"), "5")
    assert (replies[0].done, replies[0].reward) == (True, 0.5)


def test_a_reset_of_another_kind_is_refused(pool_of: Callable[..., EnvironmentPool]) -> None:
    text = "class Guess:\n    def reset(self): ...\n    def step(self, action): ..."
    with pytest.raises(ConfigError, match="takes neither `seed` and `options`"):
        pool_of(text, "Guess").start()


def test_a_row_without_a_seed_has_one_of_its_own(pool_of: Callable[..., EnvironmentPool]) -> None:
    text = GYMNASIUM.replace("return (3 if", "return str(seed), {}\n        return (3 if")
    pool = pool_of(text, "Guess")

    async def seeds(*names: str) -> list[str]:
        environments = [pool.new(name) for name in names]
        rows = [Row(name, [{"role": "assistant", "content": "x"}], {}) for name in names]
        openings = [await e.start(row) for e, row in zip(environments, rows, strict=True)]
        return [opening.messages[-1]["content"] for opening in openings]

    first, again, other = asyncio.run(seeds("rows:1", "rows:1", "rows:2"))
    assert first == again != other
    assert 0 <= int(first) < 2**31
