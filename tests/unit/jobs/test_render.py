"""Scripts: one golden file for every executor and runtime, and hostile values that are really run.

After a change that is meant: ``GOLDEN=write pytest tests/unit/jobs/test_render.py``, then read the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_hpc.cluster.profile import Profile, dump_profile, read_profile
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.jobs.job_script import Job, Step, render, sbatch_options
from grpo_hpc.jobs.prepare import make_job
from grpo_hpc.jobs.runtimes import INSIDE, inside

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
    return [call.split("\0") for call in (folder / "record").read_bytes().decode().split("\0END OF CALL\0") if call]


@pytest.mark.parametrize(
    ("executor", "runtime", "step"),
    [
        *product(("slurm", "local"), ("none", "apptainer", "docker", "podman"), ("train",)),
        *product(("slurm",), ("none", "apptainer", "docker", "podman"), ("serve",)),
    ],
)
def test_hostile_values_arrive_as_they_are(executor, runtime, step, tmp_path):
    written = HOSTILE.replace("$", "\\$")  # of scratch and environment a node would put in $HOME
    scratch, run_dir = f"{tmp_path}/s{HOSTILE}", f"{tmp_path}/r{HOSTILE}"
    base = job(
        executor, runtime, scratch=f"{tmp_path}/s{written}", environment={"NOTE": written}, binds=[f"/b{HOSTILE}"]
    )
    image = None if runtime == "none" else f"/i{HOSTILE}"
    hostile = replace(
        base,
        run_dir=run_dir,
        binds=(f"/m{HOSTILE}",),
        profile=base.profile.model_copy(update={"image": image, "python": str(tmp_path / "tools" / "python")}),
        steps=(Step(step, (f"/p{HOSTILE}",), base.nodes, 2, torchrun=step == "train"),),
    )
    calls = {call[0]: call[1:] for call in run_script(render(hostile), tmp_path, step)}
    assert calls["python"][-2:] == [f"/p{HOSTILE}", run_dir]
    if runtime != "none":
        words = calls[runtime]
        assert image in words
        assert [path.name for path in Path(scratch).iterdir()] == [f"grpo-hpc-{os.getuid()}"]
        for path in (run_dir, f"/m{HOSTILE}", f"/b{HOSTILE}", scratch):
            doubled = path.replace('"', '""')
            assert f'type=bind,"source={doubled}","destination={doubled}"' in words


def test_hostile_values_reach_pyxis_or_are_refused(tmp_path):
    text = HOSTILE.replace(",", "").replace(":", "")
    base = job("slurm", "pyxis")
    profile = base.profile.model_copy(update={"image": f"/i{HOSTILE}", "python": str(tmp_path / "tools" / "python")})
    run_dir = f"{tmp_path}/r{text}"
    hostile = replace(base, run_dir=run_dir, binds=(f"/m{text}",), profile=profile)
    words = {call[0]: call for call in run_script(render(hostile), tmp_path, "train")}["srun"]
    assert f"--container-image=/i{HOSTILE}" in words
    assert f"--container-mounts={run_dir}:{run_dir},/m{text}:/m{text}" in words
    assert f"--container-workdir={run_dir}" in words
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


@pytest.mark.parametrize(
    ("interface", "nccl", "gloo"),
    [("ib0", "ib0", "ib0"), ("=eth0,eth1", "=eth0,eth1", "eth0,eth1"), ("^docker0,lo", "^docker0,lo", None)],
)
def test_each_library_gets_the_network_in_its_own_words(interface, nccl, gloo, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(render(job("slurm", "none", network_interface=interface)))
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", script, "environment"], env=env, capture_output=True, text=True, check=True)
    found = dict(entry.partition("=")[::2] for entry in done.stdout.split("\0"))
    assert (found["NCCL_SOCKET_IFNAME"], found.get("GLOO_SOCKET_IFNAME")) == (nccl, gloo)


ANYTHING = st.characters(codec="utf-8", exclude_characters="\0")
WORDS = st.lists(
    st.text(st.one_of(st.sampled_from("|&;<>()$`\\\"' \t\n*?[]#~=%!{},:-^/"), ANYTHING), min_size=1, max_size=12),
    min_size=32,
    max_size=32,
)


@pytest.mark.parametrize("runtime", ["none", "apptainer", "podman", "pyxis"])
@settings(max_examples=32, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_a_thousand_words_arrive_as_they_are(runtime, words):
    """Whatever a field's own check would say: for each runtime 32 examples of 32 words."""
    paths = [f"/{n}{word}" for n, word in enumerate(words)]
    if runtime == "pyxis":  # which takes neither, and says so
        paths = [path.replace(":", ".").replace(",", ".") for path in paths]
    image = f"i{words[2]}"  # one that begins with a dash is refused
    gpu = "g" + words[0].replace("\n", "")  # it stands in a line of #SBATCH, too, which is no bash
    with TemporaryDirectory() as folder:
        base = job("slurm", runtime, cpus_per_node=4)
        update = {
            "python": f"{folder}/tools/python",
            "gpu_type": gpu,
            "network_interface": words[1],
            "image": None if runtime == "none" else image,
            "modules": words[3:6],
            "binds": paths[6:10],
            "environment": {f"V{n}": f"v{word}".replace("$", r"\$") for n, word in enumerate(words[10:18])},
        }
        hostile = replace(
            base,
            run_dir=f"{folder}/{paths[18].replace('/', '_')}",
            binds=tuple(paths[19:22]),
            links=((paths[22], paths[23]),),
            profile=base.profile.model_copy(update=update),
            steps=(Step("train", tuple(words[24:]), base.nodes, 2),),
        )
        script = "module() { printf '%s\\0' module \"$@\" 'END OF CALL' >> \"$RECORD\"; }\n" + render(hostile)
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)
        calls = {call[0]: call[1:] for call in run_script(script, Path(folder), "train")}
        env = {"PATH": "/usr/bin:/bin", "RECORD": "/dev/null"}
        done = subprocess.run(["bash", f"{folder}/job.sh", "environment"], env=env, capture_output=True, check=True)
    said = done.stdout.decode().split("\0")
    assert {f"V{n}=v{word}" for n, word in enumerate(words[10:18])} | {f"NCCL_SOCKET_IFNAME={words[1]}"} <= set(said)
    assert calls["module"] == ["load", *words[3:6]]
    assert f"--gpus-per-node={gpu}:2" in calls["srun"]
    assert calls["python"][-9:] == [*words[24:], hostile.run_dir]
    mounts = [*((path, path) for path in (hostile.run_dir, *paths[19:22], *paths[6:10])), (paths[23], paths[22])]
    if runtime == "pyxis":
        shown = ",".join(f"{outside}:{inside}" for outside, inside in mounts)
        assert {f"--container-image={image}", f"--container-mounts={shown}"} <= set(calls["srun"])
    elif runtime != "none":
        doubled = [(outside.replace('"', '""'), inside.replace('"', '""')) for outside, inside in mounts]
        found = [given for option, given in pairwise(calls[runtime]) if option == "--mount"]
        assert found == [f'type=bind,"source={outside}","destination={inside}"' for outside, inside in doubled]
        assert image in calls[runtime] and hostile.run_dir in calls[runtime]


