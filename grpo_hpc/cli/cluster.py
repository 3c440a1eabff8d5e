"""``grpo-hpc cluster``: profiles of clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_hpc.observe.jsonl import json_text

if TYPE_CHECKING:
    from grpo_hpc.cluster.detect import Site
    from grpo_hpc.cluster.questions import Question


class _Add(click.Command):
    """Has an option for every question; they are made when the command runs, as profiles are slow to import."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from grpo_hpc.cluster.questions import QUESTIONS

        own = super().get_params(ctx)
        return [*own[:1], *map(_option, QUESTIONS), *own[1:]]


def _option(question: Question) -> click.Option:
    kind = _kind(question.key)
    name = f"{question.option}/--no-{question.option[2:]}" if kind is bool else question.option
    return click.Option([name], type=kind, default=None, help=f"{question.text[:1].upper()}{question.text[1:]}.")


def _kind(key: str) -> Any:
    """What click makes of the type of a profile's key."""
    from typing import Literal, get_args, get_origin

    from grpo_hpc.cluster.profile import Profile

    annotation = Profile.model_fields[key].annotation
    if get_origin(annotation) is Literal:
        return click.Choice(list(get_args(annotation)))
    kinds = [kind for kind in (bool, int) if annotation is kind or kind in get_args(annotation)]
    return kinds[0] if kinds else str


@click.group("cluster", short_help="Describe clusters, once for all runs.")
def command() -> None:
    """Profiles of clusters: what a run file names with cluster.profile=NAME."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def list_profiles(as_json: bool) -> None:
    """Show every profile: those that you made, and those that come with grpo-hpc.

    --json prints a list of objects: name, file, problem (null unless the file is damaged), and the profile itself.
    """
    from rich.table import Table
    from rich.text import Text

    from grpo_hpc.cluster.profile import profiles, read_profile
    from grpo_hpc.errors import ConfigError
    from grpo_hpc.runs.show_standing import console

    if as_json:
        click.echo(json_text([_profile_facts(name, path) for name, path in profiles().items()], indent=2))
        return
    table = Table("name", "executor", "runtime", "partition", "GPUs", "file", box=None, pad_edge=False)
    for name, path in profiles().items():
        try:
            found = read_profile(path)
            facts = [found.executor, found.runtime, found.partition or "-", str(found.gpus_per_node or "-")]
        except ConfigError as error:
            facts = ["damaged", " ".join(error.message.split()), "", ""]
        table.add_row(name, *map(Text, facts), str(path))
    console().print(table)


def _profile_facts(name: str, path: Path) -> dict[str, Any]:
    from grpo_hpc.cluster.profile import read_profile
    from grpo_hpc.errors import ConfigError

    facts: dict[str, Any] = {"name": name, "file": str(path), "problem": None, "profile": None}
    try:
        return facts | {"profile": read_profile(path).model_dump(mode="json")}
    except ConfigError as error:
        return facts | {"problem": str(error)}


@command.command("add", cls=_Add)
@click.argument("name", metavar="NAME")
@click.option("--yes", is_flag=True, help="Ask nothing: take what was detected for everything that no option gives.")
@click.option("--force", is_flag=True, help="Write over a profile of that name.")
def add(name: str, yes: bool, force: bool, **given: Any) -> None:
    """Write the profile NAME of the cluster that this machine belongs to.

    Slurm is asked for partitions, GPUs, time limits and your account; these are offered as answers. An empty answer
    leaves a key out. Every question can be answered by an option instead.
    """
    from grpo_hpc.cluster.detect import detect
    from grpo_hpc.cluster.questions import QUESTIONS, path_of, write_profile
    from grpo_hpc.errors import ConfigError

    path = path_of(name)
    if path.exists() and not force:
        raise ConfigError(f"the profile {path} exists already", "Give it another name, edit it, or use --force.")
    site = detect()
    _tell(site)
    answers: dict[str, Any] = {}
    for question in QUESTIONS:
        answer = given[question.key]
        if question.applies(answers):
            answers[question.key] = _answer(question, answer, site, answers, ask=not yes)
        elif answer is not None:
            so_far = ", ".join(f"{key} is {value}" for key, value in answers.items() if key in ("executor", "runtime"))
            raise ConfigError(f"{question.option} would not be used here", f"({so_far})")
    write_profile(name, answers, site)
    click.echo(f"Wrote {path}:\n\n{path.read_text()}")
    click.echo(f"Use it with cluster.profile={name}. Modules, binds, environment and the node check are further keys.")


def _tell(site: Site) -> None:
    """What was found."""
    if site.problem:
        click.echo(f"Slurm tells nothing here: {site.problem}", err=True)
    for partition in site.partitions:
        gpus = f"{partition.gpus} x {partition.gpu_type or 'GPU'}" if partition.gpus else "no GPUs"
        limit = partition.time_limit or "no time limit"
        mark = " (default)" if partition.default else ""
        click.echo(
            f"  {partition.name}{mark}: {partition.nodes} nodes, {partition.cpus} CPUs, {gpus}, {limit}", err=True
        )


def _answer(question: Question, given: Any, site: Site, answers: dict[str, Any], ask: bool) -> Any:
    from grpo_hpc.cluster.questions import check_answer
    from grpo_hpc.errors import ConfigError

    offered = question.default(site, answers)
    if given is None and ask:
        return _prompt(question, offered, question.required(answers), site)
    value = offered if given is None else given
    if value is None and question.required(answers):
        raise ConfigError(f"{question.key} is needed", f"Give it with {question.option}.")
    if value is not None:
        check_answer(question, value, site)
    return value


def _prompt(question: Question, offered: Any, required: bool, site: Site) -> Any:
    """Ask until there is an answer that the profile can hold."""
    from grpo_hpc.cluster.questions import check_answer
    from grpo_hpc.errors import ConfigError, GrpoHpcError

    kind = click.types.convert_type(_kind(question.key))
    choices = f" ({', '.join(kind.choices)})" if isinstance(kind, click.Choice) else ""
    default = offered if offered is not None else None if required else ""

    def read(text: Any) -> Any:
        if text == "":
            return None
        value = kind.convert(text, None, None)
        try:
            check_answer(question, value, site)
        except GrpoHpcError as error:
            raise click.UsageError(" ".join([error.message, error.hint]).strip()) from None
        return value

    try:
        if _kind(question.key) is bool:
            return click.confirm(question.text, default=bool(offered), err=True)
        show = default not in (None, "")
        return click.prompt(question.text + choices, default=default, show_default=show, value_proc=read, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        hint = f"Give it with {question.option}, or take what was detected with --yes."
        raise ConfigError(f"there is no answer to: {question.text}", hint) from None


@command.command("keys")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def keys(as_json: bool) -> None:
    """Show every key of a cluster profile: what it may be, its default, and what it means.

    --json prints a list of objects: section, name, kind, default, required, meaning.
    """
    from grpo_hpc.cli.key_lists import show_keys
    from grpo_hpc.cluster.profile_keys import profile_keys

    show_keys(profile_keys(), as_json)
