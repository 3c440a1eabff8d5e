"""Server mode: trainer and servers on nodes of their own in one job. All servers but one are stand-ins."""

from __future__ import annotations

import json
import re
import subprocess
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from lightruns import ON_SERVERS, contained, ended, everything, job, prepare, wait_for
from tiny import save_tiny_model

from grpo_hpc.cluster import slurm
from grpo_hpc.jobs.executors import queue
from grpo_hpc.jobs.prepare import SERVER, stored_profile
from grpo_hpc.runs.attempts import Attempt, history
from grpo_hpc.runs.run_dir import RunDir

DIED = r"server \d on node[34] ended: exit code 7; server_\d.log: RuntimeError: the server was told to die"


def servers(run: RunDir, attempt: Attempt) -> list[dict]:
    return json.loads(RunDir.servers_file(attempt.folder(run)).read_text())["servers"]


@pytest.mark.parametrize(("executor", "runtime"), [("slurm", "none"), ("submitit", "apptainer"), ("slurm", "docker")])
def test_trainer_and_servers_share_one_job(submit, executor, runtime, request):
    run = submit(run={"executor": executor}, profile=contained(runtime, request), sections=ON_SERVERS, steps=4)
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    folder = attempt.folder(run)
    assert attempt.nodes == ["node1", "node2", "node3", "node4"]
    places = [json.loads((folder / f"where_{rank}.json").read_text())["SLURMD_NODENAME"] for rank in range(4)]
    assert places == ["node1", "node1", "node2", "node2"]
    found = servers(run, attempt)
    assert [(server["node"], server["gpus"]) for server in found] == [
        ("node3", [0]),
        ("node3", [1]),
        ("node4", [0]),
        ("node4", [1]),
    ]
    answered = [line.split() for line in (folder / "served.txt").read_text().splitlines()]
    assert len(answered) == 4 * 4 and {url for url, _ in answered} == {server["url"] for server in found}
    if runtime != "docker":  # where every container counts its processes from 1
        assert len({process for _, process in answered}) == 4
    assert json.loads((folder / "key_seen.json").read_text()) == {"mode": "0o600", "told": []}
    assert not RunDir.api_key(folder).exists()
    for server in found:  # nothing is left
        with pytest.raises(URLError, match="refused"):
            urlopen(f"{server['url']}/health", timeout=5)


def test_others_need_the_key(submit):
    run = submit(sections=ON_SERVERS, steps=100, pause=0.2)
    wait_for(lambda: RunDir.servers_file(run.latest).exists(), "the servers")
    url = servers(run, history(run)[0])[0]["url"]
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{url}/v1/models", timeout=5)


def test_a_dead_server_lets_the_trainer_save_and_starts_everything_again(submit):
    fault = {"kind": "die", "server": 1, "requests": 3}
    run = submit(sections=ON_SERVERS, steps=20, pause=0.3, server_fault=fault, keeps_on=True)
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("crash", "success"), everything(run)
    assert re.fullmatch(DIED, first.reason)
    assert 0 < first.last_step == second.first_step
    steps = [int(line.split()[1]) for line in (run.path / "steps.txt").read_text().splitlines()]
    assert steps == list(range(1, 21))


def test_a_trainer_that_fails_with_its_server_is_not_blamed(submit):
    fault = {"kind": "die", "server": 1, "requests": 3}
    run = submit(run={"max_failures": 0}, sections=ON_SERVERS, steps=30, pause=0.01, server_fault=fault)
    (first,) = ended(run, 1)
    assert first.state == "crash" and re.fullmatch(DIED, first.reason), everything(run)


def test_a_container_that_outlives_its_step_is_removed(submit, request):
    run = submit(
        run={"max_failures": 0},
        profile=contained("podman", request) | {"save_before_s": 2},
        sections=ON_SERVERS,
        fault={"kind": "hang", "rank": None},
        server_fault={"kind": "die", "server": 1, "requests": 1},
    )
    (first,) = ended(run, 1)
    assert first.state == "crash" and re.fullmatch(DIED, first.reason), everything(run)
    mine = ["podman", "ps", "--quiet", "--filter", f"label=grpo-hpc={job(run)}"]
    assert subprocess.run(mine, capture_output=True, text=True, check=True).stdout == ""


def test_a_failed_rank_ends_the_servers(submit):
    run = submit(sections=ON_SERVERS, fault={"kind": "kill", "rank": 3})
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("crash", "success"), everything(run)
    assert "rank 3 was killed by signal 9 (SIGKILL)" in first.reason
    assert (second.folder(run) / "served.txt").exists()


@pytest.mark.parametrize(("kind", "reason"), [("start", "told to fail at its start"), ("deaf", "503 to /health")])
def test_servers_that_do_not_come_up_end_the_job(submit, kind, reason):
    run = submit(
        run={"max_failures": 0},
        sections={"rollout": ON_SERVERS["rollout"] | {"vllm_server_timeout": 8}},
        server_fault={"kind": kind, "server": 0},
    )
    (attempt,) = ended(run, 1)
    assert attempt.state == "crash" and reason in attempt.reason, everything(run)
    assert not (attempt.folder(run) / "launcher.log").exists()  # no trainer was started
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to fail")


def test_preemption_saves_with_servers_too(submit):
    run = submit(sections=ON_SERVERS, steps=40, pause=0.2)
    wait_for(lambda: (run.path / "steps.txt").exists(), "the first step")
    slurm.call(["scancel", "--signal=USR2", "--full", job(run)])  # to every process, as Slurm does
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("timeout", "success"), everything(run)
    assert 0 < first.last_step == second.first_step


def test_two_jobs_with_servers_share_their_nodes(submit):
    runs = [submit(name, sections=ON_SERVERS, steps=40, pause=0.1) for name in ("one", "two")]
    for run in runs:
        assert ended(run, 1)[0].state == "success", everything(run)
    urls = [server["url"] for run in runs for server in servers(run, history(run)[0])]
    assert len(set(urls)) == 8


def test_a_real_server_comes_up_and_answers(tmp_path):
    save_tiny_model(tmp_path / "model", layers=2)
    sections = {
        "resources": {"nodes": 1, "nproc_per_node": 1},
        "rollout": {
            "vllm_mode": "server",
            "vllm_dtype": "float32",
            "vllm_max_model_len": 64,
            "max_completion_length": 16,
            "vllm_kv_cache_gib": 0.05,
        },
    }
    profile = {"memory": "6000M", "environment": {"OMP_NUM_THREADS": "1"}}
    run = prepare(tmp_path, "vllm", sections, profile, "runs", server=SERVER)
    (run.path / "payload.json").write_text(json.dumps({"steps": 1, "pause": 0, "asks": "/v1/models"}))
    queue(run, stored_profile(run))
    (attempt,) = ended(run, 1, 240)
    assert attempt.state == "success", everything(run)
    assert json.loads((attempt.folder(run) / "key_seen.json").read_text()) == {"mode": "0o600", "told": []}
    url, said = (attempt.folder(run) / "served.txt").read_text().split(maxsplit=1)
    assert json.loads(said)["data"] == [{"id": str(tmp_path / "model"), "max_model_len": 64}]
    assert (
        f"serving {tmp_path}/model at {url.removeprefix('http://')}"
        in RunDir.server_log(attempt.folder(run), 0).read_text()
    )
