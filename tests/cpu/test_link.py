"""The broadcast of weights to servers: bit for bit, whatever shapes, precisions and buckets, and damage is noticed."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from grpo_hpc.errors import RolloutError, ServersLost
from grpo_hpc.rollout.server_engine import share_of
from grpo_hpc.rollout.weights import link
from grpo_hpc.rollout.weights.link import Link

CPU = torch.device("cpu")
TENSORS = [
    ("embedding", torch.randn(37, 5)),
    ("norm", torch.randn(3).bfloat16()),
    ("odd", torch.randn(7, 3).bfloat16()),
    ("single", torch.tensor([2.5])),
    ("large", torch.randn(300, 11).bfloat16()),
    ("transposed", torch.randn(4, 6).T),
    ("half", torch.randn(9).half()),
]


def meeting(*nonces: str) -> list[Future[Link]]:
    """Links of so many ends in one process: a sender, and receivers."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    host, port = listening.getsockname()

    def end(rank: int) -> Link:
        return Link(host, port, rank, len(nonces), nonces[rank], CPU, 30.0, listening if rank == 0 else None)

    with ThreadPoolExecutor(len(nonces)) as pool:
        return [pool.submit(end, rank) for rank in range(len(nonces))]


@pytest.fixture
def ends():
    """A sender and two receivers."""
    return [end.result() for end in meeting(*["a nonce"] * 3)]


@pytest.mark.parametrize("stranger", [0, 2])
def test_nobody_without_the_nonce_has_a_place_in_the_broadcast(stranger):
    """All ends but the stranger's say so; who is the sender does not matter."""
    ends = meeting(*("another" if rank == stranger else "a nonce" for rank in range(3)))
    for rank, end in enumerate(ends):
        with pytest.raises(ServersLost, match=f"{2 if rank == stranger else 1} of 3 ends .* no tensor was sent"):
            end.result()


def test_what_proved_the_nonce_once_does_not_prove_it_again(monkeypatch):
    """A stranger who repeats what an end said when others met."""
    monkeypatch.setattr(link.os, "urandom", lambda count: b"always the same".ljust(count))
    heard, real = [], Link._of_all

    def hear(self, own, rank, size):
        found = real(self, own, rank, size)
        heard.append(found)
        return found

    monkeypatch.setattr(Link, "_of_all", hear)
    assert all(end.result() for end in meeting("a nonce", "a nonce"))
    proofs = heard[-1]
    monkeypatch.undo()

    def repeat(self, own, rank, size):
        second = getattr(self, "second", False)
        self.second = True
        return real(self, proofs[1] if second and rank == 1 else own, rank, size)

    monkeypatch.setattr(Link, "_of_all", repeat)
    with pytest.raises(ServersLost, match="1 of 2 ends"):
        meeting("a nonce", "a nonce")[0].result()


def sent(ends, tensors, bucket: int, seed: int = 1):
    with ThreadPoolExecutor(2) as pool:
        receiving = [pool.submit(lambda end=end: [(n, t.clone()) for n, t in end.receive(seed)]) for end in ends[1:]]
        size = ends[0].send(tensors, seed, bucket, lambda: None)
        return size, [future.result() for future in receiving]


@pytest.mark.parametrize("bucket", [1, 100, 1000, 1 << 20])
def test_what_arrives_is_what_was_sent(ends, bucket, monkeypatch):
    monkeypatch.setattr(link, "HASHED", 1)
    size, received = sent(ends, TENSORS, bucket)
    assert size == sum(tensor.nbytes for _, tensor in TENSORS)
    for found in received:
        assert [name for name, _ in found] == [name for name, _ in TENSORS]
        for (_, there), (_, here) in zip(found, TENSORS, strict=True):
            assert there.dtype == here.dtype and torch.equal(there, here)


def test_it_serves_again_and_sends_nothing_when_there_is_nothing(ends):
    assert sent(ends, [], 100) == (0, [[], []])
    assert [name for name, _ in sent(ends, TENSORS[:2], 100)[1][0]] == ["embedding", "norm"]


def test_a_tensor_that_changes_on_its_way_is_named(ends, monkeypatch):
    monkeypatch.setattr(link, "HASHED", 1)
    real = Link._announce

    def lying(self, told, watch):
        """The sender's hash of one tensor is that of another one: to both ends it has changed."""
        if isinstance(told, dict):
            told["hashes"]["odd"] += 1
        real(self, told, watch)

    monkeypatch.setattr(Link, "_announce", lying)
    with ThreadPoolExecutor(2) as pool:
        receiving = [pool.submit(lambda end=end: list(end.receive(1))) for end in ends[1:]]
        ends[0].send(TENSORS, 1, 100, lambda: None)
        for future in receiving:
            with pytest.raises(RolloutError, match=r"1 of 7 sampled tensors changed .*\['odd'\]"):
                future.result()


@pytest.mark.parametrize(("items", "parts"), [(4, 2), (2, 4), (3, 2), (5, 5), (1, 3)])
def test_every_part_has_some_and_every_item_is_somebodys(items, parts):
    shares = [share_of(range(items), part, parts) for part in range(parts)]
    assert all(shares) and {item for share in shares for item in share} == set(range(items))
