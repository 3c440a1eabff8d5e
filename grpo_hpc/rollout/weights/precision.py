"""Casting weights to a coarser precision without losing small updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_FLOAT32 = "e_score_correction_bias"  # in bfloat16 the bias of an expert would not follow its small steps


def for_engine(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """``tensors`` in the precision in which vLLM keeps them: ``dtype`` (see :func:`cast`), or float32 for a few."""
    for name, tensor in tensors:
        yield name, tensor if name.endswith(_FLOAT32) else cast(tensor, dtype, generator)


def cast(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """``tensor`` in ``dtype``; from float32 to bfloat16 rounded up or down at random, right on average.

    A model that was published in bfloat16 starts exactly on bfloat16's grid, where neighbours of a weight near 0.1 lie
    4e-4 apart, and an Adam step at a learning rate of 1e-5 moves it by 1e-5. Rounded to nearest, an inference engine
    in bfloat16 would see nothing of dozens of such steps and sample from a stale policy. Rounded at random, in
    proportion to the distance, its weights are the trained ones in expectation (Gupta et al., arXiv 1502.02551).

    Args:
        generator: on the device of ``tensor``; replicas that must agree use equal ones.
    """
    if not (tensor.dtype == torch.float32 and dtype == torch.bfloat16):
        return tensor.to(dtype)
    # bfloat16 is the upper half of a float32: noise added to the lower half carries into it, then the half is cut off
    noise = torch.randint(0, 1 << 16, tensor.shape, dtype=torch.int32, device=tensor.device, generator=generator)
    bits = tensor.contiguous().view(torch.int32)
    return noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32).to(dtype)
