"""Keys of run files and profiles, as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from grpo_hpc.observe.jsonl import json_text

if TYPE_CHECKING:
    from grpo_hpc.config.key_table import Key


def show_keys(keys: Sequence[Key], as_json: bool) -> None:
    """Print what each key may be; every key is a line and its meaning another, so that words can be searched for."""
    if as_json:
        click.echo(json_text([asdict(key) for key in keys], indent=2))
        return
    for section in dict.fromkeys(key.section for key in keys):
        mine = [key for key in keys if key.section == section]
        click.secho(f"\n{section}:" if section else "", bold=True)
        for key in mine:
            default = "required" if key.required else f"default {key.default}" if key.default else "absent by default"
            resumed = {"": "", "no": ""}.get(key.on_resume, f"; on resume: {key.on_resume}")
            click.echo(f"  {click.style(key.name, bold=True)}: {key.kind.replace('`', '')}; {default}{resumed}")
            click.echo(f"      {key.meaning}")
