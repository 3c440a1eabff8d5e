"""Tensors that leave the GPU and come back to the same addresses of every view."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage


class HostCopy:
    """Storages of ``tensors``, kept in host memory while they are away.

    Views stay valid tensors, because it is their storage that is emptied and filled again; their values are undefined
    in between. Host memory is pinned for CUDA tensors and kept for the next time, so only the first turn pays for it.

    Args:
        tensors: any number of views of a storage count once; storages in ``apart`` are left alone.
        keep: False forgets the values: what comes back is zero (gradients).
    """

    def __init__(self, tensors: Iterable[Tensor], apart: Iterable[Tensor] = (), *, keep: bool = True) -> None:
        excluded = {tensor.untyped_storage().data_ptr() for tensor in apart}
        found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self._storages = [storage for start, storage in found.items() if start not in excluded and storage.nbytes()]
        self._sizes = [storage.nbytes() for storage in self._storages]
        self._keep = keep
        self._host: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Device memory that :meth:`leave` frees."""
        return sum(self._sizes)

    def leave(self) -> None:
        """Free the device memory, keeping the values in host memory."""
        if self._keep and not self._host:
            pinned = any(storage.device.type == "cuda" for storage in self._storages)
            self._host = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in self._sizes]
        if self._keep:
            for storage, host in zip(self._storages, self._host, strict=True):
                host.copy_(_bytes_of(storage), non_blocking=True)
            self._wait()
        for storage in self._storages:
            storage.resize_(0)

    def back(self) -> None:
        """Take the device memory again and fill it with what was there, or with zeros."""
        for number, (storage, size) in enumerate(zip(self._storages, self._sizes, strict=True)):
            storage.resize_(size)
            if self._keep:
                _bytes_of(storage).copy_(self._host[number], non_blocking=True)
            else:
                _bytes_of(storage).zero_()
        self._wait()

    def _wait(self) -> None:
        if any(storage.device.type == "cuda" for storage in self._storages):
            torch.cuda.synchronize()


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
