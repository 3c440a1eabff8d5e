"""Completions in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from grpo_hpc.report.completion_rows import told
from grpo_hpc.report.visible import visible


def show_completion(row: dict[str, Any], out: Console) -> None:
    """Print one completion: its figures, its prompt, its text; of an episode every turn."""
    head = Text(f"step {row.get('step')}  prompt {row.get('prompt_id')}  sample {row.get('sample')}", style="bold")
    out.print(head.append(f"   {_figures(row)}", style="not bold"), soft_wrap=True)
    for message in row.get("messages") or []:
        _say(str(message.get("role")), told(message), "dim", out)
    turns = row.get("turns") or [{"role": "completion", "content": row.get("completion")}]
    for message in turns:
        own = message.get("role") in ("assistant", "completion")
        _say(str(message.get("role")), told(message), "" if own else "dim", out)
    if row.get("environment_failure"):
        _say("the environment failed", str(row["environment_failure"]), "red", out)
    for name, why in (row.get("failures") or {}).items():
        _say(f"{name} failed", str(why), "red", out)
    out.print()


def _figures(row: dict[str, Any]) -> str:
    rewards = row.get("rewards") or {}
    parts = [f"{name} {_number(value)}" for name, value in rewards.items()] if len(rewards) > 1 else []
    figures = [f"reward {_number(row.get('reward'))}", *parts, f"advantage {_number(row.get('advantage'))}"]
    figures += [f"{row.get('tokens')} tokens", f"ended by {row.get('finish_reason')}"]
    return "  ".join([*figures, *(["not trained on"] if row.get("dropped") else [])])


def _say(who: str, text: str, style: str, out: Console) -> None:
    out.print(Text(f"  {who}: ", style="dim").append(visible(text), style=f"not dim {style}".strip()), soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
