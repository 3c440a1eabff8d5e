"""Every number of a run file and of a cluster profile has two ends, and a slip of the finger costs no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from grpo_hpc.cluster.profile import Floors, Profile
from grpo_hpc.config import load_run
from grpo_hpc.config.sections import MOST_RANKS, SECTIONS, RunConfig
from grpo_hpc.errors import ConfigError, PlanError
from grpo_hpc.plan.make import make_plan
from grpo_hpc.plan.search import search_run

MODELS: list[type[BaseModel]] = [*SECTIONS.values(), RunConfig, Profile, Floors]


def numbers() -> Iterator[tuple[type[BaseModel], str, bool]]:
    for model in MODELS:
        for key, field in model.model_fields.items():
            found = {field.annotation, *get_args(field.annotation)} & {int, float}
            if found and not isinstance(field.default, bool):
                yield model, key, int in found


@pytest.mark.parametrize(
    ("model", "key", "whole"), [*numbers()], ids=lambda value: str(getattr(value, "__name__", value))
)
def test_a_number_has_two_ends(model: type[BaseModel], key: str, whole: bool) -> None:
    huge: list[Any] = [10**18, 10**310] if whole else [1e300, 10**310]
    for value in (*huge, *(-number for number in huge)):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({key: value})
        assert any(error["loc"] == (key,) for error in caught.value.errors()), value


@pytest.fixture
def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["nodes=1000000000"], "must be at most 32768, got 1000000000"),
        (["nproc_per_node=105980028056"], "must be at most 1024"),
        (["nodes=32768", "nproc_per_node=1024"], "are 33554432 ranks, more than 32768; at most 32"),
        (["global_batch_size=1048573"], "nearest values that fit"),
        (["global_batch_size=720720", "tensor_model_parallel_size=7"], "nearest values that fit"),
        (["nodes=4093", "pipeline_model_parallel_size=3"], "nearest values that fit"),
        (["generation_batch_size=1048576", "global_batch_size=3"], "nearest values that fit"),
        ([f"freeze_parameters_regex={'(' * 30_000}"], "is no regular expression"),
        (["vllm_mode=server", "vllm_server_nodes=32768"], "are 262144 ranks, more than 32768; at most 4096"),
    ],
)
def test_what_no_machine_is_is_refused(no_model: None, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_run("qwen3_8b", overrides)


def test_the_largest_run_is_planned(no_model: None) -> None:
    cfg = load_run("qwen3_8b", [f"nodes={MOST_RANKS // 8}", f"global_batch_size={8 * MOST_RANKS}"])
    assert make_plan(cfg).topology.world_size == MOST_RANKS


def test_a_search_has_an_end(no_model: None, cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PlanError, match="5000 nodes are more than 32768 ranks"):
        search_run(load_run("qwen3_8b"), None, range(5000, 5001))
    for nodes in ("1..100000000000000000000", "1..300", "0..2", "2..1", "²", "٣", "9" * 5000, "", "1..", "a"):
        assert cli("plan", "qwen3_8b", "--search", f"--nodes={nodes}") == 2
        assert "--nodes wants FROM..TO" in capsys.readouterr().err
