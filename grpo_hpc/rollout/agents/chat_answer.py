"""An answer of the policy in OpenAI's form, whole or in pieces.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grpo_hpc.rollout.agents.chat_request import ChatRequest
from grpo_hpc.rollout.agents.conversation import Answer
from grpo_hpc.rollout.environments.protocol import Message

_LEAST = -9999.0  # OpenAI's word for a token that was next to impossible; JSON has none for minus infinity


class ChatAnswer:
    """The bodies that a client may be given for one request.

    Args:
        text_of: token ids as text, special tokens too.
    """

    def __init__(self, request: ChatRequest, answer: Answer, text_of: Callable[[Sequence[int]], str]) -> None:
        self._request, self._answer = request, answer
        self._logprobs = {"logprobs": _logprobs(answer, text_of) if request.logprobs else None}
        identity = f"chatcmpl-{request.digest.hex()}"
        self._head = {"id": identity, "created": int(time.time()), "model": request.model}

    @property
    def whole(self) -> dict[str, Any]:
        """A ``chat.completion``."""
        message = {"role": "assistant", "refusal": None} | _message(self._answer.message)
        choice = {"index": 0, "message": message, "finish_reason": self._answer.finish} | self._logprobs
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": self._usage}

    def events(self) -> Iterator[str]:
        """Server-sent events, each a ``chat.completion.chunk``: all was sampled before the first is sent."""
        message = _message(self._answer.message)
        calls = [{"index": place} | call for place, call in enumerate(message.pop("tool_calls", []))]
        yield self._event({"role": "assistant", "content": ""})
        if thoughts := message.get("reasoning_content"):
            yield self._event({"reasoning_content": thoughts})
        if message["content"] or self._request.logprobs:
            yield self._event({"content": message["content"]}, **self._logprobs)
        for call in calls:
            yield self._event({"tool_calls": [call]})
        yield self._event({}, finish_reason=self._answer.finish)
        if self._request.usage:
            yield _event(self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage})
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, Any], **told: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} | told
        return _event(self._head | {"object": "chat.completion.chunk", "choices": [choice]})

    @property
    def _usage(self) -> dict[str, int]:
        read, sampled = self._answer.read, len(self._answer.completion.tokens)
        return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _message(told: Message) -> dict[str, Any]:
    """Arguments of calls are text here, and a message that only calls has no content."""
    message: dict[str, Any] = {name: told[name] for name in ("content", "reasoning_content") if name in told}
    if calls := told.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in calls]
        message["content"] = message["content"] or None
    return message


def _call(told: dict[str, Any]) -> dict[str, Any]:
    name, arguments = told["function"]["name"], json.dumps(told["function"]["arguments"])
    return {"id": told["id"], "type": "function", "function": {"name": name, "arguments": arguments}}


def _logprobs(answer: Answer, text_of: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """Of every token that was sampled, those of thoughts and calls and the one that ends the turn too."""
    told = zip(answer.completion.tokens.tolist(), answer.completion.logprobs.tolist(), strict=True)
    return {"content": [_logprob(text_of([token]), logprob) for token, logprob in told], "refusal": None}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(text.encode()), "top_logprobs": []}
