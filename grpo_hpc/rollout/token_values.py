"""What is recorded of single tokens for people, compact: one text for all tokens of a completion."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

import numpy as np

from grpo_hpc.rollout.sample import Sample

_UNIT = 1000.0  # thousandths of a nat fit into 16 bits, and a ratio of probabilities is right to 0.1 %


def token_values(
    sample: Sample, text: str, byte_lengths: np.ndarray, more: Mapping[str, np.ndarray]
) -> dict[str, str] | None:
    """Where tokens end in a text, and their log-probabilities, as base64 of little-endian numbers.

    Args:
        text: of the sampled tokens.
        byte_lengths: of each token of the vocabulary, in UTF-8.
        more: further values of each token in nat, float32 [n], by name.

    Returns:
        ``bytes``: uint16 [n], how many each token has of ``text``. ``engine``, its log-probabilities, and ``more``:
        int16 [n], thousandths of a nat. None where tokens do not add up to the text, as behind an end within a sign.
    """
    tokens = sample.response
    if tokens.max(initial=-1) >= len(byte_lengths):  # a row that pads the vocabulary
        return None
    lengths = byte_lengths[tokens]
    if int(lengths.sum()) != len(text.encode(errors="replace")):
        return None
    values = {"engine": sample.logprobs, **more}
    return {"bytes": _packed(lengths, "<u2"), **{name: _packed(_thousandths(v), "<i2") for name, v in values.items()}}


def _thousandths(values: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(values.astype(np.float64) * _UNIT).round(), -(2**15), 2**15 - 1)


def _packed(values: np.ndarray, kind: str) -> str:
    return b64encode(values.astype(kind).tobytes()).decode()
