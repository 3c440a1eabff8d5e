"""Whatever an environment does to itself costs its own episode, and is told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.rollout.environments import environment_process
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.found_in_file import load_environment
from grpo_hpc.rollout.environments.frames import BadFrame, untrusted
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Opening, Reply, Turn

# it does what the policy says
OBEDIENT = """
import os, signal, subprocess, time
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Opening, Reply


class Obedient:
    def __init__(self, greeting: str = "hello"):
        self.greeting, self.said = greeting, "well"

    def start(self, row):
        return Opening([*row.messages, {"role": "user", "content": self.greeting}])

    def reply(self, turn):
        answer = Reply([{"role": "user", "content": self.said}], reward=1.0)
        told = dict(globals(), self=self, answer=answer)
        exec(turn.text, told)
        return told["answer"]
"""


def row(**columns: Any) -> Row:
    return Row("rows:1", [{"role": "system", "content": "Play."}], columns)


def turn(text: str, number: int = 0) -> Turn:
    return Turn(number, {"role": "assistant", "content": text}, text, "stop")


async def played(pool: EnvironmentPool, *texts: str, name: str = "0/0") -> list[Reply] | EpisodeFailed:
    """What an environment replies to ``texts``, or how the episode failed."""
    environment = pool.new(name)
    try:
        await environment.start(row())
        return [await environment.reply(turn(text)) for text in texts]
    except EpisodeFailed as error:
        return error
    finally:
        await environment.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


HOSTILE = {
    "raise ValueError('no such move')": ("error", "ValueError: no such move Raised at "),
    "raise SystemExit(3)": ("error", "SystemExit: 3"),
    "raise EpisodeFailed('error', 'the game is broken')": ("error", "the game is broken"),
    "answer = {'done': True}": ("error", "reply returned a dict, not a Reply"),
    "answer = Reply()": ("error", "reply says nothing, and the episode is not over"),
    "answer = Reply([{'role': 'wizard', 'content': ''}])": ("error", "a message without a role among system"),
    "answer = Reply([{'role': 'user', 'content': 3}])": ("error", "content is no text"),
    "answer = Reply(done=True, reward=float('nan'))": ("error", "the reward nan, which is no finite number"),
    "answer = Reply(done=True, reward=-1e100)": ("error", "the reward -1e+100, which is no finite number up to 1e+30"),
    "answer = Reply(done=True, reward='much')": ("error", "the reward much, which is no finite number"),
    "answer = Reply(done=True, counts={'a': 1.5})": ("error", "counts that are no whole numbers"),
    "answer = Reply([{'role': 'user', 'content': '', 'x': object()}])": (
        "error",
        "it returned is no JSON: an object",
    ),
    "answer = Reply([{'role': 'user', 'content': '', 'x': 'y' * 10**8}])": ("error", "; 1,048,576 at most"),
    "x = bytearray(2**31)": ("error", "MemoryError"),
    "os._exit(7)": ("killed", "its process ended in reply: exit code 7"),
    "os.kill(os.getpid(), 9)": ("killed", "its process ended in reply: signal SIGKILL"),
    "os.closerange(3, 100); os._exit(0)": ("killed", "its process ended in reply: exit code 0"),
    "os.closerange(3, 100); time.sleep(60)": ("killed", "it closed its socket"),
    "time.sleep(60)": ("timeout", "took more than 8 s"),
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass": ("timeout", "took more than 8 s"),
}


def test_a_fault_costs_one_episode(pool_of: Callable[..., EnvironmentPool]) -> None:
    """All of them at once, between others that play on."""
    pool = pool_of(OBEDIENT, "Obedient", timeout=8.0, memory_gib=1.0)

    async def side_by_side() -> list[Any]:
        faulty = [played(pool, "pass", text, name=f"0/{n}") for n, text in enumerate(HOSTILE)]
        others = [played(pool, *["pass"] * 5, name=f"1/{n}") for n in range(4)]
        return await asyncio.gather(*faulty, *others)

    assert pool.start() == "class"
    ends = asyncio.run(side_by_side())
    for end, (text, (kind, says)) in zip(ends, HOSTILE.items(), strict=False):
        assert isinstance(end, EpisodeFailed), text
        assert (end.kind, says in end.text) == (kind, True), (text, end.text)
    for end in ends[len(HOSTILE) :]:
        assert [reply.reward for reply in end] == [1.0] * 5


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"\0\0\0\x07not so.", "an answer that is no JSON"),
        (b"\x7f\xff\xff\xff" + b"x" * 1000, "an answer of 2,147,483,647 bytes"),
        (b"\0\0\0\x02[]", "an answer of no known form"),
        (b"\0\0\0\x0b" + b'{"value":1}', "does not say whether the episode is over"),
    ],
)
def test_what_it_writes_itself_is_not_trusted(pool_of: Callable[..., EnvironmentPool], frame: bytes, says: str) -> None:
    sockets = "[n for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and socket_of(n)]"
    text = (
        "def socket_of(n):\n"
        "    try: return os.readlink(f'/proc/self/fd/{n}').startswith('socket:')\n"
        "    except OSError: return False\n"
        f"for n in {sockets}:\n"
        f"    os.write(n, {frame!r})\n"
        "time.sleep(60)"
    )
    pool = pool_of(OBEDIENT, "Obedient", timeout=20.0)
    failed = asyncio.run(played(pool, text))
    assert isinstance(failed, EpisodeFailed)
    assert (failed.kind, says in failed.text) == ("error", True), failed.text


def test_what_it_started_ends_with_it(pool_of: Callable[..., EnvironmentPool], tmp_path: Path) -> None:
    """In its process group, in a session of its own, and where the process that started it is gone."""
    text = f"""
