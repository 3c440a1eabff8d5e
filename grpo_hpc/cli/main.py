"""The command group and how errors are shown."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

import grpo_hpc
from grpo_hpc.cli.circumstances import explained
from grpo_hpc.cli.streams import lasting_streams
from grpo_hpc.errors import EXIT_USER_ERROR, GrpoHpcError, of_system

EXIT_INTERRUPTED = 130

# command: (module with a click command named `command`, help line)
_COMMANDS = {
    "plan": ("grpo_hpc.cli.plan", "Show layout, batch sizes, memory and time of a run; search for better layouts."),
    "submit": ("grpo_hpc.cli.starting.submit", "Start a run."),
    "image": ("grpo_hpc.cli.image", "Render, build and check container images."),
    "checkpoint": ("grpo_hpc.cli.checkpoint", "Convert, verify, merge, inspect and reshard checkpoints."),
    "train": ("grpo_hpc.cli.train", "Show the losses, estimators and rewards that there are."),
    "resume": ("grpo_hpc.cli.starting.resume", "Continue a stopped or crashed run."),
    "status": ("grpo_hpc.cli.status", "Show how a run stands."),
    "list": ("grpo_hpc.cli.list", "Show the runs in a folder."),
    "report": (
        "grpo_hpc.cli.looking.report",
        "Write a page with everything about a run, or about several side by side.",
    ),
    "compare": (
        "grpo_hpc.cli.looking.compare",
        "Show what differs between runs: file, environment, metrics at equal steps.",
    ),
    "completions": ("grpo_hpc.cli.looking.print_completions", "Show what the model wrote."),
    "logs": ("grpo_hpc.cli.logs", "Show the log of a run, also while it grows."),
    "cancel": ("grpo_hpc.cli.cancel", "End a run for good."),
    "clean": ("grpo_hpc.cli.clean", "Delete what nobody needs of runs; without --delete show it only."),
    "cluster": ("grpo_hpc.cli.cluster", "Describe clusters, once for all runs."),
    "config": ("grpo_hpc.cli.config", "List and copy the run files that come with grpo-hpc; show every key."),
    "import-swift": ("grpo_hpc.cli.import_swift", "Make a run file from an ms-swift GRPO command."),
}


class _LazyGroup(click.Group):
    """Knows its commands by name and help line; imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = import_module(_COMMANDS[name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[name][0]}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            meant = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(_COMMANDS)}."
            raise click.UsageError(f"There is no command '{args[0]}'. {meant}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(grpo_hpc.__version__, prog_name="grpo-hpc")
def cli() -> None:
    """GRPO on Megatron, with rollouts by vLLM: plan, submit and resume runs.

    A run is described by one YAML file. Its keys can be overridden on the command line, as in

        grpo-hpc plan run.yaml micro_batch_size=4 optimizer.lr=1e-5
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 done, 1 crash, 2 an error the user can mend, 130 interrupted."""
    code: Any = 0
    try:
        with lasting_streams():
            code = _run(args)
    except OSError as error:
        _show(of_system(error))
        code = code or EXIT_USER_ERROR
    sys.exit(code if isinstance(code, int) else 0)


def _run(args: list[str] | None) -> Any:
    try:
        return cli.main(args=args, prog_name="grpo-hpc", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        _show(told)
        return EXIT_USER_ERROR


def _show(error: GrpoHpcError) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(error.hint, err=True)
