"""The data and the environments of the examples with a tool and with a game."""

from __future__ import annotations

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.data.rows import read_rows
from grpo_hpc.rollout.environments.found_in_file import check_environment, load_environment
from grpo_hpc.rollout.environments.protocol import Turn

ROOT = Path(__file__).parents[3]
QUESTIONS = runpy.run_path(str(ROOT / "tools" / "make_multiplications.py"))
LAKES = runpy.run_path(str(ROOT / "tools" / "make_lakes.py"))
FROZEN_LAKE = runpy.run_path(str(ROOT / "configs" / "environments" / "frozen_lake.py"))["FrozenLake"]
CALCULATOR = runpy.run_path(str(ROOT / "configs" / "environments" / "calculator.py"))["calculator"]


def test_no_question_is_in_both_files() -> None:
    train, held_out = QUESTIONS["split_pairs"](42)
    assert (len(set(train)), len(set(held_out))) == (512, 64)
    assert not {*train} & {*held_out}
    assert QUESTIONS["split_pairs"](1) == QUESTIONS["split_pairs"](1) != (train, held_out)


def test_the_call_that_a_row_shows_is_a_good_one(tmp_path: Path) -> None:
    """Nothing but its form is taken from the row: the tool that the run file names answers it as the row says."""
    QUESTIONS["write_sets"](tmp_path, [QUESTIONS["row"](12, 34)], [])
    (row,) = read_rows(tmp_path / "train.jsonl")
    assert row.columns == {"answer": 408}
    shown, heard = [m["content"] for m in row.messages if m["role"] in ("assistant", "tool")][:2]
    call = json.loads(shown.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    environment = load_environment(str(ROOT / "configs" / "environments" / "calculator.py"), {}).make()
    reply = asyncio.run(environment.reply(Turn(0, {"tool_calls": [{"function": call}]}, shown, "stop")))
    assert [(m["role"], m["content"]) for m in reply.messages] == [("tool", heard)]


@pytest.mark.parametrize(("expression", "value"), [("12 * 34", "408"), ("-(2 - 5) * 3 + 1", "10"), (" 7", "7")])
def test_the_calculator(expression: str, value: str) -> None:
    assert CALCULATOR(expression) == value


@pytest.mark.parametrize("expression", ["2 ** 99999999", "__import__('os')", "1.5 * 2", "1 +", "", "9*" * 60])
def test_what_it_does_not_compute(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        CALCULATOR(expression)


def walked(lake: Any, *moves: str) -> list[tuple[str, float, bool, bool]]:
    return [lake.step(move)[:4] for move in moves]


def shortest(lake: Any) -> list[str]:
    """Moves that lead to the goal."""
    moves, here = [], lake.here
    while here != lake.goal:
        ways = {move: lake._beside(here, move) for move in ("up", "down", "left", "right")}
        moves.append(min(ways, key=lambda move: lake.steps.get(ways[move], 99)))
        here = ways[moves[-1]]
    return moves


def test_every_lake_can_be_crossed_and_the_way_is_worth_two() -> None:
    for seed in range(50):
        lake = FROZEN_LAKE(size=4, holes=3)
        first, _ = lake.reset(seed=seed)
        assert FROZEN_LAKE(size=4, holes=3).reset(seed=seed) == (first, {})
        moves = shortest(lake)
        assert 2 <= len(moves) == lake.way
        steps = walked(lake, *(f"I go {move.title()}." for move in moves))
        assert sum(reward for _, reward, _, _ in steps) == pytest.approx(2.0)
        assert [terminated for *_, terminated, _ in steps] == [False] * (len(moves) - 1) + [True]


def test_holes_edges_and_words() -> None:
    lake = FROZEN_LAKE(size=3, holes=1, moves=9)
    lake.reset(seed=0)
    lake.here, lake.goal, lake.holes = (0, 0), (2, 0), {(0, 1)}
    lake.steps, lake.way = lake._steps_to_goal(), 2
    assert lake._seen() == "Goal: 2 down. Holes: right."
    (edge, word, back) = walked(lake, "up", "I do not know", "Down or left?")
    assert edge[1:] == (0.0, False, False)
    assert word == ("That is no move. Goal: 2 down. Holes: right.", -0.1, False, False)
    assert back[:2] == ("Goal: 1 down. Holes: none.", 0.5)
    assert walked(lake, "up", "right")[-1] == ("You fell into a hole.", -1.0, True, False)


def test_it_is_over_after_so_many_moves() -> None:
    lake = FROZEN_LAKE(moves=3)
    lake.reset(seed=1)
    assert [over for *_, over in walked(lake, "", "", "")] == [False, False, True]


def test_lakes_differ_between_the_files(tmp_path: Path) -> None:
    LAKES["write_sets"](tmp_path, [LAKES["row"](7)], [])
    (row,) = read_rows(tmp_path / "train.jsonl")
    assert row.columns == {"seed": 7}
    shown = [message["content"] for message in row.messages[1:5]]
    lake = FROZEN_LAKE(size=2, holes=1)
    lake.reset(seed=0)
    lake.here, lake.goal, lake.holes = (0, 0), (1, 1), {(1, 0)}
    lake.steps = lake._steps_to_goal()
    assert shown[0] == f"{row.messages[-1]['content']}\n\n{lake._seen()}"
    assert [step[0] for step in walked(lake, shown[1])] == [shown[2]]


@pytest.mark.parametrize("name", ["quickstart_tools", "quickstart_gym"])
def test_run_files_name_environments_that_are_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg = load_run(name)
    assert check_environment(cfg.rollout.environment or "") in ("tools", "gym")
