"""From messages to token ids and back: the chat template and the tokenizer as an episode needs them.

What the policy sampled is never decoded and encoded again. What the template adds behind a turn is found by rendering
the chat with a mark in place of the policy's words: all that stands behind the mark, up to where the policy is to speak
again, is what it hears. The token that ends a turn is the policy's; what the template has in its place is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.chat.dialect import THOUGHTS, Closing, Dialect, new_mark
from grpo_hpc.rollout.chat.parser_choice import choose
from grpo_hpc.rollout.chat.reading import Answer, Reading
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Message

ThinkingHistory = Literal["keep", "template"]

_CHARACTERS = 8  # of a token, when a text is cut: more than most have

_LISTED = """You may call functions. Each of these lines describes one:
<tools>
{tools}
</tools>"""
_HOW_TO_CALL = """
To call a function, write its name and its arguments as JSON between <tool_call> and </tool_call>:
<tool_call>
{"name": "the name", "arguments": {"an argument": "its value"}}
</tool_call>"""


@dataclass(frozen=True)
class Chat:
    """A chat up to where the policy is to speak, or with its turn as the last message.

    Attributes:
        told: messages as the template reads them.
        template: what it is told beside them.
        prompt: the chat as it wrote it when the policy was last to speak; what came before it stays as it is.
        begun: how far thoughts have come there: ``open``, ``closed``, or nothing.
        tools: what the policy may call.
        said: text of the last turn, with special tokens.
    """

    told: list[Message]
    template: Mapping[str, Any]
    prompt: str
    begun: str
    tools: Sequence[dict[str, Any]] = ()
    said: str = ""


@dataclass(frozen=True)
class Heard:
    """What the policy hears behind its turn.

    Attributes:
        chat: up to where it is to speak again.
        tokens: int32, what stands between its turn and there; the whole chat, if it was rewritten.
        rewritten: whether the template writes what was before differently now.
    """

    chat: Chat
    tokens: np.ndarray
    rewritten: bool = False


class Renderer:
    """The chat template of one model; made once for a run.

    Args:
        tokenizer: the model's; no other thread may use it.
        thinking_history: ``keep`` leaves thoughts of earlier turns where they were sampled; with ``template`` a chat
            goes on in a new branch where the template takes them away.
        tool_parser, reasoning_parser: ``auto``, ``none``, or the name of one of vLLM's parsers.
        message_tokens: most tokens of a message that the policy hears; the rest is cut off. None: any number.
        vocabulary: rows of the model's embedding; None: as many as the tokenizer wants.

    Raises:
        ConfigError: a parser is unknown, or does not work with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking_history: ThinkingHistory = "keep",
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
        message_tokens: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self._tokenizer, self._limit, self._vocabulary = tokenizer, message_tokens, vocabulary
        self._dialect = Dialect(tokenizer)
        self._has_calls = self._dialect.lists_tools or self._dialect.json_arguments is not None
        choice = choose(tokenizer.template, tool_parser, reasoning_parser, described=not self._has_calls)
        self._calls_are_read = tool_parser != "auto" or choice.tools != "none"
        self._reading = Reading(tokenizer.of_transformers, choice)
        self._follows = thinking_history == "template" or not self._dialect.keeps_history

    @property
    def note(self) -> str:
        """What a person should know about this template, in one sentence; often nothing."""
        if not self._dialect.keeps_history:
            return "The chat template changes earlier messages when a chat goes on: where it does, a new branch begins."
        return ""

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """What ends a turn: as generation_config.json says, and as the template writes it."""
        return sorted({*_generation_ends(self._tokenizer.folder), *self._dialect.ends})

    @cached_property
    def _ends(self) -> frozenset[int]:
        own = self._tokenizer.of_transformers.eos_token_id
        return frozenset([*self.stop_token_ids, *([] if own is None else [own])])

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self._tokenizer.of_transformers.added_tokens_decoder.values()
        return re.compile("|".join(re.escape(token.content) for token in added if token.special) or r"(?!)")

    # -- a chat ----------------------------------------------------------------------------------------------------

    def open(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], template: Mapping[str, Any]) -> Chat:
        """A chat up to where the policy is to speak for the first time.

        Args:
            tools: descriptions of functions; where there are none, those in ``template`` count.
            template: what the template is told beside the messages, as ``chat_template_kwargs`` of a row.

        Raises:
            ConfigError: the template refuses the chat, or nobody could read what the policy calls.
        """
        tools = tools or template.get("tools") or ()
        if tools and not self._calls_are_read:
            raise ConfigError(
                "rollout.tool_parser: auto does not know how this model's chat template writes tool calls",
                "Name one of vLLM's parsers, or choose a model that was trained to call tools.",
            )
        told = self._told(messages, tools)
        if tools and self._dialect.lists_tools:
            template = {**template, "tools": list(tools)}
        elif tools:
            told = _with_system(told, _listed(tools) + ("" if self._has_calls else _HOW_TO_CALL))
        prompt = self._tokenizer.written(told, template, begins=True)
        return Chat(told, template, prompt, self._reading.begins(prompt), tools)

    def opening(self, chat: Chat) -> str:
        """What the template itself begins the policy's turn with at the end of ``chat``, as ``<think>``."""
        try:
            return self._tokenizer.opening_of(chat.told, chat.template)
        except ConfigError:  # it takes a turn of the policy only with a mark in place of its words
            return ""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text in the template's words: int32. What is no character becomes a question mark.

        Raises:
            EpisodeFailed: the model has no row for one of them.
        """
        ids = np.array(self._tokenizer.encode_all([_characters(text)])[0], np.int32)
        if self._vocabulary is not None and (highest := ids.max(initial=0)) >= self._vocabulary:
            said = f"the chat has the token {highest}, and the model's embedding has {self._vocabulary} rows"
            raise EpisodeFailed("error", said)
        return ids

    def said(self, chat: Chat, tokens: np.ndarray, finish: str) -> tuple[Chat, Answer, str]:
        """The chat with the policy's turn behind it, the turn as it was read, and its text without special tokens.

        A turn that was cut off calls nothing: some parsers make a call of the beginning of one.
        """
        words = tokens[:-1] if self.ended(tokens) else tokens
        text = self._tokenizer.decode(words.tolist(), special=True)
        answer = self._reading.read(text, chat.tools if finish == "stop" else (), chat.begun)
        answer = replace(answer, content=self._plain(answer.content), thoughts=self._plain(answer.thoughts))
        return replace(chat, said=text), answer, self._tokenizer.decode(tokens.tolist())

    def text_of(self, tokens: Sequence[int]) -> str:
        """Token ids as text, special tokens too."""
        return self._tokenizer.decode(list(tokens), special=True)

    def ended(self, tokens: np.ndarray) -> bool:
        """Whether the policy ended its turn itself."""
        return len(tokens) > 0 and int(tokens[-1]) in self._ends

    def heard(self, chat: Chat, said: Message, messages: Sequence[Message], end: int | None) -> Heard:
        """What the policy hears behind its turn.

        Args:
            said: the policy's turn.
            end: the token by which it ended its turn; None if it did not.

        Raises:
            EpisodeFailed: the template refuses the messages.
        """
        told = self._told(messages, chat.tools)
        turn, closing, tail = self._around(chat, said, told)
        going_on = replace(chat, told=[*chat.told, turn, *told], begun=self._reading.begins(tail), said="")
        if not self._follows:
            return Heard(going_on, self._behind(tail, closing, end))
        going_on = replace(going_on, prompt=self._accepted(going_on.told, chat.template))
        thoughts = str(said.get(THOUGHTS[0]) or "").strip()
        kept = going_on.prompt.startswith(chat.prompt) and thoughts in going_on.prompt[len(chat.prompt) :]
        if kept:
            return Heard(going_on, self._behind(tail, closing, end))
        return Heard(going_on, self.encode(going_on.prompt), rewritten=True)

    def _around(self, chat: Chat, said: Message, told: list[Message]) -> tuple[Message, Closing, str]:
        """The policy's turn as the template takes it, what closes it, and the text behind its words."""
        refusal = "it writes no turn of the assistant"
        for turn in self._turns(chat, said):
            mark = new_mark()
            marked = _marked(turn, mark)
            try:
                text = self._tokenizer.written([*chat.told, marked, *told], chat.template, begins=True)
            except ConfigError as error:
                refusal = error.message
                continue
            if mark in text:
                closing = self._dialect.behind_call(marked, mark) if "tool_calls" in turn else self._dialect.plain
                return turn, closing, text.rpartition(mark)[2]
        raise EpisodeFailed("error", f"the chat cannot go on: {refusal}")

    def _accepted(self, told: list[Message], template: Mapping[str, Any]) -> str:
        try:
            return self._tokenizer.written(told, template, begins=True)
        except ConfigError as error:
            raise EpisodeFailed("error", f"the chat cannot go on: {error.message}") from None

    def _turns(self, chat: Chat, said: Message) -> list[Message]:
        """Ways to tell the template what the policy said: with calls and thoughts read out of it, and as it was."""
        spoken = {"role": "assistant", "content": chat.said}
        if said.get("tool_calls"):
            return [spoken] if self._dialect.json_arguments is None else [self._message(said), spoken]
        return [spoken] if self._dialect.thoughts is None and THOUGHTS[0] in said else [self._message(said), spoken]

    def _behind(self, tail: str, closing: Closing, end: int | None) -> np.ndarray:
        """Token ids of ``tail``, which the template writes behind a turn, without what the policy has said of it.

        The text is encoded from the token that closes the turn on, as some tokens swallow the blanks behind them.
        """
        rest = tail.removeprefix(closing.lead)
        ids = self.encode(rest) if rest else np.zeros(0, np.int32)
        found = self._dialect.added.match(rest) if closing.token and end is not None else None
        if found is None or not len(ids) or ids[0] != (closer := self._dialect.ids[found[0]]):
            return ids
        return ids[1:] if self._dialect.closes_turns or closer == end else ids

    # -- messages as the template reads them -----------------------------------------------------------------------

    def cut(self, messages: Sequence[Message]) -> tuple[list[Message], int]:
        """``messages`` with no more tokens each than allowed, and how many of them were cut.

        Raises:
            EpisodeFailed: one of them is no message.
        """
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise EpisodeFailed("error", f"no message with a role: {str(message)[:200]}")
        short = [message | {"content": self._cut(message.get("content", ""))} for message in messages]
        return short, sum(
            one["content"] != other.get("content", "") for one, other in zip(short, messages, strict=True)
        )

    def _cut(self, content: Any) -> Any:
        """Of a text that is far too long only the beginning is looked at."""
        if not isinstance(content, str) or self._limit is None:
            return content
        characters = _CHARACTERS * self._limit
        while len(ends := self._ends_of_tokens(content[:characters])) <= self._limit and characters < len(content):
            characters *= 4
        return content if len(ends) <= self._limit else content[: ends[self._limit - 1]]

    def _ends_of_tokens(self, text: str) -> list[int]:
        """Where the tokens of a text end in it."""
        encode = self._tokenizer.of_transformers
        encoded = encode(_characters(text), add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoded["offset_mapping"]]

    def _told(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
        read = self.as_read(messages)
        return _with_results(read) if tools and not self._dialect.takes_results else read

    def as_read(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with the keys and types that the template looks for."""
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        read, key = dict(message), self._dialect.thoughts
        if THOUGHTS[0] in read and key not in (None, THOUGHTS[0]):
            read[key] = read.pop(THOUGHTS[0])
            if read.get("tool_calls") and read.get("content"):  # gpt-oss has one place for both
                read[key] = f"{read[key]}\n{read['content']}"
                read["content"] = ""
        if read.get("tool_calls") and self._dialect.json_arguments:
            read["tool_calls"] = [_with_arguments(one, _arguments(one), True) for one in read["tool_calls"]]
        return read

    def _plain(self, text: str) -> str:
        """``text`` without special tokens."""
        return self._special.sub("", text)


def _characters(text: str) -> str:
    return text.encode(errors="replace").decode()


def _marked(turn: Message, mark: str) -> Message:
    """A turn with a mark instead of its words: behind its last call, or its text."""
    if not turn.get("tool_calls"):
        return {"role": "assistant", "content": mark}
    calls = [_with_arguments(one, {"value": mark}, isinstance(_arguments(one), str)) for one in turn["tool_calls"]]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _arguments(called: dict[str, Any]) -> Any:
    return called.get("function", called).get("arguments")


def _with_arguments(called: dict[str, Any], arguments: Any, as_text: bool) -> dict[str, Any]:
    if isinstance(arguments, str):
        return called
    told = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return called | {"function": called["function"] | {"arguments": told}}


def _with_results(messages: list[Message]) -> list[Message]:
    """Results of tools as messages of the user, for templates that have no place for them; those of a turn together."""
    told = list[Message]()
    for is_result, group in groupby(messages, key=lambda message: message.get("role") == "tool"):
        if not is_result:
            told += group
            continue
        results = [f"<tool_response>\n{message.get('content')}\n</tool_response>" for message in group]
        told.append({"role": "user", "content": "\n".join(results)})
    return told


def _listed(tools: Sequence[dict[str, Any]]) -> str:
    """Tools described for the system message, for templates that do not list them."""
    return _LISTED.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def _with_system(messages: list[Message], text: str) -> list[Message]:
    """``text`` at the end of the system message."""
    if messages and messages[0].get("role") == "system":
        first = messages[0] | {"content": f"{messages[0].get('content')}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _generation_ends(folder: Path) -> list[int]:
    """``eos_token_id`` of generation_config.json: a token or several; none where there is no such file."""
    file = folder / "generation_config.json"
    try:
        told = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", "Copy it anew from where the model came from.") from None
    return [int(end) for end in (told if isinstance(told, list) else [told]) if isinstance(end, int)]
