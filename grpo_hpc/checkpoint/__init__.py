"""Checkpoints on disk: convert, verify, merge and extract adapters, inspect, reshard.

Both sides are described alike: a tensor is a list of chunks of raw bytes in files
(:mod:`grpo_hpc.models.on_disk.stored`). A conversion is then a list of strided block copies between files
(:mod:`copying`), planned from the family's weight map (:mod:`to_megatron`, :mod:`to_hf`, :mod:`reshard`), carried out
by worker processes that know nothing of models (:mod:`run`).
"""