for prefix in ([], ['setsid'], ['sh', '-c', 'setsid sleep 600 & echo $! > {tmp_path}/orphan; exec sleep 600', 'x']):
    child = subprocess.Popen([*prefix, 'sleep', '600'])
    print('pid', child.pid)
    open('{tmp_path}/pids', 'a').write(f'{{child.pid}}\\n')
time.sleep(0.3)
"""
    pool = pool_of(OBEDIENT, "Obedient", timeout=20.0)
    for end in ("pass", "os._exit(1)"):
        asyncio.run(played(pool, text, end))
        pids = [int(line) for name in ("pids", "orphan") for line in (tmp_path / name).read_text().split()]
        assert len(pids) >= 4
        assert not [pid for pid in pids if alive(pid)]


def test_a_flood_is_no_reason_to_stop_and_its_log_is_short(
    pool_of: Callable[..., EnvironmentPool], tmp_path: Path
) -> None:
    pool = pool_of(OBEDIENT, "Obedient", timeout=60.0)
    text = "print('first')\nfor _ in range(1000): os.write(1, b'y' * 10**6)"
    assert isinstance(asyncio.run(played(pool, text, "pass", name="7/3")), list)
    printed = (tmp_path / "printed.log").read_text()
    assert printed.startswith("7/3 | first\n7/3 | yyy")
    assert printed.endswith("7/3 | (what more it printed is left out)\n")
    assert len(printed) < 100_000


def test_secrets_are_not_in_the_log(
    pool_of: Callable[..., EnvironmentPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "sk-very-secret-1")
    pool = pool_of(OBEDIENT, "Obedient")
    text = "print('key', os.environ['SERVICE_API_KEY']); raise ValueError(os.environ['SERVICE_API_KEY'])"
    failed = asyncio.run(played(pool, text))
    assert "(secret)" in str(failed)
    told = str(failed) + (tmp_path / "printed.log").read_text()
    assert "key (secret)" in told
    assert "sk-very" not in told


def test_the_process_that_forks_may_be_killed(pool_of: Callable[..., EnvironmentPool]) -> None:
    pool = pool_of(OBEDIENT, "Obedient", timeout=20.0)

    async def attack() -> tuple[Any, ...]:
        both = asyncio.gather(
            played(pool, "pass", "os.kill(os.getppid(), 9); time.sleep(60)"),
            played(pool, "time.sleep(0.5)", "time.sleep(60)", name="0/1"),
        )
        return *await both, await played(pool, "pass", name="0/2")

    *lost, after = asyncio.run(attack())
    assert [(type(one), one.kind) for one in lost] == [(EpisodeFailed, "killed")] * 2
    assert isinstance(after, list)


def test_nothing_lives_longer_than_the_pool(pool_of: Callable[..., EnvironmentPool], tmp_path: Path) -> None:
    pool = pool_of(OBEDIENT, "Obedient")
    text = f"child = subprocess.Popen(['setsid', 'sleep', '600'])\nopen('{tmp_path}/pid', 'w').write("
    text += "f'{os.getppid()} {child.pid}')"

    async def left_open() -> None:
        environment = pool.new("0/0")
        await environment.start(row())
        await environment.reply(turn(text))

    asyncio.run(left_open())
    pids = [int(word) for word in (tmp_path / "pid").read_text().split()]
    assert all(map(alive, pids))
    pool.close()
    assert not [pid for pid in pids if alive(pid)]


def test_an_episode_that_is_given_up_leaves_no_process(pool_of: Callable[..., EnvironmentPool], tmp_path: Path) -> None:
    pool = pool_of(OBEDIENT, "Obedient")

    async def given_up() -> Reply:
        environment = pool.new("0/0")
        await environment.start(row())
        hanging = asyncio.create_task(
            environment.reply(turn(f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"))
        )
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
        hanging.cancel()
        await asyncio.wait([hanging])
        await environment.close()
        starting = [asyncio.create_task(pool.new(f"1/{n}").start(row())) for n in range(8)]
        await asyncio.sleep(0)
        for task in starting:
            task.cancel()
        return (await played(pool, "pass"))[0]

    assert asyncio.run(given_up()).reward == 1.0
    assert not alive(int((tmp_path / "pid").read_text()))


def test_two_hundred_at_a_time(pool_of: Callable[..., EnvironmentPool]) -> None:
    pool = pool_of(OBEDIENT, "Obedient", {"greeting": "ahoy"}, timeout=60.0)

    async def all_at_once() -> list[str]:
        environments = [pool.new(f"0/{n}") for n in range(200)]
        openings = await asyncio.gather(*(environment.start(row()) for environment in environments))
        for number in range(3):
            says = [turn(f"self.said = '{n}-{number}'; answer.messages[0]['content'] = self.said") for n in range(200)]
            replies = await asyncio.gather(*(e.reply(t) for e, t in zip(environments, says, strict=True)))
            assert [r.messages[0]["content"] for r in replies] == [f"{n}-{number}" for n in range(200)]
        await asyncio.gather(*(environment.close() for environment in environments))
        return [opening.messages[-1]["content"] for opening in openings]

    assert asyncio.run(all_at_once()) == ["ahoy"] * 200


@pytest.mark.parametrize(
    ("text", "name", "params", "says"),
    [
        ("def broken(:", "", {}, r"mine\.py:1, where rollout\.environment should be: invalid syntax"),
        ("x = 1\n\n1 / 0", "x", {}, r"importing .*mine\.py:3 failed: ZeroDivisionError"),
        ("import sys\nsys.exit(4)", "", {}, r"importing .*mine\.py:2 failed: SystemExit: 4"),
        ("import no_such_package", "", {}, r"importing .*mine\.py:1 failed: ModuleNotFoundError"),
        ("x = 1", "", {}, r"mine\.py defines no function"),
        ("x = 1", "x", {}, r"'x' in .*mine\.py is a int, not a function or a class"),
        ("class Maze: pass", "Maz", {}, r"has no environment 'Maz'"),
        ("class Maze: pass", "Maze", {}, r"the class Maze in .* is no environment"),
        (OBEDIENT, "Obedient", {"greetin": "x"}, r"Obedient has no parameter 'greetin'"),
        (OBEDIENT, "Obedient", {"greeting": 3}, r"environment_params\.greeting: Input should be a valid string, got 3"),
        ("def f(x): 'Do.'", "", {}, r"mine\.py:1: the parameter x needs a type hint"),
        ("def f(x: int): pass", "f", {}, r"mine\.py:1: f needs a docstring"),
        ("def f(*x: int): 'Do.'", "f", {}, r"the policy cannot give \*x"),
        ("def f(x: 'Y'): 'Do.'", "f", {}, r"its type hints cannot be described as JSON: name 'Y'"),
        ("def f(x: int): 'Do.'", "f", {"x": 1}, r"environment_params are for a class"),
        ("def f(x: int): 'Do.'\nBOTH = [f, f]", "BOTH", {}, r"two functions 'f'"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(
    tmp_path: Path, text: str, name: str, params: dict[str, Any], says: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_environment(f"{file}:{name}" if name else str(file), params)
    assert re.search(says, f"{caught.value.message} {caught.value.hint}"), caught.value.message


def test_a_file_of_no_use_is_refused_before_any_episode(pool_of: Callable[..., EnvironmentPool]) -> None:
    with pytest.raises(ConfigError, match=r"importing .*mine\.py:1 failed: ZeroDivisionError"):
        pool_of("1 / 0").start()


def test_a_file_that_ends_its_process_is_refused_at_the_start(pool_of: Callable[..., EnvironmentPool]) -> None:
    with pytest.raises(EnvironmentProblem, match=r"the process that loads .* died"):
        pool_of("import os\nos._exit(0)").start()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["value", "failed", "text", "messages", "tools", "done", "reward", "counts", "role", "content"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_a_reply_or_a_failure(data: bytes) -> None:
    for read, kind in ((environment_process._opening, Opening), (environment_process._reply, Reply)):
        try:
            found = read(environment_process._value(untrusted(data), "reply"))
        except (EpisodeFailed, BadFrame):
            continue
        assert isinstance(found, kind)
        for message in found.messages:
            (message["content"] or "").encode()
