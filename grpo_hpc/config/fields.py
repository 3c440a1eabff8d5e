"""What pydantic found wrong in single fields, in our words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from grpo_hpc.config.keys import closest
from grpo_hpc.config.problems import Problem, shown
from grpo_hpc.config.sections import SECTIONS, RunConfig

Model = type[BaseModel]

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}
_TRUTHS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def field_problems(error: ValidationError, model: Model = RunConfig) -> list[Problem]:
    """One problem per field of ``model`` that has a wrong type or value, is missing, or is not known."""
    problems: list[Problem] = []
    for detail in error.errors():
        loc = detail["loc"]
        if detail["type"] == "missing" and model is RunConfig and len(loc) == 1 and loc[0] in SECTIONS:
            problems += _missing_section(str(loc[0]))
        else:
            key = ".".join(str(part) for part in loc if part != "[key]")  # pydantic's word for a key that is wrong
            problems.append(Problem(key, _text(detail, model)))
    return problems


def _missing_section(section: str) -> list[Problem]:
    """A section that is absent as a whole is reported through the keys that it must have."""
    fields = SECTIONS[section].model_fields
    return [
        Problem(f"{section}.{key}", f"is required: {field.description}")
        for key, field in fields.items()
        if field.is_required()
    ]


def _text(detail: ErrorDetails, model: Model) -> str:
    kind, got = detail["type"], detail["input"]
    holder, field = _place(model, detail["loc"])
    about = field.description if field and field.description else ""
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(str(detail["loc"][-1]), holder)
    if kind == "missing":
        return f"is required: {about}" if about else "is required"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {shown(got)}{_type_hint(kind, got)}"
    if kind in _BOUNDS:
        words, limit = _BOUNDS[kind]
        return f"must be {words} {_number(detail['ctx'][limit])}, got {shown(got)}"
    if kind == "literal_error" and field:
        return _choice_text(field, got)
    if kind == "too_long" or (kind == "too_short" and got):
        words, limit = ("most", "max_length") if kind == "too_long" else ("least", "min_length")
        return f"must have at {words} {detail['ctx'][limit]} entries, got {shown(got)}"
    if kind in ("string_too_short", "too_short"):
        return f"must not be empty ({about})" if about else "must not be empty"
    if kind == "finite_number":
        return f"must be a finite number, got {shown(got)}"
    return f"{detail['msg']}, got {shown(got)}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _place(model: Model, loc: Sequence[int | str]) -> tuple[Model, FieldInfo | None]:
    """The innermost model that ``loc`` leads into, and its field; None where the model has none of that name."""
    field = model.model_fields.get(str(loc[0])) if loc else None
    inner = field.annotation if field else None
    if len(loc) > 1 and isinstance(inner, type) and issubclass(inner, BaseModel):
        return _place(inner, loc[1:])
    return model, field


def _unknown(key: str, holder: Model) -> str:
    near = closest(key, holder.model_fields)
    return "unknown key; " + (f"did you mean {near}?" if near else f"keys are {', '.join(holder.model_fields)}")


def _type_hint(kind: str, got: Any) -> str:
    if kind == "int_type" and isinstance(got, float) and got.is_integer():
        return f"; write {int(got)}"
    if kind == "int_type" and isinstance(got, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", got):
        return f"; write {int(got)}"
    if kind == "bool_type" and str(got).lower() in _TRUTHS:
        return f"; write {_TRUTHS[str(got).lower()]}"
    if kind == "list_type" and isinstance(got, str):
        return f"; write [{got}]"
    if kind == "string_type" and isinstance(got, int | float):
        return f'; write "{shown(got)}", with quotes'
    return ""


def _choice_text(field: FieldInfo, got: Any) -> str:
    choices = _choices(field.annotation)
    near = closest(got, choices) if isinstance(got, str) else None
    return f"must be {' or '.join(choices)}, got {shown(got)}" + (f"; did you mean {near}?" if near else "")


def _choices(annotation: Any) -> list[str]:
    """What a Literal allows, also one inside a list, a dict or an optional value."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]
