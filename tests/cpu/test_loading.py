"""Weight loaders that are watched once and repeated: the same weights as by calling them, for loaders of every kind."""

from __future__ import annotations

import pytest
import torch

from grpo_hpc.rollout.weights.loading import Loading

ROWS, WIDTH, PADDED = 6, 4, 8
NAMES = ("embed", "q", "k", "norm", "lm_head")


class Model(torch.nn.Module):
    """Loads as vLLM's layers do: parts of a joined matrix, a padded embedding, a tied head that is left out.

    Args:
        kind: what else its loader does.
    """

    def __init__(self, kind=""):
        super().__init__()
        self.kind, self.calls = kind, 0
        self.embed, self.joined = (torch.nn.Parameter(torch.empty(PADDED, WIDTH)) for _ in range(2))
        self.norm = torch.nn.Parameter(torch.empty(WIDTH))
        self.register_buffer("scale", torch.empty(1))

    def load_weights(self, tensors):
        for name, tensor in tensors:
            self.calls += 1
            if name == "embed":
                self.embed[: len(tensor)].data.copy_(tensor)
                self.embed[len(tensor) :].data.fill_(0)
            elif name in "qk":
                half = PADDED // 2
                self.joined.data.narrow(0, half * (name == "k"), half).copy_(tensor.narrow(0, 1, half))
            elif name == "norm":
                self._load_norm(tensor)

    def _load_norm(self, tensor):
        if self.kind == "number":
            self.scale.fill_(tensor[0].item())
        elif self.kind == "kept":
            self.norm.data.copy_(tensor + 0)
            return
        elif self.kind == "worked on":
            self.norm.data.copy_(tensor).mul_(2)
            return
        elif self.kind == "in a list":
            torch._foreach_copy_([self.norm.data], [tensor])
            return
        elif self.kind == "as a result":
            torch.add(tensor, 1, out=self.norm.data)
            return
        elif self.kind == "looked at":
            self.norm.data.copy_(tensor if tensor.max() > 0 else tensor[:1])
            return
        elif self.kind == "replaced":
            self.norm.data = tensor + 1
            return
        self.norm.data.copy_(tensor)

    def state(self):
        return {
            name: tensor.clone()
            for name, tensor in self.state_dict().items()
            if name != "scale" or self.kind == "number"
        }


def sent(seed, rows=ROWS):
    """Tensors as an exporter streams them: parts of one bucket, or where they lie."""
    draw = torch.Generator().manual_seed(seed)
    bucket = torch.randn(2 * rows * WIDTH, generator=draw)
    for name, part in zip("qk", bucket.split(rows * WIDTH), strict=True):
        yield name, part.view(rows, WIDTH)
    yield "embed", torch.randn(ROWS, WIDTH, generator=draw)
    yield "lm_head", torch.randn(ROWS, WIDTH, generator=draw)
    yield "norm", torch.randn(WIDTH, generator=draw)


def spoil(model):
    """As a sleep that drops the weights."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(torch.nan)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("", len(NAMES)),
        *(
            (kind, None)
            for kind in ("number", "kept", "worked on", "in a list", "as a result", "looked at", "replaced")
        ),
    ],
)
def test_repeated_loading_gives_the_weights_of_the_loaders(kind, calls):
    model, loading = Model(kind), Loading()
    for seed in range(3):
        spoil(model)
        loading.load(model, sent(seed))
        want = Model(kind)
        with torch.no_grad():
            want.load_weights(sent(seed))
        for name, tensor in want.state().items():
            assert model.state()[name].equal(tensor), (seed, name)
    assert model.calls == (calls or 3 * len(NAMES)), "loaders that only copy are called once, others every time"


def test_weights_that_lie_elsewhere_are_found_again():
    model, loading = Model(), Loading()
    loading.load(model, sent(0))
    model.joined.data = torch.empty_like(model.joined)
    for seed in (1, 2):
        loading.load(model, sent(seed))
    assert model.calls == 2 * len(NAMES)
    want = Model()
    with torch.no_grad():
        want.load_weights(sent(2))
    assert model.joined.equal(want.joined)


def test_what_comes_in_another_shape_goes_to_its_loader():
    model, loading = Model(), Loading()
    loading.load(model, sent(0))
    loading.load(model, sent(1, ROWS + 1))
    assert model.calls == len(NAMES) + 2
    want = Model()
    with torch.no_grad():
        want.load_weights(sent(1, ROWS + 1))
    assert model.joined.equal(want.joined) and model.embed.equal(want.embed)


def test_a_name_that_comes_twice_is_never_repeated():
    model, loading = Model(), Loading()
    for _ in range(2):
        loading.load(model, [*sent(0), *sent(1)])
    assert model.calls == 4 * len(NAMES)


def test_copies_wait_until_they_are_worth_it(monkeypatch):
    """However few bytes may wait."""
    monkeypatch.setattr("grpo_hpc.rollout.weights.loading._AT_ONCE", 1)
    model, loading = Model(), Loading()
    for seed in range(2):
        loading.load(model, sent(seed))
    want = Model()
    with torch.no_grad():
        want.load_weights(sent(1))
    assert model.norm.equal(want.norm) and model.joined.equal(want.joined)
