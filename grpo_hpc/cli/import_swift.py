"""``grpo-hpc import-swift``."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_hpc.observe.jsonl import json_text

_INCOMPLETE = 1


class _FlagsBehindDashes(click.Command):
    """Keeps what stands behind ``--`` apart from the command's own arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["words"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


@click.command("import-swift", cls=_FlagsBehindDashes, short_help="Make a run file from an ms-swift GRPO command.")
@click.argument("files", metavar="[SCRIPT]... [-- FLAGS...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run file to write; absent: print it.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the account of every flag as JSON.")
@click.pass_context
def command(ctx: click.Context, files: tuple[Path, ...], output: Path | None, force: bool, as_json: bool) -> int:
    """Turn a `megatron rlhf --rlhf_type grpo` command of ms-swift (3.11 or 4.x) into a run file.

    SCRIPT is a shell script, which is read and never run, or ms-swift's YAML form; several files, such as that of a
    `swift rollout` server, are read as one run. Or give the flags themselves behind `--`. Every flag is accounted for.
    Ends with 1 when the run file still lacks something, which is then named.
    """
    from grpo_hpc.errors import ConfigError
    from grpo_hpc.files import write_atomically
    from grpo_hpc.importing.source import from_files, from_words
    from grpo_hpc.importing.write import import_run

    words: list[str] = ctx.meta.get("words", [])
    if bool(files) == bool(words):
        raise click.UsageError("Give either scripts, or flags behind `--`.", ctx)
    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output} exists already", "Choose another name, or write over it with --force.")
    imported = import_run(from_files(files) if files else from_words(words))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, imported.text)
    if as_json:
        from grpo_hpc.importing.show_import import to_dict

        click.echo(json_text(to_dict(imported), indent=2))
    else:
        from rich.console import Console

        from grpo_hpc.importing.show_import import show_import

        show_import(imported, Console(stderr=output is None))
        click.echo(f"\nWrote {output}. Next: grpo-hpc plan {output}" if output is not None else imported.text)
    return _INCOMPLETE if imported.problems else 0
