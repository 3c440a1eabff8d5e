"""Functions that the policy may call: described from their type hints and docstrings, called with checked arguments.

A function's parameters need type hints, and its docstring says what it does; lines below ``Args:`` describe parameters.

    def calculator(expression: str) -> str:
        '''Compute an arithmetic expression.

        Args:
            expression: such as ``3 * (4 + 5)``.
        '''
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Message, Opening, Reply, Turn
from grpo_hpc.rollout.environments.user_code import as_json, resolved

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ENTRY = re.compile(r"( *)(\w+)(?: \([^)]*\))?: *(.*)")


class Tool:
    """A function with its description.

    Args:
        function: with type hints and a docstring, async or not.

    Raises:
        ConfigError: it cannot be described.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        says, told = _docstring(function)
        if not says:
            raise ConfigError(f"{_place(function)}: {self.name} needs a docstring: it tells the policy what it is for")
        self._arguments = _model(function, told)
        parameters = _untitled(self._arguments.model_json_schema())
        parameters.pop("additionalProperties", None)
        self.described = {
            "type": "function",
            "function": {"name": self.name, "description": says, "parameters": parameters},
        }

    async def result(self, arguments: Any) -> tuple[str, bool]:
        """What the policy is told of a call, and whether it went well."""
        if not isinstance(arguments, dict):
            return f"Error: the arguments of {self.name} must be a JSON object", False
        try:
            checked = self._arguments.model_validate(arguments)
        except ValidationError as error:
            return f"Error: {'; '.join(map(self._complaint, error.errors()))}", False
        try:
            given = {name: getattr(checked, name) for name in checked.model_fields_set}
            return _text(await resolved(self._function(**given))), True
        except EpisodeFailed:
            raise
        except (Exception, SystemExit) as error:
            return f"Error: {type(error).__name__}: {error}", False

    def _complaint(self, error: Any) -> str:
        place = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            known = ", ".join(self._arguments.model_fields) or "none"
            return f"{self.name} has no argument {place}; it has {known}"
        if error["type"] == "missing":
            return f"{self.name} needs the argument {place}"
        return f"argument {place} of {self.name}: {error['msg']}"


class ToolEnvironment:
    """Answers every turn with the results of its calls; one that does not even seem to call ends the episode."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    async def start(self, row: Row) -> Opening:
        if row.columns.get("tools"):
            raise EpisodeFailed("error", "the row has a column 'tools', and the functions of the run file are told")
        return Opening(row.messages, [tool.described for tool in self._tools.values()])

    async def reply(self, turn: Turn) -> Reply:
        calls = turn.message.get("tool_calls") or []
        if not calls and turn.problem:
            unread = {"role": "user", "content": f"Error: {turn.problem}"}
            return Reply([unread], counts={"tool_calls": 1, "tool_failures": 1})
        if not calls:
            return Reply(done=True)
        results = await asyncio.gather(*map(self._answer, calls))
        failed = sum(not well for _, well in results)
        counts = {"tool_calls": len(calls), "tool_failures": failed}
        return Reply([message for message, _ in results], counts=counts)

    async def _answer(self, call: dict[str, Any]) -> tuple[Message, bool]:
        asked = call.get("function", call)
        name = str(asked.get("name"))
        tool = self._tools.get(name)
        if tool is None:
            text, well = f"Error: there is no function {name!r}; there is {', '.join(self._tools)}", False
        else:
            text, well = await tool.result(asked.get("arguments"))
        identity = {"tool_call_id": call["id"]} if call.get("id") else {}
        return {"role": "tool", "name": name, "content": text, **identity}, well


def _model(function: Callable[..., Any], told: dict[str, str]) -> type[BaseModel]:
    try:
        fields = _fields(function, get_type_hints(function, include_extras=True), told)
        made = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        made.model_json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"{_place(function)}: its type hints cannot be described as JSON: {why}") from None
    return made


def _fields(function: Callable[..., Any], hints: dict[str, Any], told: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in _NAMED:
            raise ConfigError(f"{_place(function)}: the policy cannot give {parameter}; name every parameter")
        if name not in hints:
            raise ConfigError(f"{_place(function)}: the parameter {name} needs a type hint, as in {name}: str")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=told.get(name)))
    return fields


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a function says it does, and what it says of each parameter."""
    says, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    told: dict[str, str] = {}
    name, depth = "", 0
    for line in rest.splitlines():
        entry = _ENTRY.fullmatch(line)
        if line.strip() and not line.startswith(" "):
            break  # the next section
        if entry and (not name or len(entry[1]) <= depth):
            depth, name = len(entry[1]), entry[2]
            told[name] = entry[3]
        elif name:
            told[name] = f"{told[name]} {line.strip()}".strip()
    return re.split(r"\n(?:Returns|Raises|Yields|Examples?):\n", says)[0].strip(), told


def _untitled(schema: Any) -> Any:
    """A JSON schema without the titles that pydantic makes from names."""
    if isinstance(schema, list):
        return [_untitled(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _untitled(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}


def _text(returned: Any) -> str:
    return returned if isinstance(returned, str) else as_json(returned)
