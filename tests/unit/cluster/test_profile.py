"""Profiles: what a file may say, and what cannot hold together with the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile, dump_profile, profile_of, read_profile
from grpo_hpc.config import load_run
from grpo_hpc.config.patterns import wall_seconds
from grpo_hpc.errors import ConfigError
from grpo_hpc.jobs.prepare import with_absolute_image

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
        ("account: a b", "account (line 1): must be a name of Slurm's: letters, digits and _ . , :"),
        ("constraint: a b", "constraint (line 1): stands in a line of #SBATCH: letters, digits and _ . , :"),
        ("gpu_type: a|b", "gpu_type (line 1): must be a type of GPU, as in h100"),
        ("gpu_type: '*'", "gpu_type (line 1): must be a type of GPU, as in h100"),
        ("network_interface: 'ib0&/x.sh'", "network_interface (line 1): must be names of network interfaces"),
        ("memory: 64 GB", "memory (line 1): must be a whole number with K, M, G or T"),
        ("options: [debug]", "options.0 (line 1): must be an option of sbatch"),
        ("modules: [--force]", "modules.0 (line 1): must be the name of a module"),
        ("environment: {RANDOM: x}", "environment.RANDOM (line 1): is a variable of bash"),
        ("environment: {run_dir: x}", "environment.run_dir (line 1): is a variable of bash, or of the script itself"),
        ("options: [--comment=a b]", "options.0 (line 1): stands in a line of #SBATCH"),
        ("inherit:\n- A\n- 1A", "inherit.1 (line 3): must be the name of a variable"),
        ("chain: 1\nruntime: singularity", "runtime (line 2): must be none or apptainer or docker"),
        ("executor: slrum", "executor (line 1): must be local or slurm or submitit, got 'slrum'; did you mean slurm?"),
        ("image: ''", "image (line 1): must not be empty (container image"),
        ("preflight: {free_gb: 1}", "preflight.free_gb (line 1): unknown key; did you mean free_gib?"),
        ("preflight: {seconds: 0}", "preflight.seconds (line 1): must be greater than 0, got 0"),
        ("preflight: 5", "preflight (line 1): must be keys and values, got 5"),
        ("environment: [A]", "environment (line 1): must be keys and values"),
        ("gpus_per_node: 010", "gpus_per_node (line 1): must be a whole number, got '010'; write 10"),
        ("exclusive: yes", "exclusive (line 1): must be true or false, got 'yes'; write true"),
        ("1: x", "1 (line 1): unknown key"),
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


def test_site_paths_with_variables_are_put_in_where_a_run_is_submitted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORK", "/lustre/me")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "site.yaml").write_text(
        "binds: [$WORK, ~/data]\nimage: ${WORK}/i.sif\nruntime: apptainer\npython: ~/env/bin/python\n"
        "scratch: $SLURM_TMPDIR\ngpu: ~/card.yaml\nenvironment: {LIBS: '/x:$LIBS'}\n"
    )
    rewards = "reward_funcs=[~/own.py:good,m=reward_model]"
    parameters = "reward_params={m: {path: $WORK/rm}}"
    paths = ["output_dir=$WORK/runs", "model.path=~/m", "train=${WORK}/t.jsonl", f"profile={tmp_path}/site.yaml"]
    cfg = load_run(tmp_path / "run.yaml", [*paths, rewards, parameters, "gpu=$WORK/card.yaml"])
    assert (cfg.output_dir, cfg.model.path, cfg.data.train) == ("/lustre/me/runs", "/home/me/m", "/lustre/me/t.jsonl")
    assert cfg.rewards.files == ["/home/me/own.py", "/lustre/me/rm"]
    profile = profile_of(cfg)
    assert (cfg.resources.gpu, profile.gpu) == ("/lustre/me/card.yaml", "/home/me/card.yaml")
    assert profile.binds == ["/lustre/me", "/home/me/data"]
    assert (profile.image, profile.python) == ("/lustre/me/i.sif", "/home/me/env/bin/python")
    assert (profile.scratch, profile.environment) == ("$SLURM_TMPDIR", {"LIBS": "/x:$LIBS"})  # the nodes know them
    assert with_absolute_image(profile) == profile
    assert read(tmp_path, dump_profile(profile)) == profile


def test_site_paths_that_nobody_knows_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WORK", raising=False)
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(ConfigError, match=r"output_dir .override.: names the variable WORK, which is not set here"):
        load_run(tmp_path / "run.yaml", ["output_dir=$WORK/runs"])
    for path in ("${WORK:-/tmp}/runs", "$(pwd)/runs"):
        with pytest.raises(ConfigError, match=r"output_dir .override.: may name variables.*none is run"):
            load_run(tmp_path / "run.yaml", [f"output_dir={path}"])
    with pytest.raises(ConfigError, match=r"environment.A.*none is run"):
        read(tmp_path, "environment: {A: $(hostname)}")
    with pytest.raises(ConfigError, match=r"scratch.*none is run"):
        read(tmp_path, "scratch: ${A:-/tmp}")
    for text, said in (
        ("binds: [$WORK]", "binds in the cluster profile .* names the variable WORK"),
        ("runtime: podman\nimage: i\nenvironment: {PATH: '/x:$PATH'}", "the image says where its programs are"),
    ):
        (tmp_path / "site.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            profile_of(load_run(tmp_path / "run.yaml", [f"profile={tmp_path}/site.yaml"]))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("partition: a\nenvironment:\n  WANDB_API_KEY: hush-0123456", "environment.WANDB_API_KEY (line 3)"),
        ("environment: {DB_PWD: hush-0123456}", "environment.DB_PWD (line 1)"),
        ("environment: {GH_PAT: 0123456789}", "environment.GH_PAT (line 1)"),
        ("environment: {https_proxy: 'http://me:hush-0123456@proxy:3128'}", "environment.https_proxy (line 1)"),
        ("image: docker://me:hush-0123456@registry/image\nruntime: docker", "image (line 1)"),
        ("options:\n- --exclusive\n- --export=ALL,HF_TOKEN=hush-0123456", "options.1.HF_TOKEN"),
    ],
)
def test_a_secret_in_a_profile_is_refused_and_not_shown(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert f"1 mistake\n  {key}: holds a secret" in said and "`secrets` names" in said and "`inherit`" in said
    assert "hush" not in said and "0123456" not in said


def test_what_only_looks_like_a_secret_stands_in_a_profile(tmp_path: Path) -> None:
    text = (
        "secrets: ~/.grpo-secrets\ninherit: [HF_TOKEN]\noptions: [--comment=key]\n"
        "environment: {TOKENIZERS_PARALLELISM: 'false', HF_HUB_DISABLE_IMPLICIT_TOKEN: '1', OWN_TOKEN: $HF_TOKEN}"
    )
    assert read(tmp_path, text).environment["OWN_TOKEN"] == "$HF_TOKEN"


def test_an_interpreter_that_begins_with_a_dash_would_be_an_option(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "site.yaml").write_text("python: --privileged\n")
    with pytest.raises(ConfigError, match="python is '--privileged', which would be read as an option"):
        profile_of(load_run(tmp_path / "run.yaml", [f"profile={tmp_path}/site.yaml"]))


@pytest.mark.parametrize("interface", ["ib0", "^docker0", "^docker0,lo", "=eth0,eth1", "^=docker0", "eth0.1", "ib0:1"])
def test_names_of_interfaces_as_nccl_has_them(interface: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"network_interface: {interface}").network_interface == interface
