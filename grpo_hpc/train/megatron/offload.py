"""Tensors that leave the GPU and come back to the same addresses of every view."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, UntypedStorage


class HostCopy:
    """Storages that are kept in host memory while they are away.

    Views stay valid tensors, because it is their storage that is emptied and filled again; their values are undefined
    in between. Host memory is pinned for CUDA tensors and kept for the next time, so only the first turn pays for it.

    Args:
        tensors: what there is now, asked for whenever it leaves (an optimizer makes its state with its first step);
            any number of views of a storage count once.
        keep: False forgets the values: what comes back is zero (gradients).
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], *, keep: bool = True) -> None:
        self._tensors, self._keep = tensors, keep
        self._away: list[tuple[UntypedStorage, int]] = []
        self._host: list[Tensor] = []

    def leave(self) -> int:
        """Free the device memory, keeping the values in host memory; gives the bytes freed."""
        found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self._tensors()}
        self._away = [(storage, storage.nbytes()) for storage in found.values() if storage.nbytes()]
        if self._keep:
            self._make_host_memory()
            for (storage, _), host in zip(self._away, self._host, strict=True):
                host.copy_(_bytes_of(storage), non_blocking=True)
            self._wait()
        for storage, _ in self._away:
            storage.resize_(0)
        return sum(size for _, size in self._away)

    def back(self) -> None:
        """Take the device memory again and fill it with what was there, or with zeros."""
        for number, (storage, size) in enumerate(self._away):
            storage.resize_(size)
            if self._keep:
                _bytes_of(storage).copy_(self._host[number], non_blocking=True)
            else:
                _bytes_of(storage).zero_()
        self._wait()
        self._away = []

    def _make_host_memory(self) -> None:
        sizes = [size for _, size in self._away]
        if [host.numel() for host in self._host] != sizes:
            pinned = any(storage.device.type == "cuda" for storage, _ in self._away)
            self._host = []  # the old before the new
            self._host = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]

    def _wait(self) -> None:
        if any(storage.device.type == "cuda" for storage, _ in self._away):
            torch.cuda.synchronize()


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
