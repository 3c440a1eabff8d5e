"""A vLLM engine for a trainer on other nodes: ``python -m grpo_hpc.rollout.server --host H --port P OPTIONS`` of vLLM.

It answers whoever has the key in ``VLLM_API_KEY``, and nobody else, with JSON:

    GET  /health     {"step_s": seconds since the engine began its present step, 0 between steps}
    GET  /v1/models  {"data": [{"id": the model, "max_model_len": tokens}]}
    POST /add        {"client", "requests": [[name, prompt, seed, options]]} -> {"version"}: completions are begun
    POST /ended      {"client", "wait_s"} -> {"version", "ended": [[name, tokens, logprobs, finish_reason]]}: those of
                     this client that have ended and were not told yet; once there are some, or after that time
    POST /abort      {"client", "names"} -> {}: nobody wants these any more
    POST /forget     {} -> {}, without cached keys and values
    POST /weights    {"host", "port", "first_rank", "size", "nonce", "timeout_s", "seed", "version"}
                     -> {"bytes", "compared"}

All completions at hand are in one batch, whichever trainer rank wants them; new weights wait until it has ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grpo_hpc.errors import EXIT_USER_ERROR
from grpo_hpc.redaction import redact_output
from grpo_hpc.rollout.engine import WITHOUT_READING, completion_of, sampling_params
from grpo_hpc.rollout.engine_arguments import unknown_arguments
from grpo_hpc.rollout.engine_worker import JOIN, RECEIVE, PolicyReceiver
from grpo_hpc.rollout.keyed_http import KeyedServer, Refused

KEY = "VLLM_API_KEY"
AT_ANY_TIME = ("/add", "/ended", "/abort")
"""What need not wait until nothing is being sampled."""
LONGEST_WAIT_S = 60.0
"""Seconds that a question for completions stays open at most."""
EXTENSION = f"{PolicyReceiver.__module__}.{PolicyReceiver.__qualname__}"


@dataclass
class _Asked:
    """A request and where its answer goes."""

    path: str
    body: dict[str, Any]
    answer: Future[dict[str, Any]] = field(default_factory=Future)


@dataclass
class _Client:
    """One that wants completions.

    Attributes:
        ended: as they are told, and were not told yet.
        asked: its question for them, while it waits.
        until: when that is answered at the latest.
    """

    ended: list[list[Any]] = field(default_factory=list)
    asked: _Asked | None = None
    until: float = 0.0


class Service:
    """The engine and what is asked of it. Only :meth:`run`, in one thread, touches the engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._clients: defaultdict[str, _Client] = defaultdict(_Client)
        self._running: dict[str, tuple[_Client, str]] = {}  # by the engine's name of a completion: whose, and its name
        self._version: int | None = None
        self._joined: str | None = None  # the nonce of the broadcast that the workers are ends of
        self._step_began: float | None = None

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; called from any thread, waits for it.

        Raises:
            Refused: there is none.
        """
        asked = _Asked(path, body)
        self._asked.put(asked)
        return asked.answer.result()

    @property
    def model(self) -> dict[str, Any]:
        config = self._engine.model_config
        return {"data": [{"id": config.model, "max_model_len": config.max_model_len}]}

    def run(self) -> None:
        """Work in the order of requests, for ever; weights wait until nothing is being sampled."""
        waiting: deque[_Asked] = deque()
        while True:
            self._tell()
            if not waiting and not self._running:
                with suppress(queue.Empty):
                    waiting.append(self._asked.get(timeout=self._patience()))
            while not self._asked.empty():
                waiting.append(self._asked.get())
            while waiting and (waiting[0].path in AT_ANY_TIME or not self._running):
                self._begin(waiting.popleft())
            for output in self._step() if self._running else ():
                if output.finished:
                    self._finish(output)

    def _patience(self) -> float | None:
        """Seconds until somebody who waits is told that nothing has ended."""
        until = [client.until for client in self._clients.values() if client.asked]
        return max(0.0, min(until) - time.monotonic()) if until else None

    def _tell(self) -> None:
        """Answer those who wait for completions that have ended."""
        for client in self._clients.values():
            if client.asked and (client.ended or client.until <= time.monotonic()):
                client.asked.answer.set_result({"version": self._version, "ended": client.ended})
                client.ended, client.asked = [], None

    @property
    def health(self) -> dict[str, Any]:
        """What somebody who waits for an answer may ask: whether the engine moves."""
        began = self._step_began
        return {"step_s": 0.0 if began is None else time.monotonic() - began}

    def _step(self) -> list[Any]:
        self._step_began = time.monotonic()
        outputs: list[Any] = self._engine.step()
        self._step_began = None
        return outputs

    def _begin(self, asked: _Asked) -> None:
        """No request ends the service; what breaks the engine does."""
        try:
            if asked.path == "/ended":
                self._wait(asked, **asked.body)
            else:
                asked.answer.set_result(self._work(asked.path, asked.body))
        except Exception as error:
            if _breaks_the_engine(error):
                raise
            asked.answer.set_exception(_refusal(error))

    def _work(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/add":
            return self._add(**body)
        if path == "/abort":
            return self._abort(**body)
        if path == "/weights":
            return self._take_weights(**body)
        self._engine.reset_prefix_cache()
        return {}

    def _add(self, client: str, requests: list[Any]) -> dict[str, Any]:
        from vllm import TokensPrompt

        if self._version is None:
            raise Refused(409, "the policy's weights have not arrived yet")
        params = [sampling_params(seed, options) for _, _, seed, options in requests]
        added: list[str] = []
        try:
            for (name, prompt, *_), param in zip(requests, params, strict=True):
                self._engine.add_request(own := f"{client}/{name}", TokensPrompt(prompt_token_ids=prompt), param)
                self._running[own] = self._clients[client], name
                added.append(own)
        except Exception as error:  # vLLM has several, by version; one that breaks the engine comes back from its step
            self._give_up(added)
            raise Refused(400, f"{type(error).__name__}: {error}") from None
        return {"version": self._version}

    def _wait(self, asked: _Asked, client: str, wait_s: float) -> None:
        waits = self._clients[client]
        if waits.asked:  # it has hung up on that
            waits.asked.answer.set_exception(Refused(409, "it was asked for again"))
        waits.asked, waits.until = asked, time.monotonic() + min(float(wait_s), LONGEST_WAIT_S)

    def _abort(self, client: str, names: list[str]) -> dict[str, Any]:
        self._give_up([own for name in names if (own := f"{client}/{name}") in self._running])
        return {}

    def _give_up(self, names: list[str]) -> None:
        for name in names:
            del self._running[name]
        self._engine.abort_request(names)

    def _finish(self, output: Any) -> None:
        if output.request_id in self._running:
            client, name = self._running.pop(output.request_id)
            found = completion_of(output.outputs[0], self._version or 0, [])
            client.ended.append([name, found.tokens.tolist(), found.logprobs.tolist(), found.finish_reason])

    def _take_weights(
        self, host: str, port: int, first_rank: int, size: int, nonce: str, timeout_s: float, seed: int, version: int
    ) -> dict[str, Any]:
        self._version, joined, self._joined = None, self._joined, None
        try:
            if joined != nonce:
                self._engine.collective_rpc(JOIN, args=(host, port, first_rank, size, nonce, timeout_s))
            told = self._engine.collective_rpc(RECEIVE, args=(seed,))
        except Exception as error:  # of a worker, with its traceback in the log: an end of the broadcast is gone, say
            if _breaks_the_engine(error):
                raise
            raise Refused(500, f"weights did not arrive: {_first_line(error)}") from None
        self._joined = nonce
        if wrong := [answer["error"] for answer in told if "error" in answer]:
            raise Refused(422, wrong[0])
        self._engine.reset_prefix_cache()
        self._version = version
        return dict(told[0])


def _breaks_the_engine(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    status = 400 if isinstance(error, (KeyError, TypeError, ValueError)) else 500
    return Refused(status, f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Of what an exception says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def serving(service: Service, host: str, port: int, key: str) -> KeyedServer:
    """A server of ``service``, not started yet."""
    gets: dict[str, Callable[[], dict[str, Any]]] = {
        "/health": lambda: service.health,
        "/v1/models": lambda: service.model,
    }
    posts = {path: partial(service.ask, path) for path in (*AT_ANY_TIME, "/forget", "/weights")}
    return KeyedServer(host, port, key, gets, posts)


def main(words: list[str]) -> int:
    """Serve until the engine breaks or a signal ends the process."""
    redact_output()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(description=__doc__))
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, required=True, help="port to listen at")
    parser.add_argument("--engine-kwargs", type=json.loads, default={}, help="rollout.vllm_engine_kwargs as JSON")
    told = parser.parse_args(words)
    if problem := unknown_arguments(told.engine_kwargs):
        print(problem, file=sys.stderr)
        return EXIT_USER_ERROR
    key = os.environ.get(KEY)
    if not key:
        print(f"{KEY} is not set: a server without a key would answer anybody", file=sys.stderr)
        return EXIT_USER_ERROR
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = EngineArgs.from_cli_args(told)
    args.worker_extension_cls, args.disable_log_stats = EXTENSION, True
    vars(args).update(WITHOUT_READING | told.engine_kwargs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    engine = LLMEngine.from_engine_args(args)
    try:
        service = Service(engine)
        serving(service, told.host, told.port, key).start()
        print(f"serving {args.model} at {told.host}:{told.port}", flush=True)
        service.run()
    finally:
        engine.engine_core.shutdown()  # its processes have shared memory to give back
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
