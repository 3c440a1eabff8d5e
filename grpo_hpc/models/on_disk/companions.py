"""What lies beside the weights of a Hugging Face model folder: configuration, tokenizer, chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_hpc.models.on_disk.model_folder import INDEX

_SMALL = {".json", ".txt", ".model", ".jinja", ".py"}
_LEFT_OUT = (INDEX, "manifest.json", "grpo_hpc.json")  # these are about the weights
TEMPLATE = "chat_template.jinja"
_TEMPLATES = "additional_chat_templates"


def companions(folder: Path, dtype: str, root: str = "") -> dict[str, bytes]:
    """The files for a copy of ``folder``, by their path below it; the configuration's dtype is that of the tensors.

    Args:
        dtype: of the copy's tensors, as ``bfloat16``.
        root: comes before every path.
    """
    found = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix in _SMALL and f.name not in _LEFT_OUT]
    found += sorted((folder / _TEMPLATES).glob("*.jinja"))
    files = {f"{root}{file.relative_to(folder)}": file.read_bytes() for file in found}
    config = json.loads(files[f"{root}config.json"])
    if (config.get("dtype") or config.get("torch_dtype")) != dtype:
        config.pop("torch_dtype", None)
        files[f"{root}config.json"] = (json.dumps(config | {"dtype": dtype}, indent=2) + "\n").encode()
    return files


def with_defaults(files: Mapping[str, bytes], kwargs: Mapping[str, Any]) -> dict[str, bytes]:
    """Those of ``files`` that hold chat templates, where each of ``kwargs`` is what a caller who does not name it gets.

    So whoever serves the folder writes chats as training did. Empty when there are no ``kwargs``.

    Args:
        kwargs: what training told the template; values of JSON.
    """
    if not kwargs:
        return {}
    first = _defaults(kwargs)
    changed = {name: first.encode() + content for name, content in files.items() if name.endswith(".jinja")}
    for name in ("tokenizer_config.json", "chat_template.json"):
        config = json.loads(files.get(name, b"{}"))
        if template := config.get("chat_template"):
            several = template if isinstance(template, list) else []
            named = [one | {"template": first + one["template"]} for one in several]
            config["chat_template"] = named or first + template
            changed[name] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return changed


def template_with_defaults(folder: Path, kwargs: Mapping[str, Any]) -> str:
    """The chat template of ``folder`` that transformers takes by default, changed as by :func:`with_defaults`."""
    if (folder / TEMPLATE).exists():
        return _defaults(kwargs) + (folder / TEMPLATE).read_text()
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    named = template if isinstance(template, str) else {one["name"]: one["template"] for one in template}["default"]
    return _defaults(kwargs) + named


def _defaults(kwargs: Mapping[str, Any]) -> str:
    return "".join(
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {_written(value)} -%}}{{%- endif -%}}"
        for name, value in kwargs.items()
    )


def _written(value: Any) -> str:
    """A value of JSON as jinja2 writes it, whose words for true, false and none are the same but for the last."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
