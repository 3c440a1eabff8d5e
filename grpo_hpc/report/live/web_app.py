"""The server's addresses and what it answers. Every answer is read from the run directories; nothing is written."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from grpo_hpc.errors import ConfigError, GrpoHpcError, of_system
from grpo_hpc.html_page import COLOURS, page
from grpo_hpc.observe.jsonl import json_text
from grpo_hpc.report.completion_rows import recorded_steps, rows_of
from grpo_hpc.report.live.guard import Guard
from grpo_hpc.report.live.shelf import Shelf
from grpo_hpc.report.page_data import about_metrics, growth
from grpo_hpc.report.run_page import live_run_page, script_of, style
from grpo_hpc.runs.follow import LogLine, Wanted, read_log

_MOST_RUNS = 64  # on one page
_LINES, _LONGEST_LINE = 1000, 4000


def web_app(shelf: Shelf, token: str) -> Starlette:
    """The application. Its functions are called in threads, so a slow disk holds up nobody else.

    Args:
        token: the first part of every path.
    """
    pages = _Pages(shelf)
    answers = {
        "": pages.list_page,
        "list": pages.listing,
        "runs": pages.runs,
        "changes": pages.changes,
        "completions": pages.completions,
        "log": pages.log,
    }
    return Starlette(
        routes=[Route(f"/{token}/{path}", answer, methods=["GET"]) for path, answer in answers.items()],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={GrpoHpcError: _refused, OSError: _refused},
    )


class _Pages:
    """What is answered, each from the query of a request."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def list_page(self, _: Request) -> Response:
        """All runs; where there is only one to look at, its page."""
        if self._shelf.only:
            return RedirectResponse(f"runs?{urlencode({'run': self._shelf.only})}")
        data = json_text({**self._shelf.listing(), "colours": COLOURS})
        body = "<h1>Runs</h1>\n<main></main>"
        script = script_of(("elements", "bars", "list"))
        return HTMLResponse(page("Runs", body, style=style(), script=script, data=data, loads="its own server"))

    def listing(self, _: Request) -> Response:
        return _json(self._shelf.listing())

    def runs(self, request: Request) -> Response:
        """The page of one run or several."""
        found, damaged = self._shelf.runs(_names(request))
        names = [self._shelf.name_of(run) for run in found]
        return HTMLResponse(live_run_page(found, names, (), damaged))

    def changes(self, request: Request) -> Response:
        """What is new of each run behind the step in ``after``."""
        names, after = _names(request), [_whole(text, "after") for text in request.query_params.getlist("after")]
        found, _ = self._shelf.runs(names)
        runs = {self._shelf.name_of(run): run for run in found}
        known = dict(zip(names, after, strict=False))
        grown = {name: growth(run, known.get(name, -1)) for name, run in runs.items()}
        for name, run in runs.items():
            grown[name]["completions"] = recorded_steps(run.run_dir.completions, [])
        return _json({"runs": grown, "metrics": about_metrics(n for one in grown.values() for n in one["courses"])})

    def completions(self, request: Request) -> Response:
        """Those of one step."""
        damaged: list[str] = []
        run_dir = self._shelf.run(_names(request)[0])
        rows = rows_of(run_dir.completions, _whole(request.query_params.get("step", ""), "step"), damaged)
        return _json({"rows": rows, "damaged": damaged})

    def log(self, request: Request) -> Response:
        """The last lines of one log: the one that tells most, or that of a start, a rank, a server."""
        given = request.query_params
        asked = {name: _whole(given[name], name) for name in ("attempt", "rank", "server") if given.get(name)}
        lines = deque[LogLine](maxlen=_LINES)  # a log that grows meanwhile, or has no line ends, fills no memory
        for line in read_log(self._shelf.run(_names(request)[0]), Wanted(**asked), _LINES):
            lines.append(replace(line, line=line.line[:_LONGEST_LINE]))
        return _json({"file": lines[-1].file if lines else "", "lines": [line.line for line in lines]})


def _names(request: Request) -> list[str]:
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if not 1 <= len(names) <= _MOST_RUNS:
        raise ConfigError(f"{len(names)} runs are asked for", f"One page shows 1 to {_MOST_RUNS} of them.")
    return names


def _whole(text: str, name: str) -> int:
    sign = text.removeprefix("-")
    if not (sign.isascii() and sign.isdecimal() and len(sign) < 16):
        raise ConfigError(f"{name} is a whole number, got {text[:40]!r}")
    return int(text)


def _json(value: Any) -> Response:
    return Response(json_text(value), media_type="application/json")


def _refused(_: Request, error: Exception) -> Response:
    told = of_system(error) if isinstance(error, OSError) else error
    return Response(f"{getattr(told, 'message', told)}\n{getattr(told, 'hint', '')}", 404, media_type="text/plain")
