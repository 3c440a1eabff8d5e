"""Reading prompts: JSON lines or a JSON list, Parquet, or a folder written by ``datasets``' ``save_to_disk``.

A row holds a chat, either ``messages`` (a list of ``{"role": ..., "content": ...}``) or ``prompt`` (a text, or such a
list). Every other column is handed to the reward functions; ``tools`` and ``chat_template_kwargs`` also go to the chat
template. An answer of the assistant at the end of the chat is removed: the policy is to write it. Nothing here imports
torch, so that mistakes are found before a run starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo_hpc.data.record_files import TOO_DEEP, Mistake, Mistakes, parse_json, read_records
from grpo_hpc.data.template_kwargs import mistake_in
from grpo_hpc.errors import ConfigError

ROLES = ("system", "developer", "user", "assistant", "tool")
_SYSTEM = ("system", "developer")
RESERVED_COLUMNS = ("completions", "prompts", "finish_reasons", "completion_ids", "assistant_turns")
_MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
_NO_MEDIA = "media do not reach the model, and it would learn to answer without them"
_EXAMPLE = 'A row looks like {"messages": [{"role": "user", "content": "..."}], "answer": ...}.'


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        prompt_id: the row's ``id`` column, else ``<file stem>:<line>``; the same in every run over this file.
        messages: the chat up to the place where the assistant is to speak.
        columns: every column but the chat, as read.
        template: what the chat template is given beside the messages: ``tools``, and the row's chat_template_kwargs.
    """

    prompt_id: str
    messages: list[dict[str, Any]]
    columns: dict[str, Any]
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowCounts:
    """What a data file holds.

    Attributes:
        rows: how many.
        filled: by column, in how many rows it is not null.
        with_tools: whether some describe tools.
    """

    rows: int
    filled: dict[str, int]
    with_tools: bool = False


def read_rows(path: str | Path, system: str | None = None) -> list[Row]:
    """All rows of ``path``, in file order; arguments and errors are those of :func:`numbered_rows`."""
    return [row for _, row in numbered_rows(path, system)]


def count_rows(path: str | Path) -> RowCounts:
    """Read ``path`` as :func:`read_rows` does, and return only how many rows and values there are."""
    rows, with_tools, filled = 0, False, Counter[str]()
    for rows, (_, row) in enumerate(numbered_rows(path), 1):  # noqa: B007
        filled.update({name: value is not None for name, value in row.columns.items()})
        with_tools |= "tools" in row.template
    return RowCounts(rows, dict(filled), with_tools)


