"""Which keys a run file may hold, and what an unknown one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from grpo_hpc.config.problems import Problem, shown
from grpo_hpc.config.refused import ACCEPTED_AND_DROPPED, REFUSED
from grpo_hpc.config.sections import SECTION_OF, SECTIONS, TOP_LEVEL


def known_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The part of a parsed run file that has known keys, and a problem for each key that is not known."""
    kept: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in values.items():
        if key in SECTIONS:
            kept[key], found = _known_in_section(key, value)
            problems += found
        elif key in TOP_LEVEL:
            kept[key] = value
        elif not _dropped(key, value):
            problems.append(Problem(str(key), unknown_key("", str(key))))
    return kept, problems


def _known_in_section(section: str, value: Any) -> tuple[dict[str, Any], list[Problem]]:
    if value is None:
        return {}, []
    if not isinstance(value, dict):
        example = next(iter(SECTIONS[section].model_fields))
        text = f"is a section and must hold keys, as in {section}.{example}; got {shown(value)}"
        return {}, [Problem(section, text)]
    fields = SECTIONS[section].model_fields
    problems = [
        Problem(f"{section}.{key}", unknown_key(section, str(key)))
        for key, item in value.items()
        if key not in fields and not _dropped(key, item)
    ]
    return {key: item for key, item in value.items() if key in fields}, problems


def _dropped(key: Any, value: Any) -> bool:
    return key in ACCEPTED_AND_DROPPED and value is ACCEPTED_AND_DROPPED[key]


def unknown_key(section: str, key: str) -> str:
    """Why ``key`` may not stand in ``section`` ("" is the top level) and which key was probably meant."""
    if key in REFUSED:
        return REFUSED[key]
    if key in SECTION_OF:
        return f"belongs in the section '{SECTION_OF[key]}': write {SECTION_OF[key]}.{key}"
    if section and key in TOP_LEVEL:
        return f"belongs at the top level of the file, not in the section '{section}'"
    local = tuple(SECTIONS[section].model_fields) if section else (*TOP_LEVEL, *SECTIONS)
    if near := closest(key, local):
        return f"unknown key; did you mean {near}?"
    if near := _by_short_name(key) or closest(key, (*SECTION_OF, *TOP_LEVEL)):
        full = f"{SECTION_OF[near]}.{near}" if near in SECTION_OF else near
        return f"unknown key; did you mean {full}?"
    return f"unknown key; {f'the section {section!r}' if section else 'the top level'} has {', '.join(local)}"


def _by_short_name(word: str) -> str | None:
    """The key whose description gives ``word`` in brackets, as in "(tp)"."""
    for section in SECTIONS.values():
        for key, field in section.model_fields.items():
            if f"({word.lower()})" in (field.description or ""):
                return key
    return None


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like ``word``, or None when none does."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
