"""Real vLLM servers beside a trainer of two ranks: one for each of them, and one of two workers for both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.config import load_run
from grpo_hpc.control import Control
from grpo_hpc.errors import ServersLost
from grpo_hpc.jobs.ports import claimed_port
from grpo_hpc.jobs.serving.node_servers import options
from grpo_hpc.rollout import server_engine
from grpo_hpc.rollout.engine import Request as Ask
from grpo_hpc.rollout.engine import complete
from grpo_hpc.rollout.server_engine import ServerEngine

KEY = "a key of this test"
ROOT = Path(__file__).parents[2]


def ask(url: str, key: str | None = KEY, body: bytes | None = None) -> dict:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with urlopen(Request(url, body, headers), timeout=20) as answer:
        return json.loads(answer.read())


LAYOUTS = {
    "tp2, two servers": ("qwen2", 2, {"tensor_model_parallel_size": 2}),
    "ep2, one server of tp2": ("qwen3_moe", 1, {"expert_model_parallel_size": 2, "vllm_tensor_parallel_size": 2}),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def run(layout, tiny, tmp_path_factory):
    family, _, keys = layout
    folder = tmp_path_factory.mktemp("servers")
    keys = {"nproc_per_node": 2, "vllm_mode": "server", "sync_bucket_mib": 0.1, "vllm_kv_cache_gib": 0.1} | keys
    return write_run(folder, tiny(family, tied=family == "qwen2"), lr=3e-2, vllm_max_model_len=128, **keys)


@pytest.fixture(scope="module")
def processes(layout, run, tmp_path_factory):
    """The servers by their addresses."""
    cfg, folder = load_run(run), tmp_path_factory.mktemp("logs")
    env = os.environ | {"VLLM_API_KEY": KEY, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with ExitStack() as stack:
        ports = [stack.enter_context(claimed_port(range(29900 + 9 * n, 29909 + 9 * n))) for n in range(layout[1])]
        started = []
        for number, port in enumerate(ports):
            words = ["--host", "127.0.0.1", "--port", str(port), *options(cfg, number)]
            command = [sys.executable, "-m", "grpo_hpc.rollout.server", *words]
            log = stack.enter_context((folder / f"{number}.log").open("w"))
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        try:
            for url, process in zip(urls, started, strict=True):
                wait_for(url, process, folder)
            yield dict(zip(urls, started, strict=True))
        finally:
            for process in started:
                process.terminate()
            ended = [process.wait(30) for process in started]
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert ended == [0] * len(started)


@pytest.fixture(scope="module")
def servers(processes):
    """Addresses of the servers."""
    return list(processes)


def wait_for(url: str, process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "\n".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
        try:
            assert ask(f"{url}/health") == {"step_s": 0.0}
            return
        except URLError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not come up")


@pytest.fixture(scope="module")
def outcome(run, servers):
    """What the worker found, and the model that it exported after one large update."""
    from transformers import AutoModelForCausalLM

    run_ranks("servers", 2, run, run.parent, KEY, *servers)
    model = AutoModelForCausalLM.from_pretrained(run.parent / "export", dtype=torch.float32)
    return json.loads((run.parent / "result.json").read_text()), model


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/add", "/ended", "/abort", "/weights", "/forget", "/collective_rpc"]
)
@pytest.mark.parametrize("key", [None, "another", ""])
def test_nobody_is_answered_without_the_key(servers, path, key):
    for body in (None, b"{}"):
        with pytest.raises(HTTPError, match="401"):
            ask(servers[0] + path, key, body)


def test_what_is_no_request_is_refused_and_harms_nothing(servers):
    for path, body, status in (
        ("/add", b"no json", 400),
        ("/add", b"[]", 400),
        ("/add", b"{}", 400),
        ("/add", b'{"client": "a", "requests": [[]]}', "4(00|09)"),  # 409 until weights have arrived
        ("/add", b'{"client": "a", "requests": [["b", "c", "d", "e"]]}', "4(00|09)"),
        ("/ended", b'{"client": "a"}', 400),
        ("/ended", b'{"client": "a", "wait_s": "long"}', 400),
        ("/abort", b'{"client": "a", "names": 3}', 400),
        ("/weights", b"{}", 400),
        ("/nothing", b"{}", 404),
    ):
        with pytest.raises(HTTPError, match=str(status)):
            ask(servers[0] + path, body=body)
    assert ask(f"{servers[0]}/v1/models")["data"][0]["max_model_len"] == 128


def test_completions_come_from_the_policy_before_and_after_an_update(outcome):
    result, model = outcome
    for rank in result["ranks"]:
        assert rank["mismatch"] <= 1e-3, "rollout log-probabilities against training log-probabilities"
        assert rank["after"] != rank["before"], "the update must show, or this test proves nothing"
        assert rank["last"] == rank["after"]
        for prompt, tokens in zip(result["prompts"], rank["after"], strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            assert logits.argmax(-1).tolist() == tokens
    assert [len(tokens) for tokens in result["probed"]] == [4, 4]


def test_seeds_alone_decide_what_is_sampled(outcome):
    one, other = outcome[0]["sampled"]  # each rank asked for the same, where it could from a server of its own
    assert one == other


def test_weights_are_compared_on_their_way_and_inside_the_servers(outcome):
    result, model = outcome
    assert result["compared"] == result["again"] == result["most"]
    assert result["bytes"] == sum(p.numel() * 4 for p in model.parameters())


def test_refusals_say_why(outcome):
    for rank in outcome[0]["ranks"]:
        said = rank["said"]
        assert "409" in said["before any weights"] and "have not arrived yet" in said["before any weights"]
        assert "samples from weights of step 0, not 7" in said["of another step"]
        assert "400" in said["too long"] and "128" in said["too long"]
        assert "sampled tensors changed on their way to a vLLM server: ['" in said["damaged"]


def test_a_server_that_was_stopped_is_lost_long_before_the_limit_of_a_rollout(run, processes, monkeypatch):
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.5)
    monkeypatch.setattr(server_engine, "_PROBE_LIMIT_S", 2.0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    asked = Ask(np.array([256, 60, 61]), 0, {"max_tokens": 4})
    try:
        platform, control = SimpleNamespace(device=torch.device("cpu")), Control(timedelta(minutes=1))
        engine = ServerEngine(load_run(run), platform, list(processes), KEY, control)
        engine.version = 0
        for process in processes.values():
            os.killpg(process.pid, signal.SIGSTOP)
        with pytest.raises(ServersLost, match="has not answered /health within 2 s"):
            complete(engine, [asked] * len(processes))
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGCONT)
        dist.destroy_process_group()
    assert [ask(f"{url}/v1/models")["data"][0]["max_model_len"] for url in processes] == [128] * len(processes)
