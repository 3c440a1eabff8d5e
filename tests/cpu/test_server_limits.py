"""Servers that are not lost and do not answer either: every wait ends, and says what was waited for."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from grpo_hpc.config.sections import Rollout
from grpo_hpc.control import Control
from grpo_hpc.errors import RolloutError, ServersLost
from grpo_hpc.rollout import server_engine
from grpo_hpc.rollout.engine import Request, Synced, complete
from grpo_hpc.rollout.server_engine import ServerEngine
from grpo_hpc.rollout.weights.link import Link

FOR_EVER = 1000.0  # minutes: pytest's own limit would strike first


@pytest.fixture(scope="module")
def control():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Control(timedelta(minutes=1))
    dist.destroy_process_group()


@pytest.fixture
def silent():
    """Accepts whoever comes and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def answering(**answers):
    """A server that answers ``path=answer``, perhaps after its status or by a function; nothing else, ever."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said = answers.get(self.path.strip("/"))
            told = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if callable(said):
                said = said(json.loads(told)) if told else said()
            if said is None:
                end.wait()
                return
            status, said = said if isinstance(said, tuple) else (200, said)
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        end.set()
        server.shutdown()
        server.server_close()


def engine(control, *urls, rollout_minutes=FOR_EVER, minutes=FOR_EVER):
    rollout = Rollout(
        rollout_timeout_minutes=rollout_minutes,
        vllm_mode="server",
        vllm_dtype="float32",
        sync_bucket_mib=1.0,
        max_completion_length=4,
    )
    cfg = SimpleNamespace(rollout=rollout, resources=SimpleNamespace(distributed_timeout_minutes=minutes), seed=1)
    made = ServerEngine(cfg, SimpleNamespace(device=torch.device("cpu")), urls, "a key", control)
    made.version = 0
    return made


def test_a_rollout_has_a_limit_of_its_own(control, silent):
    with pytest.raises(ServersLost, match=rf"{silent} has not ended a completion within 1 s \(rollout.rollout_timeout"):
        complete(engine(control, silent, rollout_minutes=1 / 60), [Request([1], 0, {})])


def test_everything_else_has_another(control, silent):
    with pytest.raises(ServersLost, match="has not answered /v1/models within 1 s"):
        _ = engine(control, silent, minutes=1 / 60).max_model_len


def test_a_node_that_is_gone_is_known_long_before_the_limit(control, silent, monkeypatch):
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.1)
    monkeypatch.setattr(server_engine, "_PROBE_LIMIT_S", 1.0)
    with (
        answering(health={"step_s": 0.0}) as working,
        pytest.raises(ServersLost, match=rf"{silent} has not answered /health within 1 s"),
    ):
        complete(engine(control, working, silent), [Request([1], 0, {}), Request([2], 1, {})])


def test_an_engine_that_hangs_is_known_long_before_the_limit(control, monkeypatch):
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.1)
    with (
        answering(health={"step_s": 61.0}) as stuck,
        pytest.raises(ServersLost, match=r"not answered /(add|ended): it has been in one step .* for 61 s; .* 60 s"),
    ):
        complete(engine(control, stuck, minutes=1.0), [Request([1], 0, {})])


def test_weights_that_a_server_does_not_take_end_the_wait(control, silent):
    lost = engine(control, silent, minutes=1 / 60)
    with pytest.raises(
        ServersLost, match=r"(weights did not reach the vLLM servers|has not answered /weights) within 1 s"
    ):
        lost.load_weights(iter([("a", torch.zeros(3))]), 1)
    assert lost.version is None


def test_a_server_that_hangs_before_weights_come_is_known_long_before_the_limit(control, silent, monkeypatch):
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.1)
    monkeypatch.setattr(server_engine, "_PROBE_LIMIT_S", 1.0)
    lost = engine(control, silent)
    with pytest.raises(ServersLost, match=rf"{silent} has not answered /health within 1 s"):
        lost.load_weights(iter([("a", torch.zeros(3))]), 1)


def test_a_server_that_hangs_while_weights_come_is_known_long_before_the_limit(control, monkeypatch):
    """It has joined the broadcast, and takes nothing: only a question tells that from a slow network."""
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.1)
    monkeypatch.setattr(server_engine, "_PROBE_LIMIT_S", 1.0)
    joined, sent = [], []

    def joins(told):
        place = told["host"], told["port"], told["first_rank"], told["size"], told["nonce"]
        joined.append(Link(*place, torch.device("cpu"), told["timeout_s"]))

    def tensors():
        for name in "abc":
            sent.append(name)
            yield name, torch.zeros(1 << 22)

    with answering(health=lambda: None if joined else {"step_s": 0.0}, weights=joins) as hung:
        lost = engine(control, hung)
        with pytest.raises(ServersLost, match=rf"{hung} has not answered /health within 1 s"):
            lost.load_weights(tensors(), 1)
    assert joined and sent == ["a", "b", "c"], "what is collective is gone through to its end"
    assert lost.version is None


def test_a_server_that_fails_is_lost_and_one_that_refuses_is_not(control):
    with (
        answering(add=(500, {"error": "a worker died"})) as url,
        pytest.raises(ServersLost, match=r"\(500\): a w"),
    ):
        complete(engine(control, url), [Request([1], 0, {})])
    with (
        answering(add=(400, {"error": "too long"})) as url,
        pytest.raises(RolloutError, match="refused") as caught,
    ):
        complete(engine(control, url), [Request([1], 0, {})])
    assert not isinstance(caught.value, ServersLost)


def test_a_request_that_is_confirmed_after_its_completion_says_nothing_of_the_next_weights(control, monkeypatch):
    """A thread of a busy server may answer /add late, when all that it added has ended and was taken."""
    synced, wanted = threading.Event(), []

    def add(told):
        wanted.append(told["requests"])
        if len(wanted) == 1:
            synced.wait(60)
            return {"version": 0}
        return {"version": 1}

    def ended(told):
        names = [request[0] for request in wanted[-1]] if wanted else []
        return {"version": int(synced.is_set()), "ended": [[name, [5], [0.0], "stop"] for name in names]}

    with answering(add=add, ended=ended) as url:
        late = engine(control, url)
        monkeypatch.setattr(late, "_send", lambda tensors, version: Synced(0, 0))
        assert len(complete(late, [Request([1], 0, {})])) == 1
        (question,) = late._asked
        late.load_weights(iter([]), 1)
        synced.set()
        assert question.answer.result(60) == {"version": 0}
        (completion,) = complete(late, [Request([1], 0, {})])
    assert completion.version == 1


def test_no_thread_keeps_the_process_from_ending(control, silent, monkeypatch):
    monkeypatch.setattr(server_engine, "_PROBE_S", 0.1)
    monkeypatch.setattr(server_engine, "_PROBE_LIMIT_S", 0.5)
    before = set(threading.enumerate())
    with pytest.raises(ServersLost):
        complete(engine(control, silent), [Request([1], 0, {})])
    left = set(threading.enumerate()) - before
    assert left and all(thread.daemon for thread in left)
