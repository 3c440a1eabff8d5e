"""What pydantic found wrong in single fields, in our words."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from grpo_hpc.config.keys import closest
from grpo_hpc.config.problems import Problem, shown
from grpo_hpc.config.sections import SECTIONS, RunConfig

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def field_problems(error: ValidationError) -> list[Problem]:
    """One problem per field that has a wrong type or value, or is missing."""
    problems: list[Problem] = []
    for detail in error.errors():
        loc = detail["loc"]
        if detail["type"] == "missing" and len(loc) == 1 and loc[0] in SECTIONS:
            problems += _missing_section(str(loc[0]))
        else:
            problems.append(Problem(".".join(str(part) for part in loc), _text(detail)))
    return problems


def _missing_section(section: str) -> list[Problem]:
    """A section that is absent as a whole is reported through the keys that it must have."""
    fields = SECTIONS[section].model_fields
    return [
        Problem(f"{section}.{key}", f"is required: {field.description}")
        for key, field in fields.items()
        if field.is_required()
    ]


def _text(detail: ErrorDetails) -> str:
    kind, got, loc = detail["type"], detail["input"], detail["loc"]
    if kind == "missing":
        return f"is required: {_description(loc)}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {shown(got)}{_type_hint(kind, got)}"
    if kind in _BOUNDS:
        words, limit = _BOUNDS[kind]
        return f"must be {words} {detail['ctx'][limit]:g}, got {shown(got)}"
    if kind == "literal_error":
        return _choice_text(loc, got)
    if kind in ("string_too_short", "too_short"):
        return f"must not be empty ({_description(loc)})"
    if kind == "finite_number":
        return f"must be a finite number, got {shown(got)}"
    return f"{detail['msg']}, got {shown(got)}"


def _type_hint(kind: str, got: Any) -> str:
    if kind == "int_type" and isinstance(got, float) and got.is_integer():
        return f"; write {int(got)}"
    if kind == "list_type" and isinstance(got, str):
        return f"; write [{got}]"
    if kind == "string_type" and isinstance(got, int | float):
        return f'; write "{shown(got)}", with quotes'
    return ""


def _choice_text(loc: tuple[int | str, ...], got: Any) -> str:
    section, key = str(loc[0]), str(loc[1])
    choices = _choices(SECTIONS[section].model_fields[key].annotation)
    near = closest(got, choices) if isinstance(got, str) else None
    return f"must be {' or '.join(choices)}, got {shown(got)}" + (f"; did you mean {near}?" if near else "")


def _choices(annotation: Any) -> list[str]:
    """What a Literal allows, also one inside a list, a dict or an optional value."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _description(loc: tuple[int | str, ...]) -> str:
    fields = SECTIONS[str(loc[0])].model_fields if loc[0] in SECTIONS else RunConfig.model_fields
    key = str(loc[1]) if loc[0] in SECTIONS and len(loc) > 1 else str(loc[0])
    return fields[key].description or ""
