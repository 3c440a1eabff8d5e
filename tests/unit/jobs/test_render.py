"""Scripts: one golden file for every executor and runtime, and hostile values that are really run.

After a change that is meant: ``GOLDEN=write pytest tests/unit/jobs/test_render.py``, then read the difference.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.cluster.profile import Profile, dump_profile, read_profile
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.jobs.job_script import Job, Step, render, sbatch_options
from grpo_hpc.jobs.prepare import make_job
from grpo_hpc.jobs.runtimes import inside

GOLDEN = Path(__file__).parent / "golden"
RUNTIMES = ("none", "apptainer", "docker", "podman", "pyxis")
HOSTILE = 'it\'s "a" $(touch PWNED) `touch PWNED` $HOME; touch PWNED & | > < * ? \\ \\n\nnew,line=ünï 漢 \t{{ x }} %j !'


def job(executor: str, runtime: str, device: str = "cuda", servers: int = 0, **profile) -> Job:
    nodes = 1 if executor == "local" else 2
    images = {"apptainer": "/images/grpo.sif", "pyxis": "/images/grpo.sqsh", "none": None}
    cluster = Profile(
        executor=executor,
        runtime=runtime,
        image=images.get(runtime, "localhost/grpo-hpc:gpu"),
        **{"account": "lab", "partition": "gpu", "gpus_per_node": 4, "time_limit": "12:00:00", **profile},
    )
    rollout = {"vllm_mode": "server", "vllm_server_nodes": servers} if servers else {}
    cfg = RunConfig(
        name="run",
        output_dir="/runs",
        model={"path": "/models/m"},
        data={"train": "/data/t.jsonl"},
        resources={"device": device, "nodes": nodes, "nproc_per_node": 4},
        batch={"train_iters": 1},
        rollout=rollout,
        rewards={"reward_funcs": ["exact_number"]},
    )
    return replace(make_job(cfg, cluster), python="/env/bin/python")


@pytest.mark.parametrize(("executor", "runtime"), list(product(("slurm", "submitit", "local"), RUNTIMES)))
def test_golden(executor, runtime):
    if (executor, runtime) == ("local", "pyxis"):
        return  # refused where the profile is read: test_profile_mistakes
    site = {} if executor == "local" else {"modules": ["cuda/13"], "network_interface": "ib0", "inherit": ["HF_TOKEN"]}
    text = render(job(executor, runtime, environment={"NCCL_DEBUG": "WARN"}, scratch="/scratch", **site))
    path = GOLDEN / f"{executor}-{runtime}.sh"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_golden_of_server_mode(runtime):
    text = render(job("slurm", runtime, servers=2, account=None))
    path = GOLDEN / f"servers-slurm-{runtime}.sh"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_server_mode_asks_for_the_nodes_of_both():
    assert "--nodes=5" in sbatch_options(job("slurm", "none", servers=3))


# A stand-in for what starts processes: it writes down what it was given, exactly.
RECORDER = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$RECORD"
printf 'END OF CALL\\0' >> "$RECORD"
while [ $# -gt 0 ]; do case "$1" in bash|apptainer|docker|podman) exec "$@" ;; *) shift ;; esac; done
"""


