"""A request for a chat completion in OpenAI's form: what it asks for, or why it cannot be answered.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grpo_hpc.rollout.environments.protocol import Message

OF_THE_RUN_FILE = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "parallel_tool_calls", "tool_choice", "reasoning_effort", "verbosity"),
)
"""What a request may wish for, and the run decides: log-probabilities are those of its own sampling."""

_ANSWERED = (
    *("model", "messages", "tools", "max_tokens", "max_completion_tokens", "stop"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "n", "response_format"),
)
_OF_NO_MATTER = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
)
_KNOWN = (*_ANSWERED, *OF_THE_RUN_FILE, *_OF_NO_MATTER)
_ROLES = ("system", "developer", "user", "assistant", "tool")
_OF_A_MESSAGE = (
    *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"),
    *("reasoning", "refusal", "annotations", "audio", "function_call"),  # the last four are empty in what we answer
)
_MOST_STOPS = 16

_Kind = TypeVar("_Kind")


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP. A client asks again by itself from 500 on.
        text: what is wrong, and what to do.
        param: the key of the request that it is about.
        code: OpenAI's word for it, where there is one.
    """

    def __init__(self, status: int, text: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.param, self.code = status, text, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.text, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for.

    Attributes:
        model: the name that the client gave, which says nothing.
        messages: the chat, as chat templates read it.
        tools: that the policy may call.
        limit: tokens to sample at most; None where the client has no wish.
        stop: texts that end the answer, which does not hold them.
        stream: whether the answer comes as events, and ``usage`` whether its last says how many tokens there were.
        logprobs: whether the log-probability of each token is told.
        wishes: of :data:`OF_THE_RUN_FILE`.
        digest: of the bytes that were sent.
    """

    model: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    limit: int | None
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: bool
    wishes: dict[str, Any]
    digest: bytes


def read_request(body: bytes) -> ChatRequest:
    """The request that ``body`` holds as JSON.

    Raises:
        Refusal: it is none, or asks for what is not offered.
    """
    told = _object(body)
    _only_known(told)
    _only_offered(told)
    stops = told.get("stop", [])
    stream = _typed(told, "stream", bool, False)
    return ChatRequest(
        model=_typed(told, "model", str, "policy"),
        messages=_messages(_typed(told, "messages", list, [])),
        tools=_tools(told),
        limit=_limit(told),
        stop=_stop([stops] if isinstance(stops, str) else stops),
        stream=stream,
        usage=stream and bool(_typed(told, "stream_options", dict, {}).get("include_usage")),
        logprobs=_typed(told, "logprobs", bool, False),
        wishes=_wishes(told),
        digest=hashlib.blake2b(body, digest_size=16).digest(),
    )


def fingerprints(messages: Sequence[Message], start: bytes) -> list[bytes]:
    """One for each message, of it and all before it.

    Clients send back what the policy said without its thoughts, and without blanks around it: neither tells two chats
    apart.

    Args:
        start: of what comes before the first message.
    """
    found = list[bytes]()
    for message in messages:
        start = digest_of([start.hex(), _identity(message)])
        found.append(start)
    return found


def digest_of(value: Any) -> bytes:
    """Of something that JSON can hold; the order of names says nothing."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def _identity(message: Message) -> dict[str, Any]:
    told = {name: value for name, value in message.items() if name != "reasoning_content"}
    return told | {"content": told["content"].strip()} if told["role"] == "assistant" else told


def _object(body: bytes) -> dict[str, Any]:
    """What ``body`` holds, without keys that say nothing."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON that can be read: {error}") from None
    if not isinstance(told, dict):
        raise Refusal(400, f"the body is to be a JSON object, and is a {type(told).__name__}")
    return {name: value for name, value in told.items() if value is not None}


def _only_known(told: dict[str, Any]) -> None:
    for name in told:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Refusal(400, f"{name!r} is nothing that this endpoint knows{hint}", name, "unsupported_parameter")


def _only_offered(told: dict[str, Any]) -> None:
    for name, fine, instead in (
        ("n", (1,), "ask again with another `seed` for another answer"),
        ("top_logprobs", (0,), "only the sampled tokens' log-probabilities are known"),
        ("response_format", ({"type": "text"},), "say in the chat which form is wanted"),
    ):
        if name in told and told[name] not in fine:
            text = f"{name} is {json.dumps(told[name])[:100]}, and {json.dumps(fine[0])} is all that is offered"
            raise Refusal(400, f"{text}: {instead}", name, "unsupported_value")


def _typed(told: dict[str, Any], name: str, kind: type[_Kind], default: _Kind) -> _Kind:
    value = told.get(name, default)
    if not isinstance(value, kind):
        raise Refusal(400, f"{name} is to be of the type {kind.__name__}, and is {json.dumps(value)[:100]}", name)
    return value


def _wishes(told: dict[str, Any]) -> dict[str, Any]:
    """``tool_choice`` is one where a call is to be forced."""
    free = told.get("tool_choice") in ("auto", "none")
    return {name: told[name] for name in OF_THE_RUN_FILE if name in told and not (free and name == "tool_choice")}


def _limit(told: dict[str, Any]) -> int | None:
    limits = [_typed(told, name, int, 0) for name in ("max_tokens", "max_completion_tokens") if name in told]
    if any(limit < 1 for limit in limits):
        raise Refusal(400, f"{min(limits)} tokens are no limit: at least 1 is sampled", "max_tokens")
    return min(limits, default=None)


def _stop(told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or not all(isinstance(text, str) and text for text in told):
        raise Refusal(400, "stop is to be a text or a list of texts, none of them empty", "stop")
    if len(told) > _MOST_STOPS:
        raise Refusal(400, f"stop has {len(told)} texts, and {_MOST_STOPS} are the most", "stop")
    return tuple(told)


def _tools(told: dict[str, Any]) -> list[dict[str, Any]]:
    tools = _typed(told, "tools", list, [])
    for number, tool in enumerate(tools):
        described = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            form = '{"type": "function", "function": {"name": ...}}'
            raise Refusal(400, f"tools[{number}] is no function: one looks like {form}", "tools")
    return [] if told.get("tool_choice") == "none" else tools


def _messages(told: list[Any]) -> list[Message]:
    if not told:
        raise Refusal(400, "messages are missing", "messages")
    messages = [_message(message, f"messages[{place}]") for place, message in enumerate(told)]
    if messages[-1]["role"] == "assistant":
        text = "the last message is the assistant's, and an answer that has begun is not continued"
        raise Refusal(400, text, "messages")
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    names = {call["id"]: call["function"]["name"] for call in calls}
    return [_named(message, names) for message in messages]


def _named(message: Message, names: Mapping[str, str]) -> Message:
    """A tool's result with the tool's name, which some templates write, and OpenAI's messages leave out."""
    called = names.get(message.get("tool_call_id", ""))
    return {"name": called} | message if message["role"] == "tool" and called else message


def _message(told: Any, place: str) -> Message:
    if not isinstance(told, dict) or told.get("role") not in _ROLES:
        raise Refusal(400, f"{place} is to be an object whose role is one of {', '.join(_ROLES)}", place)
    if strange := [name for name, value in told.items() if value and name not in _OF_A_MESSAGE[:-4]]:
        raise Refusal(400, f"{place} has {strange[0]!r}, which does not reach the policy", place)
    message: Message = {"role": told["role"], "content": _text(told.get("content"), place)}
    if thoughts := told.get("reasoning_content") or told.get("reasoning"):
        message["reasoning_content"] = _text(thoughts, place)
    if calls := told.get("tool_calls"):
        message["tool_calls"] = _calls(calls, place)
    return message | {name: str(told[name]) for name in ("name", "tool_call_id") if told.get(name)}


def _text(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refusal(400, f"{place} holds something that is no text, and the policy reads text alone", place)
    return "\n".join(part["text"] for part in parts)


def _calls(told: Any, place: str) -> list[dict[str, Any]]:
    try:
        return [_call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in told]
    except (KeyError, TypeError, ValueError, RecursionError):
        form = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": a JSON object as text}}'
        raise Refusal(400, f"{place} has tool calls that cannot be read: one looks like {form}", place) from None


def _call(identity: Any, name: Any, arguments: str) -> dict[str, Any]:
    read = json.loads(arguments)
    if not (isinstance(identity, str) and isinstance(name, str) and isinstance(read, dict)):
        raise TypeError
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": read}}
