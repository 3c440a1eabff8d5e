"""What a run file or a row may tell the chat template beside the messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# arguments of transformers' apply_chat_template with a meaning of their own
_TAKEN = (
    *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"),
    *("padding", "processor_kwargs", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize"),
    *("tokenizer_kwargs", "tools", "truncation"),
)


def mistake_in(kwargs: Mapping[str, Any]) -> str | None:
    """Why ``kwargs`` cannot be given to a chat template; None when they can."""
    taken = sorted(kwargs.keys() & set(_TAKEN))
    if taken == ["tools"]:
        return "holds 'tools', which are a column of the data"
    return f"holds {taken[0]!r}, which is decided elsewhere" if taken else None