@pytest.mark.parametrize("runtime", ["apptainer", "docker", "podman", "pyxis"])
def test_an_image_that_begins_with_a_dash_would_be_an_option(runtime, monkeypatch):
    base = job("slurm", runtime)
    with pytest.raises(ConfigError, match=f"the image is '--privileged', which {runtime} would read as an option"):
        render(replace(base, profile=base.profile.model_copy(update={"image": "--privileged"})))
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/true")
    with pytest.raises(ConfigError, match="the image is '-v'"):
        inside(runtime, "-v", gpus=False)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_what_no_program_can_be_given_is_refused(text):
    with pytest.raises(ConfigError, match="no program can be given"):
        render(replace(job("local", "none"), run_dir=text))


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
    assert done.returncode and "SITE_TMP: is in a path of the cluster profile, and is not set" in done.stderr


@pytest.mark.parametrize(("runtime", "seen"), [("apptainer", "type=bind"), ("podman", "type=bind"), ("pyxis", "")])
def test_a_scratch_that_a_node_knows_is_bound(runtime, seen, tmp_path):
    text = render(job("slurm", runtime, scratch="$SITE_TMP/x", python=str(tmp_path / "tools" / "python")))
    calls = run_script(f"export SITE_TMP='{tmp_path}/my tmp'\n{text}", tmp_path, "train")
    path = f"{tmp_path}/my tmp/x"
    words = [word for call in calls for word in call]
    whole = f'type=bind,"source={path}","destination={path}"'
    assert whole in words if seen else any(word.endswith(f",{path}:{path}") for word in words)


