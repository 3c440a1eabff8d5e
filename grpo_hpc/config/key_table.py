"""Every key with what it may be, made from the fields that check it: for `grpo-hpc config keys`, and a page of docs."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from grpo_hpc.config.on_resume import LAYOUT, MACHINES, OBEYED
from grpo_hpc.config.sections import SECTIONS, TOP_LEVEL, RunConfig

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        kind: what its value may be, with bounds.
        default: as YAML can write it; empty for a key that is required, and for one that is absent unless given.
        on_resume: what a later start makes of another value: ``yes``, ``reshardable`` (obeyed where
            checkpoint.reshardable was true) or ``no``.
    """

    section: str
    name: str
    kind: str
    default: str
    required: bool
    meaning: str
    on_resume: str = ""


def keys_of(model: type[BaseModel], section: str = "") -> list[Key]:
    """The keys of one section, in the order in which they are declared."""
    return [_key(section, name, field) for name, field in model.model_fields.items() if not _section(field)]


def run_file_keys() -> list[Key]:
    """All keys of a run file; those of the top level have the section ""."""
    found = keys_of(RunConfig)
    for section, model in SECTIONS.items():
        found += keys_of(model, section)
    return [_with_resume(key) for key in found]


def markdown(keys: Sequence[Key]) -> Iterator[str]:
    """The lines of a table."""
    resumed = any(key.on_resume for key in keys)
    head = ("key", "value", "default", "meaning", *(["on resume"] if resumed else []))
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for key in keys:
        default = "**required**" if key.required else f"`{key.default}`" if key.default else "-"
        cells = [f"`{key.name}`", _escaped(key.kind), _escaped(default), _escaped(key.meaning)]
        yield f"| {' | '.join([*cells, key.on_resume] if resumed else cells)} |"


def page() -> str:
    """docs/run_file.md."""
    keys = run_file_keys()
    lines = [_HEAD]
    for section in ("", *SECTIONS):
        about = (SECTIONS[section].__doc__ or "").strip() if section else "What stands in no section."
        lines += [f"\n## {section or 'Top level'}\n\n{about}\n"]
        lines += markdown([key for key in keys if key.section == section])
    return "\n".join(lines) + "\n"


def _section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _key(section: str, name: str, field: FieldInfo) -> Key:
    absent = field.default in (None, PydanticUndefined)
    default = "" if absent else field.default if isinstance(field.default, str) else json.dumps(field.default)
    kind = ", ".join([_kind(field.annotation), *_bounds(field.metadata)])
    return Key(section, name, kind, default, field.is_required(), field.description or "")


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in inner if part is not types.NoneType))
    if origin is list:
        return f"list of: {_kind(inner[0])}"
    if origin is dict:
        return f"names with: {_kind(inner[1])}" if inner[1:] else "names with values"
    if inner and hasattr(annotation, "__metadata__"):
        return ", ".join([_kind(inner[0]), *_bounds(annotation.__metadata__)])
    return _WORDS.get(annotation, "value")


def _bounds(metadata: Sequence[Any]) -> list[str]:
    limits = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    named = [(words, getattr(one, name)) for one in limits for name, words in _LIMITS.items() if hasattr(one, name)]
    return [f"{words} {_number(limit)}" for words, limit in named]


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _with_resume(key: Key) -> Key:
    obeyed = "yes" if key.name in OBEYED else "reshardable" if key.name in LAYOUT | MACHINES else "no"
    return Key(**{**vars(key), "on_resume": obeyed})


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


_HEAD = f"""# The run file

Every key, with what it may be. `grpo-hpc config keys [SECTION]` shows the same; rules that tie keys together are in
their errors. Keys of the top level ({", ".join(f"`{name}`" for name in TOP_LEVEL)}) stand in no section. On the
command line the name alone is enough, as in `lr=1e-5`, because no two sections share one. Keys of cluster profiles
are in [cluster_profile.md](cluster_profile.md).

*On resume* says whether the next start of a run obeys another value in `run.yaml` of its directory: `reshardable` does
where `checkpoint.reshardable` was true when the checkpoint was saved.

This page is generated: `python -m grpo_hpc.config.key_table > docs/run_file.md`."""


if __name__ == "__main__":
    print(page(), end="")
