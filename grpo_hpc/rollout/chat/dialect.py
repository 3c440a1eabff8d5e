"""What a chat template reads and writes, found by rendering small chats with it.

A template is a program, and no file says what it does: whether it lists tools, writes tool calls, takes their results,
which key thoughts have, what stands behind the words of a turn. Each question is a chat of two or three messages whose
words are marks: what the template makes of it answers.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from grpo_hpc.data.tokenizer import Tokenizer, shared_beginning
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.environments.protocol import Message

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which templates look for the thoughts of a turn; the first is ours."""

_CALL_ID = "probe0000"  # Mistral's templates insist on nine letters or digits


def new_mark() -> str:
    """A word that no template changes, and that nobody who writes messages can guess."""
    return f"x{secrets.token_hex(16)}x"


@dataclass(frozen=True)
class Closing:
    """What a template writes behind the words of a turn when the chat goes on.

    Attributes:
        lead: text before the token that closes the turn, as the end of a tool call's JSON.
        token: whether such a token follows, closing the turn or opening the next one.
    """

    lead: str = ""
    token: bool = False


class Dialect:
    """One model's chat template.

    Attributes:
        added: finds the tokens that were added to the vocabulary for templates, ``<|im_end|>`` and its like.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._mark = tokenizer, new_mark()
        self.ids: dict[str, int] = dict(tokenizer.of_transformers.get_added_vocab())
        words = sorted(self.ids, key=len, reverse=True)
        self.added = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    # -- what it reads ---------------------------------------------------------------------------------------------

    @cached_property
    def lists_tools(self) -> bool:
        """Whether the policy is told of tools that the template is given."""
        return self._name in self._text([_user("u")])

    @cached_property
    def json_arguments(self) -> bool | None:
        """Whether it wants the arguments of a call as JSON text; None where it writes no calls at all."""
        for as_text in (False, True):
            text = self._text([_user("u"), self._called(self._mark, as_text)])
            if self._mark in text:
                return as_text
        return None

    @cached_property
    def takes_results(self) -> bool:
        """Whether messages with the role ``tool`` reach the policy."""
        said = _assistant("a") if self.json_arguments is None else self._called("a", self.json_arguments)
        told = self._mark in self._text([_user("u"), said, _result(self._mark, self._name)])
        return told and (self.lists_tools or self.json_arguments is not None)

    @cached_property
    def thoughts(self) -> str | None:
        """The key under which it looks for thoughts; None where it does not."""
        written = ((key, self._text([_user("u"), _assistant("a") | {key: self._mark}])) for key in THOUGHTS)
        return next((key for key, text in written if self._mark in text), None)

    @cached_property
    def keeps_history(self) -> bool:
        """Whether what stands around the words of a turn stays as it is when the chat goes on.

        What stands at their beginning may change: thoughts, which many templates take out of earlier turns.
        """
        words = [new_mark() for _ in range(3)]
        chats = [[_user(words[0]), _assistant(words[1]), _user(words[2])]]
        if self.takes_results and self.json_arguments is not None:
            said = self._called(words[1], self.json_arguments)
            chats.append([_user(words[0]), said, _result(words[2], self._name)])
        return all(self._surrounds(chat, words) == self._surrounds([*chat, *_MORE], words) for chat in chats)

    def _surrounds(self, chat: list[Message], words: list[str]) -> list[str]:
        """What stands in front of the first of ``words``, and between the second and the third."""
        return re.split("|".join(words), self._text(chat))[0:3:2]

    # -- what it writes behind a turn ------------------------------------------------------------------------------

    @cached_property
    def plain(self) -> Closing:
        """What stands behind the text of a turn."""
        followed = self._behind(_assistant(self._mark), _user("v"))[1]
        found = self.added.search(followed)
        return Closing(followed[: found.start()], True) if found else Closing()

    def behind_call(self, said: Message, mark: str) -> Closing:
        """What stands behind the arguments of a turn's last tool call.

        Args:
            said: a turn with calls, ``mark`` in their arguments.
        """
        last, followed = self._behind(said, _result("r", self._name), mark)
        shared = shared_beginning(last, followed)
        found = [*self.added.finditer(shared)][-1:] if self.closes_turns else []
        found = found or [*self.added.finditer(followed, len(shared))][:1]
        return Closing(followed[: found[0].start()], True) if found else Closing(shared.rstrip())

    @cached_property
    def closes_turns(self) -> bool:
        """Whether a token closes the turn of the assistant. Where none does, the token that opens the next one ends
        it, and the policy samples that."""
        return self._own_end is not None

    @cached_property
    def ends(self) -> list[int]:
        """Token ids by which the policy ends its turns, as the template writes them."""
        ends = [
            self._own_end if self.closes_turns else self._first(self._behind(_assistant(self._mark), _user("v"))[1])
        ]
        if self.json_arguments is not None:
            said = self._called(self._mark, self.json_arguments)
            closing, written = self.behind_call(said, self._mark), self._behind(said, _result("r", self._name))[1]
            ends.append(self._first(written.removeprefix(closing.lead)) if closing.token else None)
        return sorted({end for end in ends if end is not None})

    @cached_property
    def _own_end(self) -> int | None:
        return self._first(self._behind(_assistant(self._mark), _user("v"))[0])

    def _first(self, text: str) -> int | None:
        found = self.added.search(text)
        return self.ids[found[0]] if found else None

    def _behind(self, said: Message, follows: Message, mark: str = "") -> tuple[str, str]:
        """What stands behind the mark in ``said`` when it is the last message, and up to what follows otherwise."""
        mark, stop = mark or self._mark, new_mark()
        last = self._text([_user("u"), said])
        followed, stops, _ = self._text([_user("u"), said, follows | {"content": stop}]).partition(stop)
        return _behind(mark, last), _behind(mark, followed) if stops else ""

    # -- small chats -----------------------------------------------------------------------------------------------

    @cached_property
    def _name(self) -> str:
        return f"probe_{self._mark[1:9]}"

    def _text(self, messages: Sequence[Message]) -> str:
        """The chat as the template writes it, with a tool; without where it refuses that, and nothing if it refuses
        both."""
        for tools in ([_tool(self._name)], None):
            try:
                return self._tokenizer.written(list(messages), {"tools": tools} if tools else {})
            except ConfigError:
                continue
        return ""

    def _called(self, argument: str, as_text: bool) -> Message:
        arguments: Any = {"value": argument}
        return _assistant("") | {"tool_calls": [call(_CALL_ID, self._name, arguments, as_text)]}


def call(name: str, function: str, arguments: dict[str, Any], as_text: bool = False) -> dict[str, Any]:
    """A tool call as messages hold it.

    Args:
        name: its id.
        as_text: arguments as JSON text and not as an object.
    """
    told: Any = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return {"id": name, "type": "function", "function": {"name": function, "arguments": told}}


def _behind(mark: str, text: str) -> str:
    return text.rpartition(mark)[2] if mark in text else ""


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _result(text: str, name: str) -> Message:
    return {"role": "tool", "tool_call_id": _CALL_ID, "name": name, "content": text}


def _tool(name: str) -> dict[str, Any]:
    value = {"type": "string", "description": "A value."}
    parameters = {"type": "object", "properties": {"value": value}, "required": ["value"]}
    return {"type": "function", "function": {"name": name, "description": "A function.", "parameters": parameters}}


_MORE = [_assistant("a"), _user("w")]