LOOK = (
    "import getpass, json, os, site, sys; "
    "json.dump([dict(os.environ), getpass.getuser(), os.path.expanduser('~'), site.ENABLE_USER_SITE], sys.stdout)"
)

SKIP = 'while true; do case "$1" in apptainer|docker|podman) exec "$@" ;; *) shift ;; esac; done'
BARE = 'env -i PATH="$PATH" GRPO_HPC_HOME="$GRPO_HPC_HOME"'


@pytest.mark.parametrize("runtime", ["apptainer", "docker", "podman", "pyxis"])
@pytest.mark.parametrize("folder", ["cache", "scratch", None])
def test_home_user_and_python_paths_in_containers(runtime, folder, tmp_path):
    """What a step says to the runtime is really run, without the container: only names handed in are known there."""
    place = tmp_path / "place"
    text = render(
        replace(
            job("slurm", runtime, python=sys.executable, **({folder: str(place)} if folder else {})),
            run_dir=str(tmp_path / "run"),
            steps=(Step("train", ("-c", LOOK), 1, 1, torchrun=False),),
        )
    )
    whole = runtime in ("apptainer", "pyxis")  # they hand in every variable
    enter = f'while [ "$1" != bash ]; do shift; done; exec {"" if whole else BARE} "$@"'
    (tmp_path / "tools").mkdir()
    for name, does in {"srun": enter if runtime == "pyxis" else SKIP, runtime: enter}.items():
        (tmp_path / "tools" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "tools" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}/tools:/usr/bin:/bin", "HOME": "/home/me", "PYTHONPATH": "/mine", "HF_HOME": "/mine/hf"}
    done = subprocess.run(["bash", "-c", text, "job.sh", "train"], env=env, capture_output=True, text=True, check=True)
    seen, user, home, user_packages = json.loads(done.stdout)
    wanted = place / f"grpo-hpc-{os.getuid()}" if folder else tmp_path / "run" / ".cache" / "home"
    assert (Path(home), user) == (wanted, "user") and wanted.is_dir()
    assert seen["TORCHINDUCTOR_CACHE_DIR"] == f"{wanted}/.cache/inductor"
    assert not {"PYTHONPATH", "HF_HOME"} & set(seen)
    assert not whole or not user_packages
    assert whole or {"--env", "PYTHONNOUSERSITE"} <= set(text.split())


def test_a_home_that_somebody_else_has_made_is_not_used(tmp_path):
    theirs = Path("/usr")
    if os.getuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        os.chown(theirs, 12345, 12345)
    for home, said, code in ((tmp_path / "own", "in\n", 0), (theirs, "", 1)):
        env = {"PATH": os.environ["PATH"], "GRPO_HPC_HOME": str(home)}
        done = subprocess.run(["bash", "-c", f"{INSIDE}echo in"], env=env, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == (said, code)
    assert "is not this user's own" in done.stderr


def test_what_a_profile_says_of_home_and_paths_counts():
    text = render(job("slurm", "apptainer", environment={"HOME": "/h", "PYTHONPATH": "/p"}))
    assert "  export GRPO_HPC_HOME=/h\n" in text and "  export PYTHONPATH=/p\n" in text
    assert "unset PYTHONHOME" in text and "export HOME=/h" not in text
