"""What is recorded of single tokens can be read back, and belongs to the text or is not there."""

from __future__ import annotations

from base64 import b64decode

import numpy as np

from grpo_hpc.rollout.sample import Key, Sample
from grpo_hpc.rollout.token_values import token_values

LENGTHS = np.array([1, 2, 4, 0], np.uint16)  # "a", "bc", an emoji, a special token


def sample(*tokens: int, logprobs: list[float]) -> Sample:
    return Sample.single_turn(Key(0, 0), np.array([0]), np.array(tokens, np.int32), np.array(logprobs), 0, "stop")


def test_values_are_thousandths_of_a_nat() -> None:
    found = token_values(
        sample(0, 2, 3, logprobs=[-0.5, -1e9, float("nan")]), "a😀", LENGTHS, {"trainer": np.array([-0.4996, -2, 0])}
    )
    assert np.frombuffer(b64decode(found["bytes"]), "<u2").tolist() == [1, 4, 0]
    assert np.frombuffer(b64decode(found["engine"]), "<i2").tolist() == [-500, -(2**15), 0]
    assert np.frombuffer(b64decode(found["trainer"]), "<i2").tolist() == [-500, -2000, 0]


def test_without_the_trainer_there_is_no_ratio() -> None:
    assert set(token_values(sample(0, logprobs=[0]), "a", LENGTHS, {})) == {"bytes", "engine"}


def test_nothing_is_recorded_of_tokens_that_are_not_the_text() -> None:
    assert token_values(sample(0, 1, logprobs=[0, 0]), "abcd", LENGTHS, {}) is None
    assert token_values(sample(0, 4, logprobs=[0, 0]), "a", LENGTHS, {}) is None, "a row that pads the vocabulary"
