"""From a run as ms-swift was told to do it to run file values, with one row of account for everything given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from grpo_hpc.config.fields import field_problems
from grpo_hpc.config.keys import closest
from grpo_hpc.config.plain_yaml import control_character, parse_value
from grpo_hpc.config.sections import SECTION_OF, SECTIONS, TOP_LEVEL, RunConfig
from grpo_hpc.importing.convert import as_given, number, run_name, truth
from grpo_hpc.importing.fates import Fate, Flag, Result
from grpo_hpc.importing.source import Given, Source
from grpo_hpc.importing.surroundings import ENVIRONMENT, SERVER_FLAGS
from grpo_hpc.importing.table import FLAGS

_OLD_ONLY = {old for flag in FLAGS for old in flag.old}


@dataclass(frozen=True)
class Row:
    """What became of one flag, key or variable.

    Attributes:
        name: as it was written.
        value: as it was written.
        place: where it stands.
        fate: what became of it.
        keys: run file keys (``section.key``) and values that it became.
        note: why, or what else the reader should know.
    """

    name: str
    value: str
    place: str
    fate: Fate
    keys: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass
class Translation:
    """Run file values by dotted key, and the rows that account for all that was given."""

    values: dict[str, Any]
    rows: list[Row]


class _Run:
    """The flags that count, by present name; answers converters (:class:`~grpo_hpc.importing.fates.Run`)."""

    def __init__(self, source: Source) -> None:
        everything = [*source.environment, *source.flags]
        self.old = any(given.name in _OLD_ONLY for given in source.flags)
        self.flags = {flag.name: flag for flag in (*ENVIRONMENT, *FLAGS)}
        self.present = {name: flag.name for flag in self.flags.values() for name in flag.names}
        self.last = {self.present.get(g.name, g.name): g for g in everything if g.values != (None,)}

    def given(self, name: str) -> Given | None:
        found = self.last.get(name)
        return None if found is None or found.open else found

    def value(self, name: str) -> Any:
        found = self.given(name)
        if found is not None:
            return as_given(found)
        return self.default(self.flags[name]) if name in self.flags else None

    def default(self, flag: Flag) -> Any:
        if callable(flag.default):
            return flag.default(self)
        return flag.old_default if self.old and flag.old_default is not None else flag.default


def translate(source: Source) -> Translation:
    """Translate every flag and variable of ``source``; nothing is left without a row."""
    run = _Run(source)
    out = Translation({"name": run_name(source.name)}, [])
    for table, given in ((ENVIRONMENT, source.environment), (FLAGS, source.flags)):
        out.rows += _translated(given, table, run, out.values)
    for server in source.servers[:1]:
        out.rows += _translated(server, SERVER_FLAGS, run, out.values)
    for server in source.servers[1:]:
        out.rows += [
            Row(f"rollout: {g.name}", g.shown, g.place, Fate.UNSUPPORTED, note="all servers are alike here")
            for g in server
        ]
    out.rows += _defaults(run, out.values)
    return out


def _translated(given: Sequence[Given], table: Iterable[Flag], run: _Run, values: dict[str, Any]) -> Iterator[Row]:
    """One row for each of ``given``; what they become is written into ``values``."""
    index = {name: flag for flag in table for name in flag.names}
    last = {index[g.name].name if g.name in index else g.name: place for place, g in enumerate(given)}
    for place, item in enumerate(given):
        flag = index.get(item.name)
        later = last[flag.name if flag else item.name]
        if place != later:
            yield Row(item.name, item.shown, item.place, Fate.IGNORED, note=f"given again at {given[later].place}")
        elif item.values == (None,):
            yield Row(item.name, "null", item.place, Fate.NO_EFFECT, note="empty, as it is without it")
        elif flag is None and item.open:
            note = "only a running shell knows it; it may hold further flags"
            yield Row(item.name, item.shown, item.place, Fate.OPEN, note=note)
        elif flag is None:
            near = closest(item.name, index)
            note = f"did you mean {near}?" if near else "ms-swift has no such parameter"
            yield Row(item.name, item.shown, item.place, Fate.UNKNOWN, note=note)
        else:
            yield _row(item, flag, run, values)


def _row(given: Given, flag: Flag, run: _Run, values: dict[str, Any]) -> Row:
    if flag.fate is not None:
        return Row(given.name, given.shown, given.place, flag.fate, note=flag.why)
    if given.open:
        key = dotted(flag.key or flag.name)
        note = f"only a running shell knows {given.open[0]}" + (f"; write {key}" if key else "")
        return Row(given.name, given.shown, given.place, Fate.OPEN, note=note)
    result = _result(given, flag, run)
    keys: dict[str, Any] = {}
    for leaf, value in result.values.items():
        key = dotted(leaf)
        if key is None:
            return _no_key(given, flag, leaf, value)
        found, problem = coerced(key, value)
        if problem:
            return Row(given.name, given.shown, given.place, Fate.UNSUPPORTED, note=f"{key} {problem}")
        keys[key] = found
    values |= keys
    fate = result.fate or (Fate.CONVERTED if keys else Fate.NO_EFFECT)
    if fate is Fate.TAKEN and given.name not in result.values:
        fate = Fate.RENAMED
    return Row(given.name, given.shown, given.place, fate, keys, result.note)


def _result(given: Given, flag: Flag, run: _Run) -> Result:
    if flag.convert is not None:
        present = Given(flag.name, given.values, given.open, given.place)
        return flag.convert(present, run)
    return Result({flag.key or flag.name: as_given(given)}, fate=Fate.TAKEN)


def _no_key(given: Given, flag: Flag, leaf: str, value: Any) -> Row:
    if _says(value, flag.here) or _says(value, flag.default):
        return Row(given.name, given.shown, given.place, Fate.NO_EFFECT, note="as it is here anyway")
    return Row(given.name, given.shown, given.place, Fate.UNSUPPORTED, note=f"the run file has no key {leaf} yet")


def _says(value: Any, other: Any) -> bool:
    """Whether two values mean the same, as words of a shell or as what they stand for."""
    if other is None or isinstance(value, list):
        return False
    readings = ((str(v).lower(), truth(v), number(v)) for v in (value, other))
    return any(one is not None and one == two for one, two in zip(*readings, strict=True))


def _defaults(run: _Run, values: dict[str, Any]) -> Iterator[Row]:
    """Rows for flags that were not given and whose default differs from ours: the run must be told."""
    for flag in run.flags.values():
        default, key = run.default(flag), dotted(flag.key or flag.name)
        if default is None or key is None or key in values or flag.name in run.last:
            continue
        ours = field_of(key).default
        if default != ours:
            values[key] = default
            yield Row(flag.name, str(default), "not given", Fate.DEFAULT, {key: default}, f"ours is {_shown(ours)}")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def dotted(leaf: str) -> str | None:
    """The run file's full name of a key; None when it has no such key."""
    return f"{SECTION_OF[leaf]}.{leaf}" if leaf in SECTION_OF else leaf if leaf in TOP_LEVEL else None


