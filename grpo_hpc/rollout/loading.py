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
    """

    def __init__(self) -> None:
        self._copies: dict[str, list[_Copy]] = {}
        self._forms: dict[str, Form] = {}
        self._fills: list[tuple[Tensor, Any]] = []
        self._watch = True

    @torch.no_grad()
    def load(self, model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the model's weights by ``tensors`` (Hugging Face names)."""
        if self._watch:
            self._watch = False
            watcher = _Watcher(model)
            with watcher:
                model.load_weights(watcher.passing(tensors))
            if watcher.understood:
                self._copies, self._forms, self._fills = dict(watcher.copies), watcher.forms, watcher.fills
        elif not self._forms:
            model.load_weights(tensors)
        else:
            self._repeat(model, tensors)

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

    def __init__(self, model: Any) -> None:
        super().__init__()
        held = [*model.parameters(), *model.buffers()]
        self._model = {_storage(tensor) for tensor in held if tensor.numel()}
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
        self._note(func, args)
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, args: tuple[Any, ...]) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or not first.numel():
            return
        if func._schema.is_mutable and _storage(first) in self._model:
            self._note_write(func, first, args[1:])
        elif func is torch.ops.aten._local_scalar_dense.default and self._passes(first):
            self.understood = False  # a number that is written in some other way

    def _note_write(self, func: Any, target: Tensor, others: tuple[Any, ...]) -> None:
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
