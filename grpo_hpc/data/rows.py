"""Reading prompts: JSON lines or a JSON list, Parquet, or a folder written by ``datasets``' ``save_to_disk``.

A row holds a chat, either ``messages`` (a list of ``{"role": ..., "content": ...}``) or ``prompt`` (a text, or such a
list). Every other column is handed to the reward functions; ``tools`` and ``chat_template_kwargs`` also go to the chat
template. An answer of the assistant at the end of the chat is removed: the policy is to write it. Nothing here imports
torch, so that mistakes are found before a run starts.
"""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo_hpc.data.template_kwargs import mistake_in
from grpo_hpc.errors import ConfigError, EnvironmentProblem

ROLES = ("system", "developer", "user", "assistant", "tool")
RESERVED_COLUMNS = ("completions", "prompts", "finish_reasons", "completion_ids")
_MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
_NO_MEDIA = "media do not reach the model, and it would learn to answer without them"
TOO_DEEP = "is nested too deeply"
_SHOWN_MISTAKES = 5
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


class _Mistake(Exception):
    """What is wrong with one row."""


# (line or row number, the parsed record or what is wrong with it)
_Records = Iterator[tuple[int, Any]]


class Mistakes:
    """What is wrong with the rows of a file, told all at once.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._count, self._shown = path, 0, list[str]()

    def add(self, number: int, what: object) -> None:
        """Note ``what`` is wrong with row or line ``number``."""
        self._count += 1
        if self._count <= _SHOWN_MISTAKES:
            self._shown.append(f"  {self._path}:{number}: {what}")

    def require_none(self, hint: str = "") -> None:
        """Go on only if there are none.

        Raises:
            ConfigError: lists the first few with their places.
        """
        if not self._count:
            return
        rows = "1 row that" if self._count == 1 else f"{self._count} rows that"
        more = self._count - len(self._shown)
        rest = [f"  ... and {more} more"] if more else []
        raise ConfigError("\n".join([f"{self._path} has {rows} cannot be used:", *self._shown, *rest]), hint)


def read_rows(path: str | Path, system: str | None = None) -> list[Row]:
    """All rows of ``path``, in file order; arguments and errors are those of :func:`numbered_rows`."""
    return [row for _, row in numbered_rows(path, system)]


def check_rows(path: str | Path) -> int:
    """Read ``path`` as :func:`read_rows` does and return only the number of its rows."""
    return sum(1 for _ in numbered_rows(path))


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
    for number, record in _reader(path)(path):
        try:
            row = _with_system(_row(record, f"{path.stem}:{number}"), system)
            if row.prompt_id in seen:
                raise _Mistake(f"has the id {row.prompt_id!r} of row {seen[row.prompt_id]} again")
        except (_Mistake, RecursionError) as mistake:
            mistakes.add(number, mistake if isinstance(mistake, _Mistake) else TOO_DEEP)
            continue
        seen[row.prompt_id] = number
        yield number, row
    mistakes.require_none(_EXAMPLE)
    if not seen:
        raise ConfigError(f"{path} holds no rows")


def files_of(path: str | Path) -> list[Path]:
    """The files that rows of ``path`` are read from, in order.

    Raises:
        ConfigError: it does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"the data file {path} does not exist", _files_beside(path))
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


# -- formats -------------------------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[Path], _Records]:
    """The function that reads the format of ``path``."""
    files_of(path)
    if path.is_dir():
        return _read_datasets_folder
    readers = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ConfigError(
            f"{path} is of no known format: its name ends in {path.suffix or 'nothing'}",
            f"Known are {', '.join(readers)} and folders written by datasets' save_to_disk.",
        )
    return readers[path.suffix]


def _files_beside(path: Path) -> str:
    names = sorted(p.name for p in path.parent.iterdir() if p.name[0] != ".") if path.parent.is_dir() else []
    return f"{path.parent} holds: {', '.join(names[:8])}." if names else f"There is nothing in {path.parent} either."


def _read_json_lines(path: Path) -> _Records:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield number, _parsed(line)


def _read_json(path: Path) -> _Records:
    with path.open("rb") as file:
        begin = file.read(1000).removeprefix(BOM_UTF8).lstrip()
    if not begin.startswith(b"["):
        yield from _read_json_lines(path)
        return
    records = _parsed(path.read_bytes())
    if isinstance(records, _Mistake):
        raise ConfigError(f"{path} {records}")
    yield from enumerate(records, start=1)


