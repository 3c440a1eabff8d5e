"""What can become of a flag, and how the table in :mod:`grpo_hpc.importing.table` says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from grpo_hpc.importing.source import Given


class Fate(StrEnum):
    """What became of one flag."""

    TAKEN = "taken"
    RENAMED = "renamed"
    CONVERTED = "converted"
    DEFAULT = "default of ms-swift"
    NO_EFFECT = "no effect here"
    IGNORED = "no effect in ms-swift"
    UNSUPPORTED = "not supported yet"
    OPEN = "known only when it runs"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Result:
    """What a converter makes of a flag.

    Attributes:
        values: run file keys (without their section) and values; empty when the flag becomes nothing.
        note: what the reader should know.
        fate: what became of the flag; None: CONVERTED when there are values, else NO_EFFECT.
    """

    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    fate: Fate | None = None


class Run(Protocol):
    """What a converter may ask about the rest of the run."""

    def value(self, name: str) -> Any:
        """The value of the flag ``name``: as given, else ms-swift's default, else None."""

    def given(self, name: str) -> Given | None:
        """The flag ``name`` as it was given, under its present or its 3.11 name."""


Converter = Callable[[Given, Run], Result]


@dataclass(frozen=True)
class Flag:
    """One parameter of ms-swift.

    Attributes:
        name: its name in 4.x.
        old: its names in 3.11, when they differ.
        key: the run file's key that it becomes, without section; None when it becomes none or a converter decides.
        convert: makes run file keys of its value; None: the value is taken as it is.
        fate: for flags that become no key: NO_EFFECT, IGNORED or UNSUPPORTED.
        why: why it becomes none, or how it is converted.
        default: ms-swift's default, or what it is in a run, where the run must be told because ours may differ.
        old_default: the default in 3.11, when it differs.
        here: the value, as it is written, that says what happens here anyway, while the run file has no such key.
    """

    name: str
    old: tuple[str, ...] = ()
    key: str | None = None
    convert: Converter | None = None
    fate: Fate | None = None
    why: str = ""
    default: Any = None
    old_default: Any = None
    here: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.old)


def same(name: str, *old: str, default: Any = None, old_default: Any = None, convert: Converter | None = None) -> Flag:
    """A flag that the run file knows under the same name."""
    return Flag(name, old, name, convert, default=default, old_default=old_default)


def all_same(*names: str) -> tuple[Flag, ...]:
    """Flags that the run file knows under the same names."""
    return tuple(same(name) for name in names)


def without_key(here: str, *names: str) -> tuple[Flag, ...]:
    """Flags that the run file has no key for: ``here`` is what happens anyway, and any other value is reported."""
    return tuple(Flag(name, here=here) for name in names)


def renamed(name: str, key: str, *old: str, default: Any = None) -> Flag:
    """A flag that the run file knows as ``key``."""
    return Flag(name, old, key, default=default)


def converted(name: str, convert: Converter, why: str, *old: str, default: Any = None) -> Flag:
    """A flag whose value is put in another form."""
    return Flag(name, old, convert=convert, why=why, default=default)


def nothing(why: str, *names: str) -> tuple[Flag, ...]:
    """Flags that have nothing to decide here. An old name is written behind its present one: ``new=old``."""
    return _without_key(Fate.NO_EFFECT, why, names)


def ignored(why: str, *names: str) -> tuple[Flag, ...]:
    """Flags that ms-swift accepts and does not use."""
    return _without_key(Fate.IGNORED, why, names)


def missing(why: str, *names: str) -> tuple[Flag, ...]:
    """Flags that ask for something that is not here."""
    return _without_key(Fate.UNSUPPORTED, why, names)


def _without_key(fate: Fate, why: str, names: tuple[str, ...]) -> tuple[Flag, ...]:
    parts = [name.split("=") for name in names]
    return tuple(Flag(name, tuple(old), fate=fate, why=why) for name, *old in parts)
