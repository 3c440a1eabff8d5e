"""Sampling from vLLM servers on other nodes (:mod:`grpo_hpc.rollout.server`)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener
from urllib.request import Request as HttpRequest

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from grpo_hpc.addresses import own_address
from grpo_hpc.errors import RolloutError, ServersLost
from grpo_hpc.rollout.engine import Completion, Request, Synced, sampling
from grpo_hpc.rollout.link import Link
from grpo_hpc.rollout.precision import for_engine
from grpo_hpc.rollout.residency import Part

if TYPE_CHECKING:
    from grpo_hpc.config import RunConfig
    from grpo_hpc.train.megatron.platform import Platform

_TIMEOUT_S = 300.0  # for the slowest end of a weight sync


class ServerEngine:
    """vLLM servers as one engine: every rank asks its own share of them, rank 0 hands the weights to all.

    Args:
        urls: of the servers.
        key: that they ask for.
    """

    fed_by_every_rank = False

    def __init__(self, cfg: RunConfig, platform: Platform, urls: Sequence[str], key: str) -> None:
        self._cfg, self._seed, self._device = cfg.rollout, cfg.seed, platform.device
        self._dtype = getattr(torch, cfg.rollout.vllm_dtype)
        self._urls, self._key = list(urls), key
        self._mine = share_of(self._urls, dist.get_rank(), dist.get_world_size())
        self._link: Link | None = None
        self.version: int | None = None

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and completion together."""
        return int(self._call(self._mine[0], "/v1/models")["data"][0]["max_model_len"])

    def generate(self, requests: Sequence[Request], *, greedy: bool = False) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
            ServersLost: on this rank: a server did not answer.
            RolloutError: it refused, or holds other weights than the last that it was sent.
        """
        return self._generate(requests, sampling(self._cfg, greedy))

    def probe(self, requests: Sequence[Request], tokens: int) -> list[Completion]:
        """At most ``tokens`` tokens for each request, from the whole distribution: without ``top_p`` and ``top_k``."""
        found = self._generate(requests, {"max_tokens": tokens, "temperature": self._cfg.temperature})
        for url in self._mine:  # the run samples as if nothing had been asked before
            self._call(url, "/forget", {})
        return found

    def _generate(self, requests: Sequence[Request], options: dict[str, Any]) -> list[Completion]:
        if self.version is None:
            raise RolloutError("the inference servers were asked to sample before the policy's weights were sent")
        servers = len(self._mine)
        ends = [len(requests) * number // servers for number in range(servers + 1)]
        with ThreadPoolExecutor(servers) as pool:
            asked = [
                pool.submit(self._ask, url, requests[start:end], options)
                for url, start, end in zip(self._mine, ends[:-1], ends[1:], strict=True)
                if start < end
            ]
            return [completion for answer in asked for completion in answer.result()]

    def _ask(self, url: str, requests: Sequence[Request], options: dict[str, Any]) -> list[Completion]:
        prompts, seeds = [np.asarray(r.prompt_tokens).tolist() for r in requests], [r.seed for r in requests]
        told = self._call(url, "/generate", {"prompts": prompts, "seeds": seeds, "options": options})
        if told["version"] != self.version:
            raise RolloutError(f"{url} sampled from weights of step {told['version']}, not {self.version}")
        return [
            Completion(np.array(tokens, np.int32), np.array(logprobs, np.float32), reason)
            for tokens, logprobs, reason in told["completions"]
        ]

    def load_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced:
        """Replace the weights of all servers by ``tensors`` (Hugging Face names), which rank 0 has; collective.

        Raises:
            RolloutError: on every rank: a server did not take them, or a sample of its weights differs.
            ServersLost: on every rank: a server is gone.
        """
        self.version = None
        told: list[Any] = [None]
        dist.barrier()  # what a rank asks of a server that already waits for weights would wait for ever
        if dist.get_rank() == 0:
            generator = torch.Generator(self._device).manual_seed(self._seed + version)
            try:
                told[0] = self._send(for_engine(tensors, self._dtype, generator), version)
            except RolloutError as error:
                told[0] = error
        for _ in tensors:  # the stream is collective: every rank must reach its end
            pass
        dist.broadcast_object_list(told)
        if isinstance(told[0], RolloutError):
            raise told[0]
        self.version = version
        return told[0]

    def _send(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> Synced:
        """Broadcast to all servers while each of them is asked to receive."""
        ranks, seed = self._cfg.vllm_tensor_parallel_size, self._seed + version
        size = 1 + ranks * len(self._urls)
        listening = None
        if self._link is None:
            listening = _listening(self._urls[0])
            self._host, self._port = listening.getsockname()
        told = {"host": self._host, "port": self._port, "size": size, "timeout_s": _TIMEOUT_S}
        told |= {"seed": seed, "version": version}
        with ThreadPoolExecutor(len(self._urls)) as pool:
            answers = [
                pool.submit(self._call, url, "/weights", told | {"first_rank": 1 + ranks * number})
                for number, url in enumerate(self._urls)
            ]
            try:
                if self._link is None:
                    self._link = Link(self._host, self._port, 0, size, self._device, _TIMEOUT_S, listening)
                self._link.send(tensors, seed, int(self._cfg.sync_bucket_mib * 2**20))
            except RuntimeError as error:  # torch: an end is gone or late
                self._link = None
                raise ServersLost(f"weights did not reach the vLLM servers: {error}") from None
        found = [answer.result() for answer in answers]
        return Synced(found[0]["bytes"], min(answer["compared"] for answer in found))

    def _call(self, url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = HttpRequest(url + path, data, {"Authorization": f"Bearer {self._key}"})
        try:
            # nodes of one job talk to each other directly, whatever proxy leads out of the cluster
            with build_opener(ProxyHandler({})).open(request) as answer:
                return dict(json.loads(answer.read()))
        except HTTPError as error:
            said = json.loads(error.read() or b"{}").get("error", "")
            raise RolloutError(f"the vLLM server {url} refused {path} ({error.code}): {said}") from None
        except (URLError, OSError, HTTPException) as error:
            raise ServersLost(f"the vLLM server {url} does not answer: {getattr(error, 'reason', error)}") from None

    def sleep(self) -> None:
        """Servers have their GPUs for themselves."""

    def wake(self, part: Part) -> None:
        """Servers do not sleep."""

    def close(self) -> None:
        """The job ends the servers."""
        self.version = None


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
