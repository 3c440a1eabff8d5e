"""Which of Megatron's linear layers ``tuner.target_modules`` means."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_hpc.errors import ConfigError

# Megatron's linear layers, and what Hugging Face calls the matrices that are one in each of them
_PARTS: dict[str, set[str]] = {
    "linear_qkv": {"q_proj", "k_proj", "v_proj"},
    "linear_proj": {"o_proj"},
    "linear_fc1": {"gate_proj", "up_proj"},
    "linear_fc2": {"down_proj"},
    # multi-head latent attention
    "linear_q_proj": set(),  # of a model that does not compress queries; its Hugging Face name is one of linear_qkv's
    "linear_q_down_proj": {"q_a_proj"},
    "linear_q_up_proj": {"q_b_proj"},
    "linear_kv_down_proj": {"kv_a_proj_with_mqa"},
    "linear_kv_up_proj": {"kv_b_proj"},
}
_ALL = "all-linear"


def named_linears(targets: Sequence[str]) -> frozenset[str]:
    """:func:`target_linears` that a model must have: none of them where ``all-linear`` means those that it has."""
    return frozenset() if _ALL in targets else target_linears(targets)


def target_linears(targets: Sequence[str]) -> frozenset[str]:
    """Megatron's names of the layers that ``targets`` means: ``all-linear``, Megatron's or Hugging Face's names.

    Raises:
        ConfigError: a name is unknown, or names only a part of what Megatron keeps in one matrix.
    """
    wanted = set(targets)
    if _ALL in wanted:
        return frozenset(_PARTS)
    chosen = wanted & set(_PARTS)
    for linear, parts in _PARTS.items():
        named = wanted & parts
        if parts and named == parts:
            chosen.add(linear)
        elif named and linear not in chosen:
            raise ConfigError(
                f"{', '.join(sorted(named))} without {', '.join(sorted(parts - named))}: Megatron keeps "
                f"{', '.join(sorted(parts))} in one matrix; name all of them, or {linear}"
            )
    known = [_ALL, *_PARTS, *sorted(set().union(*_PARTS.values()))]
    if unknown := sorted(wanted - set(known)):
        raise ConfigError(f"unknown {', '.join(unknown)}; there is {', '.join(known)}")
    return frozenset(chosen)
