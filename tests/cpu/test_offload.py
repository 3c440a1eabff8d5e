"""Leaving and coming back: values, views and gradients survive; memory is really given up in between."""

from __future__ import annotations

import pytest


@pytest.fixture
def tensors():
    import torch

    torch.manual_seed(0)
    buffer = torch.randn(1000)
    return {"buffer": buffer, "view": buffer[100:200].view(10, 10), "own": torch.randn(7, 3).to(torch.bfloat16)}


def test_values_and_views_come_back(tensors):
    from grpo_hpc.train.megatron.offload import HostCopy

    before = {name: tensor.clone() for name, tensor in tensors.items()}
    away = HostCopy(tensors.values)
    for _ in range(3):
        assert away.leave() == 1000 * 4 + 21 * 2, "a view counts with its storage, once"
        assert all(tensor.untyped_storage().nbytes() == 0 for tensor in tensors.values())
        away.back()
        for name, tensor in tensors.items():
            assert tensor.equal(before[name])
        tensors["view"].add_(1.0)
        before["view"] = tensors["view"].clone()
        before["buffer"] = tensors["buffer"].clone()
        assert tensors["buffer"][100] == tensors["view"][0, 0], "still views of one storage"


def test_what_is_forgotten_comes_back_as_zero(tensors):
    from grpo_hpc.train.megatron.offload import HostCopy

    forgotten = HostCopy(lambda: [tensors["buffer"]], keep=False)
    forgotten.leave()
    forgotten.back()
    assert tensors["buffer"].abs().sum() == 0
    assert tensors["own"].abs().sum() > 0


def test_training_goes_on_after_a_turn_away():
    import torch

    from grpo_hpc.train.megatron.offload import HostCopy

    def train(away: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        adam = torch.optim.AdamW(model.parameters(), lr=0.1)
        copies = HostCopy(model.parameters), HostCopy(lambda: [t for s in adam.state.values() for t in s.values()])
        for _ in range(3):
            adam.zero_grad()
            model(torch.ones(5, 4)).square().sum().backward()
            adam.step()
            if away:
                for copy in copies:
                    copy.leave()
                for copy in copies:
                    copy.back()
        return [p.detach().clone() for p in model.parameters()]

    for stayed, went in zip(train(False), train(True), strict=True):
        assert stayed.equal(went)
