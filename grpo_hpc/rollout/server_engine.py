"""Sampling from vLLM servers on other nodes (:mod:`grpo_hpc.rollout.server`).

Every wait ends: a request after its limit from the run file, and sooner when a server does not say that it works.
Threads that wait for a server are left behind when another is lost, and end with the process.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener
from urllib.request import Request as HttpRequest

import numpy as np
import torch
from torch import Tensor

from grpo_hpc.addresses import own_address
from grpo_hpc.control import Control
from grpo_hpc.errors import RolloutError, ServersLost
from grpo_hpc.rollout.engine import Completion, Request, Synced
from grpo_hpc.rollout.residency import Part
from grpo_hpc.rollout.weights.link import Link
from grpo_hpc.rollout.weights.precision import for_engine

if TYPE_CHECKING:
    from grpo_hpc.config import RunConfig
    from grpo_hpc.train.megatron.platform import Platform

_PROBE_S = 15.0  # seconds between two questions whether a server works, while an answer is waited for
_PROBE_LIMIT_S = 60.0  # seconds that it has to say so

_WAIT_S = 10.0  # seconds that a server may keep a question for completions when none has ended
_STEP_S = 0.05  # seconds in which something that is decided meanwhile is not heard

Answer = dict[str, Any]


@dataclass(frozen=True)
class _Wanted:
    """A completion that has not ended: the server that it was asked of, and when."""

    url: str
    since: float


@dataclass(frozen=True)
class _Asked:
    """A question that is on its way."""

    url: str
    path: str
    answer: Future[Answer]


class ServerEngine:
    """vLLM servers as one engine: every rank asks its own share of them, rank 0 hands the weights to all.

    Args:
        urls: of the servers.
        key: that they ask for.
        control: how ranks agree whether servers took their weights.
    """

    fed_by_every_rank = False

    def __init__(self, cfg: RunConfig, platform: Platform, urls: Sequence[str], key: str, control: Control) -> None:
        self._cfg, self._seed, self._device = cfg.rollout, cfg.seed, platform.device
        self._dtype = getattr(torch, cfg.rollout.vllm_dtype)
        self._rollout_limit_s = 60 * cfg.rollout.rollout_timeout_minutes
        self._limit_s = 60 * cfg.resources.distributed_timeout_minutes
        self._urls, self._key, self._control = list(urls), key, control
        self._mine = share_of(self._urls, control.rank, control.size)
        self._link: Link | None = None
        self.version: int | None = None
        self._client = f"{control.rank} {secrets.token_hex(4)}"
        self._wanted: dict[str, _Wanted] = {}  # what has not ended, the oldest first
        self._unsent: defaultdict[str, list[Any]] = defaultdict(list)  # by server
        self._asked: list[_Asked] = []
        self._looked = time.monotonic()

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and completion together."""
        return int(self._call(self._mine[0], "/v1/models")["data"][0]["max_model_len"])

    def submit(self, name: str, request: Request) -> None:
        """Begin with one completion, on the server that has fewest of this rank's."""
        if self.version is None:
            raise RolloutError("the inference servers were asked to sample before the policy's weights were sent")
        busy = Counter(wanted.url for wanted in self._wanted.values())
        url = min(self._mine, key=lambda url: busy[url])
        self._wanted[name] = _Wanted(url, time.monotonic())
        prompt = np.asarray(request.prompt_tokens).tolist()
        self._unsent[url].append([name, prompt, request.seed, dict(request.options)])

    def abort(self, name: str) -> None:
        """Give up one completion."""
        wanted = self._wanted.pop(name, None)
        if wanted:
            body = {"client": self._client, "names": [name]}
            self._asked.append(_Asked(wanted.url, "/abort", _in_background(self._call, wanted.url, "/abort", body)))

    def step(self) -> list[tuple[str, Completion]]:
        """Wait a moment for completions.

        Raises:
            ServersLost: on this rank: a server did not answer.
            RolloutError: it refused, or holds other weights than the last that it was sent.
        """
        self._ask()
        wait([asked.answer for asked in self._asked], _STEP_S, FIRST_COMPLETED)
        ready = [asked for asked in self._asked if asked.answer.done()]
        self._asked = [asked for asked in self._asked if not asked.answer.done()]
        found = [completion for asked in ready for completion in self._take(asked)]
        self._look_after(self._asked)
        return found

    def _ask(self) -> None:
        """Send what is wanted, and a question to every server that has something of this rank."""
        for url, requests in self._unsent.items():
            body = {"client": self._client, "requests": requests}
            self._asked.append(_Asked(url, "/add", _in_background(self._call, url, "/add", body)))
        self._unsent.clear()
        questioned = {asked.url for asked in self._asked if asked.path == "/ended"}
        for url in {wanted.url for wanted in self._wanted.values()} - questioned:
            question = {"client": self._client, "wait_s": _WAIT_S}
            answer = _in_background(self._call, url, "/ended", question, _WAIT_S + self._limit_s)
            self._asked.append(_Asked(url, "/ended", answer))

    def _take(self, asked: _Asked) -> list[tuple[str, Completion]]:
        told = asked.answer.result()
        ended = [one for one in told.get("ended", []) if one[0] in self._wanted]
        if "version" in told and (ended or asked.path == "/add") and told["version"] != self.version:
            raise RolloutError(f"{asked.url} samples from weights of step {told['version']}, not {self.version}")
        for name, *_ in ended:
            del self._wanted[name]
        return [
            (name, Completion(np.array(tokens, np.int32), np.array(logprobs, np.float32), reason, told["version"]))
            for name, tokens, logprobs, reason in ended
        ]

    def _look_after(self, asked: Sequence[_Asked]) -> None:
        """Now and then ask those who are waited for whether they work."""
        now, oldest = time.monotonic(), next(iter(self._wanted.values()), None)
        if oldest and now - oldest.since > self._rollout_limit_s:
            raise ServersLost(
                f"the vLLM server {oldest.url} has not ended a completion within {self._rollout_limit_s:g} s "
                f"(rollout.rollout_timeout_minutes)"
            )
        if now - self._looked > _PROBE_S:
            self._looked = now
            for url, path in {one.url: one.path for one in asked}.items():
                self._probe(url, path)

    def forget(self) -> None:
        """Let the servers drop cached keys and values."""
        for url in self._mine:
            self._call(url, "/forget", {})

    def load_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced:
        """Replace the weights of all servers by ``tensors`` (Hugging Face names), which rank 0 has; collective.

        Raises:
            RolloutError: on every rank: a server did not take them, or a sample of its weights differs.
            ServersLost: on every rank: a server is gone.
        """
        self.version = None
        # what a rank asks of a server that already waits for weights would wait for ever
        self._control.wait("all ranks to have their completions")
        # all of them were taken, so an answer to /add that is still on its way speaks of the weights before
        self._asked = [asked for asked in self._asked if asked.path != "/add"]
        outcome: Synced | RolloutError | None = None
        if self._control.first:
            generator = torch.Generator(self._device).manual_seed(self._seed + version)
            try:
                outcome = self._send(for_engine(tensors, self._dtype, generator), version)
            except RolloutError as error:
                outcome = error
        for _ in tensors:  # the stream is collective: every rank must reach its end
            pass
        synced = self._control.from_first(lambda: _or_raise(outcome), "weights to reach the vLLM servers")
        self.version = version
        return synced

    def _send(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced:
        """Broadcast to all servers while each of them is asked to receive."""
        ranks, seed = self._cfg.vllm_tensor_parallel_size, self._seed + version
        size = 1 + ranks * len(self._urls)
        listening = None
        if self._link is None:
            listening = _listening(self._urls[0])
            self._host, self._port = listening.getsockname()
            self._nonce = secrets.token_hex(32)
        told = {"host": self._host, "port": self._port, "size": size, "nonce": self._nonce}
        told |= {"timeout_s": self._limit_s, "seed": seed, "version": version}
        answers = {
            url: _in_background(self._call, url, "/weights", told | {"first_rank": 1 + ranks * number})
            for number, url in enumerate(self._urls)
        }
        try:
            if self._link is None:
                self._link = self._joined(answers, size, listening)
            self._link.send(tensors, seed, int(self._cfg.sync_bucket_mib * 2**20), self._watch(answers, "/weights"))
            self._await(answers, "/weights")
        except RolloutError:  # servers that did not take these weights are met anew for the next
            self._abandon()
            raise
        except RuntimeError as error:  # torch: an end is gone or late
            self._abandon()
            raise ServersLost(
                f"weights did not reach the vLLM servers within {self._limit_s:g} s "
                f"(resources.distributed_timeout_minutes): {error}"
            ) from None
        found = [answer.result() for answer in answers.values()]
        return Synced(found[0]["bytes"], min(answer["compared"] for answer in found))

    def _joined(self, answers: Mapping[str, Future[Any]], size: int, listening: socket.socket | None) -> Link:
        """The broadcast group, once every worker of every server has come to it."""
        given = (self._host, self._port, 0, size, self._nonce, self._device, self._limit_s, listening)
        joining = _in_background(Link, *given)
        while not joining.done():
            wait([joining, *answers.values()], _PROBE_S, FIRST_COMPLETED)
            self._look(answers, "/weights")
        return joining.result()

    def _abandon(self) -> None:
        """Let go of a group in which somebody is missing; to end it would be to wait for them."""
        _in_background(threading.Event().wait, self._link)
        self._link = None

    def _await(self, answers: Mapping[str, Future[Any]], path: str) -> None:
        """Until all are there, or one is an error.

        Raises:
            ServersLost: also when a server that has not answered yet does not work.
        """
        while waiting := [answer for answer in answers.values() if not answer.done()]:
            wait(waiting, _PROBE_S, FIRST_EXCEPTION)
            self._look(answers, path)
        self._look(answers, path)

    def _watch(self, answers: Mapping[str, Future[Any]], path: str) -> Callable[[], None]:
        """:meth:`_look`, for somebody who asks often."""
        looked = time.monotonic()

        def watch() -> None:
            nonlocal looked
            if time.monotonic() - looked > _PROBE_S:
                self._look(answers, path)
                looked = time.monotonic()

        return watch

    def _look(self, answers: Mapping[str, Future[Any]], path: str) -> None:
        """Raise what an answer is an error with, and ask those who have not answered whether they work."""
        for answer in answers.values():
            if answer.done():
                answer.result()
        for url, answer in answers.items():
            if not answer.done():
                self._probe(url, path)

    def _probe(self, url: str, path: str) -> None:
        """Ask whether a server works, while it is waited for."""
        told = self._call(url, "/health", limit_s=_PROBE_LIMIT_S)
        if told["step_s"] > self._limit_s:
            raise ServersLost(
                f"the vLLM server {url} has not answered {path}: it has been in one step of its engine for "
                f"{told['step_s']:.0f} s; resources.distributed_timeout_minutes allows {self._limit_s:g} s"
            )

    def _call(self, url: str, path: str, body: Answer | None = None, limit_s: float | None = None) -> Answer:
        """The answer to one request, after at most ``limit_s`` seconds without a word."""
        data, limit_s = None if body is None else json.dumps(body).encode(), limit_s or self._limit_s
        request = HttpRequest(url + path, data, {"Authorization": f"Bearer {self._key}"})
        try:
            # nodes of one job talk to each other directly, whatever proxy leads out of the cluster
            with build_opener(ProxyHandler({})).open(request, timeout=limit_s) as answer:
                return dict(json.loads(answer.read()))
        except HTTPError as error:
            said = json.loads(error.read() or b"{}").get("error", "")
            if error.code >= 500:  # it is not the request that is wrong
                raise ServersLost(f"the vLLM server {url} failed at {path} ({error.code}): {said}") from None
            raise RolloutError(f"the vLLM server {url} refused {path} ({error.code}): {said}") from None
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ServersLost(f"the vLLM server {url} has not answered {path} within {limit_s:g} s") from None
            raise ServersLost(f"the vLLM server {url} does not answer {path}: {reason}") from None

    def sleep(self) -> None:
        """Servers have their GPUs for themselves."""

    def wake(self, part: Part) -> None:
        """Servers do not sleep."""

    def close(self) -> None:
        """The job ends the servers."""
        self.version = None


def _in_background(work: Callable[..., Any], *given: Any) -> Future[Any]:
    """What ``work`` returns, from a thread that nobody has to wait for, not even the end of the process."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(work(*given))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def _or_raise(outcome: Synced | RolloutError | None) -> Any:
    if isinstance(outcome, RolloutError):
        raise outcome
    return outcome


def share_of(items: Sequence[Any], part: int, parts: int) -> list[Any]:
    """What the ``part``-th of ``parts`` has of ``items``: a contiguous share, or one that several have in common."""
    if len(items) < parts:
        return [items[part * len(items) // parts]]
    return list(items[part * len(items) // parts : (part + 1) * len(items) // parts])


def _listening(url: str) -> socket.socket:
    """A socket for the servers to come to, in the network that leads to ``url`` alone."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.bind((own_address(str(urlsplit(url).hostname)), 0))
    found.listen()
    return found
