"""The servers of one node, with a stand-in that speaks HTTP, and what their supervisor makes of them."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

from grpo_hpc.addresses import own_address
from grpo_hpc.cluster.profile import Profile, require_complete
from grpo_hpc.config import load_run
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.jobs.checks.node_reports import this_node
from grpo_hpc.jobs.ports import claimed_port
from grpo_hpc.jobs.serving.node_servers import _device, options
from grpo_hpc.jobs.serving.server_steps import ServerStep, serving
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.run_dir import RunDir

ROOT = Path(__file__).parents[3]
STAND_IN = ROOT / "tests" / "slurm" / "server.py"


class Steps:
    """Starts a step on this machine: the servers of one node."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir

    @contextmanager
    def start(self, name: str, log: Path):
        assert name == "serve"
        env = {**os.environ, "SLURM_PROCID": "0", "MASTER_ADDR": "localhost", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "grpo_hpc.jobs.serving.node_servers", str(STAND_IN), str(self.run_dir.path)]
        with log.open("w") as out:
            process = subprocess.Popen(command, env=env, cwd=self.run_dir.path, stdout=out, stderr=out)
        try:
            yield process
        finally:
            assert process.wait(10) is not None  # it ended by itself


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    values = {
        "name": "served",
        "output_dir": str(tmp_path),
        "model": {"path": "model", "config": "Qwen3-0.6B", "dtype": "float32"},
        "data": {"train": "rows.jsonl"},
        "resources": {"device": "cpu", "nproc_per_node": 2},
        "batch": {"train_iters": 1},
        "rollout": {"vllm_mode": "server"},
        "rewards": {"reward_funcs": ["exact_number"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    cfg = load_run(tmp_path / "run.yaml")
    run_dir = RunDir.create(cfg, make_plan(cfg))
    run_dir.new_attempt()
    return run_dir


def with_fault(run: RunDir, **fault: object) -> None:
    (run.path / "payload.json").write_text(json.dumps({"server_fault": fault}))


def test_servers_come_up_with_a_key_of_their_own_and_leave_nothing(run):
    with_fault(run, kind="none")
    folder = run.latest_attempt()
    with serving(Steps(run), folder) as servers:
        assert servers.await_ready(30, lambda: False) is None
        found = json.loads(RunDir.servers_file(folder).read_text())["servers"]
        assert [place["gpus"] for place in found] == [[0], [1]] and len({place["url"] for place in found}) == 2
        assert all(place["url"].startswith("http://127.0.0.1:") for place in found)
        key = RunDir.api_key(folder)
        assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_text()) > 40
        commands = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert found[0]["url"].rpartition(":")[2] in commands and key.read_text() not in commands
        with pytest.raises(HTTPError, match="401"):
            urlopen(found[0]["url"] + "/v1/models", timeout=5)
        assert servers.failure() is None
    assert not key.exists()
    for place in found:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(place["url"].rpartition(":")[2]))) != 0


def test_segments_of_servers_are_removed_and_nobody_elses(run):
    """At the end, and those of an earlier start that was killed as a whole; a segment in use stays."""
    with_fault(run, kind="hold", port=None)
    kept, left, used = (Path(f"/dev/shm/test-{os.getpid()}-{name}") for name in ("kept", "left", "used"))
    folder = run.latest_attempt()
    with ExitStack() as stack:
        for path in (kept, left, used):
            path.write_bytes(bytes(4096))
            stack.callback(path.unlink, missing_ok=True)
        mapped = stack.enter_context(used.open("r+b"))
        stack.enter_context(mmap.mmap(mapped.fileno(), 4096))
        earlier = run.path / "attempt_0" / "servers" / f"{this_node()}.shm"
        earlier.parent.mkdir(parents=True)
        earlier.write_text(f"{left}\n{used}\n/dev/shm/test-never-there\n")
        with serving(Steps(run), folder) as servers:
            assert servers.await_ready(30, lambda: False) is None
            mine = list(Path("/dev/shm").glob(f"test-{servers.process.pid}-*"))
            assert len(mine) == 2
        assert not any(path.exists() for path in (*mine, left, earlier, folder / "servers" / earlier.name))
        assert kept.exists() and used.exists()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "start"}, "exit code 1; server_0.log: RuntimeError: the server was told to fail at its start"),
        (
            {"kind": "deaf"},
            "after 2 s (vllm_server_timeout) the servers are not ready: ",
        ),
    ],
)
def test_servers_that_fail_are_named(run, fault, reason):
    with_fault(run, port=None, **fault)
    with serving(Steps(run), run.latest_attempt()) as servers:
        assert reason in servers.await_ready(2 if fault["kind"] == "deaf" else 30, lambda: False)


