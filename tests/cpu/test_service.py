"""The service of a vLLM server when its engine fails at a request: over real HTTP, with an engine that fails so."""

from __future__ import annotations

import json
import threading
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
            ask("/generate", prompts=[[1]], seeds=[1], options={})
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
