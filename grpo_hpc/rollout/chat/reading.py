"""What the policy said, read into thoughts, words and tool calls.

The formats are those of model families, and vLLM has a parser for each; :mod:`grpo_hpc.rollout.chat.parser_choice`
finds the one that a template belongs to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.chat.harmony import read_harmony, split_harmony
from grpo_hpc.rollout.chat.parser_choice import Choice, seems_a_call

Tools = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """A tool call; ``name`` is the id that the policy gave it, empty where it gave none."""

    function: str
    arguments: dict[str, Any]
    name: str = ""


@dataclass(frozen=True)
class Answer:
    """A turn as it was read.

    Attributes:
        problem: why calls that it seems to hold could not be read; then all of it is ``content``.
    """

    content: str
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)
    problem: str = ""


class Unreadable(Exception):
    """A tool call is there and cannot be read."""


class _Thoughts(Protocol):
    marks: dict[str, str]

    def split(self, text: str, begun: str) -> tuple[str, str]: ...


class _Calls(Protocol):
    def read(self, text: str, tools: Tools) -> tuple[str, list[Call]]: ...


class Reading:
    """Reads turns with the parsers of one model.

    Args:
        tokenizer: that of transformers.
        choice: which parsers.

    Raises:
        ConfigError: a parser is unknown, or does not work with this tokenizer.
    """

    def __init__(self, tokenizer: Any, choice: Choice) -> None:
        if any(name not in ("none", "harmony") for name in (choice.tools, choice.thoughts)):
            tokenizer = _prepared(tokenizer)
        self._thoughts = _thoughts(tokenizer, choice.thoughts)
        self._calls = _calls(tokenizer, choice.tools)

    def begins(self, prompt: str) -> str:
        """How far thoughts have come where ``prompt`` ends: ``open``, ``closed``, or nothing is said of them."""
        written, marks = prompt.rstrip(), {} if self._thoughts is None else self._thoughts.marks
        return next((state for mark, state in marks.items() if written.endswith(mark)), "")

    def read(self, text: str, tools: Tools, begun: str = "") -> Answer:
        """``text`` of a turn, with special tokens and without the one that ended it.

        Args:
            tools: what the policy may call; where there is nothing, nothing is looked for.
            begun: what :meth:`begins` says of its prompt.
        """
        thoughts, rest = ("", text) if self._thoughts is None else self._thoughts.split(text, begun)
        if self._calls is None or not tools:
            return Answer(rest, thoughts)
        try:
            content, calls = self._calls.read(rest, tools)
            if not calls and seems_a_call(rest):
                raise Unreadable("it looks like a tool call, and none could be read")
        except Exception as error:  # parsers of formats that a policy in training gets wrong in every way
            return Answer(rest, thoughts, problem=f"{type(error).__name__}: {error}"[:500])
        return Answer(content, thoughts, calls)


class _VllmThoughts:
    """One of vLLM's reasoning parsers. They keep state, so every turn has an instance of its own.

    Attributes:
        marks: what stands where thoughts begin and end, and what a prompt that ends with it leaves them.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        from vllm.reasoning import ReasoningParserManager

        _require_known("reasoning_parser", name, ReasoningParserManager.list_registered())
        self._make = lambda: ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
        first = _tried("reasoning_parser", name, self._make)
        self._start, self._end = first.reasoning_start_str or "", first.reasoning_end_str or ""
        self.marks = {mark: state for mark, state in ((self._start, "open"), (self._end, "closed")) if mark}

    def split(self, text: str, begun: str) -> tuple[str, str]:
        """Thoughts, and the rest. A turn without any sign of thoughts has none."""
        said = text.lstrip()
        if not said.startswith(self._start):
            if begun == "closed" or (not begun and self._end not in text):
                return "", text
            said = self._start + text
        thoughts, rest = self._make().extract_reasoning(said, _request([]))
        return (thoughts or "").strip("\n"), (rest or "").lstrip("\n")


class _VllmCalls:
    """One of vLLM's tool parsers; they keep state, too."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        from vllm.tool_parsers import ToolParserManager

        _require_known("tool_parser", name, ToolParserManager.list_registered())
        self._make = lambda tools: ToolParserManager.get_tool_parser(name)(tokenizer, tools)
        _tried("tool_parser", name, lambda: self._make(None))

    def read(self, text: str, tools: Tools) -> tuple[str, list[Call]]:
        request = _request(tools)
        found = self._make(request.tools).extract_tool_calls(text, request)
        calls = [_call(one.function.name, one.function.arguments, str(one.id), text) for one in found.tool_calls]
        return (found.content or "") if calls else text, calls


class _HarmonyThoughts:
    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def split(self, text: str, begun: str) -> tuple[str, str]:
        return split_harmony(text)


class _HarmonyCalls:
    def read(self, text: str, tools: Tools) -> tuple[str, list[Call]]:
        content, calls = read_harmony(text)
        return content, [_call(function, arguments, "", text) for function, arguments in calls]


def _thoughts(tokenizer: Any, name: str) -> _Thoughts | None:
    if name == "none":
        return None
    return _HarmonyThoughts() if name == "harmony" else _VllmThoughts(tokenizer, name)


def _calls(tokenizer: Any, name: str) -> _Calls | None:
    if name == "none":
        return None
    return _HarmonyCalls() if name == "harmony" else _VllmCalls(tokenizer, name)


def _call(function: str, arguments: str, name: str, text: str) -> Call:
    """An id that stands in the text is the policy's; others are made up by the parser, anew each time."""
    told = json.loads(arguments)
    if not isinstance(told, dict):
        raise Unreadable(f"the arguments of {function} are no object")
    return Call(function, told, name if name in text else "")


def _prepared(tokenizer: Any) -> Any:
    """``tokenizer`` with a vocabulary that is made once and not for every parser."""
    from vllm.tokenizers.hf import get_cached_tokenizer

    for name in ("vllm.tool_parsers", "vllm.reasoning", "vllm.parser"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a traceback for each call that a policy gets wrong
    return get_cached_tokenizer(tokenizer)


def _request(tools: Tools) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    told: dict[str, Any] = {"model": "policy", "messages": [], "tools": list(tools) or None}
    return ChatCompletionRequest(**told)


def _require_known(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(
            f"rollout.{key}: this vLLM has no parser {name!r}",
            f"Known are auto, none, harmony, {', '.join(sorted(known))}.",
        )


def _tried(key: str, name: str, make: Any) -> Any:
    try:
        return make()
    except Exception as error:
        raise ConfigError(
            f"rollout.{key}: {name} does not work with this model's tokenizer: {error}",
            "Choose the parser of the model's family, or none.",
        ) from None
