"""Profiles from answers; tests/slurm asks a real cluster."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from grpo_hpc.cluster.detect import exclusive_partitions, partitions, settings, time_limit
from grpo_hpc.cluster.profile import find_profile, profiles, read_profile

SINFO = """\
cpu*|up|1-00:00:00|100|(null)|128
gpu|up|12:00:00|10|gpu:a100:4(S:0-1)|64
gpu|up|12:00:00|2|gpu:h100:8(S:0-1),shard:h100:32|96+
old|up|infinite|3|craynetwork:4,gpu:2|16
broken|down|infinite|1|gpu:8|16
"""


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "profiles"
    monkeypatch.setenv("GRPO_HPC_PROFILES", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path))  # whatever Slurm this machine has is not asked
    return folder


def test_partitions_are_read_from_sinfo() -> None:
    found = {partition.name: partition for partition in partitions(SINFO, frozenset({"gpu"}))}
    assert list(found) == ["cpu", "gpu", "old"]  # what is down takes no jobs
    assert (found["cpu"].default, found["cpu"].gpus, found["cpu"].time_limit) == (True, 0, "1-00:00:00")
    assert (found["gpu"].gpus, found["gpu"].gpu_type, found["gpu"].cpus) == (8, "h100", 96)  # the largest kind of node
    assert (found["gpu"].exclusive, found["old"].exclusive) == (True, False)
    assert (found["old"].gpus, found["old"].gpu_type, found["old"].time_limit) == (2, None, None)


@pytest.mark.parametrize(
    ("slurm", "ours"),
    [("infinite", None), ("30:00", "30:00"), ("30", "30:00"), ("7-00:00:00", "7-00:00:00"), ("UNLIMITED", None)],
)
def test_time_limits(slurm: str, ours: str | None) -> None:
    assert time_limit(slurm) == ours


def test_what_scontrol_says() -> None:
    shown = "PartitionName=a OverSubscribe=EXCLUSIVE PreemptMode=OFF\nPartitionName=b OverSubscribe=NO"
    assert exclusive_partitions(shown) == {"a"}
    assert settings("Configuration data\nJobRequeue              = 1\nX = a=b\n") == {"JobRequeue": "1", "X": "a=b"}


def test_options_answer_every_question(own_profiles: Path, cli) -> None:
    given = ["--executor=slurm", "--partition=gpu,old", "--account=p1", "--runtime=apptainer", "--image=a b.sif"]
    given += [
        "--gpus-per-node=4",
        "--gres=gres",
        "--gpu-type=h100",
        "--no-requeue",
        "--chain=3",
        "--time-limit=1:00:00",
    ]
    assert cli("cluster", "add", "mysite", "--yes", *given) == 0
    assert find_profile("mysite") == own_profiles / "mysite.yaml"
    found = read_profile(find_profile("mysite"))
    assert (found.partition, found.image, found.chain, found.gres) == ("gpu,old", "a b.sif", 3, "gres")
    assert not found.exclusive and not found.requeue
    assert "environment" not in yaml.safe_load(find_profile("mysite").read_text())  # what nobody said is left out


def test_answers_are_asked_for_until_they_are_right(cli, monkeypatch, capsys) -> None:
    answers = [
        "slurmm",
        "slurm",
        "gpu $(x)",
        "gpu",
        "",
        "",
        "",
        "none",
        "many",
        "4",
        "",
        "",
        "y",
        "",
        "12h",
        "12:00:00",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*answers, "", "", "", ""]) + "\n"))
    assert cli("cluster", "add", "mysite") == 0
    said = capsys.readouterr().err
    assert said.count("Error:") == 4
    assert "Write it as in 30:00 (minutes), 12:00:00 or 1-00:00:00." in said
    assert "Slurm tells nothing here" in said
    found = read_profile(find_profile("mysite"))
    assert (found.executor, found.partition, found.gpus_per_node, found.exclusive) == ("slurm", "gpu", 4, True)
    assert (found.memory, found.time_limit) == ("0", "12:00:00")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a/b", "--yes"], "is no name for a profile"),
        (["x", "--yes", "--image=y", "--runtime=none"], "--image would not be used here"),
        (["x", "--yes", "--runtime=podman"], "Give it with --image"),
        (["x", "--yes", "--executor=slurm", "--runtime=none", "--account=a b"], "account cannot be 'a b'"),
        (["x", "--yes", "--executor=slurm", "--runtime=none", "--gpus-per-node=0"], "must be at least 1, got 0"),
        (["x", "--yes", "--executor=submitit", "--runtime=none"], "Give it with --time-limit"),
        (["x", "--yes", "--runtime=none", "--secrets=/nowhere"], "secrets file /nowhere cannot be read"),
        (["x", "--exector=slurm"], "--executor"),
        (["x"], "--yes"),  # nobody is there to answer
    ],
)
def test_wrong_answers_write_nothing(own_profiles: Path, cli, capsys, monkeypatch, args, expected) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli("cluster", "add", *args) == 2
    assert expected in capsys.readouterr().err
    assert not own_profiles.exists()


def test_a_profile_is_not_written_over_unasked(cli, capsys) -> None:
    assert cli("cluster", "add", "local", "--yes", "--runtime=none") == 0  # hides the one that comes along
    assert cli("cluster", "add", "local", "--yes", "--runtime=none") == 2
    assert "--force" in capsys.readouterr().err
    assert cli("cluster", "add", "local", "--yes", "--runtime=none", "--scratch=/fast", "--force") == 0
    assert read_profile(find_profile("local")).scratch == "/fast"


def test_list_shows_all_profiles_and_which_are_damaged(own_profiles: Path, cli, capsys) -> None:
    own_profiles.mkdir()
    (own_profiles / "bad.yaml").write_text("acount: x\nruntime: singularity\nexecutor: slrum\nimage: ''\n")
    assert cli("cluster", "list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in profiles())
    assert "did you mean account?" in out
    assert cli("cluster", "list", "--json") == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found.keys() == profiles().keys()
    assert "acount (line 1): unknown key" in found["bad"]["problem"] and found["bad"]["profile"] is None
    assert found["local"]["problem"] is None
    assert found["local"]["profile"]["executor"] == read_profile(find_profile("local")).executor
