"""Profiles: what a file may say, and what cannot hold together with the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile, dump_profile, profile_of, read_profile
from grpo_hpc.config import load_run
from grpo_hpc.config.patterns import wall_seconds
from grpo_hpc.errors import ConfigError

RUN = """
name: small
model: {path: m}
data: {train: t.jsonl}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number]}
"""


def read(folder: Path, text: str) -> Profile:
    (folder / "site.yaml").write_text(text)
    return read_profile(folder / "site.yaml")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30:00", 1800), ("0:05", 5), ("12:00:00", 43200), ("1-00:00:00", 86400), ("2-12:30", 217800), ("90:00", 5400)],
)
def test_wall_times(time: str, seconds: int, tmp_path: Path) -> None:
    assert wall_seconds(time) == seconds
    assert read(tmp_path, f"time_limit: {time}").time_limit == time  # without quotes, as in a run file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("account: a b", "account (line 1): stands in a line of #SBATCH: letters, digits and _ . , :"),
        ("options: [--comment=a b]", "options.0: stands in a line of #SBATCH"),
        ("inherit: [1A]", "inherit.0: must be the name of a variable"),
        ("memory: 0", 'memory (line 1): must be text, got 0; write "0", with quotes'),
        ("time_limit: 12h", "time_limit (line 1): must be a wall time: 30:00 is minutes:seconds"),
        ("partition: a\npartition: b", "partition (line 1): is given again on line 2"),
        ("- a", "must hold keys and values, as in 'partition: gpu'"),
    ],
)
def test_every_mistake_has_its_own_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and "begins with a letter" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "save_before", "fits"),
    [("5:00", 300, False), ("2:00", 300, False), ("5:01", 300, True), ("1:00", 20, True)],
)
def test_a_job_has_time_before_it_saves(limit: str, save_before: int, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    profile = Profile(executor="slurm", time_limit="12:00:00", save_before_s=save_before)
    (tmp_path / "site.yaml").write_text(dump_profile(profile))
    cfg = load_run(tmp_path / "run.yaml", [f"cluster.profile={tmp_path}/site.yaml", f"cluster.time_limit={limit}"])
    if fits:
        assert profile_of(cfg).time_limit == limit
        return
    with pytest.raises(ConfigError, match=f"the time limit {limit} is .*save_before_s is {save_before}") as caught:
        profile_of(cfg)
    assert f"{wall_seconds(limit) // 2} or less" in str(caught.value)
