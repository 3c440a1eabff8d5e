"""``grpo-hpc train``: what a run can be trained with."""

from __future__ import annotations

import click

from grpo_hpc.observe.jsonl import json_text

Entry = tuple[str, str, dict[str, str]]  # name, what it is, and what else there is to say


@click.command("train", short_help="Show the losses, estimators and rewards that there are.")
@click.option(
    "--list",
    "what",
    type=click.Choice(["losses", "estimators", "rewards"]),
    required=True,
    help="What to show, each with its source.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects: name, summary, source and what else.")
def command(what: str, as_json: bool) -> None:
    """Show what a run file may name: policy losses, advantage estimators, reward functions.

    Runs are started by `grpo-hpc submit`. docs/algorithms.md and docs/rewards.md have every formula.
    """
    entries = {"losses": _losses, "estimators": _estimators, "rewards": _rewards}[what]()
    if as_json:
        click.echo(json_text([{"name": name, "summary": summary, **more} for name, summary, more in entries], indent=2))
        return
    for name, summary, more in entries:
        click.secho(name, bold=True)
        click.echo(f"  {summary}")
        for label, text in more.items():
            click.echo(f"  {label + ':':<12}{text}")


def _losses() -> list[Entry]:
    from grpo_hpc.algo.losses import DENOMINATORS, LOSSES

    return [
        (
            loss.name,
            loss.summary,
            {
                "divided by": DENOMINATORS[loss.denominator],
                "source": loss.source,
                "keys": ", ".join(loss.options),
            },
        )
        for loss in sorted(LOSSES.values(), key=lambda loss: loss.name)
    ]


def _estimators() -> list[Entry]:
    from grpo_hpc.algo.estimators import ESTIMATORS

    found = sorted(ESTIMATORS.values(), key=lambda estimator: estimator.name)
    return [(e.name, e.summary, {"source": e.source}) for e in found]


def _rewards() -> list[Entry]:
    from grpo_hpc.rewards.registry import described

    return described()
