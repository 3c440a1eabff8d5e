"""The service of a vLLM server when its engine fails at a request: over real HTTP, with an engine that fails so."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from grpo_hpc.rollout.engine_worker import JOIN
from grpo_hpc.rollout.server import Service, serving

KEY = "a key of this test"
WEIGHTS = {"host": "h", "port": 1, "first_rank": 1, "size": 2, "timeout_s": 1.0, "seed": 1, "version": 3}


class Engine:
    """Takes weights; each call is answered by the next of ``answers``, or raises it."""

    model_config = SimpleNamespace(model="m", max_model_len=8)

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def collective_rpc(self, name, args):
        self.calls.append(name)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def reset_prefix_cache(self):
        pass


@contextmanager
def asking(engine):
    """``ask(path, **body)`` of a service in a thread, which is seen to end where it does."""
    service = Service(engine)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    server = serving(service, "127.0.0.1", 0, KEY)
    server.start()

    def ask(path, **body):
        url = f"http://127.0.0.1:{server.server_port}{path}"
        with urlopen(Request(url, json.dumps(body).encode(), {"Authorization": f"Bearer {KEY}"}), timeout=20) as said:
            return json.loads(said.read())

    try:
        yield ask, thread
    finally:
        server.shutdown()
        server.server_close()


DONE = {"bytes": 5, "compared": 2}


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError(), "RuntimeError"), (OSError("\n"), "OSError"), (ValueError("a\nb"), "a")]
)
@pytest.mark.parametrize("joined", [False, True])
def test_weights_that_do_not_arrive_harm_nothing_else(error, said, joined):
    engine = Engine(*([None] * joined), error, None, DONE)
    with asking(engine) as (ask, thread):
        with pytest.raises(HTTPError, match="500") as refused:
            ask("/weights", nonce="one", **WEIGHTS)
        assert json.loads(refused.value.read())["error"] == f"weights did not arrive: {said}"
        with pytest.raises(HTTPError, match="409"):
            ask("/add", client="c", requests=[["a", [1], 1, {}]])
        assert ask("/weights", nonce="one", **WEIGHTS) == DONE
        assert engine.calls[-2] == JOIN, "the ends that failed are not ends any more"
        assert thread.is_alive()


def test_a_dead_engine_ends_the_service():
    with pytest.raises(EngineDeadError):
        service = Service(Engine(EngineDeadError()))
        threading.Thread(target=service.ask, args=("/weights", {"nonce": "one", **WEIGHTS}), daemon=True).start()
        service.run()


def test_workers_join_once_for_a_nonce():
    engine = Engine(None, DONE, DONE, None, DONE)
    with asking(engine) as (ask, _):
        for nonce in ("one", "one", "two"):
            assert ask("/weights", nonce=nonce, **WEIGHTS) == DONE
    assert [name == JOIN for name in engine.calls] == [True, False, False, True, False]


class Sampling(Engine):
    """Samples one token a step, of what has weights; the first token of a prompt says in how many steps it ends."""

    def __init__(self, refused):
        super().__init__(None, DONE)
        self.running, self.refused = {}, refused

    def add_request(self, name, prompt, params):
        if prompt["prompt_token_ids"] == [self.refused]:
            raise ValueError("too long")
        self.running[name] = prompt["prompt_token_ids"][0]

    def abort_request(self, names):
        for name in names:
            del self.running[name]

    def step(self):
        time.sleep(0.001)
        self.running = {name: left - 1 for name, left in self.running.items()}
        ended = [name for name, left in self.running.items() if left <= 0]
        for name in ended:
            del self.running[name]
        logprobs = SimpleNamespace(logprobs=[-1.0], start_indices=[0])
        output = SimpleNamespace(token_ids=[7], logprobs=logprobs, finish_reason="stop")
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output]) for name in ended]


def test_completions_are_told_as_they_end_to_whom_they_belong_to():
    with asking(Sampling(refused=999)) as (ask, _):
        ask("/weights", nonce="one", **WEIGHTS)
        ask("/add", client="one", requests=[["a", [200], 1, {}], ["b", [1], 1, {}], ["c", [10**6], 1, {}]])
        ask("/add", client="two", requests=[["a", [3], 1, {}]])
        with pytest.raises(HTTPError, match="400") as refused:
            ask("/add", client="one", requests=[["d", [5], 1, {}], ["e", [999], 1, {}]])
        assert "too long" in json.loads(refused.value.read())["error"]
        first = ask("/ended", client="one", wait_s=5)
        assert first == {"version": 3, "ended": [["b", [7], [-1.0], "stop"]]}, "not when all have ended"
        assert [name for name, *_ in ask("/ended", client="two", wait_s=5)["ended"]] == ["a"]
        assert [name for name, *_ in ask("/ended", client="one", wait_s=5)["ended"]] == ["a"], "d came with e"
        assert ask("/ended", client="one", wait_s=0.05)["ended"] == [], "an answer comes when nothing has ended, too"
        ask("/abort", client="one", names=["c", "gone long ago"])
        assert ask("/ended", client="one", wait_s=0.05)["ended"] == []
        assert ask("/forget") == {}, "nothing is sampled any more"