def run_script(text: str, folder: Path, step: str) -> list[list[str]]:
    """Run a step of a script with recorders for every program; the words that each was given."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("srun", "apptainer", "docker", "podman", "python"):
        (tools / name).write_text(RECORDER)
        (tools / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    slurm = {"SLURM_NODEID": "1", "SLURM_JOB_ID": "7", "MASTER_ADDR": "node1", "MASTER_PORT": "20007"}
    env = {"PATH": f"{tools}:/usr/bin:/bin", "RECORD": str(folder / "record"), **slurm}
    work = folder / "work"
    work.mkdir()
    subprocess.run(["bash", folder / "job.sh", step], env=env, cwd=work, check=True)
    assert list(work.iterdir()) == []  # nothing hostile was executed
    return [call.split("\0") for call in (folder / "record").read_text().split("\0END OF CALL\0") if call]


@pytest.mark.parametrize(
    ("executor", "runtime", "step"),
    [
        *product(("slurm", "local"), ("none", "apptainer", "docker", "podman"), ("train",)),
        *product(("slurm",), ("none", "apptainer", "docker", "podman"), ("serve",)),
    ],
)
def test_hostile_values_arrive_as_they_are(executor, runtime, step, tmp_path):
    written = HOSTILE.replace("$", "\\$")  # of scratch and environment a node would put in $HOME
    base = job(executor, runtime, scratch=f"/s{written}", environment={"NOTE": written}, binds=[f"/b{HOSTILE}"])
    image = None if runtime == "none" else f"/i{HOSTILE}"
    hostile = replace(
        base,
        run_dir=f"/r{HOSTILE}",
        binds=(f"/m{HOSTILE}",),
        profile=base.profile.model_copy(update={"image": image, "python": str(tmp_path / "tools" / "python")}),
        steps=(Step(step, (f"/p{HOSTILE}",), base.nodes, 2, torchrun=step == "train"),),
    )
    calls = {call[0]: call[1:] for call in run_script(render(hostile), tmp_path, step)}
    assert calls["python"][-2:] == [f"/p{HOSTILE}", f"/r{HOSTILE}"]
    if runtime != "none":
        words = calls[runtime]
        assert image in words
        for path in (f"/r{HOSTILE}", f"/m{HOSTILE}", f"/b{HOSTILE}", f"/s{HOSTILE}"):
            doubled = path.replace('"', '""')
            assert f'type=bind,"source={doubled}","destination={doubled}"' in words


def test_hostile_values_reach_pyxis_or_are_refused(tmp_path):
    text = HOSTILE.replace(",", "").replace(":", "")
    base = job("slurm", "pyxis")
    profile = base.profile.model_copy(update={"image": f"/i{HOSTILE}", "python": str(tmp_path / "tools" / "python")})
    hostile = replace(base, run_dir=f"/r{text}", binds=(f"/m{text}",), profile=profile)
    words = {call[0]: call for call in run_script(render(hostile), tmp_path, "train")}["srun"]
    assert f"--container-image=/i{HOSTILE}" in words
    assert f"--container-mounts=/r{text}:/r{text},/m{text}:/m{text}" in words
    assert f"--container-workdir=/r{text}" in words
    with pytest.raises(ConfigError, match="comma or colon"):
        render(replace(hostile, binds=("/a,b",)))


def test_hostile_modules_and_interpreters(tmp_path):
    base = job("slurm", "none", modules=[HOSTILE, "cuda/13"])
    (tmp_path / "tools").mkdir()
    for name in ("module", f"py{HOSTILE}".replace("/", "")):
        (tmp_path / "tools" / name).write_text(RECORDER)
        (tmp_path / "tools" / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(render(replace(base, python=str(tmp_path / "tools" / name), run_dir=f"/r{HOSTILE}")))
    env = {"PATH": f"{tmp_path}/tools:/usr/bin:/bin", "RECORD": str(tmp_path / "record")}
    for step in (["environment"], []):
        subprocess.run(["bash", script, *step], env=env, check=True, capture_output=True)
    calls = [call.split("\0") for call in (tmp_path / "record").read_text().split("\0END OF CALL\0") if call]
    assert calls == [["module", "load", HOSTILE, "cuda/13"], [name, "-m", "grpo_hpc.jobs.supervise", f"/r{HOSTILE}"]]


@pytest.mark.parametrize("tool", ["apptainer", "docker", "podman"])
def test_a_look_inside_brings_its_input_and_nothing_else(tool, tmp_path, monkeypatch):
    here, tools = tmp_path / "it's $(here)", tmp_path / "tools"
    for folder in (here, tools):
        folder.mkdir()
    (tools / tool).write_text(RECORDER)
    (tools / tool).chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    subprocess.run([*inside(tool, f"/i{HOSTILE}", True, ["/data", "/data"]), "python3", "-P", "a b"], check=True)
    words = (tmp_path / "record").read_text().split("\0")
    assert words[-6:-2] == [f"/i{HOSTILE}", "python3", "-P", "a b"]
    assert [word for word in words if word.startswith("type=bind")] == [
        f'type=bind,"source={path}","destination={path}"' for path in (here, "/data")
    ]
    assert str(here) in words and ("--env" not in words)
    assert ("--cleanenv" if tool == "apptainer" else "--interactive") in words


def test_a_runtime_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblem, match="podman is not installed"):
        inside("podman", "image", False)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0~"), min_size=1))
def test_any_text_survives_bash(text):
    script = render(job("local", "none", environment={"NOTE": text.replace("$", "\\$")}))
    script = script.replace("run_dir=/runs/run", "run_dir=/tmp")
    done = subprocess.run(["bash", "-c", script, "job.sh", "environment"], capture_output=True, check=True)
    assert f"NOTE={text}".encode() in done.stdout.split(b"\0")


@pytest.mark.parametrize(
    "key", ["account", "partition", "qos", "constraint", "memory", "gpu_type", "network_interface"]
)
@pytest.mark.parametrize("value", ["a b", "a\nb", "$(id)", "a'b", 'a"b', "a;b", ""])
def test_what_stands_in_sbatch_lines_is_one_word(key, value, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(f"{key}: {value!r}\n" if "\n" not in value else f'{key}: "a\\nb"\n')
    with pytest.raises(ConfigError, match=key):
        read_profile(path)


def test_profiles_are_read_back(tmp_path):
    written = HOSTILE.replace("$", "\\$")
    profile = Profile(executor="slurm", environment={"A": written}, binds=[HOSTILE], scratch=written)
    (tmp_path / "p.yaml").write_text(dump_profile(profile))
    assert read_profile(tmp_path / "p.yaml") == profile


@pytest.mark.parametrize(
    ("gres", "asked"),
    [("gpus-per-node", ["--gpus-per-node=h100:4"]), ("gres", ["--gres=gpu:h100:4"]), ("none", [])],
)
def test_gpus_are_asked_for_as_the_site_wants(gres, asked):
    options = sbatch_options(job("slurm", "none", gres=gres, gpu_type="h100"))
    assert [option for option in options if "gres" in option or "gpus" in option] == asked


def test_no_gpu_is_asked_for_on_a_cpu():
    assert not [o for o in sbatch_options(job("slurm", "none", device="cpu")) if "gpu" in o and "partition" not in o]


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cuda", 128, 8), ("cuda", 16, 4), ("cuda", 2, 1), ("cpu", 128, 32), ("cpu", 2, 1)]
)
def test_threads_of_each_of_four_ranks(device, cores, threads):
    """A share of the cores; beside a GPU no more than eight."""
    text = render(job("local", "none", device=device, cpus_per_node=cores))
    lines = [line.strip() for line in text.splitlines()]
    script = [line for line in lines if line.startswith("threads()") or "OMP_NUM_THREADS" in line]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    script = "\n".join([*script, 'echo "$OMP_NUM_THREADS"'])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(threads)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_site_paths_with_variables_are_put_in_on_the_node(runtime, tmp_path):
    site = {"scratch": "$SITE_TMP/${SITE_JOB}", "environment": {"LIBS": "/opt/x:$LIBS", "HF_HOME": "~/hf"}}
    script = tmp_path / "job.sh"
    script.write_text(render(job("slurm", runtime, **site)))
    known = {"PATH": os.environ["PATH"], "SITE_TMP": "/my tmp", "SITE_JOB": "7", "LIBS": "/usr/x", "HOME": "/home/me"}
    done = subprocess.run(["bash", script, "environment"], env=known, capture_output=True, text=True, check=True)
    assert {"TMPDIR=/my tmp/7", "LIBS=/opt/x:/usr/x", "HF_HOME=/home/me/hf"} <= set(done.stdout.split("\0"))
    del known["SITE_TMP"]
    done = subprocess.run(["bash", script, "environment"], env=known, capture_output=True, text=True, check=False)
    assert done.returncode and "SITE_TMP: is in the scratch of the cluster profile, and is not set" in done.stderr


@pytest.mark.parametrize(("runtime", "seen"), [("apptainer", "type=bind"), ("podman", "type=bind"), ("pyxis", "")])
def test_a_scratch_that_a_node_knows_is_bound(runtime, seen, tmp_path):
    text = render(job("slurm", runtime, scratch="$SITE_TMP/x", python=str(tmp_path / "tools" / "python")))
    words = [word for call in run_script(f"export SITE_TMP='/my tmp'\n{text}", tmp_path, "train") for word in call]
    bound = [word for word in words if "/my tmp/x" in word]
    whole = 'type=bind,"source=/my tmp/x","destination=/my tmp/x"'
    assert whole in bound if seen else any(word.endswith(",/my tmp/x:/my tmp/x") for word in bound)
