"""vLLM's weight loaders, watched once and repeated from then on.

They look up for every tensor where it belongs, which takes longer than to copy it: 50 us for a layer's, 140 us for an
expert's. Where it belongs does not change, so what they copy in the first weight sync is written down, and later syncs
only copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_AT_ONCE = 256 << 20  # bytes of sources that wait for their copies, all of a bucket's memory with them

Form = tuple[torch.Size, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Copy:
    """A part of a tensor that was sent, and where in the engine it belongs."""

    target: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def source(self, tensor: Tensor) -> Tensor:
        if not self.offset and self.size == tensor.shape and self.stride == tensor.stride():
            return tensor
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)


class Loading:
    """Writes weights into a vLLM model that computes with them just as its loaders write them.

    Loaders that do something else to the model than copying what they are given and filling the rest with a constant
    are not repeated but called every time; and so they are for a tensor that they have not seen, or of another shape.
    When the model's weights lie elsewhere than before, loaders are watched again.
    """

    def __init__(self) -> None:
        self._copies: dict[str, list[_Copy]] = {}
        self._forms: dict[str, Form] = {}
        self._fills: list[tuple[Tensor, Any]] = []
        self._places: list[int] = []

    @torch.no_grad()
    def load(self, model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the model's weights by ``tensors`` (Hugging Face names)."""
        if self._places != _places(model):
            self._watch(model, tensors)
        elif not self._forms:
            model.load_weights(tensors)
        else:
            self._repeat(model, tensors)

    def _watch(self, model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._copies, self._forms, self._fills = {}, {}, []
        self._places = _places(model)
        watcher = _Watcher(self._places)
        with watcher:
            model.load_weights(watcher.passing(tensors))
        if watcher.understood and self._places == _places(model):
            self._copies, self._forms, self._fills = dict(watcher.copies), watcher.forms, watcher.fills

    def _repeat(self, model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
        for target, value in self._fills:
            target.fill_(value)
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        waiting = 0
        for name, tensor in tensors:
            if self._forms.get(name) != _form(tensor):
                model.load_weights([(name, tensor)])
                continue
            for copy in self._copies.get(name, ()):
                targets.append(copy.target)
                sources.append(copy.source(tensor))
            waiting += tensor.nbytes
            if targets and waiting >= _AT_ONCE:
                torch._foreach_copy_(targets, sources)
                targets, sources, waiting = [], [], 0
        if targets:
            torch._foreach_copy_(targets, sources)


def _form(tensor: Tensor) -> Form:
    return tensor.shape, tensor.stride(), tensor.dtype


class _Watcher(TorchDispatchMode):
    """Sees every operation while loaders run and notes those that write into the model.

    Attributes:
        understood: nothing was done to the model but copies of what passed and fills.
    """

    def __init__(self, places: Iterable[int]) -> None:
        super().__init__()
        self._model = set(places)
        self._name: str | None = None
        self._passing: Tensor | None = None
        self.copies: defaultdict[str, list[_Copy]] = defaultdict(list)
        self.forms: dict[str, Form] = {}
        self.fills: list[tuple[Tensor, Any]] = []
        self.understood = True

    def passing(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """``tensors``, each known as the one that passes until the next is asked for."""
        for self._name, self._passing in tensors:
            if self._name in self.forms:  # in two parts, say
                self.understood = False
            self.forms[self._name] = _form(self._passing)
            yield self._name, self._passing
            self._name = self._passing = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(self._holds(tensor) for tensor in _written(func, args, kwargs)):
            self._note_write(func, args[0], args[1:])
        elif func is torch.ops.aten._local_scalar_dense.default and self._passing is not None:
            self.understood = False  # what is done depends on a number, or writes it in some other way
        return func(*args, **kwargs)

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.numel() > 0 and _storage(tensor) in self._model

    def _note_write(self, func: Any, target: Any, others: tuple[Any, ...]) -> None:
        if func is torch.ops.aten.copy_.default and self._name is not None and self._passes(others[0]):
            source: Tensor = others[0]
            assert self._passing is not None
            offset = int(source.storage_offset()) - int(self._passing.storage_offset())
            self.copies[self._name].append(_Copy(target, source.shape, source.stride(), offset))
        elif func is torch.ops.aten.zero_.default:
            self.fills.append((target, 0))
        elif func is torch.ops.aten.fill_.Scalar:
            self.fills.append((target, others[0]))
        else:
            self.understood = False

    def _passes(self, tensor: Tensor) -> bool:
        return self._passing is not None and _storage(tensor) == _storage(self._passing)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes into, alone or in lists."""
    if not func._schema.is_mutable:
        return
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        yield from (item for item in (value if isinstance(value, list | tuple) else [value]) if torch.is_tensor(item))


def _places(model: Any) -> list[int]:
    """Where the weights of ``model`` lie."""
    return [_storage(tensor) for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
