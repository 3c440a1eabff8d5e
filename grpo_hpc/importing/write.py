"""The run file of a translation, and what it still lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

from grpo_hpc.config import rules
from grpo_hpc.config.load import problems_of
from grpo_hpc.config.plain_yaml import dump_yaml
from grpo_hpc.config.problems import Problem
from grpo_hpc.config.sections import SECTIONS, TOP_LEVEL
from grpo_hpc.importing.fates import Fate
from grpo_hpc.importing.source import Source
from grpo_hpc.importing.translate import Row, Translation, translate
from grpo_hpc.redaction import redacted, redacted_all

_KEPT = {
    Fate.UNSUPPORTED: "Not supported yet",
    Fate.OPEN: "Known only when the script runs",
    Fate.UNKNOWN: "Unknown to ms-swift",
}


# For keys that are still missing, while it is looked at which of the others have a meaning.
_STAND_INS: dict[str, Any] = {
    "model.path": "model",
    "data.train": "data.jsonl",
    "batch.train_iters": 1_000_000,
    "rewards.reward_funcs": ["reward"],
}


@dataclass(frozen=True)
class Imported:
    """A run file made from an ms-swift run.

    Attributes:
        text: the run file.
        rows: what became of every flag.
        problems: what the run file lacks or has wrong, by key; empty when it can be planned.
        notes: what the reader should know of how the script was read.
    """

    text: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def import_run(source: Source) -> Imported:
    """Make the run file of ``source``."""
    translation = _without_secrets(translate(source))
    _drop_meaningless(translation)
    problems = [_explained(p, translation.rows) for p in problems_of(_nested(translation.values))[0]]
    text = _text(source, translation, problems)
    return Imported(text, tuple(translation.rows), tuple(problems), redacted_all(tuple(source.notes)))


def _without_secrets(translation: Translation) -> Translation:
    """A secret that a script gives has no place in a run file, nor in the account of it."""
    return Translation(redacted_all(translation.values), [_row_without_secrets(row) for row in translation.rows])


def _row_without_secrets(row: Row) -> Row:
    name, value, note = map(redacted, (row.name, row.value, row.note))
    return replace(row, name=name, value=value, keys=redacted_all(row.keys), note=note)


def _explained(problem: Problem, rows: list[Row]) -> Problem:
    """``problem`` with what the rows that became nothing say of its key."""
    leaf = problem.key.rpartition(".")[2]
    notes = [
        f"({row.name} {row.value}: {row.note})" for row in rows if row.fate in _KEPT and f"write {leaf}" in row.note
    ]
    return Problem(problem.key, " ".join([problem.text, *notes])) if leaf else problem


def _drop_meaningless(translation: Translation) -> None:
    """Leave out keys that have no meaning in this run: ms-swift accepts them, the run file refuses them."""
    stand_ins = {key: value for key, value in _STAND_INS.items() if not _known_otherwise(key, translation.values)}
    _, cfg = problems_of(_nested({**stand_ins, **translation.values}))
    if cfg is None:
        return
    for problem in rules.meaningless_but_given(cfg):
        del translation.values[problem.key]
        translation.rows = [
            replace(row, fate=Fate.NO_EFFECT, keys={}, note=problem.text) if problem.key in row.keys else row
            for row in translation.rows
            if not (problem.key in row.keys and row.fate is Fate.DEFAULT)
        ]


def _known_otherwise(key: str, values: Mapping[str, Any]) -> bool:
    return key == "batch.train_iters" and "batch.num_train_epochs" in values


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections, in the order of the run file."""
    nested: dict[str, Any] = {key: values[key] for key in TOP_LEVEL if key in values}
    for section, model in SECTIONS.items():
        found = {leaf: values[f"{section}.{leaf}"] for leaf in model.model_fields if f"{section}.{leaf}" in values}
        if found:
            nested[section] = found
    return nested


def _text(source: Source, translation: Translation, problems: list[Problem]) -> str:
    comments = {
        key: "ms-swift's default; not given in the script" if row.fate is Fate.DEFAULT else row.note
        for row in translation.rows
        for key in list(row.keys)[:1]
        if row.note
    }
    lines = [f"# Imported from {_one_line(source.name)}: a `megatron rlhf --rlhf_type grpo` command of ms-swift."]
    lines += _missing(problems)
    for key, value in _nested(translation.values).items():
        if key in SECTIONS:
            lines += ["", f"{key}:"]
            for leaf, item in value.items():
                lines += _entry(leaf, item, comments.get(f"{key}.{leaf}", ""), "  ")
        else:
            lines += _entry(key, value, comments.get(key, ""), "")
    for fate, title in _KEPT.items():
        kept = [row for row in translation.rows if row.fate is fate]
        lines += ["", f"# {title}:"] if kept else []
        lines += [f"#   {_one_line(f'{row.name}: {row.value}   # {row.note}')}" for row in kept]
    return "\n".join(lines) + "\n"


def _missing(problems: list[Problem]) -> list[str]:
    if not problems:
        return []
    return [
        "#",
        "# To be mended before it can run:",
        *(f"#   {_one_line(f'{p.key}: {p.text}')}" for p in problems),
        "#",
    ]


def _entry(key: str, value: Any, comment: str, indent: str) -> list[str]:
    lines = dump_yaml({key: value}).rstrip("\n").split("\n")
    if comment and len(lines[0] + comment) < 100:
        lines = [f"{lines[0]}  # {_one_line(comment)}", *lines[1:]]
    elif comment:
        lines = [
            *wrap(_one_line(comment), 112, initial_indent="# ", subsequent_indent="# ", break_long_words=False),
            *lines,
        ]
    return [indent + line for line in lines]


def _one_line(text: str) -> str:
    """``text`` for a comment, which nothing in it can end."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