def _parsed(data: bytes) -> Any:
    """What ``data`` says, or what is wrong with it."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            json.dumps(record, ensure_ascii=False).encode()
        return record
    except UnicodeDecodeError as error:
        return _Mistake(f"is not UTF-8: {error.reason} at byte {error.start}")
    except UnicodeEncodeError as error:
        return _Mistake(f"has half a character: {error.object[error.start]!a} without the other half of its pair")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return _Mistake(f"is not JSON: {error.msg} at {line}column {error.colno}")
    except RecursionError:
        return _Mistake(TOO_DEEP)
    except ValueError:  # Python reads integers up to a limit
        return _Mistake(f"has an integer of more than {sys.get_int_max_str_digits()} digits")


def _read_parquet(path: Path) -> _Records:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _needs("pyarrow", path) from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from None


def _read_datasets_folder(path: Path) -> _Records:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        raise _needs("datasets", path) from None
    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{path} is not a folder written by datasets' save_to_disk: {error}") from None
    if not isinstance(dataset, Dataset):
        splits = list(dataset)
        hint = f"Name one of them, such as {path / splits[0]}."
        raise ConfigError(f"{path} holds several splits: {', '.join(splits)}", hint)
    yield from enumerate(dataset, start=1)


def _needs(package: str, path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(f"reading {path} needs the package {package}", f"Install it: pip install {package}")


# -- rows ----------------------------------------------------------------------------------------------------------


def _row(record: Any, default_id: str) -> Row:
    if isinstance(record, _Mistake):
        raise record
    if not isinstance(record, dict):
        raise _Mistake(f"is a JSON {_kind(record)}, not an object")
    chat = "messages" if record.get("messages") is not None else "prompt"
    if record.get(chat) is None:
        raise _Mistake(f"has no 'messages' or 'prompt', only {', '.join(map(repr, record)) or 'nothing'}")
    columns = {name: value for name, value in record.items() if name != chat}
    if clash := sorted(columns.keys() & set(RESERVED_COLUMNS)):
        raise _Mistake(f"has a column {clash[0]!r}, a name that reward functions know for something else")
    if media := [name for name in _MEDIA_COLUMNS if columns.get(name) not in (None, "", [])]:
        raise _Mistake(f"has a column {media[0]!r}: {_NO_MEDIA}")
    identity = _identity(record.get("id"), default_id)
    return Row(identity, _messages(record[chat], chat), columns, _template(columns))


def _template(columns: dict[str, Any]) -> dict[str, Any]:
    kwargs = columns.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise _Mistake(f"has a 'chat_template_kwargs' that is a {_kind(kwargs)}, not an object")
    if mistake := mistake_in(kwargs):
        raise _Mistake(f"has a 'chat_template_kwargs' that {mistake}")
    tools = _tools(columns.get("tools"))
    return _without_nulls(kwargs) | ({"tools": tools} if tools else {})


def _tools(given: Any) -> list[dict[str, Any]]:
    """Descriptions of tools; they may be JSON text, because Parquet would mix the fields of all of them."""
    tools = given or []
    if isinstance(given, str) and given:
        tools = _parsed(given.encode())
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        what = str(tools) if isinstance(tools, _Mistake) else f"is {_article(tools)}"
        raise _Mistake(f"has a 'tools' that {what}; it must be a list of objects, or such a list as JSON text")
    return _without_nulls(tools)


def _with_system(row: Row, system: str | None) -> Row:
    if system is None or row.messages[0]["role"] in ("system", "developer"):
        return row
    return replace(row, messages=[{"role": "system", "content": system}, *row.messages])


def _identity(given: Any, default: str) -> str:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _Mistake(f"has an 'id' that is a {_kind(given)}, not text or an integer")
    return str(given)


def _messages(chat: Any, column: str) -> list[dict[str, Any]]:
    if isinstance(chat, str) and column == "prompt":
        chat = [{"role": "user", "content": chat}]
    if not isinstance(chat, list) or not chat:
        what = "an empty list" if chat == [] else f"a {_kind(chat)}"
        raise _Mistake(f"has a {column!r} that is {what}, not a list of messages")
    messages = [_message(message, f"{column}[{index}]") for index, message in enumerate(chat)]
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        last = f"ends with the role {messages[-1]['role']!r}" if messages else "holds nothing but an answer"
        raise _Mistake(f"has a {column!r} that {last}; it must end with 'user' or 'tool' before the answer")
    return messages


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _Mistake(f"has a {place} that is a {_kind(message)}, not an object with 'role' and 'content'")
    if message.get("role") not in ROLES:
        raise _Mistake(f"has {place}.role {message.get('role')!r}; known are {', '.join(ROLES)}")
    kept = _without_nulls(message)
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
        raise _Mistake(f"has a {place} that is a {_kind(function)}, not an object")
    if isinstance(arguments := function.get("arguments"), str):
        parsed = _parsed(arguments.encode()) if arguments.strip() else {}
        if not isinstance(parsed, dict):
            what = str(parsed) if isinstance(parsed, _Mistake) else f"is {_article(parsed)}"
            raise _Mistake(f"has {place}.arguments that {what}; it must be a JSON object")
        function = function | {"arguments": parsed}
    return call | {"function": function} if "function" in call else function


def _require_text(content: Any, place: str) -> None:
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        if media := [kind for kind in kinds if kind != "text"]:
            raise _Mistake(f"has a {place} with a part of the type {media[0]!r}: {_NO_MEDIA}")
    if not isinstance(content, str):
        raise _Mistake(f"has a {place} that is {_article(content)}, not text")
    if "<image>" in content:  # what ms-swift's data sets have where a picture belongs
        raise _Mistake(f"has a {place} with the tag <image>: {_NO_MEDIA}")


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Mistake(f"has a {place} that is {_article(value)}, not a list")
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
