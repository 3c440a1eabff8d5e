"""Logits of a model on disk: by transformers for a Hugging Face folder, by Megatron-Core for a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.errors import CheckpointError

# of the largest logit: rounding of two float32 implementations
TOLERANCE = 1e-4

if TYPE_CHECKING:
    from torch import Tensor


def compare_logits(first: Folder, second: Folder, prompt: str) -> float:
    """Largest difference of two models' logits on a prompt, in float32 on the CPU, over the largest logit.

    Both models are held in memory whole, one after the other.

    Raises:
        CheckpointError: no tokenizer is beside either of them.
    """
    from transformers import AutoTokenizer

    folder = first.config or second.config
    if folder is None:
        raise CheckpointError("logits need a tokenizer, and neither folder has one", "Name one with --hf-config.")
    tokens = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
    one, other = logits(first, tokens), logits(second, tokens)
    return float((one - other).abs().max() / one.abs().max())


def logits(folder: Folder, tokens: Tensor) -> Tensor:
    """[T, V] in float32 for tokens [1, T]."""
    import torch

    with torch.no_grad():
        return _of_hf(folder.path, tokens) if folder.kind == "hf" else _of_megatron(folder, tokens)


def _of_hf(path: Path, tokens: Tensor) -> Tensor:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from grpo_hpc.models.families.read_shape import read_shape

    auto = AutoModelForImageTextToText if read_shape(path).vision else AutoModelForCausalLM
    found: Tensor = auto.from_pretrained(path, dtype=torch.float32)(tokens).logits[0]
    return found


def _of_megatron(folder: Folder, tokens: Tensor) -> Tensor:
    import torch
    from megatron.core import dist_checkpointing

    from grpo_hpc.models.attention import PackedSequences
    from grpo_hpc.models.families.read_shape import read_shape
    from grpo_hpc.models.policy_model import PolicyModel, layer_spec, transformer_config
    from grpo_hpc.train.megatron.platform import make_platform

    if folder.config is None:
        raise CheckpointError(f"{folder.path} has no Hugging Face configuration", "Name its folder with --hf-config.")
    platform, shape = make_platform("cpu"), read_shape(folder.config)
    with _single_rank(), platform.megatron():
        config = transformer_config(shape, torch.float32, platform.transformer_options())
        model = PolicyModel(shape, config, layer_spec(config, platform.layer_spec, shape), 1.0)
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder.path))
        model.load_state_dict(loaded["model"])
        length = tokens.shape[1]
        bounds = torch.tensor([0, length], dtype=torch.int32)
        packed = PackedSequences("thd", bounds, bounds, max_seqlen_q=length, max_seqlen_kv=length)
        found: Tensor = model(tokens, torch.arange(length)[None], None, packed_seq_params=packed)[0]
    return found[:, : shape.vocab].float()


class _single_rank:
    """Megatron's process groups for one process, taken down again."""

    def __enter__(self) -> None:
        import tempfile

        import torch.distributed as dist
        from megatron.core import parallel_state as mpu
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        self._folder = tempfile.TemporaryDirectory()
        dist.init_process_group("gloo", init_method=f"file://{self._folder.name}/store", rank=0, world_size=1)
        mpu.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)

    def __exit__(self, *_: object) -> None:
        import torch.distributed as dist
        from megatron.core import parallel_state as mpu

        mpu.destroy_model_parallel()
        dist.destroy_process_group()
        self._folder.cleanup()