def numbered_rows(path: str | Path, system: str | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of ``path`` in file order, each with the number of its line (JSON) or row, from 1.

    What is wrong with rows is raised behind the last one, so that all of it can be told.

    Args:
        path: a ``.jsonl`` or ``.json`` file with one object per line, a ``.json`` file that is one list of objects, a
            ``.parquet`` file, or a ``datasets`` folder.
        system: message put in front of chats that do not begin with a system (or developer) message of their own.

    Raises:
        ConfigError: the path or some rows are wrong; the first few mistakes are listed with their places.
        EnvironmentProblem: the package that reads this format is not installed.
    """
    path = Path(path)
    mistakes, seen = Mistakes(path), dict[str, int]()
    for number, record in read_records(path):
        try:
            row = _with_system(_row(record, f"{path.stem}:{number}"), system)
            if row.prompt_id in seen:
                raise Mistake(f"has the id {row.prompt_id!r} of row {seen[row.prompt_id]} again")
        except (Mistake, RecursionError) as mistake:
            mistakes.add(number, mistake if isinstance(mistake, Mistake) else TOO_DEEP)
            continue
        seen[row.prompt_id] = number
        yield number, row
    mistakes.require_none(_EXAMPLE)
    if not seen:
        raise ConfigError(f"{path} holds no rows")


def _row(record: Any, default_id: str) -> Row:
    if isinstance(record, Mistake):
        raise record
    if not isinstance(record, dict):
        raise Mistake(f"is a JSON {_kind(record)}, not an object")
    chat = "messages" if record.get("messages") is not None else "prompt"
    if record.get(chat) is None:
        raise Mistake(f"has no 'messages' or 'prompt', only {', '.join(map(repr, record)) or 'nothing'}")
    columns = {name: value for name, value in record.items() if name != chat}
    if clash := sorted(columns.keys() & set(RESERVED_COLUMNS)):
        raise Mistake(f"has a column {clash[0]!r}, a name that reward functions know for something else")
    if media := _media(columns):
        raise Mistake(f"has a column {media!r}: {_NO_MEDIA}")
    identity, messages = _identity(record.get("id"), default_id), _messages(record[chat], chat)
    if columns.get("system") and messages[0]["role"] not in _SYSTEM:
        raise Mistake("has a column 'system', which the policy is not told: make it the first message of the chat")
    return Row(identity, messages, columns, _template(columns))


def _media(held: dict[str, Any]) -> str | None:
    """The first name of a picture, film or sound in a row or a message."""
    return next((name for name in _MEDIA_COLUMNS if held.get(name) not in (None, "", [])), None)


def _template(columns: dict[str, Any]) -> dict[str, Any]:
    kwargs = columns.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise Mistake(f"has a 'chat_template_kwargs' that is a {_kind(kwargs)}, not an object")
    if mistake := mistake_in(kwargs):
        raise Mistake(f"has a 'chat_template_kwargs' that {mistake}")
    tools = _tools(columns.get("tools"))
    return _without_nulls(kwargs) | ({"tools": tools} if tools else {})


def _tools(given: Any) -> list[dict[str, Any]]:
    """Descriptions of tools; they may be JSON text, because Parquet would mix the fields of all of them."""
    tools = given or []
    if isinstance(given, str) and given:
        tools = parse_json(given.encode())
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        what = str(tools) if isinstance(tools, Mistake) else f"is {_article(tools)}"
        raise Mistake(f"has a 'tools' that {what}; it must be a list of objects, or such a list as JSON text")
    return _without_nulls(tools)


def _with_system(row: Row, system: str | None) -> Row:
    if system is None or row.messages[0]["role"] in _SYSTEM:
        return row
    return replace(row, messages=[{"role": "system", "content": system}, *row.messages])


def _identity(given: Any, default: str) -> str:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise Mistake(f"has an 'id' that is a {_kind(given)}, not text or an integer")
    return str(given)


def _messages(chat: Any, column: str) -> list[dict[str, Any]]:
    if isinstance(chat, str) and column == "prompt":
        chat = [{"role": "user", "content": chat}]
    if not isinstance(chat, list) or not chat:
        what = "an empty list" if chat == [] else f"a {_kind(chat)}"
        raise Mistake(f"has a {column!r} that is {what}, not a list of messages")
    messages = [_message(message, f"{column}[{index}]") for index, message in enumerate(chat)]
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        last = f"ends with the role {messages[-1]['role']!r}" if messages else "holds nothing but an answer"
        raise Mistake(f"has a {column!r} that {last}; it must end with 'user' or 'tool' before the answer")
    return messages


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Mistake(f"has a {place} that is a {_kind(message)}, not an object with 'role' and 'content'")
    if message.get("role") not in ROLES:
        raise Mistake(f"has {place}.role {message.get('role')!r}; known are {', '.join(ROLES)}")
    kept = _without_nulls(message)
    if media := _media(kept):
        raise Mistake(f"has a {place} with {media!r}: {_NO_MEDIA}")
    if kept.get("tool_calls"):
        calls = _list(kept["tool_calls"], f"{place}.tool_calls")
        kept["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
        kept.setdefault("content", "")  # a call without a word
    _require_text(kept.get("content"), f"{place}.content")
    return kept


def _call(call: Any, place: str) -> dict[str, Any]:
    """A tool call with an object as arguments, which chat templates write as JSON; OpenAI's format has JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        raise Mistake(f"has a {place} that is a {_kind(function)}, not an object")
    if isinstance(arguments := function.get("arguments"), str):
        parsed = parse_json(arguments.encode()) if arguments.strip() else {}
        if not isinstance(parsed, dict):
            what = str(parsed) if isinstance(parsed, Mistake) else f"is {_article(parsed)}"
            raise Mistake(f"has {place}.arguments that {what}; it must be a JSON object")
        function = function | {"arguments": parsed}
    return call | {"function": function} if "function" in call else function


def _require_text(content: Any, place: str) -> None:
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        if media := [kind for kind in kinds if kind != "text"]:
            raise Mistake(f"has a {place} with a part of the type {media[0]!r}: {_NO_MEDIA}")
    if not isinstance(content, str):
        raise Mistake(f"has a {place} that is {_article(content)}, not text")
    if "<image>" in content:  # what ms-swift's data sets have where a picture belongs
        raise Mistake(f"has a {place} with the tag <image>: {_NO_MEDIA}")


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise Mistake(f"has a {place} that is {_article(value)}, not a list")
    return value


def _without_nulls(value: Any) -> Any:
    """``value`` without keys that are null, on every level: Parquet fills up with them what only some rows have."""
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _article(value: Any) -> str:
    return "missing" if value is None else f"an {_kind(value)}" if isinstance(value, dict) else f"a {_kind(value)}"


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
