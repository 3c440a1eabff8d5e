"""``grpo-hpc config``: the run files that come with the package, and the keys that a run file may have."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("config", short_help="List and copy the run files that come with grpo-hpc; show every key.")
def command() -> None:
    """Run files to begin from. Every other command also takes one by its name: `grpo-hpc plan qwen3_30b_a3b`."""


@command.command("list")
def list_run_files() -> None:
    """Show the name and purpose of every run file."""
    from rich.console import Console
    from rich.table import Table

    from grpo_hpc.config.library import purpose, run_files

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, file in run_files().items():
        table.add_row(name, purpose(file))
    Console().print(table)


@command.command("copy")
@click.argument("name")
@click.argument("target", required=False, type=click.Path(path_type=Path))
def copy(name: str, target: Path | None) -> None:
    """Copy the run file NAME to TARGET (absent: NAME.yaml) so that it can be edited."""
    from grpo_hpc.config.library import run_file
    from grpo_hpc.errors import ConfigError
    from grpo_hpc.files import write_atomically

    target = target or Path(f"{name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} exists already", "Name another target.")
    text = run_file(name).read_text(encoding="utf-8")
    write_atomically(target, text)
    click.echo(f"Wrote {target}. Next: grpo-hpc plan {target}")


@command.command("keys")
@click.argument("section", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def keys(section: str | None, as_json: bool) -> None:
    """Show every key of a run file, or those of SECTION: what it may be, its default, and what it means.

    --json prints a list of objects: section, name, kind, default, required, meaning, on_resume (yes: the next start of
    a run obeys another value; reshardable: where checkpoint.reshardable was true; no).
    """
    from grpo_hpc.cli.key_lists import show_keys
    from grpo_hpc.config.key_table import run_file_keys
    from grpo_hpc.config.keys import closest
    from grpo_hpc.config.sections import SECTIONS
    from grpo_hpc.errors import ConfigError

    if section and section not in SECTIONS:
        near = closest(section, SECTIONS)
        hint = f"Did you mean {near}?" if near else f"Sections are {', '.join(SECTIONS)}."
        raise ConfigError(f"a run file has no section {section!r}", hint)
    show_keys([key for key in run_file_keys() if section in (None, key.section)], as_json)
