"""vLLM warns of every layer that a reload brings no weights; of those that have none of their own that says nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
_TEXT = "%s: Failed to load weights"


class Expected(logging.Filter):
    """Drops the warning for layers of the kinds ``kinds``, and no other."""

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        self._kinds = frozenset(kinds)

    def filter(self, record: logging.LogRecord) -> bool:
        about = record.args[0] if isinstance(record.args, tuple) and record.args else None
        return not (record.msg == _TEXT and about in self._kinds)


def expect_no_weights(model: Any) -> None:
    """From now on vLLM reloads ``model`` without warning of layers for which there are no weights to be had."""
    logging.getLogger(_LOGGER).addFilter(Expected(kinds_without_weights(model)))


def kinds_without_weights(model: Any) -> set[str]:
    """Kinds of layers that hold no parameters, as rotations do, or share another's, as a tied output layer does."""
    seen: set[int] = set()
    with_own = {type(module).__name__ for module in model.modules() if _has_own(module, seen)}
    return {type(module).__name__ for module in model.modules()} - with_own


def _has_own(module: Any, seen: set[int]) -> bool:
    """Whether ``module`` itself holds a parameter that none before has, which are ``seen``."""
    mine = {id(parameter) for parameter in module.parameters(recurse=False)} - seen
    seen |= mine
    return bool(mine)
