"""Weights on their way from the trainer's first rank to the engines of servers on other nodes.

One broadcast group spans that rank (rank 0) and every worker of every server: NCCL between GPUs, gloo between CPUs.
Whoever comes to rank 0's port can take a place in it, so all ends prove to each other that they have a nonce, which
travelled in a request with the key, before a tensor does.
Tensors travel in buckets of bounded size, each announced by names, shapes and precisions, so the receiving side needs
to know nothing beforehand. With the last bucket come hashes of sampled tensors, which the receivers compare.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from grpo_hpc.addresses import own_address
from grpo_hpc.errors import RolloutError, ServersLost
from grpo_hpc.rollout.weights.digest import tensor_hash

HASHED = 16
"""One tensor in so many is hashed on both sides, others at every sync."""

_POLL_S = 2e-4
_PROOF = 32  # bytes, of SHA-256
_ALIGNED = 16  # bytes; a view of a bucket must begin where its precision allows
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class Link:
    """One end of the broadcast; constructing it waits for all other ends.

    Args:
        host, port: where rank 0 listens.
        rank, size: of this end.
        nonce: what all ends have been told, and nobody else.
        listening: rank 0's socket, bound and listening.
        timeout_s: how long a broadcast may wait for its slowest end.

    Raises:
        ServersLost: an end does not have the nonce.
    """

    def __init__(
        self,
        host: str,
        port: int,
        rank: int,
        size: int,
        nonce: str,
        device: torch.device,
        timeout_s: float,
        listening: socket.socket | None = None,
    ) -> None:
        self._device = device
        store = TCPStore(
            host,
            port,
            size,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=None if listening is None else listening.detach(),
        )
        self._group = _process_group(store, host, rank, size, device, timedelta(seconds=timeout_s))
        self._prove(nonce.encode(), rank, size)

    def _prove(self, nonce: bytes, rank: int, size: int) -> None:
        """Show all ends the nonce's HMAC of one's own rank and of what all ends have just drawn, and look at theirs.

        Nobody can answer with what was heard before or from another end.
        """
        drawn = b"".join(self._of_all(os.urandom(_PROOF), rank, size))
        proofs = [hmac.digest(nonce, end.to_bytes(4, "big") + drawn, "sha256") for end in range(size)]
        found = self._of_all(proofs[rank], rank, size)
        if wrong := sum(not hmac.compare_digest(*pair) for pair in zip(found, proofs, strict=True)):
            raise ServersLost(
                f"{wrong} of {size} ends of the broadcast of weights do not have its nonce: somebody else has come to "
                "the trainer's port; no tensor was sent"
            )

    def _of_all(self, own: bytes, rank: int, size: int) -> list[bytes]:
        """What each end says, of one length, in the order of their ranks."""
        found = []
        for end in range(size):
            said = torch.tensor(list(own), dtype=torch.uint8, device=self._device)  # of others it is overwritten
            self._broadcast(said, end)
            found.append(bytes(said.tolist()))
        return found

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], seed: int, bucket_bytes: int, watch: Callable[[], None]
    ) -> int:
        """Broadcast ``tensors`` from rank 0; ``seed`` says which of them are hashed, too.

        Args:
            watch: called again and again while the others have not taken a tensor; what it raises ends the sending.

        Returns:
            their bytes.
        """
        total = 0
        hashes: dict[str, Tensor] = {}
        for bucket in _buckets(_hashing(tensors, seed, hashes), bucket_bytes):
            total += sum(tensor.nbytes for _, tensor in bucket)
            self._announce([[name, list(t.shape), str(t.dtype)] for name, t in bucket], watch)
            flat = torch.empty(_end(bucket), dtype=torch.uint8, device=self._device)
            for (_, tensor), view in zip(bucket, _views(flat, [(t.shape, t.dtype) for _, t in bucket]), strict=True):
                view.copy_(tensor)
            self._broadcast(flat, watch=watch)
        self._announce({"hashes": {name: int(found) for name, found in hashes.items()}}, watch)
        return total

    def receive(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """What rank 0 sends, on this end's device.

        Raises:
            RolloutError: after the last tensor: a hash is not that of the sender.
        """
        hashes: dict[str, Tensor] = {}
        found: dict[str, Any] = {}
        yield from _hashing(self._arriving(found), seed, hashes)
        arrived = {name: int(value) for name, value in hashes.items()}
        if wrong := sorted(name for name, value in found["hashes"].items() if arrived.get(name) != value):
            raise RolloutError(
                f"{len(wrong)} of {len(hashes)} sampled tensors changed on their way to a vLLM server: {wrong[:3]}"
            )

    def _arriving(self, last: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        while isinstance(told := self._heard(), list):
            forms = [(torch.Size(shape), _DTYPES[dtype]) for _, shape, dtype in told]
            flat = torch.empty(_size(forms), dtype=torch.uint8, device=self._device)
            self._broadcast(flat)
            yield from zip((name for name, _, _ in told), _views(flat, forms), strict=True)
        last |= told

    def _announce(self, told: Any, watch: Callable[[], None]) -> None:
        text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8).to(self._device)
        self._broadcast(torch.tensor([len(text)], device=self._device), watch=watch)
        self._broadcast(text, watch=watch)

    def _heard(self) -> Any:
        length = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._broadcast(length)
        text = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        self._broadcast(text)
        return json.loads(bytes(text.tolist()))

    def _broadcast(self, tensor: Tensor, source: int = 0, watch: Callable[[], None] = lambda: None) -> None:
        sent = self._group.broadcast(tensor, source)
        while not sent.is_completed():
            watch()
            time.sleep(_POLL_S)
        sent.wait()


def _process_group(store: Any, host: str, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    """A group beside torch's default one, which spans other processes."""
    kind: Any
    if device.type == "cpu":
        from torch.distributed import ProcessGroupGloo as kind

        options = kind._Options()
        options._devices = [kind.create_device(hostname=own_address(host))]
    else:
        from torch.distributed import ProcessGroupNCCL as kind

        options = kind.Options()
    options._timeout = timeout
    return kind(PrefixStore("weights", store), rank, size, options)


def _hashing(
    tensors: Iterable[tuple[str, Tensor]], seed: int, hashes: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """``tensors``, unchanged; the hash of one in :data:`HASHED` is left in ``hashes``."""
    for name, tensor in tensors:
        if crc32(f"{seed}/{name}".encode()) % HASHED == 0:
            hashes[name] = tensor_hash(tensor)
        yield name, tensor


def _buckets(tensors: Iterable[tuple[str, Tensor]], most: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Tensors in their order, together up to ``most`` bytes, or alone."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > most:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


Form = tuple[torch.Size, torch.dtype]


def _starts(forms: list[Form]) -> list[int]:
    """Where each tensor begins in a bucket, and behind them where the bucket ends."""
    starts = [0]
    for shape, dtype in forms:
        starts.append(-(-(starts[-1] + shape.numel() * dtype.itemsize) // _ALIGNED) * _ALIGNED)
    return starts


def _size(forms: list[Form]) -> int:
    return _starts(forms)[-1]


def _end(bucket: list[tuple[str, Tensor]]) -> int:
    return _size([(tensor.shape, tensor.dtype) for _, tensor in bucket])


def _views(flat: Tensor, forms: list[Form]) -> list[Tensor]:
    """The tensors of a bucket, as they lie in it."""
    return [
        flat[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for start, (shape, dtype) in zip(_starts(forms), forms, strict=False)
    ]