def test_a_wish_to_stop_ends_the_waiting(run):
    with_fault(run, kind="deaf")
    with serving(Steps(run), run.latest_attempt()) as servers:
        assert servers.await_ready(60, lambda: True) is None
        assert not RunDir.servers_file(run.latest_attempt()).exists()


def test_a_step_that_says_nothing_is_told_by_its_exit_code(tmp_path):
    (tmp_path / "servers.log").write_text("srun: error: Node failure on node3\n")
    process = subprocess.Popen(["false"])
    process.wait()
    said = ServerStep(tmp_path, 1, process).failure()
    assert said == "the servers' step ended with exit code 1; srun: error: Node failure on node3"


def test_what_vllm_is_told():
    cfg = load_run(ROOT / "configs" / "qwen3_8b_server.yaml", ["vllm_enforce_eager=true", "vllm_max_num_seqs=64"])
    assert " ".join(options(cfg, 3)) == (
        "--model models/Qwen3-8B --dtype bfloat16 --seed 45 --tensor-parallel-size 1 "
        "--logprobs-mode processed_logprobs --max-model-len 9216 --max-num-seqs 64 "
        "--gpu-memory-utilization 0.9 --enforce-eager"
    )


def test_vllms_own_arguments_reach_its_servers():
    asked = "vllm_engine_kwargs={block_size: 32, compilation_config: {level: 3}}"
    words = options(load_run(ROOT / "configs" / "qwen3_8b_server.yaml", [asked]), 0)
    told = json.loads(words[words.index("--engine-kwargs") + 1])
    assert told == {"block_size": 32, "compilation_config": {"level": 3}}


def test_a_server_is_made_for_its_share_and_a_cache_of_a_given_size():
    """256 completions a step, four steps from a rollout, eight servers."""
    keys = ["steps_per_generation=4", "vllm_gpu_memory_utilization=null", "vllm_kv_cache_gib=40"]
    cfg = load_run(ROOT / "configs" / "qwen3_8b_server.yaml", keys)
    words = options(cfg, 0)
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told["--max-num-seqs"] == "128"
    assert told["--kv-cache-memory-bytes"] == str(40 * 2**30) and told["--gpu-memory-utilization"] == "0.01"


def test_a_server_gets_its_own_of_the_gpus_of_the_step(monkeypatch):
    cfg = load_run(ROOT / "configs" / "qwen3_8b_server.yaml")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert _device(cfg, [2, 3]) == {"CUDA_VISIBLE_DEVICES": "6,7"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _device(cfg, [2, 3]) == {"CUDA_VISIBLE_DEVICES": "2,3"}


def test_servers_listen_where_their_peer_reaches_them():
    assert own_address("localhost") == "127.0.0.1"


def test_a_port_has_one_owner():
    with claimed_port(range(20000, 20100)) as first, claimed_port(range(20000, 20100)) as second:
        assert first != second
        with pytest.raises(EnvironmentProblem, match=f"no port from {first} to {first}"), claimed_port([first]):
            pass
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        claimed_port([(taken := other.getsockname()[1]), 20000]) as port,
    ):
        assert port != taken


@pytest.mark.parametrize(
    ("executor", "change", "wrong"),
    [("local", "nodes=1", "one machine"), ("slurm", "vllm_tensor_parallel_size=16", "lies within one node")],
)
def test_servers_need_nodes_that_hold_them(executor, change, wrong):
    changes = [change, "vllm_server_nodes=2"]
    cfg = load_run(ROOT / "configs" / "qwen3_8b_server.yaml", changes)
    with pytest.raises(ConfigError, match=wrong):
        require_complete(cfg, Profile(executor=executor))
