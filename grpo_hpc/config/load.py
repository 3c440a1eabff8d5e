"""From a run file and overrides to a checked :class:`RunConfig`, and back to YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from grpo_hpc.config import rules
from grpo_hpc.config.document import Document, read_document
from grpo_hpc.config.fields import field_problems
from grpo_hpc.config.keys import known_keys, unknown_key
from grpo_hpc.config.nearest import batch_problems
from grpo_hpc.config.plain_yaml import dump_yaml, parse_value
from grpo_hpc.config.problems import Problem, raise_problems, without_secrets
from grpo_hpc.config.sections import SECTION_OF, SECTIONS, RunConfig
from grpo_hpc.redaction import redacted, secret_paths

_SECRETS = (
    "what stands in a run file is copied into the run directory. Put NAME=value into the file that `secrets` of the "
    "cluster profile names: a judge takes it with api_key_env: NAME, other rewards read os.environ. What is none "
    "needs another name"
)


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, apply overrides and check everything that needs no model.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` or, since key names are unique, ``key=value``. Values are YAML. When a key is
            given more than once the last one counts, and null takes out a key that the file gives.

    Raises:
        ConfigError: lists every mistake found, with the file, the line and the nearest valid value.
    """
    document = read_document(Path(path))
    problems = list(document.problems)
    for override in overrides:
        problems += _apply(override, document)
    found, cfg = problems_of(document.values)
    raise_problems([*problems, *found], str(path), document.places)
    if cfg is None:
        raise AssertionError("what is no run has at least one problem")
    return cfg


def problems_of(values: dict[str, Any]) -> tuple[list[Problem], RunConfig | None]:
    """Every mistake in the values of a run file, and the run; None while single fields are wrong or missing."""
    problems, cfg = _checked(values)
    return without_secrets(values, problems, _SECRETS), cfg


def _checked(values: dict[str, Any]) -> tuple[list[Problem], RunConfig | None]:
    known, problems = known_keys(values)
    problems += rules.length_problems(known)
    try:
        cfg = RunConfig.model_validate(known)
    except ValidationError as error:
        return [*problems, *field_problems(error)], None
    return [*problems, *rules.problems(cfg), *batch_problems(cfg)], cfg


def dump_run(cfg: RunConfig) -> str:
    """The resolved run file: every default spelled out, and none of the keys that have no meaning in this run."""
    values: dict[str, Any] = cfg.model_dump()
    for key in rules.meaningless(cfg):
        section, leaf = key.split(".")
        del values[section][leaf]
    return dump_yaml(values)


def _apply(override: str, document: Document) -> list[Problem]:
    """Write one ``key=value`` into the document; a problem when it cannot be understood."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        return [Problem(override, "an override is written key=value, as in batch.micro_batch_size=4")]
    try:
        value = parse_value(text)
    except ValueError as error:
        return [Problem(redacted(override), f"the value is not YAML: {error}")]
    section, leaf = _split(key)
    shown = key if [*secret_paths(value, key, leaf)] else override
    if section in SECTIONS and leaf:
        target = document.values.get(section)
        if target is None:
            target = document.values[section] = {}
        if isinstance(target, dict):
            _set(target, leaf, value, SECTIONS[section])
    elif not section and leaf in SECTIONS:
        return [Problem(shown, f"{leaf} is a section; override one of its keys, as in {_example(leaf)}=...")]
    elif section:
        return [Problem(shown, f"there is no section '{section}'; {leaf}: {unknown_key('', leaf)}")]
    else:
        _set(document.values, leaf, value, RunConfig)
    document.places[f"{section}.{leaf}" if section else leaf] = "override"
    return []


def _set(target: dict[str, Any], leaf: str, value: Any, kind: type[BaseModel]) -> None:
    """Give a key its value; null takes out one that cannot be null, and its default holds."""
    field = kind.model_fields.get(leaf)
    if value is None and field is not None and type(None) not in get_args(field.annotation):
        target.pop(leaf, None)
    else:
        target[leaf] = value


def _split(key: str) -> tuple[str, str]:
    section, dot, leaf = key.rpartition(".")
    return (section, leaf) if dot else (SECTION_OF.get(key, ""), key)


def _example(section: str) -> str:
    return f"{section}.{next(iter(SECTIONS[section].model_fields))}"
