"""Flags of episodes with several turns: schedulers and environments are Python, which is looked at and never run."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path

from grpo_hpc.importing.convert import truth
from grpo_hpc.importing.fates import Converter, Fate, Result, Run
from grpo_hpc.importing.source import Given

_GYM = "gym_scheduler"
_PAGE = "docs/environments.md"


def one_turn(run: Run) -> bool:
    """Whether ms-swift samples one turn of each completion."""
    return run.value("multi_turn_scheduler") is None and not gives_reward(run)


def gives_reward(run: Run) -> bool:
    """Whether what an environment gives is a reward: ``gym_env`` says so, too."""
    said = run.given("use_gym_env")
    return bool(truth(said.values[0])) if said else run.given("gym_env") is not None


def loss_scale(given: Given, run: Run) -> Result:
    """Which turns are trained; ``default`` is all that the policy sampled, and so is its last turn where it has one."""
    if given.shown == "default" or (given.shown == "last_round" and one_turn(run)):
        return Result(note="what the policy sampled is trained")
    return Result(note="what the policy sampled is trained, in every turn and alike", fate=Fate.UNSUPPORTED)


def scheduler(given: Given, run: Run) -> Result:
    """The one that plays environments follows from ``gym_env``; others are classes of their own here."""
    if given.shown != _GYM:
        return Result(note=f"write it as a class with start and reply: {_PAGE}", fate=Fate.UNSUPPORTED)
    if run.given("gym_env") is None:
        text = f"each row names its environment; name one class: rollout.environment: path/to/file.py:Name, {_PAGE}"
        return Result(note=text, fate=Fate.UNSUPPORTED)
    return Result(note="rollout.environment is what gym_env names")


def environment(given: Given, run: Run) -> Result:
    """The class that a plugin registers under this name."""
    plugins = run.given("external_plugins")
    if plugins is None:
        text = f"it comes with no file; write rollout.environment: path/to/file.py:Name, {_PAGE}"
        return Result(note=text, fate=Fate.UNSUPPORTED)
    path = str(plugins.values[0])
    found = _registered(path, given.shown)
    note = "" if found else f"put the name of the class there that {path} registers as {given.shown}"
    alone = run.given("use_gym_env") is None and run.given("reward_funcs") is None
    return Result({"environment": f"{path}:{found or given.shown}"} | _reward(alone), note)


def environment_reward(given: Given, run: Run) -> Result:
    """It is a reward beside others, or the only one."""
    if not gives_reward(run):
        return Result(note="what the environment gives is no reward")
    if run.given("reward_funcs") is not None:
        return Result(note="the last of reward_funcs is environment")
    return Result(_reward(True))


def and_environment(convert: Converter) -> Converter:
    """``reward_funcs`` with what the environment gives at their end, as ms-swift has it."""

    def converted(given: Given, run: Run) -> Result:
        result = convert(given, run)
        if not gives_reward(run):
            return result
        return Result({"reward_funcs": [*result.values["reward_funcs"], "environment"]}, result.note, Fate.CONVERTED)

    return converted


def _reward(alone: bool) -> dict[str, list[str]]:
    return {"reward_funcs": ["environment"]} if alone else {}


def _registered(path: str, name: str) -> str | None:
    """The class in ``envs['name'] = Class`` of a file, if it is there and says so."""
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(Path(path).read_bytes()).body:
            match node:
                case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=key))], value=ast.Name(id=found)) if (
                    key == name
                ):
                    return found
    return None