def field_of(key: str) -> Any:
    """The pydantic field behind a dotted key."""
    section, _, leaf = key.rpartition(".")
    return (SECTIONS[section] if section else RunConfig).model_fields[leaf]


def coerced(key: str, value: Any) -> tuple[Any, str]:
    """``value`` (words of a shell or of YAML) as the type of ``key``, and what is wrong when it cannot be one."""
    if found := control_character(str(value)):
        return None, f"cannot hold the control character {found}"
    mistakes = [(candidate, _mistake(key, candidate)) for candidate in _candidates(value)]
    return next(((candidate, "") for candidate, mistake in mistakes if not mistake), (None, mistakes[0][1]))


def _mistake(key: str, value: Any) -> str:
    """What the run file's own check says of ``value`` for ``key``; empty when it is valid."""
    section, _, leaf = key.rpartition(".")
    try:
        RunConfig.model_validate({section: {leaf: value}} if section else {leaf: value})
    except ValidationError as error:
        texts = [p.text for p in field_problems(error) if p.key == key or p.key.startswith(f"{key}.")]
        return texts[0] if texts else ""
    return ""


def _candidates(value: Any) -> Iterator[Any]:
    """The values that words may stand for, likeliest first."""
    if isinstance(value, list):
        yield [next(iter(_candidates(item))) for item in value]
        yield value
        return
    if not isinstance(value, str):
        yield value
        yield [value]
        return
    for read in (_yaml, _json, truth):
        if (found := read(value)) is not None:
            yield found
            yield [found]
    yield value
    yield [value]


def _yaml(text: str) -> Any:
    try:
        return parse_value(text)
    except ValueError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
